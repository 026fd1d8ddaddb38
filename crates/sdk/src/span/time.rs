//! Moments, by two clocks: what a span shows is wall time, what it lasted is monotonic time.

use std::cell::Cell;
use std::fmt::Debug;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use warptrace_model::UnixNanos;

use super::Error;
use crate::ticks;

/// How far from now a moment that is given may lie, either way.
pub const WINDOW_SECS: f64 = 600.0;

/// One moment, read from both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timestamp {
    unix_nanos: i64,
    perf_secs: f64,
}

impl Timestamp {
    /// `unix_nanos` since the Unix epoch; `perf_secs` of a clock that only goes forward, from any beginning.
    pub const fn new(unix_nanos: i64, perf_secs: f64) -> Timestamp {
        Timestamp {
            unix_nanos,
            perf_secs,
        }
    }

    /// The same, of seconds: kept to the nanosecond, so that [`Timestamp::unix_secs`] gives the same double back.
    pub fn from_secs(unix_secs: f64, perf_secs: f64) -> Timestamp {
        let whole = unix_secs.floor();
        let nanos = ((unix_secs - whole) * 1e9).round() as i64;
        // Saturating: what is out of range is far outside of any window, and refused there.
        let unix_nanos = (whole as i64).saturating_mul(1_000_000_000);
        Timestamp::new(unix_nanos.saturating_add(nanos), perf_secs)
    }

    /// A moment that somebody else measured, s since the Unix epoch; on the monotonic clock it is as far from `now` as on the
    /// wall clock.
    pub fn near(unix_secs: f64, now: Timestamp) -> Timestamp {
        let perf_secs = now.perf_secs - (now.unix_secs() - unix_secs);
        Timestamp::from_secs(unix_secs, perf_secs)
    }

    /// The same, if it is not far away.
    ///
    /// # Errors
    /// When it is more than [`WINDOW_SECS`] from `now`.
    pub fn of_unix_secs(unix_secs: f64, now: Timestamp) -> Result<Timestamp, Error> {
        if unix_secs > now.unix_secs() + WINDOW_SECS {
            return Err(Error::TimestampInFuture);
        }
        // Also what is no number.
        if unix_secs.is_nan() || unix_secs < now.unix_secs() - WINDOW_SECS {
            return Err(Error::TimestampTooOld);
        }
        Ok(Timestamp::near(unix_secs, now))
    }

    pub const fn unix_nanos(self) -> i64 {
        self.unix_nanos
    }

    /// Unix time; the epoch for what was before it.
    pub fn unix(self) -> UnixNanos {
        UnixNanos(u64::try_from(self.unix_nanos).unwrap_or(0))
    }

    /// s since the Unix epoch.
    pub fn unix_secs(self) -> f64 {
        let whole = self.unix_nanos.div_euclid(1_000_000_000);
        let nanos = self.unix_nanos.rem_euclid(1_000_000_000);
        whole as f64 + nanos as f64 / 1e9
    }

    /// ms since the Unix epoch, truncated.
    pub fn unix_millis(self) -> i64 {
        (self.unix_secs() * 1000.0) as i64
    }

    pub const fn perf_secs(self) -> f64 {
        self.perf_secs
    }

    /// s from `earlier` to this, by the monotonic clock.
    pub fn secs_since(self, earlier: Timestamp) -> f64 {
        self.perf_secs - earlier.perf_secs
    }
}

/// Where moments come from.
pub trait Clock: Debug + Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The system's: CLOCK_REALTIME and CLOCK_MONOTONIC, which is what Python's `time.perf_counter` reads on Linux.
///
/// Each thread reads both once a millisecond, and between by the processor's counter where the kernel keeps time by that: within
/// 1 µs of the system's clocks, never backwards in a thread. So long it can take until a wall clock that was set is seen. Cost: a
/// read of the counter; without it, one clock read.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// How long a reading of the clocks is believed.
const VALID_NANOS: u64 = 1_000_000;
/// Counts become ns times 2^32 with this many bits behind the point: over [`VALID_NANOS`] that is exact to 0.1 ns.
const POINT: u32 = 32;

/// When a thread last read the clocks.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// CLOCK_MONOTONIC, ns, and CLOCK_REALTIME less that.
    monotonic: i64,
    apart: i64,
    /// The counter then, and how many counts more it is good for: none where the counter is not relied on, or not known yet.
    counts: u64,
    valid: u64,
    /// ns a count.
    rate: u64,
}

