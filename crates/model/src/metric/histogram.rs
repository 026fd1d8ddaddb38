//! Distributions: with buckets that were chosen, and with buckets that grow by a factor.

use std::sync::Arc;

/// Counts between chosen bounds. A value on a bound belongs to the bucket that the bound closes.
#[derive(Debug, Clone, PartialEq)]
pub struct Explicit {
    bounds: Arc<[f64]>,
    /// One more than bounds: the last bucket has no upper one.
    counts: Vec<u64>,
    sum: f64,
    /// Smallest and largest, where that is known.
    range: Option<(f64, f64)>,
}

impl Explicit {
    /// Empty. Bounds ascend.
    pub fn new(bounds: &[f64]) -> Explicit {
        Explicit {
            bounds: bounds.into(),
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
            range: None,
        }
    }

    /// Of what was counted elsewhere, bucket by bucket; `None` if there is not one count more than bounds, or bounds do not
    /// ascend.
    pub fn from_counts(
        bounds: &[f64],
        counts: Vec<u64>,
        sum: f64,
        range: Option<(f64, f64)>,
    ) -> Option<Explicit> {
        let ascend = bounds.windows(2).all(|two| two[0] < two[1]);
        (ascend && counts.len() == bounds.len() + 1).then(|| Explicit {
            bounds: bounds.into(),
            counts,
            sum,
            range,
        })
    }

