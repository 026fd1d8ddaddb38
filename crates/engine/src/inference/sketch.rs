//! Mean and quantiles of a stream that forgets: what was usual lately.
//!
//! Values are counted in buckets of a width that is proportional to the value (64 an octave), so that a quantile is within
//! 1/128 (0.8 %) of the exact one whatever the distribution: the relative-error sketch of Masson, Rim and Lee ("DDSketch",
//! PVLDB 12(12), 2019) with the logarithm taken piecewise linearly, as HdrHistogram does, so that it is integers only and the
//! same on every machine. Forgetting is by halving all weights after every so many values: an exponential decay in steps
//! (Cohen and Strauss, "Maintaining time-decaying stream aggregates", J. Algorithms 59, 2006). It is by values, not by time:
//! what an idle server did last is still its usual.
//!
//! Memory: 4 bytes a bucket between the lowest and the highest value that is remembered: 140 for values within a factor of two,
//! 8 KB at most.

/// Buckets in an octave, as a power of two.
const OCTAVE_BITS: u32 = 6;
const OCTAVE: u64 = 1 << OCTAVE_BITS;
/// Weight of a new value: one alone is forgotten after sixteen halvings, a full bucket after 27.
const UNIT: u32 = 1 << 16;
/// Larger values count as this one: 137 s.
const MAX_VALUE: u64 = 1 << 37;

/// Weights of all values stay within 32 bits up to this half-life.
pub(super) const MAX_HALF_LIFE: u32 = 1 << 14;

/// The largest relative distance of a quantile from the exact one.
pub(crate) const RELATIVE_ERROR: f64 = 1.0 / (2 * OCTAVE) as f64;

fn bucket(value: u64) -> usize {
    if value < OCTAVE {
        return value as usize;
    }
    let octave = value.ilog2() - OCTAVE_BITS;
    (((u64::from(octave) + 1) << OCTAVE_BITS) + ((value >> octave) & (OCTAVE - 1))) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < OCTAVE {
        return bucket;
    }
    let octave = (bucket >> OCTAVE_BITS) - 1;
    let low = (OCTAVE + (bucket & (OCTAVE - 1))) << octave;
    low + ((1 << octave) >> 1)
}

/// Values seen, the latest counting most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sketch {
    /// Number of the bucket that `weights` begins with.
    first: usize,
    weights: Vec<u32>,
    /// Sum of `weights`.
    binned: u64,
    /// Sum of weights, and of weights times values: exact but for what halving rounds off, less than one of 2^16 of a value.
    weight: u64,
    sum: u128,
    half_life: u32,
    until_halving: u32,
}

impl Sketch {
    /// After `half_life` values what was counted before counts half. In 1..=[`MAX_HALF_LIFE`].
    pub(super) fn new(half_life: u32) -> Sketch {
        let half_life = half_life.clamp(1, MAX_HALF_LIFE);
        Sketch {
            first: 0,
            weights: Vec::new(),
            binned: 0,
            weight: 0,
            sum: 0,
            half_life,
            until_halving: half_life,
        }
    }

