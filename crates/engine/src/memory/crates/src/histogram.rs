//! The histogram of durations that the kernel programs, the preload library and the engine all count in.
//!
//! Log-linear: exact below 8 ns, then 8 buckets an octave up to 2^40 ns (18 minutes), so a bucket is at most 12.5 % wide
//! and its middle at most 6.25 % from any value in it. Two histograms add and subtract bucket by bucket, which makes a
//! quantile of any window exact up to that width. The kernel's copy of [`bucket`] is in `bpf/histogram.h`.

/// Number of buckets.
pub const BUCKETS: usize = 8 + (40 - 3) * 8;

/// The bucket of a duration of `nanos`; the last one takes everything from 2^40 ns on.
pub const fn bucket(nanos: u64) -> usize {
    if nanos < 8 {
        return nanos as usize;
    }
    let exponent = 63 - nanos.leading_zeros() as usize;
    if exponent >= 40 {
        return BUCKETS - 1;
    }
    8 * (exponent - 3) + 8 + ((nanos >> (exponent - 3)) & 7) as usize
}

/// The smallest duration in `bucket`, and the first one past it, in ns. `bucket` is below [`BUCKETS`].
pub const fn bounds(bucket: usize) -> (u64, u64) {
    if bucket < 8 {
        return (bucket as u64, bucket as u64 + 1);
    }
    let octave = (bucket - 8) / 8;
    let low = (8 + ((bucket - 8) % 8) as u64) << octave;
    (low, low + (1 << octave))
}

/// Quantile `q` of the values counted in `counts`, ns: the nearest rank's bucket, linearly inside it.
///
/// `q` is in `0.0..=1.0`. `None` when nothing was counted. Cost: one pass over the buckets.
pub fn quantile(counts: &[u64; BUCKETS], q: f64) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    // Nearest rank: the smallest rank r with r / total >= q; no `ceil` without std.
    let exact = q.clamp(0.0, 1.0) * total as f64;
    let mut rank = exact as u64;
    if (rank as f64) < exact || rank == 0 {
        rank += 1;
    }
    let rank = rank.min(total);
    let mut before = 0;
    for (i, &n) in counts.iter().enumerate() {
        if n > 0 && before + n >= rank {
            let (low, high) = bounds(i);
            let inside = (rank - before) as f64 - 0.5;
            return Some(low + ((high - low) as f64 * inside / n as f64) as u64);
        }
        before += n;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_within_the_bounds_of_its_bucket() {
        for shift in 0..40 {
            for add in [0, 1, 3, 7, 100, 12_345] {
                let v = (1u64 << shift).saturating_add(add);
                if v >= 1 << 40 {
                    continue;
                }
                let (low, high) = bounds(bucket(v));
                assert!(low <= v && v < high, "{v} is not in {low}..{high}");
                assert!(
                    (high - low) * 8 <= low.max(8),
                    "bucket of {v} is wider than an eighth"
                );
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for i in 1..BUCKETS {
            assert_eq!(bounds(i - 1).1, bounds(i).0, "buckets touch");
        }
    }

    #[test]
    fn a_quantile_is_within_a_bucket_of_the_exact_one() {
        let mut counts = [0; BUCKETS];
        assert_eq!(quantile(&counts, 0.5), None);
        for v in 1..=100_000u64 {
            counts[bucket(v)] += 1;
        }
        for (q, exact) in [
            (0.5, 50_000.0),
            (0.95, 95_000.0),
            (0.99, 99_000.0),
            (1.0, 100_000.0),
        ] {
            let got = quantile(&counts, q).unwrap() as f64;
            assert!(
                (got - exact).abs() / exact < 0.125,
                "q {q}: {got} against {exact}"
            );
        }
    }
}