/// What the counter's speed is measured by: CLOCK_MONOTONIC and the counter, when that began, and at the last reading.
#[derive(Debug, Clone, Copy)]
struct Measured {
    first: (i64, u64),
    last: (i64, u64),
}

thread_local! {
    static ANCHOR: Cell<Anchor> = const { Cell::new(Anchor::NONE) };
    static MEASURED: Cell<Measured> = const { Cell::new(Measured::NONE) };
}

impl Measured {
    const NONE: Measured = Measured {
        first: (0, 0),
        last: (0, 0),
    };
}

impl Anchor {
    const NONE: Anchor = Anchor {
        monotonic: i64::MIN,
        apart: 0,
        counts: 0,
        valid: 0,
        rate: 0,
    };

    /// CLOCK_MONOTONIC when the counter says `counts`.
    #[inline]
    fn monotonic_at(&self, counts: u64) -> Option<i64> {
        let since = counts.wrapping_sub(self.counts);
        (since < self.valid).then(|| self.monotonic + ((since * self.rate) >> POINT) as i64)
    }

    /// CLOCK_MONOTONIC now, and what it goes by from here on.
    fn read(self, measured: Measured) -> (i64, Anchor, Measured) {
        let counted = ticks::can_be_relied_on();
        let (monotonic, counts) = match counted {
            true => read_together(),
            false => (nanos(ClockId::CLOCK_MONOTONIC), 0),
        };
        if self.valid == 0 && monotonic < self.monotonic.saturating_add(VALID_NANOS as i64) {
            return (monotonic, self, measured);
        }
        // By the counter a thread may have come a little further than the clock is; it waits for that, going slower.
        let furthest = match self.valid {
            0 => monotonic,
            _ => self.monotonic + VALID_NANOS as i64,
        };
        let ahead = (furthest - monotonic).clamp(0, VALID_NANOS as i64 / 2);
        let mut next = Anchor {
            monotonic: monotonic + ahead,
            apart: nanos(ClockId::CLOCK_REALTIME) - nanos(ClockId::CLOCK_MONOTONIC),
            ..Anchor::NONE
        };
        let last = (monotonic, counts);
        let mut first = last;
        if counted {
            // From the first reading on, it is the better known the longer that is ago. From the last one on it says whether that
            // still holds: a machine that was suspended, or moved to another, begins again.
            if let (Some(rate), Some(lately)) =
                (rate(measured.first, last), rate(measured.last, last))
                && rate.abs_diff(lately) <= rate / 1000
            {
                let slower = VALID_NANOS - ahead as u64;
                first = measured.first;
                next.counts = counts;
                next.valid = (VALID_NANOS << POINT) / rate;
                next.rate =
                    (u128::from(rate) * u128::from(slower) / u128::from(VALID_NANOS)) as u64;
            }
        }
        (next.monotonic, next, Measured { first, last })
    }

    /// CLOCK_MONOTONIC and CLOCK_REALTIME less that, by the system's clocks.
    #[cold]
    fn renew() -> (i64, i64) {
        // A thread that ends has no place for it any more.
        let known = ANCHOR.try_with(Cell::get).unwrap_or(Anchor::NONE);
        let measured = MEASURED.try_with(Cell::get).unwrap_or(Measured::NONE);
        let (monotonic, next, measured) = known.read(measured);
        let _ = ANCHOR.try_with(|anchor| anchor.set(next));
        let _ = MEASURED.try_with(|kept| kept.set(measured));
        (monotonic, next.apart)
    }
}

/// ns a count, of [`POINT`]. `None` over less than half a millisecond, since how far two reads lie apart is known to some tens of ns
/// only; and for what is below 1 MHz or above 100 GHz, and no clock.
fn rate(from: (i64, u64), to: (i64, u64)) -> Option<u64> {
    let (nanos, counts) = (to.0.checked_sub(from.0)?, to.1.checked_sub(from.1)?);
    if from.1 == 0 || nanos < VALID_NANOS as i64 / 2 || counts == 0 {
        return None;
    }
    let rate = ((nanos as u128) << POINT) / u128::from(counts);
    let possible = (1 << POINT) / 100..=1000 << POINT;
    possible.contains(&rate).then_some(rate as u64)
}

