//! Free memory that nobody can use: free blocks between used ones, too small or too scattered for the next request.
//!
//! *What it says*: which share of reserved memory lies in such blocks.
//!
//! *Evidence needed*: the allocator's own count of inactive split blocks, over many samples. Without it nothing is said.
//!
//! *Looks like but is not*: reserved minus allocated. Whole free segments are a cache; they serve the next large request, and
//! go back to the device when it is short.
//!
//! *Example*: 9 GiB of 20 GiB reserved in inactive split blocks, and an allocation of 2 GiB fails.
//!
//! *Source*: `inactive_split_bytes` of PyTorch's caching allocator (`torch.cuda.memory_stats`, PyTorch 2).

use super::leak::{Unknown, Verdict};
use super::rules::FragmentationRules;
use super::series::{Level, Series};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fragmentation {
    /// Mean of inactive in mean reserved, 0..=1.
    pub ratio: f64,
    pub mean_inactive_bytes: i64,
    pub peak_inactive_bytes: i64,
    /// Nanoseconds since the Unix epoch.
    pub peak_ns: i64,
    pub severe: bool,
}

/// Cost: O(points).
pub fn fragmentation(series: &Series, rules: &FragmentationRules) -> Verdict<Fragmentation> {
    for level in [Level::Inactive, Level::Reserved] {
        if !series.has(level) {
            return Verdict::CannotTell(Unknown::NotMeasured(level));
        }
    }
    let (mut inactive, mut reserved, mut known) = (0.0, 0.0, 0);
    for point in series.points() {
        if let (Some(i), Some(r)) = (point.get(Level::Inactive), point.get(Level::Reserved)) {
            let weight = f64::from(point.count);
            inactive += i.mean() * weight;
            reserved += r.mean() * weight;
            known += u64::from(point.count);
        }
    }
    if known < rules.min_samples {
        return Verdict::CannotTell(Unknown::TooFew {
            known,
            needed: rules.min_samples,
        });
    }
    let (Some(peak), true) = (series.peak(Level::Inactive), reserved > 0.0) else {
        return Verdict::DoesNotHold;
    };
    let ratio = inactive / reserved;
    let mean_inactive_bytes = (inactive / known as f64) as i64;
    if ratio < rules.ratio || mean_inactive_bytes < rules.min_inactive_bytes {
        return Verdict::DoesNotHold;
    }
    Verdict::Holds(Fragmentation {
        ratio,
        mean_inactive_bytes,
        peak_inactive_bytes: peak.bytes,
        peak_ns: peak.at_ns,
        severe: ratio >= rules.high_ratio,
    })
}
