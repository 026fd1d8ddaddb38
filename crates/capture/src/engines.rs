//! Inference servers on this machine: which processes are one, and what they publish of themselves.
//!
//! [`classify`] reads a command line and nothing else; [`Tracker`] keeps who is known over scans of `/proc`; [`EngineWatch`] is
//! the thread that scans, and asks each engine for its metrics, over HTTP as they offer them. What an answer means is for
//! `formats` to say: an answer is handed on as bytes.
//!
//! A command line is its process's own claim. It is taken for a name and a port, never for an address: an engine is asked where
//! a socket listens in its own network namespace, and nowhere else, and a redirect is not followed.

mod command;
mod listening;
mod namespace;
mod scrape;
mod tracker;
mod watch;

pub use self::command::{ServingCommand, Via, classify};
pub use self::listening::{listening, where_to};
pub use self::scrape::Unreachable;
pub use self::tracker::{Change, EngineProcess, Seen, Tracker};
pub use self::watch::{Counts, EngineWatch, Report, Settings};
