//! Counts of calls that stay exact when single records are shed.

use warptrace_record::OpId;
use warptrace_record::histogram::{self, BUCKETS};

use crate::{Device, Pid, Window};

/// Durations, counted in [`warptrace_record::histogram`]'s buckets.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: Box::new([0; BUCKETS]),
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, nanos: u64) {
        self.counts[histogram::bucket(nanos)] += 1;
    }

    /// Counts `n` durations of `bucket`; a bucket out of range goes to the last.
    pub fn add(&mut self, bucket: usize, n: u64) {
        let cell = &mut self.counts[bucket.min(BUCKETS - 1)];
        *cell = cell.saturating_add(n);
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (a, b) in self.counts.iter_mut().zip(other.counts.iter()) {
            *a = a.saturating_add(*b);
        }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Quantile `q` in 0..1, ns, within one bucket (12.5 %); `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        histogram::quantile(&self.counts, q)
    }

    /// The buckets that counted something: index and count.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(i, n)| (i, *n))
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.buckets()).finish()
    }
}

/// What calls are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpKey {
    pub pid: Pid,
    pub device: Option<Device>,
    pub op: OpId,
}

/// Calls of one op that returned in `window`, exactly: what a backend counted, whether or not it could send the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpCount {
    pub key: OpKey,
    pub window: Window,
    /// Sum of their durations, ns.
    pub total: u64,
    pub durations: Histogram,
}
