//! What is usual for a key: the last healthy units, their sums by category, and the spread of the whole.
//!
//! Knows nothing of causes. Sums are integers, so that the parts of the usual unit add up.

use std::collections::VecDeque;

use warptrace_model::{Category, Parts};

use crate::thresholds::BaselineRules;
use crate::units::{DeviceFacts, Measured};

/// One remembered unit.
#[derive(Debug, Clone, Copy)]
struct Entry {
    dur: u64,
    parts: Parts,
    facts: DeviceFacts,
}

/// The usual unit: means, each rounded down. `total` is their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usual {
    pub(crate) parts: Parts,
    pub(crate) total: u64,
    pub(crate) facts: DeviceFacts,
    pub(crate) median: u64,
    pub(crate) units: u64,
}

/// Healthy units of one key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Baseline {
    entries: VecDeque<Entry>,
    sums: Parts,
    /// Sums of what is set beside the units.
    facts: DeviceFacts,
    /// Durations, ascending.
    sorted: Vec<u64>,
    ready: bool,
}

impl Baseline {
    pub(crate) fn units(&self) -> usize {
        self.entries.len()
    }

    /// Whether units are judged against it.
    pub(crate) fn ready(&self) -> bool {
        self.ready
    }

    pub(crate) fn median(&self) -> u64 {
        self.sorted.get(self.sorted.len() / 2).copied().unwrap_or(0)
    }

    /// Median distance from the median, ns. Cost: O(n), n at most the window.
    pub(crate) fn mad(&self) -> u64 {
        let median = self.median();
        let (mut low, mut high) = (self.sorted.len() / 2, self.sorted.len() / 2);
        let mut distance = 0;
        // Distances ascend on both sides of the median: merge them up to their own middle.
        for _ in 0..=self.sorted.len() / 2 {
            let below = low.checked_sub(1).map(|i| median - self.sorted[i]);
            let above = self.sorted.get(high).map(|d| d - median);
            distance = match (below, above) {
                (Some(b), Some(a)) if b < a => {
                    low -= 1;
                    b
                }
                (_, Some(a)) => {
                    high += 1;
                    a
                }
                (Some(b), None) => {
                    low -= 1;
                    b
                }
                (None, None) => break,
            };
        }
        distance
    }

    /// Whether a unit of `dur` ns is longer than is usual. Its excess over the mean must be positive too.
    pub(crate) fn slow(&self, dur: u64, rules: &BaselineRules) -> bool {
        let median = self.median();
        let least = ((median as f64 * rules.median_fraction) as u64).max(rules.min_excess_nanos);
        dur > median.saturating_add(least)
            && dur > median.saturating_add((self.mad() as f64 * rules.mad_factor) as u64)
            && dur > self.usual().total
    }

    pub(crate) fn usual(&self) -> Usual {
        let n = self.entries.len() as u64;
        if n == 0 {
            return Usual::default();
        }
        let parts = Parts(self.sums.0.map(|s| s / n));
        let f = &self.facts;
        Usual {
            parts,
            total: parts.total(),
            facts: DeviceFacts {
                launches: f.launches / n,
                bytes: f.bytes.map(|b| b / n),
                contention: f.contention / n,
                allocation: f.allocation / n,
                throttle: f.throttle / n,
                throttle_of_max: f.throttle_of_max / n,
            },
            median: self.median(),
            units: n,
        }
    }

    /// Remembers a healthy unit. While it is learning, that is any unit; what turns out to be an outlier is then dropped.
    pub(crate) fn learn(&mut self, m: &Measured, rules: &BaselineRules) {
        if self.entries.len() == rules.window_units.max(1)
            && let Some(old) = self.entries.pop_front()
        {
            self.forget(&old);
        }
        let e = Entry {
            dur: m.dur(),
            parts: m.parts,
            facts: m.facts,
        };
        self.remember(&e);
        self.entries.push_back(e);
        if !self.ready {
            let n = self.entries.len();
            let long = self.median() >= rules.long_unit_nanos;
            if n >= rules.min_units || (long && n >= rules.min_units_long) {
                self.ready = true;
                self.drop_outliers(rules);
            }
        }
    }

    fn drop_outliers(&mut self, rules: &BaselineRules) {
        let median = self.median();
        let least = ((median as f64 * rules.median_fraction) as u64).max(rules.min_excess_nanos);
        let limit = median.saturating_add(least.max((self.mad() as f64 * rules.mad_factor) as u64));
        for e in std::mem::take(&mut self.entries) {
            if e.dur > limit {
                self.forget(&e);
            } else {
                self.entries.push_back(e);
            }
        }
    }

    fn remember(&mut self, e: &Entry) {
        for c in Category::ALL {
            self.sums[c] += e.parts[c];
        }
        // Broken arguments may overflow sums of bytes; what was added is taken away again all the same.
        apply(&mut self.facts, &e.facts, |a, b| *a = a.wrapping_add(b));
        let at = self.sorted.partition_point(|d| *d < e.dur);
        self.sorted.insert(at, e.dur);
    }

    fn forget(&mut self, e: &Entry) {
        for c in Category::ALL {
            self.sums[c] -= e.parts[c];
        }
        apply(&mut self.facts, &e.facts, |a, b| *a = a.wrapping_sub(b));
        let at = self.sorted.partition_point(|d| *d < e.dur);
        self.sorted.remove(at);
    }
}

fn apply(to: &mut DeviceFacts, from: &DeviceFacts, f: impl Fn(&mut u64, u64)) {
    f(&mut to.launches, from.launches);
    for (a, b) in to.bytes.iter_mut().zip(from.bytes) {
        f(a, b);
    }
    f(&mut to.contention, from.contention);
    f(&mut to.allocation, from.allocation);
    f(&mut to.throttle, from.throttle);
    f(&mut to.throttle_of_max, from.throttle_of_max);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(durations: &[u64]) -> Baseline {
        let mut b = Baseline::default();
        for d in durations {
            b.remember(&Entry {
                dur: *d,
                parts: Parts::default(),
                facts: DeviceFacts::default(),
            });
        }
        b
    }

    fn plain_mad(durations: &[u64]) -> u64 {
        let mut s = durations.to_vec();
        s.sort_unstable();
        let median = s[s.len() / 2];
        let mut d: Vec<u64> = s.iter().map(|x| x.abs_diff(median)).collect();
        d.sort_unstable();
        d[d.len() / 2]
    }

    proptest::proptest! {
        #[test]
        fn the_mad_is_the_median_of_the_distances(d in proptest::collection::vec(0u64..1000, 1..60)) {
            proptest::prop_assert_eq!(with(&d).mad(), plain_mad(&d));
        }
    }

    #[test]
    fn a_unit_is_slow_only_past_every_threshold() {
        let rules = BaselineRules {
            min_excess_nanos: 5,
            ..crate::Rules::default().baseline
        };
        let b = with(&[100, 100, 100, 100, 100]);
        assert!(!b.slow(110, &rules), "a tenth more is not slow yet");
        assert!(b.slow(111, &rules));
        let spread = with(&[80, 90, 100, 110, 120]);
        assert!(!spread.slow(160, &rules), "within 4.5 standard deviations");
        assert!(spread.slow(170, &rules));
        let short = BaselineRules {
            min_excess_nanos: 500,
            ..rules
        };
        assert!(!b.slow(600, &short));
        assert!(b.slow(601, &short));
    }
}
