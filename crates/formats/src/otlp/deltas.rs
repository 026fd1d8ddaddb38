//! Cumulative values to what came since the last export.

use std::collections::HashMap;

use warptrace_model::UnixNanos;
use warptrace_model::metric::{Family, Instrument, Metric, Number, Point, Snapshot};

/// What a receiver of deltas has got so far.
///
/// The base of a delta is the last snapshot that was *delivered*, so that a snapshot that never arrived costs resolution in time
/// and no counts. Memory: that of the series it has seen delivered, until they are missing from a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Deltas {
    delivered: HashMap<(&'static Metric, Box<str>), Sent>,
}

#[derive(Debug, Clone)]
struct Sent {
    at: UnixNanos,
    value: Number,
}

impl Deltas {
    /// What counters and histograms of `snapshot` counted since they were delivered; levels are as they are, and what did not
    /// change is left out.
    ///
    /// A series that is new, or began anew (its count fell, or it starts after what was delivered), is whole, from its own start.
    #[must_use]
    pub fn since(&self, snapshot: &Snapshot) -> Snapshot {
        let families = snapshot.families.iter().map(|family| {
            let points = family.points.iter();
            Family {
                metric: family.metric,
                points: match family.metric.accumulates() {
                    true => points
                        .filter_map(|point| self.delta(family.metric, point))
                        .collect(),
                    false => points.cloned().collect(),
                },
            }
        });
        Snapshot {
            resource: snapshot.resource.clone(),
            families: families
                .filter(|family| !family.points.is_empty())
                .collect(),
        }
    }

    /// Says that a receiver has `snapshot`, as it was before [`Deltas::since`], or a part of it.
    pub fn delivered(&mut self, snapshot: &Snapshot) {
        for family in snapshot
            .families
            .iter()
            .filter(|family| family.metric.accumulates())
        {
            for point in &family.points {
                let sent = Sent {
                    at: point.at,
                    value: point.value.clone(),
                };
                self.delivered.insert((family.metric, point.series()), sent);
            }
        }
    }

    /// Forgets series that `snapshot`, a whole one, does not have any more.
    pub fn forget_missing(&mut self, snapshot: &Snapshot) {
        let here: std::collections::HashSet<(&'static Metric, Box<str>)> = snapshot
            .families
            .iter()
            .flat_map(|family| {
                family
                    .points
                    .iter()
                    .map(|point| (family.metric, point.series()))
            })
            .collect();
        self.delivered.retain(|key, _| here.contains(key));
    }

    fn delta(&self, metric: &'static Metric, point: &Point) -> Option<Point> {
        debug_assert!(metric.instrument != Instrument::Gauge);
        let sent = self.delivered.get(&(metric, point.series()));
        let since = sent
            .filter(|sent| point.start <= sent.at)
            .and_then(|sent| Some((sent.at, difference(&point.value, &sent.value)?)));
        let (start, value) = since.unwrap_or_else(|| (point.start, point.value.clone()));
        let nothing = match &value {
            Number::Int(n) => *n == 0,
            Number::Double(x) => *x == 0.0,
            Number::Explicit(h) => h.count() == 0,
            Number::Exponential(h) => h.count() == 0,
        };
        (!nothing).then(|| Point {
            start,
            value,
            ..point.clone()
        })
    }
}

/// `None` if it fell: then it began anew.
fn difference(now: &Number, then: &Number) -> Option<Number> {
    Some(match (now, then) {
        (Number::Int(now), Number::Int(then)) if now >= then => Number::Int(now - then),
        (Number::Double(now), Number::Double(then)) if now >= then => Number::Double(now - then),
        (Number::Explicit(now), Number::Explicit(then)) => Number::Explicit(now.since(then)?),
        (Number::Exponential(now), Number::Exponential(then)) => {
            Number::Exponential(now.since(then)?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use warptrace_model::Object;
    use warptrace_model::metric::{Meter, metric};

    use super::*;

    fn at(meter: &mut Meter, nanos: u64) -> Snapshot {
        meter.snapshot(Object::new(), UnixNanos(nanos))
    }

    fn seen(snapshot: &Snapshot) -> Vec<(&'static str, u64, u64, i64)> {
        let points = snapshot
            .families
            .iter()
            .flat_map(|f| f.points.iter().map(|p| (f.metric.name, p)));
        let points = points.map(|(name, point)| {
            let value = match &point.value {
                Number::Int(n) => *n,
                Number::Double(x) => *x as i64,
                Number::Explicit(h) => h.count() as i64,
                Number::Exponential(h) => h.count() as i64,
            };
            (name, point.start.0, point.at.0, value)
        });
        points.collect()
    }

    #[test]
    fn each_count_is_told_once_though_snapshots_get_lost_and_levels_stay_levels() {
        let mut meter = Meter::new(UnixNanos(10), 100);
        let mut deltas = Deltas::default();
        let launch = |meter: &mut Meter, n| {
            meter
                .add(&metric::CUDA_LAUNCH_COUNT, Object::new(), n)
                .unwrap();
            for _ in 0..n {
                meter
                    .record(&metric::CUDA_COPY_DURATION, Object::new(), 0.5, None)
                    .unwrap();
            }
            meter
                .set(&metric::STORE_SIZE, Object::new(), Number::Int(n))
                .unwrap();
        };
        let (copies, launches, size) = (
            metric::CUDA_COPY_DURATION.name,
            metric::CUDA_LAUNCH_COUNT.name,
            metric::STORE_SIZE.name,
        );
        launch(&mut meter, 3);
        let first = at(&mut meter, 20);
        assert_eq!(
            seen(&deltas.since(&first)),
            [(copies, 10, 20, 3), (launches, 10, 20, 3), (size, 0, 20, 3)]
        );
        deltas.delivered(&first);

        launch(&mut meter, 4);
        let lost = at(&mut meter, 30);
        assert_eq!(seen(&deltas.since(&lost))[1], (launches, 20, 30, 4));
        launch(&mut meter, 5);
        let third = at(&mut meter, 40);
        assert_eq!(
            seen(&deltas.since(&third)),
            [(copies, 20, 40, 9), (launches, 20, 40, 9), (size, 0, 40, 5)]
        );
        deltas.delivered(&third);
        assert_eq!(seen(&deltas.since(&at(&mut meter, 50))), [(size, 0, 50, 5)]);
    }

    #[test]
    fn a_series_that_began_anew_is_whole() {
        let mut deltas = Deltas::default();
        let mut before = Meter::new(UnixNanos(10), 100);
        before
            .add(&metric::CUDA_LAUNCH_COUNT, Object::new(), 3)
            .unwrap();
        deltas.delivered(&at(&mut before, 20));
        let mut anew = Meter::new(UnixNanos(25), 100);
        anew.add(&metric::CUDA_LAUNCH_COUNT, Object::new(), 4)
            .unwrap();
        let snapshot = at(&mut anew, 30);
        assert_eq!(seen(&deltas.since(&snapshot))[0].1, 25);
        assert_eq!(seen(&deltas.since(&snapshot))[0].3, 4);
        // Or with the same start, from a lower count.
        let mut lower = Meter::new(UnixNanos(10), 100);
        lower
            .add(&metric::CUDA_LAUNCH_COUNT, Object::new(), 1)
            .unwrap();
        let snapshot = at(&mut lower, 30);
        assert_eq!(
            seen(&deltas.since(&snapshot))[0],
            (metric::CUDA_LAUNCH_COUNT.name, 10, 30, 1)
        );
        deltas.forget_missing(&Snapshot::default());
        assert!(deltas.delivered.is_empty());
    }
}
