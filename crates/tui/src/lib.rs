//! The live table that `warptrace trace` shows in a terminal.
//!
//! It draws a [`warptrace_api::Live`] and turns keys into an [`Action`]; it computes nothing, reads no clock, and knows
//! neither where records come from nor where they go. What is drawn is a pure function of the moment and of the
//! [`View`] ([`render`]), so that every screen is tested as text; only [`Tui`] touches the terminal.
//!
//! The table takes the alternate screen, as `top` and `less` do: what was on the terminal comes back when it ends, and
//! the findings that the caller prints then stay in the scrollback. The terminal stays out of raw mode: keys come
//! one by one and unechoed, but Ctrl-C and Ctrl-\ are still signals, so they reach the program (and a traced command
//! in the same process group) even if nobody asks the table for keys.
//!
//! A traced command that writes to the same terminal would write over the table: the caller decides who has it.

mod render;
mod terminal;
mod text;
mod view;

pub use render::render;
pub use terminal::{Tui, restore};
pub use text::duration;
pub use view::{Action, Sort, View};
