//! Start times that stay what they were.
//!
//! A producer knows when its counting began by the boot clock, and says it in Unix time as that clock is seen now; as NTP moves
//! the one against the other, the same beginning is said a little differently each time. To a receiver another start time is
//! another counter, that began anew.

use std::collections::HashMap;

use warptrace_model::UnixNanos;
use warptrace_model::metric::{Metric, Number, Snapshot};

/// The start time of each series as it was first said. Memory: of the series of the last snapshot, and of those since.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    known: HashMap<(&'static Metric, Box<str>), Known>,
    round: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    start: UnixNanos,
    at: UnixNanos,
    total: f64,
    round: u64,
}

impl Starts {
    /// Gives counters and histograms the start time that they had before, unless they began anew: then their count fell, or their
    /// start is after what was last said of them.
    pub fn settle(&mut self, snapshot: &mut Snapshot) {
        let families = snapshot.families.iter_mut();
        for family in families.filter(|family| family.metric.accumulates()) {
            for point in &mut family.points {
                let total = match &point.value {
                    Number::Int(n) => *n as f64,
                    Number::Double(x) => *x,
                    Number::Explicit(h) => h.count() as f64,
                    Number::Exponential(h) => h.count() as f64,
                };
                let now = Known {
                    start: point.start,
                    at: point.at,
                    total,
                    round: self.round,
                };
                let known = self
                    .known
                    .entry((family.metric, point.series()))
                    .or_insert(now);
                let goes_on = point.start <= known.at && total >= known.total;
                let start = if goes_on { known.start } else { point.start };
                *known = Known { start, ..now };
                point.start = start;
            }
        }
    }

    /// Forgets series that none of the snapshots since the last call of this had.
    pub fn forget_missing(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use warptrace_model::Object;
    use warptrace_model::metric::{Family, Point, metric};

    use super::*;

    fn snapshot(start: u64, at: u64, n: i64) -> Snapshot {
        let point = |value| Point {
            attributes: Object::new(),
            start: UnixNanos(start),
            at: UnixNanos(at),
            value,
            exemplars: Vec::new(),
        };
        Snapshot {
            resource: Object::new(),
            families: vec![
                Family {
                    metric: &metric::CUDA_LAUNCH_COUNT,
                    points: vec![point(Number::Int(n))],
                },
                Family {
                    metric: &metric::STORE_SIZE,
                    points: vec![point(Number::Int(n))],
                },
            ],
        }
    }

    #[test]
    fn a_start_said_differently_is_the_same_until_the_count_falls_or_it_is_later() {
        let mut starts = Starts::default();
        for (start, at, n, settled) in [
            (100, 200, 5, 100),
            (103, 300, 5, 100),
            (97, 400, 9, 100),
            (99, 500, 8, 99),
            (100, 600, 8, 99),
            (601, 700, 9, 601),
            (605, 800, 9, 601),
        ] {
            let mut said = snapshot(start, at, n);
            starts.settle(&mut said);
            starts.forget_missing();
            let points = said.families.iter().map(|family| family.points[0].start.0);
            // A level has no start, whatever is said of it.
            assert_eq!(points.collect::<Vec<_>>(), [settled, start]);
        }
        starts.forget_missing();
        assert!(starts.known.is_empty());
    }
}
