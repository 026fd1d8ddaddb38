//! Moments, by two clocks: what a span shows is wall time, what it lasted is monotonic time.

use std::cell::Cell;
use std::fmt::Debug;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use warptrace_model::UnixNanos;

use super::Error;

/// How far from now a moment that is given may lie, either way.
pub const WINDOW_SECS: f64 = 600.0;

/// One moment, read from both clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
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
/// How far they are apart is measured again each millisecond, in each thread: so long it can take until a wall clock that was set
/// is seen. Cost: one clock read, not two.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// How long the distance between the clocks is believed.
const APART_VALID_NANOS: i64 = 1_000_000;

thread_local! {
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, and until when on the latter; ns.
    static APART: Cell<(i64, i64)> = const { Cell::new((0, i64::MIN)) };
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
        let nanos =
            |at: Duration| at.as_secs() as i64 * 1_000_000_000 + i64::from(at.subsec_nanos());
        let perf = read(ClockId::CLOCK_MONOTONIC);
        let monotonic = nanos(perf);
        // A thread that ends has no place for it any more.
        let known = APART.try_with(Cell::get).unwrap_or((0, i64::MIN));
        let apart = if monotonic < known.1 {
            known.0
        } else {
            let apart = nanos(read(ClockId::CLOCK_REALTIME)) - monotonic;
            let _ = APART.try_with(|known| known.set((apart, monotonic + APART_VALID_NANOS)));
            apart
        };
        // As Python computes it, so that its moments and ours are of one kind.
        let perf_nanos = perf.as_secs() as f64 * 1e9 + f64::from(perf.subsec_nanos());
        Timestamp::new(monotonic + apart, perf_nanos * 1e-9)
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