fn nanos(clock: ClockId) -> i64 {
    let at = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    at.as_secs() as i64 * 1_000_000_000 + i64::from(at.subsec_nanos())
}

/// CLOCK_MONOTONIC and the counter at the same moment, as well as that can be known.
fn read_together() -> (i64, u64) {
    let mut best = (0, 0, u64::MAX);
    // Again when the thread was interrupted between the reads.
    for _ in 0..3 {
        let before = ticks::read();
        let monotonic = nanos(ClockId::CLOCK_MONOTONIC);
        let took = ticks::read().wrapping_sub(before);
        if took < best.2 {
            best = (monotonic, before.wrapping_add(took / 2), took);
        }
        if took < 1000 {
            break;
        }
    }
    (best.0, best.1)
}

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> Timestamp {
        let known = ANCHOR.try_with(Cell::get).unwrap_or(Anchor::NONE);
        let (monotonic, apart) = match known.monotonic_at(ticks::read()) {
            Some(monotonic) => (monotonic, known.apart),
            None => Anchor::renew(),
        };
        // As Python computes it, so that its moments and ours are of one kind.
        Timestamp::new(monotonic + apart, monotonic as f64 * 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_as_doubles_come_back_as_they_were() {
        let mut secs = 1_750_000_000.0;
        for _ in 0..10_000 {
            assert_eq!(Timestamp::from_secs(secs, 0.0).unix_secs(), secs);
            secs += 0.123_456_789;
        }
        for odd in [0.0, 0.999_999_999_9, 1e18, -5.25] {
            let _ = Timestamp::from_secs(odd, 0.0).unix_millis();
        }
        assert_eq!(Timestamp::from_secs(-5.25, 0.0).unix_secs(), -5.25);
    }

    #[test]
    fn moments_follow_the_systems_clocks_and_never_go_back_on_the_monotonic_one() {
        let mut last = SystemClock.now();
        for _ in 0..100_000 {
            let now = SystemClock.now();
            assert!(now.perf_secs() >= last.perf_secs());
            last = now;
        }
        let wall = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        assert!(wall.as_secs_f64() >= last.unix_secs() - 1.0);
    }

    #[test]
    fn moments_stay_close_to_the_systems_clocks() {
        // Between two reads of the clock: where the thread was interrupted there is no telling, so the best of many counts.
        let mut furthest = Vec::new();
        for _ in 0..200 {
            std::thread::sleep(Duration::from_micros(300));
            let off = (0..20).map(|_| {
                let before = nanos(ClockId::CLOCK_MONOTONIC);
                let at = (SystemClock.now().perf_secs() * 1e9) as i64;
                let after = nanos(ClockId::CLOCK_MONOTONIC);
                (before - at).max(at - after).max(0)
            });
            furthest.push(off.min().unwrap());
        }
        furthest.sort_unstable();
        assert!(furthest[100] <= 2_000, "{furthest:?}");
    }

    #[test]
    fn a_thread_that_came_ahead_of_the_clock_waits_for_it_and_does_not_go_back() {
        let ahead = Anchor {
            monotonic: nanos(ClockId::CLOCK_MONOTONIC) - VALID_NANOS as i64 + 300_000,
            valid: 1,
            ..Anchor::NONE
        };
        let (monotonic, next, _) = ahead.read(Measured::NONE);
        assert!(monotonic >= ahead.monotonic + VALID_NANOS as i64 - 1);
        if next.rate > 0 {
            let end = next.monotonic_at(next.counts + next.valid - 1).unwrap();
            assert!(end - monotonic < VALID_NANOS as i64 - 200_000);
        }
    }

    #[test]
    fn a_given_moment_is_within_ten_minutes_of_now() {
        let now = Timestamp::from_secs(1_750_000_000.0, 1000.0);
        let at = |secs| Timestamp::of_unix_secs(secs, now);
        assert_eq!(at(1_750_000_600.0).unwrap().perf_secs(), 1600.0);
        assert_eq!(at(1_749_999_400.0).unwrap().perf_secs(), 400.0);
        assert!(matches!(at(1_750_000_600.5), Err(Error::TimestampInFuture)));
        assert!(matches!(at(1_749_999_399.5), Err(Error::TimestampTooOld)));
        assert!(matches!(at(f64::NAN), Err(Error::TimestampTooOld)));
    }
}
