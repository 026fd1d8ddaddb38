//! When to try again: exponential backoff with jitter.
//!
//! Pure: it says how long to wait, given how many tries failed and a random number.

use std::time::Duration;

/// How persistent to be with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Before the second try, on average.
    pub first: Duration,
    /// The longest of the averages, each of which is twice the one before.
    pub longest: Duration,
    /// From the first try to the last one, at most.
    pub total: Duration,
}

impl Default for Retry {
    /// 0.5 s, doubling to 5 s, for 5 min: as long as the OpenTelemetry collector itself goes on with a request, and soon there
    /// when a collector is back, before a full queue drops spans.
    fn default() -> Retry {
        Retry {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(5),
            total: Duration::from_secs(300),
        }
    }
}

/// The waits of one request.
#[derive(Debug, Clone)]
pub struct Backoff {
    retry: Retry,
    failed: u32,
}

impl Backoff {
    pub const fn new(retry: Retry) -> Backoff {
        Backoff { retry, failed: 0 }
    }

    /// How long to wait after one more try failed, `elapsed` after the first one began; `None` when that was the last.
    ///
    /// `asked` is what the collector asked for, which comes before our own wait, but does not outlast [`Retry::total`] and
    /// is at least half of [`Retry::first`].
    /// `random` is any number: it spreads our own wait over half to one and a half of its average, so that processes that
    /// failed together do not come back together.
    pub fn next(
        &mut self,
        elapsed: Duration,
        asked: Option<Duration>,
        random: u64,
    ) -> Option<Duration> {
        let left = self.retry.total.checked_sub(elapsed);
        let left = left.filter(|left| !left.is_zero())?;
        let doubled = 1_u32.checked_shl(self.failed).unwrap_or(u32::MAX);
        let average = self.retry.first.saturating_mul(doubled);
        let average = average.min(self.retry.longest);
        self.failed = (self.failed + 1).min(31);
        let spread = 0.5 + (random >> 11) as f64 / (1_u64 << 53) as f64;
        let wait = match asked {
            Some(asked) => asked.max(self.retry.first / 2),
            None => average.mul_f64(spread),
        };
        Some(wait.min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u64 = 1 << 63;

    #[test]
    fn waits_double_to_the_longest_and_end_with_the_total() {
        let mut backoff = Backoff::new(Retry {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(5),
            total: Duration::from_secs(20),
        });
        let mut elapsed = Duration::ZERO;
        let mut waits = Vec::new();
        while let Some(wait) = backoff.next(elapsed, None, MIDDLE) {
            waits.push(wait.as_secs_f64());
            elapsed += wait;
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 5.0, 5.0, 3.0]);
    }

    #[test]
    fn jitter_is_from_half_to_one_and_a_half() {
        let wait = |random| Backoff::new(Retry::default()).next(Duration::ZERO, None, random);
        assert_eq!(wait(0), Some(Duration::from_millis(250)));
        let most = wait(u64::MAX).unwrap();
        assert!(most <= Duration::from_millis(750) && most > Duration::from_millis(749));
    }

    #[test]
    fn what_the_collector_asks_for_comes_first_within_the_total() {
        let mut backoff = Backoff::new(Retry::default());
        let ask = |backoff: &mut Backoff, secs| {
            backoff.next(Duration::from_secs(290), Some(Duration::from_secs(secs)), 0)
        };
        assert_eq!(ask(&mut backoff, 3), Some(Duration::from_secs(3)));
        assert_eq!(ask(&mut backoff, 0), Some(Duration::from_millis(250)));
        assert_eq!(ask(&mut backoff, 3600), Some(Duration::from_secs(10)));
        assert_eq!(backoff.next(Duration::from_secs(300), None, 0), None);
    }

    #[test]
    fn thousands_of_failures_overflow_nothing() {
        let mut backoff = Backoff::new(Retry {
            total: Duration::MAX,
            ..Retry::default()
        });
        for random in 0..5_000_u64 {
            let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let wait = backoff.next(Duration::ZERO, None, random).unwrap();
            assert!(wait <= Duration::from_millis(7500));
        }
    }
}
