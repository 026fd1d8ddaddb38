//! Memory of the device that the allocator does not hold: the driver's context, communication buffers, other libraries, other
//! processes.
//!
//! *What it says*: how much of it there is usually, and when there was far more.
//!
//! *Evidence needed*: device-used from the driver beside reserved from the allocator, at one moment. A spike stands out from the
//! median by many times the median distance; the spike itself is not in that spread, so that it cannot hide itself.
//!
//! *Looks like but is not*: reserved minus allocated, which is the allocator's own cache; a collector that has no driver to ask
//! and says the allocator's number twice; several processes on one device, whose memory is hidden from each other.
//!
//! *Example*: 0.8 GiB usually, 3.1 GiB for 40 ms while eight ranks began an all-reduce.
//!
//! *Source*: median absolute deviation (Rousseeuw and Croux, JASA 88, 1993).

use super::leak::{Unknown, Verdict};
use super::math::{median, median_distance};
use super::rules::HiddenRules;
use super::series::{Level, Series};

#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    pub median_bytes: i64,
    pub min_bytes: i64,
    pub max_bytes: i64,
    /// All spikes, those that are not kept among them.
    pub spike_count: u64,
    /// The largest first.
    pub spikes: Vec<HiddenSpike>,
    /// Whether the usual amount is a large share of the device.
    pub is_large: bool,
}

/// Neighbouring points far above the median.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HiddenSpike {
    /// Nanoseconds since the Unix epoch.
    pub start_ns: i64,
    pub end_ns: i64,
    pub peak_bytes: i64,
    pub peak_ns: i64,
    /// How many times the median distance above the median.
    pub distances: f64,
}

/// Spikes that are kept of a series.
const MAX_SPIKES: usize = 32;

/// Whether anything of a series can be said; else why not.
pub(super) fn can_tell(series: &Series, rules: &HiddenRules) -> Result<(), Unknown> {
    for level in [Level::Used, Level::Reserved, Level::Hidden] {
        if !series.has(level) {
            return Err(Unknown::NotMeasured(level));
        }
    }
    if series.used_is_allocator() {
        return Err(Unknown::UsedIsAllocator);
    }
    let known: u64 = series
        .points()
        .iter()
        .filter(|p| p.get(Level::Hidden).is_some())
        .map(|p| u64::from(p.count))
        .sum();
    if known < rules.min_samples {
        return Err(Unknown::TooFew {
            known,
            needed: rules.min_samples,
        });
    }
    Ok(())
}

/// Cost: O(points log points).
pub fn hidden(series: &Series, rules: &HiddenRules) -> Verdict<Hidden> {
    if let Err(why) = can_tell(series, rules) {
        return Verdict::CannotTell(why);
    }
    let ranges: Vec<_> = series
        .points()
        .iter()
        .filter_map(|p| Some((p, p.get(Level::Hidden)?)))
        .collect();
    let means: Vec<f64> = ranges.iter().map(|(_, r)| r.mean()).collect();
    let center = median(&means).unwrap_or(0.0);
    let total = series.total_bytes.unwrap_or(0) as f64;
    // Where most values are the same, the distance is 0, and the least sizes alone decide.
    let distance = median_distance(&means, center).unwrap_or(0.0);
    let threshold = (rules.min_spike_bytes as f64)
        .max(rules.min_spike_share * total)
        .max(rules.spike_distances * distance);
    let mut spikes: Vec<HiddenSpike> = Vec::new();
    let mut in_spike = false;
    for (point, range) in &ranges {
        let above = range.max as f64 - center;
        if above < threshold {
            in_spike = false;
            continue;
        }
        let spike = HiddenSpike {
            start_ns: point.first_ns,
            end_ns: point.last_ns,
            peak_bytes: range.max,
            peak_ns: point.first_ns,
            distances: above / distance.max(1.0),
        };
        match spikes.last_mut() {
            Some(last) if in_spike => {
                last.end_ns = point.last_ns;
                if range.max > last.peak_bytes {
                    let start_ns = last.start_ns;
                    *last = HiddenSpike { start_ns, ..spike };
                }
            }
            _ => spikes.push(spike),
        }
        in_spike = true;
    }
    spikes.sort_by_key(|s| (std::cmp::Reverse(s.peak_bytes), s.start_ns));
    let spike_count = spikes.len() as u64;
    spikes.truncate(MAX_SPIKES);
    let bound = |pick: fn(i64, i64) -> i64, of: fn(&super::series::Range) -> i64| {
        ranges.iter().map(|(_, r)| of(r)).reduce(pick).unwrap_or(0)
    };
    Verdict::Holds(Hidden {
        median_bytes: center as i64,
        min_bytes: bound(i64::min, |r| r.min),
        max_bytes: bound(i64::max, |r| r.max),
        spike_count,
        spikes,
        is_large: total > 0.0 && center >= rules.min_steady_share * total,
    })
}
