//! The levels of one allocator and its device over time, in bounded memory.
//!
//! While they fit, every time has a point of its own. When they do not, points become intervals of equal length, each twice
//! as long as before, that keep the lowest, highest, mean and last value: peaks and floors stay exact, their times are within
//! one interval.

use std::sync::Arc;

use warptrace_model::Metadata;

/// What is measured, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// What the allocator's users hold.
    Allocated,
    /// What the allocator holds from the device.
    Reserved,
    /// What the driver says is in use on the device, by anybody.
    Used,
    /// `Used` minus `Reserved`; negative where the two were not read at one moment.
    Hidden,
    /// Free blocks within the allocator's segments in use.
    Inactive,
}

impl Level {
    pub const ALL: [Level; 5] = [
        Level::Allocated,
        Level::Reserved,
        Level::Used,
        Level::Hidden,
        Level::Inactive,
    ];

    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Allocated => "allocated",
            Level::Reserved => "reserved",
            Level::Used => "device_used",
            Level::Hidden => "hidden",
            Level::Inactive => "inactive",
        }
    }
}

/// Values of one level, by [`Level`]; `None` where it was not measured.
pub(super) type Values = [Option<i64>; 5];

/// The values of a level in a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    pub min: i64,
    pub max: i64,
    pub last: i64,
    sum: f64,
    count: u32,
}

impl Range {
    fn of(value: i64) -> Range {
        Range {
            min: value,
            max: value,
            last: value,
            sum: value as f64,
            count: 1,
        }
    }

    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.count)
    }

    fn join(&mut self, other: &Range, other_is_later: bool) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other_is_later {
            self.last = other.last;
        }
        self.sum += other.sum;
        self.count = self.count.saturating_add(other.count);
    }
}

/// One or more moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    index: i64,
    /// Nanoseconds since the Unix epoch.
    pub first_ns: i64,
    pub last_ns: i64,
    /// Measurements.
    pub count: u32,
    levels: [Option<Range>; 5],
}

impl Point {
    pub fn get(&self, level: Level) -> Option<&Range> {
        self.levels[level as usize].as_ref()
    }

    fn join(&mut self, other: &Point) {
        let later = other.last_ns >= self.last_ns;
        for (mine, theirs) in self.levels.iter_mut().zip(&other.levels) {
            match (mine.as_mut(), theirs) {
                (Some(mine), Some(theirs)) => mine.join(theirs, later),
                (None, Some(_)) => *mine = *theirs,
                (_, None) => {}
            }
        }
        self.first_ns = self.first_ns.min(other.first_ns);
        self.last_ns = self.last_ns.max(other.last_ns);
        self.count = self.count.saturating_add(other.count);
    }
}

/// Points by time.
#[derive(Debug, Clone, Default)]
pub(super) struct Points {
    /// The first time that came.
    origin: i64,
    /// Points are 2^shift ns long.
    shift: u32,
    points: Vec<Point>,
}

impl Points {
    /// Adds a moment; most come in order. Cost: O(1) in order, else O(points).
    pub(super) fn add(&mut self, at: i64, values: &Values, max_points: usize) {
        if self.points.is_empty() {
            self.origin = at;
        }
        // Times are not negative, so that the difference fits.
        let index = (at - self.origin) >> self.shift;
        let point = Point {
            index,
            first_ns: at,
            last_ns: at,
            count: 1,
            levels: values.map(|v| v.map(Range::of)),
        };
        let place = match self.points.last() {
            Some(last) if last.index < index => Err(self.points.len()),
            Some(last) if last.index == index => Ok(self.points.len() - 1),
            _ => self.points.binary_search_by_key(&index, |p| p.index),
        };
        match place {
            Ok(at) => self.points[at].join(&point),
            Err(at) => self.points.insert(at, point),
        }
        if self.points.len() > max_points.max(2) {
            self.coarsen(max_points / 2);
        }
    }

    /// Makes the points longer until there are at most `to`.
    pub(super) fn coarsen(&mut self, to: usize) {
        while self.points.len() > to.max(1) && self.shift < 62 {
            self.shift += 1;
            let mut kept: Vec<Point> = Vec::with_capacity(self.points.len() / 2 + 1);
            for mut point in self.points.drain(..) {
                point.index >>= 1;
                match kept.last_mut() {
                    Some(last) if last.index == point.index => last.join(&point),
                    _ => kept.push(point),
                }
            }
            self.points = kept;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.points.len()
    }
}

/// Whose levels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    pub session_id: Arc<str>,
    pub host: Arc<str>,
    /// −1 when unknown.
    pub pid: i64,
    pub rank: i64,
    /// −1 for the CPU or none.
    pub device: i64,
}

