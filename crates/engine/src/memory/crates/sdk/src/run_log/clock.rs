//! The two clocks of a run log.

use std::fmt::Debug;
use std::panic::RefUnwindSafe;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Where times come from.
pub trait Clock: Send + Sync + RefUnwindSafe + Debug {
    /// Unix time, s.
    fn wall_secs(&self) -> i64;
    /// µs from any beginning; the same for all processes of the machine.
    fn monotonic_micros(&self) -> u64;
}

/// The system's: CLOCK_REALTIME and CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_secs(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        }
    }

    fn monotonic_micros(&self) -> u64 {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC);
        time.map_or(0, |t| {
            let micros = t.tv_sec() * 1_000_000 + t.tv_nsec() / 1_000;
            u64::try_from(micros).unwrap_or(0)
        })
    }
}
