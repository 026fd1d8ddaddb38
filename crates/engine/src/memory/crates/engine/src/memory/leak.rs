//! Memory that is taken and never given back.
//!
//! *What it says*: what is still held when least is held, rises on and on.
//!
//! *Evidence needed*: after warm-up, the rest of the series in windows of equal time; the lowest level of each window (its
//! floor) rises in most of them, falls in none by much, rises in both halves, and by enough bytes, for long enough.
//!
//! *Looks like but is not*: a ramp at the start (weights, caches, the first batches); one step to a new level; peaks that rise
//! while the floor stays; a saw with a long period, whose floor falls again; a few rising samples.
//!
//! *Example*: 1 GiB after warm-up, 40 MiB more each minute in each of the eight windows of an hour.
//!
//! *Source*: floors are what remains after each cycle of allocations; the slope is the Theil–Sen estimate, which a few odd
//! windows do not move.

use super::math::{line, median, median_slope};
use super::series::{Level, Series};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeakRules {
    /// The first part of a series is warm-up, at least this share of its time.
    pub warm_up_share: f64,
    /// The level must be known for this long after warm-up, ns.
    pub min_ns: i64,
    /// And by this many measurements.
    pub min_measurements: u64,
    /// The floor must rise by this, bytes.
    pub min_bytes: i64,
    /// And by this share of where it began.
    pub min_share: f64,
    pub windows: usize,
    /// Share of the steps from window to window that rise.
    pub rising_share: f64,
    /// What a single step may fall, of the whole rise.
    pub max_fall_share: f64,
    /// What each half must bring of the whole rise.
    pub half_share: f64,
}

impl Default for LeakRules {
    fn default() -> LeakRules {
        LeakRules {
            warm_up_share: 0.1,
            min_ns: 30_000_000_000,
            min_measurements: 30,
            min_bytes: 64 << 20,
            min_share: 0.02,
            windows: 8,
            rising_share: 0.7,
            max_fall_share: 0.25,
            half_share: 0.2,
        }
    }
}

/// What an analysis found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<T> {
    Holds(T),
    DoesNotHold,
    CannotTell(Unknown),
}

/// Why an analysis cannot tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unknown {
    /// The collector does not measure what is needed.
    NotMeasured(Level),
    /// Device-used is the allocator's own number.
    UsedIsAllocator,
    /// Too short, ns after warm-up: known and needed.
    TooShort { known_ns: i64, needed_ns: i64 },
    /// Too few measurements: known and needed.
    TooFew { known: u64, needed: u64 },
    /// Fewer than two ranks.
    OneRank,
}

/// A floor that rises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leak {
    pub level: Level,
    /// After warm-up, nanoseconds since the Unix epoch.
    pub start_ns: i64,
    pub end_ns: i64,
    /// Floors of the first and the last window.
    pub start_bytes: i64,
    pub end_bytes: i64,
    /// Bytes a second.
    pub rate: f64,
    /// Steps between windows, and those that rise.
    pub steps: usize,
    pub rising: usize,
    /// How straight the rise is, 0..=1.
    pub confidence: f64,
    /// Till the device is full at this rate, ns; `None` when its size is not known.
    pub full_in_ns: Option<i64>,
}

impl Leak {
    pub fn growth_bytes(&self) -> i64 {
        self.end_bytes - self.start_bytes
    }
}

/// Where warm-up ends: when the level first comes near its median, but within the first half.
fn warm_up_end(series: &Series, level: Level, rules: &LeakRules) -> Option<i64> {
    let means: Vec<f64> = series
        .points()
        .iter()
        .filter_map(|p| p.get(level))
        .map(|r| r.mean())
        .collect();
    let near = 0.9 * median(&means)?;
    let reached = series
        .points()
        .iter()
        .find(|p| p.get(level).is_some_and(|r| r.max as f64 >= near))?
        .first_ns;
    let duration = series.duration_ns();
    let share = |share: f64| series.first_ns + (duration as f64 * share) as i64;
    Some(reached.clamp(share(rules.warm_up_share), share(0.5)))
}

/// Whether the floor of `level` rises. Cost: O(points).
pub fn leak(series: &Series, level: Level, rules: &LeakRules) -> Verdict<Leak> {
    let Some(start_ns) = warm_up_end(series, level, rules) else {
        return Verdict::CannotTell(Unknown::NotMeasured(level));
    };
    let end_ns = series.last_ns;
    let known_ns = end_ns - start_ns;
    if known_ns < rules.min_ns {
        return Verdict::CannotTell(Unknown::TooShort {
            known_ns,
            needed_ns: rules.min_ns,
        });
    }
    let after = &series.points()[series.points().partition_point(|p| p.first_ns < start_ns)..];
    let known: u64 = after
        .iter()
        .filter(|p| p.get(level).is_some())
        .map(|p| u64::from(p.count))
        .sum();
    if known < rules.min_measurements {
        return Verdict::CannotTell(Unknown::TooFew {
            known,
            needed: rules.min_measurements,
        });
    }
    let windows = rules.windows.max(2);
    let mut floors: Vec<Option<i64>> = vec![None; windows];
    for point in after {
        if let Some(range) = point.get(level) {
            let at = (point.first_ns - start_ns) as f64 / known_ns as f64;
            let floor = &mut floors[((at * windows as f64) as usize).min(windows - 1)];
            *floor = Some(floor.map_or(range.min, |f| f.min(range.min)));
        }
    }
    let window_secs = known_ns as f64 / 1e9 / windows as f64;
    let points: Vec<(f64, f64)> = floors
        .iter()
        .enumerate()
        .filter_map(|(i, floor)| Some(((i as f64 + 0.5) * window_secs, (*floor)? as f64)))
        .collect();
    // Where measurements are missing for whole windows, too little is known.
    if points.len() < windows * 3 / 4 {
        return Verdict::CannotTell(Unknown::TooFew {
            known: points.len() as u64,
            needed: (windows * 3 / 4) as u64,
        });
    }
    let (first, last) = (points[0].1, points[points.len() - 1].1);
    let growth = last - first;
    if growth < rules.min_bytes as f64 || growth < first.abs() * rules.min_share {
        return Verdict::DoesNotHold;
    }
    let steps: Vec<f64> = points
        .windows(2)
        .map(|pair| pair[1].1 - pair[0].1)
        .collect();
    let rising = steps.iter().filter(|step| **step > 0.0).count();
    let middle = points[points.len() / 2].1;
    let rises = rising as f64 >= rules.rising_share * steps.len() as f64
        && steps
            .iter()
            .all(|step| -step <= rules.max_fall_share * growth)
        && middle - first >= rules.half_share * growth
        && last - middle >= rules.half_share * growth;
    let rate = median_slope(&points).unwrap_or(0.0);
    if !rises || rate <= 0.0 {
        return Verdict::DoesNotHold;
    }
    let in_use = series.last(Level::Used).max(series.last(level));
    Verdict::Holds(Leak {
        level,
        start_ns,
        end_ns,
        start_bytes: first as i64,
        end_bytes: last as i64,
        rate,
        steps: steps.len(),
        rising,
        confidence: line(&points).map_or(0.0, |l| l.r_squared),
        full_in_ns: series.total_bytes.zip(in_use).map(|(total, used)| {
            // Casts saturate, and never come from NaN: the rate is above 0.
            ((total - used).max(0) as f64 / rate * 1e9) as i64
        }),
    })
}
