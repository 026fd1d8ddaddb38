//! The terminal: taken at the start, given back on drop, on a panic, or by [`restore`].

use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event};
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Position, Rect};
use warptrace_api::Live;

use crate::render::page;
use crate::{Action, View, render};

/// The terminal's settings before the table took it; `None` while nobody has taken it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The table on the terminal of standard input and output. One at a time.
pub struct Tui {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    view: View,
    /// The moment shown while the picture stands still.
    held: Option<Live>,
}

impl Tui {
    /// Whether there is a terminal to draw on: standard input and output both are one, and `TERM` is not `dumb`.
    pub fn usable() -> bool {
        io::stdin().is_terminal()
            && io::stdout().is_terminal()
            && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
    }

    /// Takes the terminal: the alternate screen, no cursor, keys one by one and unechoed. Ctrl-C and Ctrl-\ stay
    /// signals; Ctrl-Z is ignored, since a stopped recorder would lose records. Without colour when `NO_COLOR` is set
    /// and not empty (no-color.org).
    ///
    /// # Errors
    /// When standard input is no terminal, when it refuses, or when another `Tui` has it.
    pub fn start() -> io::Result<Tui> {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        take()?;
        let started = || {
            execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
            // The alternate screen is empty. `Terminal::clear` would ask the terminal where its cursor is, and fail
            // where nobody answers.
            Terminal::new(CrosstermBackend::new(io::stdout()))
        };
        match started() {
            Ok(terminal) => Ok(Tui {
                terminal,
                view: View::new(color),
                held: None,
            }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    /// Takes the keys that were typed since the last call, and draws `live`. Never waits.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn draw(&mut self, live: &Live) -> io::Result<Action> {
        let mut action = Action::Continue;
        while action == Action::Continue && event::poll(Duration::ZERO)? {
            action = self.take_event(live)?;
        }
        self.paint(live)?;
        Ok(action)
    }

    /// Waits for `timeout` and answers keys as they come, drawing `live` again after each; returns early on
    /// [`Action::Stop`] alone. For a loop that would sleep otherwise.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn wait(&mut self, live: &Live, timeout: Duration) -> io::Result<Action> {
        let end = Instant::now() + timeout;
        while event::poll(end.saturating_duration_since(Instant::now()))? {
            let action = self.take_event(live)?;
            self.paint(live)?;
            if action == Action::Stop {
                return Ok(action);
            }
        }
        Ok(Action::Continue)
    }

    fn take_event(&mut self, live: &Live) -> io::Result<Action> {
        // Anything else (a resize) only asks to be drawn again.
        let Event::Key(key) = event::read()? else {
            return Ok(Action::Continue);
        };
        let shown = self.held.as_ref().unwrap_or(live);
        let area = Rect::from((Position::ORIGIN, self.terminal.size()?));
        let page = page(shown, &self.view, area);
        let action = self.view.key(key, shown.ops.len(), page);
        if self.view.paused && self.held.is_none() {
            self.held = Some(live.clone());
        } else if !self.view.paused {
            self.held = None;
        }
        Ok(action)
    }

    fn paint(&mut self, live: &Live) -> io::Result<()> {
        let shown = self.held.as_ref().unwrap_or(live);
        self.terminal
            .draw(|frame| render(shown, &self.view, frame))?;
        Ok(())
    }
}

impl Drop for Tui {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if a [`Tui`] has it; else does nothing. For a way out that drops nothing: a
/// second Ctrl-C that ends the process at once.
pub fn restore() {
    let Some(settings) = before().take() else {
        return;
    };
    // There is nobody left to tell when the terminal is gone.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = io::stdout().flush();
    let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &settings);
}

fn take() -> io::Result<()> {
    let mut before = before();
    if before.is_some() {
        return Err(io::Error::other("the terminal already shows a table"));
    }
    let settings = tcgetattr(io::stdin())?;
    let mut keys = settings.clone();
    keys.local_flags
        .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
    keys.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    keys.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    // 0 is no character: `_POSIX_VDISABLE` of Linux.
    keys.control_chars[SpecialCharacterIndices::VSUSP as usize] = 0;
    tcsetattr(io::stdin(), SetArg::TCSANOW, &keys)?;
    *before = Some(settings);
    restore_on_panic();
    Ok(())
}

/// So that the panic's message is seen, and the shell is usable after it. A panic of another thread ends the table as
/// well: the next draw takes nothing back.
fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
    });
}
