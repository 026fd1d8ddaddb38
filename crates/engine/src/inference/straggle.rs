//! Whether a process launches less than usual while other work takes its CPUs.
//!
//! Once a second: its launches against an exponential mean of the seconds before, which stands still while the process
//! straggles. Fewer launches alone are no straggle (there may be fewer requests), nor are preemptions alone. The thresholds are
//! those of ingero 0.17.0; only involuntary switches count here, seconds whose records were lost do not, and the end is said.

use std::collections::VecDeque;

use warptrace_model::inference::StraggleState;
use warptrace_model::{OffCpu, Pid, Slice};

/// Weight of the newest second in the mean.
const ALPHA: f64 = 0.2;
const MIN_SECONDS: u32 = 3;
/// Thousandths of the usual launches that are missing.
const MIN_DROP_MILLIS: u32 = 300;
const MIN_PREEMPTIONS: u32 = 5;
const FORGET_SECONDS: u32 = 30;
/// Processes that ran instead, told and remembered.
const TOLD: usize = 8;
const REMEMBERED: usize = 32;
const SLICES: usize = 512;

/// Who ran on which CPU, lately.
#[derive(Default)]
pub(super) struct Slices(VecDeque<Slice>);

impl Slices {
    pub(super) fn ran(&mut self, s: Slice) {
        if self.0.len() == SLICES {
            self.0.pop_front();
        }
        self.0.push_back(s);
    }
}

/// One process, second by second.
#[derive(Default)]
pub(super) struct Straggler {
    launches: u64,
    preemptions: u32,
    /// ns that each ran instead.
    by: Vec<(Pid, u64)>,
    /// A part of this second was not recorded.
    unknown: bool,
    mean: f64,
    seconds: u32,
    idle: u32,
    /// When it began to straggle.
    since: Option<u64>,
}

/// What a second was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Second {
    pub(super) since: u64,
    pub(super) state: StraggleState,
    pub(super) drop_millis: u32,
    pub(super) preemptions: u32,
    pub(super) preempted_by: Vec<Pid>,
}

impl Straggler {
    pub(super) fn launched(&mut self) {
        self.launches += 1;
    }

    pub(super) fn lost(&mut self) {
        self.unknown = true;
    }

    pub(super) fn preempted(&mut self, o: &OffCpu, slices: &Slices) {
        self.preemptions = self.preemptions.saturating_add(1);
        let waited = o.waiting_for_cpu();
        for s in slices.0.iter().rev() {
            let pid = s.thread.pid;
            if s.start.plus(s.dur) <= waited.start {
                // They came in the order of their ends.
                break;
            }
            if s.cpu != o.cpu || pid == o.thread.pid || s.thread.tid.0 == 0 {
                continue;
            }
            let ns = warptrace_model::Window::at(s.start, s.dur).overlap(&waited);
            if ns == 0 {
                continue;
            }
            let at = self.by.iter().position(|(p, _)| *p == pid);
            match at {
                Some(i) => self.by[i].1 = self.by[i].1.saturating_add(ns),
                None if self.by.len() < REMEMBERED => self.by.push((pid, ns)),
                None => {}
            }
        }
    }

    /// A second is over at `now`.
    pub(super) fn second(&mut self, now: u64) -> Option<Second> {
        let launches = std::mem::take(&mut self.launches);
        let preemptions = std::mem::take(&mut self.preemptions);
        let mut by = std::mem::take(&mut self.by);
        if std::mem::take(&mut self.unknown) {
            return None;
        }
        if launches == 0 && preemptions == 0 {
            self.idle += 1;
            if self.idle >= FORGET_SECONDS {
                *self = Straggler::default();
                return None;
            }
        } else {
            self.idle = 0;
        }
        let missing = if self.mean > 0.0 {
            (1.0 - launches as f64 / self.mean).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let drop_millis = (missing * 1_000.0) as u32;
        let held_up = preemptions >= MIN_PREEMPTIONS && drop_millis >= MIN_DROP_MILLIS;
        let known = self.seconds >= MIN_SECONDS;
        let state = match (self.since, held_up && known) {
            (None, true) => StraggleState::Began,
            (Some(_), true) => StraggleState::Sustained,
            (Some(_), false) => StraggleState::Resolved,
            (None, false) => {
                self.mean = if self.seconds == 0 {
                    launches as f64
                } else {
                    ALPHA * launches as f64 + (1.0 - ALPHA) * self.mean
                };
                self.seconds = self.seconds.saturating_add(1);
                return None;
            }
        };
        let since = *self.since.get_or_insert(now);
        if state == StraggleState::Resolved {
            self.since = None;
        }
        by.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        Some(Second {
            since,
            state,
            drop_millis,
            preemptions,
            preempted_by: by.into_iter().take(TOLD).map(|(p, _)| p).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(
        s: &mut Straggler,
        at: u64,
        launches: u64,
        preemptions: u32,
    ) -> Option<StraggleState> {
        (0..launches).for_each(|_| s.launched());
        s.preemptions = preemptions;
        let second = s.second(at)?;
        assert_eq!(second.preemptions, preemptions);
        Some(second.state)
    }

    #[test]
    fn fewer_launches_and_preemptions_together_are_a_straggle_until_one_of_them_ends() {
        use StraggleState::{Began, Resolved, Sustained};
        let mut s = Straggler::default();
        for at in 0..2 {
            assert_eq!(second(&mut s, at, 100, 9), None);
        }
        assert_eq!(
            second(&mut s, 2, 60, 9),
            None,
            "it is not known well enough"
        );
        for at in 3..9 {
            second(&mut s, at, 100, 0);
        }
        assert_eq!(second(&mut s, 9, 50, 4), None, "nobody was in its way");
        for at in 10..20 {
            assert_eq!(second(&mut s, at, 100, 9), None);
        }
        assert_eq!(second(&mut s, 20, 50, 5), Some(Began));
        for at in 21..60 {
            assert_eq!(
                second(&mut s, at, 50, 5),
                Some(Sustained),
                "the mean stands still"
            );
        }
        assert_eq!(second(&mut s, 60, 50, 4), Some(Resolved));
        assert_eq!(second(&mut s, 61, 50, 5), Some(Began));
        assert_eq!(second(&mut s, 62, 100, 50), Some(Resolved));
        assert_eq!(second(&mut s, 63, 100, 50), None);
    }

    #[test]
    fn a_drop_of_our_own_making_is_none_and_an_idle_process_is_forgotten() {
        let mut s = Straggler::default();
        (0..10).for_each(|at| {
            second(&mut s, at, 100, 0);
        });
        s.lost();
        assert_eq!(second(&mut s, 10, 10, 9), None);
        (11..41).for_each(|at| {
            second(&mut s, at, 0, 0);
        });
        assert_eq!(s.seconds, 0);
        assert_eq!(second(&mut s, 41, 10, 9), None);
    }
}
