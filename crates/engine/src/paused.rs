//! When capture was switched off: what is not known then is a gap with its length, and no unit is judged by half of its records.

use std::collections::VecDeque;

use warptrace_model::Window;

use crate::world::{World, window};

/// Stretches that are kept until no unit can reach into them.
const MAX_STRETCHES: usize = 4_096;
/// A stretch that has not ended is told in parts of this length, so that a recording that is cut off has said most of it.
const TELL_NANOS: u64 = 10_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct Paused {
    /// Ended ones, in order.
    stretches: VecDeque<Window>,
    since: Option<u64>,
    /// Up to here the open stretch is counted in `nanos`.
    counted: u64,
    nanos: u64,
    told_millis: u64,
}

impl Paused {
    pub(crate) fn switched(&mut self, at: u64, on: bool) {
        match (self.since, on) {
            (None, false) => (self.since, self.counted) = (Some(at), at),
            (Some(since), true) => {
                self.nanos = self.nanos.saturating_add(at.saturating_sub(self.counted));
                self.since = None;
                World::bounded(
                    &mut self.stretches,
                    window(since, at.max(since)),
                    MAX_STRETCHES,
                );
            }
            _ => {}
        }
    }

    /// All up to `now` was taken; with `over`, nothing more will come.
    pub(crate) fn lasted(&mut self, now: u64, over: bool) {
        let more = now.saturating_sub(self.counted);
        if self.since.is_some() && (over || more >= TELL_NANOS) {
            self.nanos = self.nanos.saturating_add(more);
            self.counted = self.counted.max(now);
        }
    }

    /// Whether a part of `w` was not recorded.
    pub(crate) fn is_in(&self, w: Window) -> bool {
        self.since.is_some_and(|since| since < w.end.0)
            || self.stretches.iter().rev().any(|s| s.overlap(&w) > 0)
    }

    /// Milliseconds that were not told yet.
    pub(crate) fn tell(&mut self) -> u64 {
        let millis = self.nanos / 1_000_000;
        let more = millis - self.told_millis;
        self.told_millis = millis;
        more
    }

    pub(crate) fn prune(&mut self, before: u64) {
        while self.stretches.front().is_some_and(|w| w.end.0 <= before) {
            self.stretches.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_was_switched_off_is_told_once_and_to_its_end() {
        let mut paused = Paused::default();
        paused.switched(5 * SECOND, false);
        paused.lasted(6 * SECOND, false);
        assert_eq!(paused.tell(), 0, "a short stretch is told when it ends");
        paused.switched(7 * SECOND, false);
        paused.lasted(15 * SECOND, false);
        assert_eq!((paused.tell(), paused.tell()), (10_000, 0));
        paused.switched(16 * SECOND, true);
        paused.switched(17 * SECOND, true);
        assert_eq!(paused.tell(), 1_000);
        paused.switched(20 * SECOND, false);
        paused.lasted(21 * SECOND, true);
        assert_eq!(paused.tell(), 1_000);
    }

    #[test]
    fn a_unit_is_whole_only_outside_of_every_stretch() {
        let mut paused = Paused::default();
        paused.switched(10, false);
        paused.switched(20, true);
        paused.switched(30, false);
        for (start, end, want) in [
            (0, 10, false),
            (0, 11, true),
            (12, 13, true),
            (19, 25, true),
            (20, 30, false),
            (25, 31, true),
            (40, 50, true),
        ] {
            assert_eq!(paused.is_in(window(start, end)), want, "{start}..{end}");
        }
        paused.prune(20);
        assert!(!paused.is_in(window(12, 13)));
    }
}
