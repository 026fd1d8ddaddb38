//! What the person at the keyboard chose: how the table is sorted, how far it is scrolled, whether it stands still.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use warptrace_api::LiveOp;

/// What a key asked of the recording. Keys that only change the picture ask nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on recording.
    Continue,
    /// Stop, and explain what was recorded.
    Stop,
}

/// The column that orders the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// Share of the window's time, largest first.
    #[default]
    Wall,
    /// Calls in the whole recording, most first.
    Count,
    /// Largest first, each over the window.
    P50,
    P95,
    P99,
    /// By name, then by process.
    Op,
}

impl Sort {
    /// The next one, around.
    #[must_use]
    pub const fn next(self) -> Sort {
        match self {
            Sort::Wall => Sort::Count,
            Sort::Count => Sort::P50,
            Sort::P50 => Sort::P95,
            Sort::P95 => Sort::P99,
            Sort::P99 => Sort::Op,
            Sort::Op => Sort::Wall,
        }
    }

    /// The rows in this order; equal ones by name, process and device, so that rows do not jump about.
    pub(crate) fn sorted(self, ops: &[LiveOp]) -> Vec<&LiveOp> {
        let mut rows: Vec<&LiveOp> = ops.iter().collect();
        rows.sort_by(|a, b| {
            match self {
                Sort::Wall => b.wall_share.total_cmp(&a.wall_share),
                Sort::Count => b.count.cmp(&a.count),
                Sort::P50 => b.p50_ns.cmp(&a.p50_ns),
                Sort::P95 => b.p95_ns.cmp(&a.p95_ns),
                Sort::P99 => b.p99_ns.cmp(&a.p99_ns),
                Sort::Op => std::cmp::Ordering::Equal,
            }
            .then_with(|| (a.op, a.pid, a.device).cmp(&(b.op, b.pid, b.device)))
        });
        rows
    }
}

/// The choices that a screen is drawn by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Off: nothing is told by colour alone, and no colour is sent.
    pub color: bool,
    pub sort: Sort,
    /// Rows of the table that are scrolled away at the top; drawn as far as there are rows.
    pub scroll: usize,
    /// The picture stands still; recording goes on.
    pub paused: bool,
    pub help: bool,
}

impl View {
    /// The view at the start.
    pub const fn new(color: bool) -> View {
        View {
            color,
            sort: Sort::Wall,
            scroll: 0,
            paused: false,
            help: false,
        }
    }

    /// Takes one key. `rows` is how many the table has, and `page` how many fit the screen.
    ///
    /// Ctrl-C is a signal where the terminal still makes it one; where it comes as a key it stops, too.
    pub fn key(&mut self, key: KeyEvent, rows: usize, page: usize) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Continue;
        }
        let last = rows.saturating_sub(page);
        let page = page.max(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Action::Stop;
            }
            KeyCode::Char('q') => return Action::Stop,
            KeyCode::Esc => self.help = false,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.scroll = 0;
            }
            KeyCode::Up | KeyCode::Char('k') => {
                self.scroll = self.scroll.min(last).saturating_sub(1)
            }
            KeyCode::Down | KeyCode::Char('j') => self.scroll = (self.scroll + 1).min(last),
            KeyCode::PageUp => self.scroll = self.scroll.min(last).saturating_sub(page),
            KeyCode::PageDown => self.scroll = (self.scroll + page).min(last),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = last,
            _ => {}
        }
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(view: &mut View, code: KeyCode) -> Action {
        view.key(KeyEvent::from(code), 10, 4)
    }

    #[test]
    fn q_and_ctrl_c_stop_and_nothing_else_does() {
        let mut view = View::new(true);
        let ctrl = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(view.key(ctrl('c'), 0, 0), Action::Stop);
        assert_eq!(press(&mut view, KeyCode::Char('q')), Action::Stop);
        for code in [
            KeyCode::Char('c'),
            KeyCode::Esc,
            KeyCode::Enter,
            KeyCode::Down,
        ] {
            assert_eq!(press(&mut view, code), Action::Continue);
        }
    }

    #[test]
    fn scrolling_ends_at_the_first_and_the_last_row() {
        let mut view = View::new(true);
        press(&mut view, KeyCode::Up);
        assert_eq!(view.scroll, 0);
        press(&mut view, KeyCode::PageDown);
        assert_eq!(view.scroll, 4);
        press(&mut view, KeyCode::PageDown);
        press(&mut view, KeyCode::Down);
        assert_eq!(view.scroll, 6);
        press(&mut view, KeyCode::Home);
        press(&mut view, KeyCode::End);
        press(&mut view, KeyCode::Up);
        assert_eq!(view.scroll, 5);
    }

    #[test]
    fn scrolling_answers_at_once_after_the_table_has_shrunk() {
        let mut view = View::new(true);
        view.scroll = 100;
        press(&mut view, KeyCode::Up);
        assert_eq!(view.scroll, 5);
    }

    #[test]
    fn the_sort_key_goes_through_all_columns_and_around() {
        let mut view = View::new(true);
        let mut seen = vec![view.sort];
        while seen.len() < 7 {
            press(&mut view, KeyCode::Char('s'));
            seen.push(view.sort);
        }
        assert_eq!(seen.first(), seen.last());
        assert_eq!(
            seen[..6],
            [
                Sort::Wall,
                Sort::Count,
                Sort::P50,
                Sort::P95,
                Sort::P99,
                Sort::Op
            ]
        );
    }
}
