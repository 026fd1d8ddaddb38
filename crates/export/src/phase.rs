//! How far a sender is on the way to its end: the same for every signal.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Counts;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// Nothing more is taken in; the thread sends what waits, until the deadline if there is one, and ends.
    Closing { deadline: Option<Instant> },
    /// The deadline passed: the thread ends as soon as its request does.
    Abandoned,
}

impl Phase {
    /// Nothing more is taken in. What is closed already keeps its deadline.
    pub(crate) fn close(&mut self, deadline: Option<Instant>) {
        if *self == Phase::Open {
            *self = Phase::Closing { deadline };
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Phase::Closing { deadline } => deadline,
            Phase::Open | Phase::Abandoned => None,
        }
    }

    /// Nothing is sent any more.
    pub(crate) fn is_over(self) -> bool {
        let is_past = |deadline: Instant| Instant::now() >= deadline;
        self == Phase::Abandoned || self.deadline().is_some_and(is_past)
    }

    /// How long the next try may take, of `most`.
    pub(crate) fn time_for_a_try(self, most: Duration) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline()
            .map(left)
            .map_or(most, |left| left.min(most))
    }
}

/// Waits until `done`, or until `deadline`.
pub(crate) fn wait_until<'a, T>(
    changed: &Condvar,
    mut state: MutexGuard<'a, T>,
    deadline: Instant,
    done: impl Fn(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    while !done(&mut state) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let waited = changed.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    state
}

/// Waits before the next try of a request, `wait` at most, since the last failed as `why` says; whether there is to be one, which is
/// counted then. Being closed ends the wait once, for a last try.
pub(crate) fn pause<T>(
    changed: &Condvar,
    mut state: MutexGuard<'_, T>,
    wait: Duration,
    why: &str,
    of: impl Fn(&mut T) -> (Phase, &mut Counts),
) -> bool {
    let (phase, counts) = of(&mut state);
    counts.last_failure = Some(why.to_owned());
    let was_open = phase == Phase::Open;
    let until = Instant::now() + phase.time_for_a_try(wait);
    let mut state = wait_until(changed, state, until, |state| {
        let (phase, _) = of(state);
        phase.is_over() || (was_open && phase != Phase::Open)
    });
    let (phase, counts) = of(&mut state);
    let goes_on = !phase.is_over();
    counts.retried += u64::from(goes_on);
    goes_on
}