    /// Counts `value`. Cost: O(1), and O(buckets) once in a half-life or when the range grows.
    pub(super) fn record(&mut self, value: u64) {
        let value = value.min(MAX_VALUE);
        let at = bucket(value);
        if self.weights.is_empty() {
            self.first = at;
        } else if at < self.first {
            let more = self.first - at;
            self.weights.splice(0..0, std::iter::repeat_n(0, more));
            self.first = at;
        }
        let at = at - self.first;
        if at >= self.weights.len() {
            self.weights.resize(at + 1, 0);
        }
        self.weights[at] += UNIT;
        self.binned += u64::from(UNIT);
        self.weight += u64::from(UNIT);
        self.sum += u128::from(value) * u128::from(UNIT);
        self.until_halving -= 1;
        if self.until_halving == 0 {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.until_halving = self.half_life;
        self.weight /= 2;
        self.sum /= 2;
        for w in &mut self.weights {
            *w /= 2;
        }
        self.binned = self.weights.iter().map(|w| u64::from(*w)).sum();
        let used = |w: &u32| *w > 0;
        let end = self.weights.iter().rposition(used).map_or(0, |i| i + 1);
        self.weights.truncate(end);
        let begin = self.weights.iter().position(used).unwrap_or(0);
        self.weights.drain(..begin);
        self.first += begin;
    }

    /// The weighted mean, rounded down; `None` before the first value.
    pub(super) fn mean(&self) -> Option<u64> {
        (self.weight > 0).then(|| (self.sum / u128::from(self.weight)) as u64)
    }

    /// The smallest value that at least `percent` of the weight does not exceed, within [`RELATIVE_ERROR`]; `None` before the
    /// first value. Cost: O(buckets above it).
    pub(super) fn percentile(&self, percent: u32) -> Option<u64> {
        let wanted = self.binned * u64::from(percent.min(100));
        let mut up_to = self.binned;
        for (i, w) in self.weights.iter().enumerate().rev() {
            let below = up_to - u64::from(*w);
            if *w > 0 && (below * 100 < wanted || below == 0) {
                return Some(middle(self.first + i));
            }
            up_to = below;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Weights by plain halving, and the exact quantile and mean.
    fn exact(values: &[u64], half_life: u32, percent: u64) -> (u64, f64) {
        let n = values.len();
        let full = n / half_life as usize;
        let mut weighted: Vec<(u64, f64)> = values
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let halvings = full - i / half_life as usize;
                (*v, 0.5f64.powi(halvings as i32))
            })
            .collect();
        let total: f64 = weighted.iter().map(|(_, w)| w).sum();
        let mean = weighted.iter().map(|(v, w)| *v as f64 * w).sum::<f64>() / total;
        weighted.sort_by_key(|(v, _)| *v);
        let mut up_to = 0.0;
        for (v, w) in &weighted {
            up_to += w;
            if up_to * 100.0 >= total * percent as f64 - 1e-9 * total {
                return (*v, mean);
            }
        }
        (weighted.last().unwrap().0, mean)
    }

    #[test]
    fn every_value_is_near_the_middle_of_its_bucket() {
        for shift in 0..37 {
            for add in [0u64, 1, 3, 1_000, 123_457] {
                let v = (1u64 << shift) + add;
                let distance = middle(bucket(v)).abs_diff(v) as f64;
                assert!(distance <= v as f64 * RELATIVE_ERROR, "{v}");
                assert!(bucket(v) <= bucket(v + 1));
            }
        }
        assert!(
            bucket(MAX_VALUE) < 2_112,
            "a sketch is 8 KB and a bit at most"
        );
    }

    #[test]
    fn thirty_values_have_their_true_mean_and_their_29th_as_95th_percentile() {
        let mut s = Sketch::new(512);
        assert_eq!((s.mean(), s.percentile(95)), (None, None));
        (1..=30).for_each(|ms| s.record(ms * 1_000_000));
        assert_eq!(s.mean(), Some(15_500_000));
        let p95 = s.percentile(95).unwrap() as f64;
        assert!((p95 / 29e6 - 1.0).abs() <= RELATIVE_ERROR, "{p95}");
    }

    #[test]
    fn what_was_usual_long_ago_is_forgotten() {
        let mut s = Sketch::new(512);
        (0..10_000).for_each(|_| s.record(50_000_000));
        (0..15_000).for_each(|_| s.record(10_000_000));
        assert!(s.mean().unwrap().abs_diff(10_000_000) < 1_000);
        assert!(s.percentile(100).unwrap() < 10_100_000);
        assert_eq!(s.weights.len(), 1, "and takes no memory");
    }

    #[test]
    fn a_speed_up_is_the_usual_after_five_half_lives() {
        let mut s = Sketch::new(100);
        (0..1_000).for_each(|_| s.record(50_000_000));
        (0..500).for_each(|_| s.record(10_000_000));
        assert!(s.percentile(95).unwrap() < 10_100_000);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_its_error_of_the_exact_one(
            values in prop::collection::vec(prop_oneof![1u64..200, 1_000u64..80_000_000, 1u64..60_000_000_000], 1..600),
            half_life in 1u32..200,
            percent in 1u32..=100,
        ) {
            // Beyond 16 halvings values are forgotten, which the exact weights are not: keep to those before.
            let half_life = half_life.max(values.len() as u32 / 8);
            let mut s = Sketch::new(half_life);
            values.iter().for_each(|v| s.record(*v));
            let (want, mean) = exact(&values, half_life, u64::from(percent));
            let got = s.percentile(percent).unwrap();
            prop_assert!(got.abs_diff(want) as f64 <= want as f64 * RELATIVE_ERROR, "{} for {}", got, want);
            let got = s.mean().unwrap() as f64;
            prop_assert!((got - mean).abs() <= 1.0 + mean * 1e-4, "{} for {}", got, mean);
        }
    }
}