    /// Counts a value; NaN is not counted.
    pub fn record(&mut self, value: f64) {
        self.record_many(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_many(&mut self, value: f64, n: u64) {
        if value.is_nan() || n == 0 {
            return;
        }
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] = self.counts[bucket].saturating_add(n);
        self.sum += value * n as f64;
        self.range = wider(self.range, value, value);
    }

    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Smallest and largest; `None` when empty or not known.
    pub fn range(&self) -> Option<(f64, f64)> {
        self.range
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds `other`; false if its bounds are others, and then nothing was added.
    pub fn merge(&mut self, other: &Explicit) -> bool {
        if self.bounds != other.bounds {
            return false;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum += other.sum;
        if let Some((min, max)) = other.range {
            self.range = wider(self.range, min, max);
        }
        true
    }

    /// What was counted since `earlier`; `None` if it cannot be an earlier state of this one. Smallest and largest are not known.
    pub fn since(&self, earlier: &Explicit) -> Option<Explicit> {
        if self.bounds != earlier.bounds {
            return None;
        }
        let pairs = self.counts.iter().zip(&earlier.counts);
        Some(Explicit {
            bounds: Arc::clone(&self.bounds),
            counts: pairs
                .map(|(now, then)| now.checked_sub(*then))
                .collect::<Option<_>>()?,
            sum: self.sum - earlier.sum,
            range: None,
        })
    }

    /// The same values times `factor`, between `bounds`, which are this one's times the factor, but for rounding. With other
    /// bounds each bucket is counted at its upper bound, the last one at the largest value.
    #[must_use]
    pub fn scaled(&self, factor: f64, bounds: &[f64]) -> Explicit {
        let range = self.range.map(|(min, max)| (min * factor, max * factor));
        let alike = self.bounds.len() == bounds.len()
            && self
                .bounds
                .iter()
                .zip(bounds)
                .all(|(ours, theirs)| (ours * factor - theirs).abs() <= theirs.abs() * 1e-9);
        if alike {
            return Explicit {
                bounds: bounds.into(),
                counts: self.counts.clone(),
                sum: self.sum * factor,
                range,
            };
        }
        let mut to = Explicit::new(bounds);
        for (i, n) in self.counts.iter().enumerate() {
            let at = match self.bounds.get(i) {
                Some(bound) => bound * factor,
                None => range.map_or(f64::INFINITY, |(_, max)| max),
            };
            to.record_many(at, *n);
        }
        to.sum = self.sum * factor;
        to.range = range;
        to
    }

    /// Quantile `q` in 0..1, interpolated in its bucket; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let edges = self.bounds.iter().copied().chain([f64::INFINITY]);
        let first = self.bounds.first().map_or(0.0, |first| first.min(0.0));
        quantile(q, self.range, first, edges.zip(self.counts.iter().copied()))
    }
}

/// Counts in buckets that grow by a factor of 2^(2^-scale), from the smallest value to the largest, of values of 0 and more: the
/// exponential histogram of OpenTelemetry.
///
/// When there are too many buckets, the scale goes down by one and pairs of them become one, so that the error stays as small as
/// 160 buckets allow: 2.2 % over a range of a thousand, 4.5 % over a million.
#[derive(Debug, Clone, PartialEq)]
pub struct Exponential {
    scale: i32,
    zero_count: u64,
    /// Of the first bucket: it holds values above base^offset, up to base^(offset + 1).
    offset: i32,
    counts: Vec<u64>,
    sum: f64,
    range: Option<(f64, f64)>,
}

impl Default for Exponential {
    fn default() -> Exponential {
        Exponential {
            scale: Exponential::MAX_SCALE,
            zero_count: 0,
            offset: 0,
            counts: Vec::new(),
            sum: 0.0,
            range: None,
        }
    }
}

impl Exponential {
    /// OpenTelemetry's default.
    pub const MAX_BUCKETS: usize = 160;
    /// OpenTelemetry's default.
    pub const MAX_SCALE: i32 = 20;
    const MIN_SCALE: i32 = -10;

    /// Counts a value. NaN and infinity are not counted, a negative value is 0: durations and sizes are neither.
    pub fn record(&mut self, value: f64) {
        self.record_many(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_many(&mut self, value: f64, n: u64) {
        if !value.is_finite() || n == 0 {
            return;
        }
        let value = value.max(0.0);
        self.sum += value * n as f64;
        self.range = wider(self.range, value, value);
        // Subnormal values have no bucket of their own at any scale worth having.
        if value < f64::MIN_POSITIVE {
            self.zero_count = self.zero_count.saturating_add(n);
            return;
        }
        loop {
            let index = index_of(value, self.scale);
            if self.make_room(index, index) {
                let at = (index - self.offset) as usize;
                self.counts[at] = self.counts[at].saturating_add(n);
                return;
            }
            self.coarsen();
        }
    }

    /// Durations that were counted elsewhere, in seconds, each bucket at its middle; `total_nanos` is their exact sum. Smallest and
    /// largest are not known. A later state of the same histogram is a later state of this one.
    pub fn from_durations(durations: &crate::Histogram, total_nanos: u64) -> Exponential {
        let mut to = Exponential::default();
        for (bucket, n) in durations.buckets() {
            let (low, high) = warptrace_record::histogram::bounds(bucket);
            to.record_many((low + (high - 1 - low) / 2) as f64 / 1e9, n);
        }
        to.sum = total_nanos as f64 / 1e9;
        to.range = None;
        to
    }

    pub fn scale(&self) -> i32 {
        self.scale
    }

    pub fn zero_count(&self) -> u64 {
        self.zero_count
    }

    pub fn offset(&self) -> i32 {
        self.offset
    }

    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Smallest and largest; `None` when empty or not known.
    pub fn range(&self) -> Option<(f64, f64)> {
        self.range
    }

    pub fn count(&self) -> u64 {
        self.zero_count + self.counts.iter().sum::<u64>()
    }

    /// Adds `other`, at the coarser of both scales or a coarser one.
    pub fn merge(&mut self, other: &Exponential) {
        let mut other = other.clone();
        loop {
            while self.scale > other.scale {
                self.coarsen();
            }
            while other.scale > self.scale {
                other.coarsen();
            }
            let last = other.offset + other.counts.len() as i32 - 1;
            if other.counts.is_empty() || self.make_room(other.offset, last) {
                break;
            }
            self.coarsen();
        }
        for (i, n) in other.counts.iter().enumerate() {
            let at = (other.offset - self.offset) as usize + i;
            self.counts[at] = self.counts[at].saturating_add(*n);
        }
        self.zero_count = self.zero_count.saturating_add(other.zero_count);
        self.sum += other.sum;
        if let Some((min, max)) = other.range {
            self.range = wider(self.range, min, max);
        }
    }

    /// What was counted since `earlier`; `None` if it cannot be an earlier state of this one. Smallest and largest are not known.
    pub fn since(&self, earlier: &Exponential) -> Option<Exponential> {
        let mut earlier = earlier.clone();
        if earlier.scale < self.scale {
            return None;
        }
        while earlier.scale > self.scale {
            earlier.coarsen();
        }
        let mut rest = self.clone();
        for (i, n) in earlier.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let at = usize::try_from(earlier.offset - self.offset + i as i32).ok()?;
            let count = rest.counts.get_mut(at)?;
            *count = count.checked_sub(*n)?;
        }
        rest.zero_count = rest.zero_count.checked_sub(earlier.zero_count)?;
        rest.sum -= earlier.sum;
        rest.range = None;
        Some(rest)
    }

    /// The values times `factor` between `bounds`, each bucket counted at its upper end, the last at the largest value: a count up
    /// to a bound is never above the true one.
    pub fn to_explicit(&self, factor: f64, bounds: &[f64]) -> Explicit {
        let mut to = Explicit::new(bounds);
        to.record_many(0.0, self.zero_count);
        let largest = self.range.map_or(f64::INFINITY, |(_, max)| max);
        for (upper, n) in self.buckets() {
            to.record_many(upper.min(largest) * factor, n);
        }
        to.sum = self.sum * factor;
        to.range = self.range.map(|(min, max)| (min * factor, max * factor));
        to
    }

    /// Quantile `q` in 0..1, within its bucket; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let first = lower_bound(self.offset, self.scale);
        let zero = (self.zero_count > 0).then_some((0.0, self.zero_count));
        let first = if zero.is_some() { 0.0 } else { first };
        quantile(q, self.range, first, zero.into_iter().chain(self.buckets()))
    }

    /// Upper ends and counts.
    fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + Clone + '_ {
        let counts = self.counts.iter().enumerate();
        counts.map(|(i, n)| (lower_bound(self.offset + i as i32 + 1, self.scale), *n))
    }

    /// Makes buckets for indices from `first` to `last`; false if there would be too many.
    fn make_room(&mut self, first: i32, last: i32) -> bool {
        if self.counts.is_empty() {
            if (last - first) as usize >= Exponential::MAX_BUCKETS {
                return false;
            }
            self.offset = first;
            self.counts = vec![0; (last - first) as usize + 1];
            return true;
        }
        let end = self.offset + self.counts.len() as i32 - 1;
        let (low, high) = (first.min(self.offset), last.max(end));
        let buckets = (i64::from(high) - i64::from(low) + 1) as usize;
        if buckets > Exponential::MAX_BUCKETS && self.scale > Exponential::MIN_SCALE {
            return false;
        }
        let before = (self.offset - low) as usize;
        self.counts.splice(0..0, std::iter::repeat_n(0, before));
        self.counts.resize(buckets, 0);
        self.offset = low;
        true
    }

    /// Makes two buckets one.
    fn coarsen(&mut self) {
        let offset = self.offset >> 1;
        let mut counts: Vec<u64> = Vec::with_capacity(self.counts.len() / 2 + 1);
        for (i, n) in self.counts.iter().enumerate() {
            let at = (((self.offset + i as i32) >> 1) - offset) as usize;
            if at == counts.len() {
                counts.push(0);
            }
            counts[at] = counts[at].saturating_add(*n);
        }
        self.offset = offset;
        self.counts = counts;
        self.scale -= 1;
    }
}

/// The bucket of a normal positive value: the greatest integer below log_base(value), so that bounds belong to the bucket they close.
fn index_of(value: f64, scale: i32) -> i32 {
    let bits = value.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let fraction = bits & ((1 << 52) - 1);
    if scale <= 0 {
        // A power of two closes the bucket below it.
        let index = if fraction == 0 {
            exponent - 1
        } else {
            exponent
        };
        return index >> -scale;
    }
    if fraction == 0 {
        return (exponent << scale) - 1;
    }
    // Of the fraction's logarithm alone, so that great and small values are as exact as those near 1.
    let mantissa = f64::from_bits(fraction | 1023 << 52);
    let index = (mantissa.log2() * f64::from(1 << scale)).ceil() as i32 - 1;
    (exponent << scale) + index.clamp(0, (1 << scale) - 1)
}

/// base^index.
fn lower_bound(index: i32, scale: i32) -> f64 {
    (f64::from(index) * f64::from(-scale).exp2()).exp2()
}

fn wider(range: Option<(f64, f64)>, low: f64, high: f64) -> Option<(f64, f64)> {
    Some(match range {
        None => (low, high),
        Some((min, max)) => (min.min(low), max.max(high)),
    })
}

/// Of buckets as upper ends and counts, the first of which begins at `from`.
fn quantile(
    q: f64,
    range: Option<(f64, f64)>,
    from: f64,
    buckets: impl Iterator<Item = (f64, u64)> + Clone,
) -> Option<f64> {
    let all: u64 = buckets.clone().map(|(_, n)| n).sum();
    if all == 0 {
        return None;
    }
    let rank = q.clamp(0.0, 1.0) * all as f64;
    let (mut before, mut low) = (0, from);
    let mut value = low;
    for (high, n) in buckets {
        if n > 0 {
            let inside = ((rank - before as f64) / n as f64).clamp(0.0, 1.0);
            // Without an upper end there is nothing to go by but the lower one.
            value = if high.is_finite() {
                low + (high - low) * inside
            } else {
                low
            };
            before += n;
            if before as f64 >= rank {
                break;
            }
        }
        low = high;
    }
    Some(match range {
        Some((min, max)) => value.clamp(min, max),
        None => value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_the_bucket_that_it_closes() {
        let mut explicit = Explicit::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.5, f64::NAN] {
            explicit.record(value);
        }
        assert_eq!(explicit.counts(), [2, 2, 1]);
        assert_eq!((explicit.sum(), explicit.range()), (7.5, Some((0.5, 2.5))));
        let mut exponential = Exponential::default();
        exponential.record(1.0);
        while exponential.scale > 0 {
            exponential.coarsen();
        }
        // (0.5, 1]
        assert_eq!((exponential.offset(), exponential.counts()), (-1, &[1][..]));
    }

    #[test]
    fn durations_counted_elsewhere_keep_their_number_and_sum_and_only_grow() {
        let mut durations = crate::Histogram::default();
        let (mut total, mut earlier) = (0, Exponential::default());
        for nanos in [0, 1, 7, 480, 999, 52_000, 1_000_000, 3_000_000_000, 1 << 41] {
            durations.record(nanos);
            total += nanos;
            let now = Exponential::from_durations(&durations, total);
            assert_eq!(now.count(), durations.count(), "{nanos}");
            assert_eq!(now.sum(), total as f64 / 1e9);
            let new = now.since(&earlier);
            assert_eq!(new.map(|new| new.count()), Some(1), "{nanos}");
            earlier = now;
        }
    }

    #[test]
    fn bucket_indices_hold_their_values_at_every_scale() {
        for scale in Exponential::MIN_SCALE..=Exponential::MAX_SCALE {
            let mut value = 1.234e-9;
            while value < 1e12 {
                let index = index_of(value, scale);
                let (low, high) = (lower_bound(index, scale), lower_bound(index + 1, scale));
                let slack = 1.0 + 1e-9;
                assert!(
                    low <= value * slack && value <= high * slack,
                    "{value} at {scale}"
                );
                value *= 3.7;
            }
            for power in [-30, -1, 0, 1, 30] {
                let index = index_of(2_f64.powi(power), scale);
                assert!(lower_bound(index + 1, scale).log2().ceil() as i32 >= power);
                assert!(index_of(2_f64.powi(power) * (1.0 + 1e-12), scale) > index || scale < 0);
            }
        }
    }

    #[test]
    fn an_exponential_histogram_coarsens_until_its_range_fits() {
        let mut histogram = Exponential::default();
        histogram.record(0.001);
        assert_eq!(histogram.scale(), 20);
        for i in 0..100_000 {
            histogram.record(0.001 * 1.000_07_f64.powi(i));
        }
        assert!(histogram.counts().len() <= Exponential::MAX_BUCKETS);
        assert_eq!(histogram.scale(), 3, "from 1 ms to 1.1 s are ten octaves");
        assert_eq!(histogram.count(), 100_001);
        let median = histogram.quantile(0.5).unwrap();
        let exact = 0.001 * 1.000_07_f64.powi(50_000);
        assert!((median / exact - 1.0).abs() < 0.05, "{median} {exact}");
        histogram.record(f64::MAX);
        histogram.record(f64::MIN_POSITIVE);
        histogram.record(0.0);
        histogram.record(-1.0);
        histogram.record(f64::INFINITY);
        assert_eq!((histogram.count(), histogram.zero_count()), (100_005, 2));
        assert!(histogram.counts().len() <= Exponential::MAX_BUCKETS);
    }

    #[test]
    fn what_came_since_added_to_what_was_before_is_all() {
        let values: Vec<f64> = (1..400).map(|i| f64::from(i) * f64::from(i % 7)).collect();
        for cut in [0, 1, 200, 398] {
            let mut earlier = Exponential::default();
            values[..cut].iter().for_each(|v| earlier.record(*v));
            let mut now = earlier.clone();
            values[cut..].iter().for_each(|v| now.record(*v));
            let since = now.since(&earlier).unwrap();
            assert_eq!(since.count() as usize, values.len() - cut);
            let mut both = earlier.clone();
            both.merge(&since);
            assert_eq!((both.scale(), both.count()), (now.scale(), now.count()));
            assert_eq!(
                both.counts().iter().sum::<u64>(),
                now.counts().iter().sum::<u64>()
            );
            if cut > 0 {
                assert_eq!(earlier.since(&now), None, "time does not run backwards");
            }
        }
    }

    #[test]
    fn scaled_to_the_same_bounds_it_is_exact_and_to_others_it_counts_late_at_most() {
        let mut seconds = Explicit::new(&[1e-4, 2.5e-4]);
        for value in [5e-5, 2e-4, 2e-4, 9.0] {
            seconds.record(value);
        }
        let nanos = seconds.scaled(1e9, &[1e5, 2.5e5]);
        assert_eq!(
            (nanos.counts(), nanos.bounds()),
            (&[1, 2, 1][..], &[1e5, 2.5e5][..])
        );
        assert_eq!(
            seconds.scaled(1.0, &[2.5e-4, 5.0, 10.0]).counts(),
            [3, 0, 1, 0]
        );
        let mut exponential = Exponential::default();
        for value in [0.0, 0.3, 0.9, 2.0, 100.0] {
            exponential.record(value);
        }
        let explicit = exponential.to_explicit(1.0, &[0.5, 1.0, 10.0]);
        assert_eq!(explicit.counts(), [2, 1, 1, 1]);
        assert_eq!(explicit.count(), exponential.count());
    }

    #[test]
    fn a_quantile_is_within_its_bucket_and_the_range() {
        let mut explicit = Explicit::new(&[1.0, 2.0, 4.0]);
        assert_eq!(explicit.quantile(0.5), None);
        (0..100).for_each(|_| explicit.record(1.5));
        assert_eq!(explicit.quantile(0.5), Some(1.5));
        assert_eq!(Explicit::new(&[]).quantile(0.5), None);
        let mut exponential = Exponential::default();
        (1..=1000).for_each(|i| exponential.record(f64::from(i)));
        for (q, exact) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let value = exponential.quantile(q).unwrap();
            assert!((value / exact - 1.0).abs() < 0.05, "{q}: {value}");
        }
    }
}
