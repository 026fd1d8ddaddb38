//! Values of metrics at a time.

use super::{Explicit, Exponential, Metric};
use crate::{Object, UnixNanos};

/// All metrics of a process or machine at one moment. Counters and histograms are cumulative.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Attributes of [`resource`](super::resource), by our names.
    pub resource: Object,
    /// One for each metric, each metric once.
    pub families: Vec<Family>,
}

/// The series of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub metric: &'static Metric,
    pub points: Vec<Point>,
}

/// Families as they are put together, of counts that began at one time and are told at another.
#[derive(Debug)]
pub struct Families {
    start: UnixNanos,
    at: UnixNanos,
    families: Vec<Family>,
}

impl Families {
    pub fn new(start: UnixNanos, at: UnixNanos) -> Families {
        Families {
            start,
            at,
            families: Vec::new(),
        }
    }

    /// Adds a series. Whoever adds takes care that no two of a metric are alike.
    pub fn push(&mut self, metric: &'static Metric, attributes: Object, value: Number) {
        self.push_since(metric, self.start, attributes, value);
    }

    /// Adds a series that counts from `start` on.
    pub fn push_since(
        &mut self,
        metric: &'static Metric,
        start: UnixNanos,
        attributes: Object,
        value: Number,
    ) {
        let start = match metric.accumulates() {
            true => start,
            false => UnixNanos(0),
        };
        let point = Point {
            attributes,
            start,
            at: self.at,
            value,
            exemplars: Vec::new(),
        };
        let mut known = self.families.iter_mut();
        match known.find(|family| family.metric == metric) {
            Some(family) => family.points.push(point),
            None => self.families.push(Family {
                metric,
                points: vec![point],
            }),
        }
    }

    /// Each metric once, in the order in which they came first.
    pub fn finish(self) -> Vec<Family> {
        self.families
    }
}

/// One series at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// By our names; a value's form is the attribute's.
    pub attributes: Object,
    /// From when on it counts; 0 where that means nothing, as for a gauge.
    pub start: UnixNanos,
    pub at: UnixNanos,
    pub value: Number,
    /// Single measurements, oldest first.
    pub exemplars: Vec<Exemplar>,
}

/// A value. A histogram is of the metric's unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Number {
    Int(i64),
    Double(f64),
    Explicit(Explicit),
    Exponential(Exponential),
}

/// A single measurement, and where it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    pub value: f64,
    pub at: UnixNanos,
    /// Trace and span.
    pub context: Option<(u128, u64)>,
    /// What the series does not say.
    pub attributes: Object,
}

impl Snapshot {
    /// Points of all families.
    pub fn len(&self) -> usize {
        self.families.iter().map(|family| family.points.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.families.iter().all(|family| family.points.is_empty())
    }

    /// About what it takes in memory, bytes. Cost: a walk over the points.
    pub fn size_bytes(&self) -> usize {
        const POINT: usize = 160;
        const PAIR: usize = 64;
        const EXEMPLAR: usize = 96;
        let points = self.families.iter().flat_map(|family| &family.points);
        points
            .map(|point| {
                let buckets = match &point.value {
                    Number::Int(_) | Number::Double(_) => 0,
                    Number::Explicit(histogram) => histogram.counts().len(),
                    Number::Exponential(histogram) => histogram.counts().len(),
                };
                let text = point
                    .attributes
                    .iter()
                    .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
                POINT
                    + point.attributes.len() * PAIR
                    + text.sum::<usize>()
                    + buckets * size_of::<u64>()
                    + point.exemplars.len() * EXEMPLAR
            })
            .sum()
    }
}