/// The highest value of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    pub bytes: i64,
    /// When it was first reached, nanoseconds since the Unix epoch.
    pub at_ns: i64,
}

/// The levels of one process's rank and device.
#[derive(Debug, Clone)]
pub struct Series {
    pub key: SeriesKey,
    pub job_id: Option<Arc<str>>,
    pub local_rank: i64,
    pub world_size: i64,
    pub collector: Arc<str>,
    /// What its first event says; capabilities and source of the samples.
    pub metadata: Arc<Metadata>,
    pub sampling_interval_ms: i64,
    /// Events of type `sample`.
    pub samples: u64,
    /// Events with counters.
    pub measurements: u64,
    /// Nanoseconds since the Unix epoch.
    pub first_ns: i64,
    pub last_ns: i64,
    /// The longest time without a measurement.
    pub longest_silence_ns: i64,
    /// The device's size as last said.
    pub total_bytes: Option<i64>,
    /// Measurements without the level, by [`Level`].
    pub absent: [u64; 5],
    /// Measurements in which device-used is not simply the larger of allocated and reserved.
    pub used_differs: u64,
    /// Times that the device came to be nearly full.
    pub full_episodes: u64,
    pub full_since_ns: Option<i64>,
    pub(super) is_full: bool,
    pub(super) peaks: [Option<Peak>; 5],
    pub(super) points: Points,
}

impl Series {
    /// By time.
    pub fn points(&self) -> &[Point] {
        &self.points.points
    }

    /// The length of a point, ns; 0 when every time has its own.
    pub fn point_ns(&self) -> i64 {
        if self.points.shift == 0 {
            0
        } else {
            1 << self.points.shift
        }
    }

    /// The same with at most `most` points. Cost: O(points).
    #[must_use]
    pub fn joined(&self, most: usize) -> Series {
        let mut joined = self.clone();
        joined.points.coarsen(most);
        joined
    }

    pub fn peak(&self, level: Level) -> Option<Peak> {
        self.peaks[level as usize]
    }

    /// Whether any measurement had it.
    pub fn has(&self, level: Level) -> bool {
        self.peak(level).is_some()
    }

    /// The value in the last point that has the level.
    pub fn last(&self, level: Level) -> Option<i64> {
        self.points()
            .iter()
            .rev()
            .find_map(|p| p.get(level))
            .map(|r| r.last)
    }

    pub fn duration_ns(&self) -> i64 {
        self.last_ns - self.first_ns
    }

    /// Between measurements, typically, ns; 0 below two.
    pub fn interval_ns(&self) -> i64 {
        if self.point_ns() > 0 {
            return self.duration_ns() / i64::try_from(self.measurements.max(2) - 1).unwrap_or(1);
        }
        let mut intervals: Vec<i64> = self
            .points()
            .windows(2)
            .map(|pair| pair[1].first_ns - pair[0].first_ns)
            .collect();
        let middle = intervals.len() / 2;
        if intervals.is_empty() {
            return 0;
        }
        *intervals.select_nth_unstable(middle).1
    }

    /// How finely its times are known, ns.
    pub fn resolution_ns(&self) -> i64 {
        self.interval_ns().max(self.point_ns())
    }

    /// Whether device-used is the allocator's own number under another name, as collectors say that have no driver to ask: then
    /// nothing can be learnt from it about anybody else.
    pub fn used_is_allocator(&self) -> bool {
        self.has(Level::Used) && self.used_differs == 0
    }

    /// Mean of a level over the measurements that have it.
    pub fn mean(&self, level: Level) -> Option<f64> {
        let ranges = self.points().iter().filter_map(|p| p.get(level));
        let (sum, count) = ranges.fold((0.0, 0.0), |(sum, count), r| {
            (sum + r.sum, count + f64::from(r.count))
        });
        (count > 0.0).then(|| sum / count)
    }

    /// The level at a moment: the last value at or before it.
    pub fn at(&self, level: Level, at_ns: i64) -> Option<i64> {
        let end = self.points().partition_point(|p| p.first_ns <= at_ns);
        self.points()[..end]
            .iter()
            .rev()
            .find_map(|p| p.get(level))
            .map(|r| r.last)
    }

    /// The highest value of a level from one moment to another, both included.
    pub fn max_between(&self, level: Level, start_ns: i64, end_ns: i64) -> Option<Peak> {
        let from = self.points().partition_point(|p| p.last_ns < start_ns);
        let mut best: Option<Peak> = None;
        for point in self.points()[from..]
            .iter()
            .take_while(|p| p.first_ns <= end_ns)
        {
            if let Some(range) = point.get(level)
                && best.is_none_or(|b| range.max > b.bytes)
            {
                best = Some(Peak {
                    bytes: range.max,
                    at_ns: point.first_ns,
                });
            }
        }
        best
    }
}
