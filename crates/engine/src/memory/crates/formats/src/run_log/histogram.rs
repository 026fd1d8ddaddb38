//! Latencies counted within 1 %: 64 buckets an octave, so a bucket's middle is at most 0.8 % from any value in it.
//!
//! The histogram of `warptrace-record` is coarser (6 %) and of one size; this one holds only the buckets from the smallest
//! value to the largest, so that one for each model and principal is cheap.

/// Buckets an octave.
const STEPS: u64 = 64;
const SHIFT: u32 = STEPS.trailing_zeros();

/// Latencies, in any one unit. Count, smallest and largest are exact.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Latencies {
    count: u64,
    min: u64,
    max: u64,
    /// The bucket that `counts` begins with.
    first: usize,
    counts: Vec<u64>,
}

impl Latencies {
    /// Counts one value. Memory: 8 bytes a bucket between the smallest and the largest value, 30 kB at most.
    pub fn add(&mut self, value: u64) {
        (self.min, self.max) = match self.count {
            0 => (value, value),
            _ => (self.min.min(value), self.max.max(value)),
        };
        self.count += 1;
        let bucket = bucket(value);
        if self.counts.is_empty() {
            self.first = bucket;
        }
        if bucket < self.first {
            let missing = self.first - bucket;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = bucket;
        }
        let index = bucket - self.first;
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest, exact; `None` when empty.
    pub fn min(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min)
    }

    /// The largest, exact; `None` when empty.
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max)
    }

    /// The value at position ceil(`percent` × count / 100) of the sorted ones, counted from 1, within 1 %.
    ///
    /// `percent` is in `1..=100`. `None` when empty. Cost: one pass over the buckets.
    pub fn percentile(&self, percent: u32) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = (u128::from(percent) * u128::from(self.count)).div_ceil(100);
        let rank = (rank as u64).clamp(1, self.count);
        let mut before = 0;
        for (i, &n) in self.counts.iter().enumerate() {
            before += n;
            if before >= rank {
                return Some(middle(self.first + i).clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }
}

/// The bucket of `value`: exact below 64, then 64 an octave.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let octave = 63 - value.leading_zeros() - SHIFT;
    ((u64::from(octave) + 1) * STEPS + ((value >> octave) & (STEPS - 1))) as usize
}

/// The value in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    let low = (STEPS + bucket % STEPS) << octave;
    low + ((1 << octave) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_histogram_has_no_values() {
        let latencies = Latencies::default();
        assert_eq!(
            (latencies.min(), latencies.max(), latencies.percentile(50)),
            (None, None, None)
        );
    }

    proptest! {
        #[test]
        fn percentiles_are_within_one_percent(
            mut values in prop::collection::vec(prop_oneof![0u64..200, 0u64..10_000_000, any::<u64>()], 1..400),
            percent in 1u32..=100,
        ) {
            let mut latencies = Latencies::default();
            for &value in &values {
                latencies.add(value);
            }
            values.sort_unstable();
            let exact = values[(percent as usize * values.len()).div_ceil(100) - 1];
            let got = latencies.percentile(percent).unwrap();
            prop_assert!(got.abs_diff(exact) as f64 <= exact as f64 * 0.01, "{got} against {exact}");
            prop_assert_eq!(latencies.min(), values.first().copied());
            prop_assert_eq!(latencies.max(), values.last().copied());
            prop_assert_eq!(latencies.count(), values.len() as u64);
            prop_assert!(latencies.counts.len() <= 64 * 60);
        }
    }
}
