//! Gathers measurements into series, within bounds, and gives them as snapshots.
//!
//! Plain data without a lock or a clock: whoever owns it records, and takes a snapshot when one is due.

use std::collections::HashMap;

use super::{
    Derived, Exemplar, Explicit, Exponential, Family, Metric, Number, Point, Snapshot, metric,
};
use crate::{Object, UnixNanos};

/// Series of one metric, unless a meter is told otherwise. OpenTelemetry's default.
pub const SERIES_LIMIT: usize = 2000;

/// Exemplars of a series, from one snapshot to the next; the last ones are kept.
const EXEMPLARS: usize = 16;

/// Single measurements of metrics that another tracer exports one by one, from one snapshot to the next.
const MEASUREMENTS: usize = 4096;

/// Series of metrics, from a start time on.
#[derive(Debug)]
pub struct Meter {
    start: UnixNanos,
    limit: usize,
    families: HashMap<&'static Metric, HashMap<Box<str>, Point>>,
    measurements: usize,
    refused: u64,
}

/// A measurement was not taken as it was said: its metric has as many series as it may. A counter or histogram has counted it in the
/// series `otel.metric.overflow`; a level is lost. It is counted in [`metric::METRIC_REFUSED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Meter {
    /// `start` is when the counting begins; `limit` is for the series of each metric.
    pub fn new(start: UnixNanos, limit: usize) -> Meter {
        Meter {
            start,
            limit,
            families: HashMap::new(),
            measurements: 0,
            refused: 0,
        }
    }

    /// Adds to a counter or an up-down counter of whole things.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn add(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        n: i64,
    ) -> Result<(), Refused> {
        self.change(
            metric,
            attributes,
            Number::Int(0),
            |point| match &mut point.value {
                Number::Int(sum) => *sum = sum.saturating_add(n),
                Number::Double(sum) => *sum += n as f64,
                _ => {}
            },
        )
    }

    /// Adds to a counter or an up-down counter of seconds and other reals.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn add_real(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        x: f64,
    ) -> Result<(), Refused> {
        self.change(
            metric,
            attributes,
            Number::Double(0.0),
            |point| match &mut point.value {
                Number::Double(sum) => *sum += x,
                Number::Int(sum) => point.value = Number::Double(*sum as f64 + x),
                _ => {}
            },
        )
    }

    /// Says what a level is now, or what a counter that somebody else keeps has come to.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn set(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        value: Number,
    ) -> Result<(), Refused> {
        self.change(metric, attributes, value.clone(), |point| {
            point.value = value
        })
    }

    /// Counts a value in an exponential histogram.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn record(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        value: f64,
        exemplar: Option<Exemplar>,
    ) -> Result<(), Refused> {
        let empty = Number::Exponential(Exponential::default());
        self.observe(metric, attributes, empty, value, exemplar)
    }

    /// Counts a value in a histogram with the metric's own bounds.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn record_explicit(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        value: f64,
        exemplar: Option<Exemplar>,
    ) -> Result<(), Refused> {
        let empty = Number::Explicit(Explicit::new(metric.bounds));
        self.observe(metric, attributes, empty, value, exemplar)
    }

    fn observe(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        empty: Number,
        value: f64,
        exemplar: Option<Exemplar>,
    ) -> Result<(), Refused> {
        let one_by_one = metric
            .ingero
            .iter()
            .any(|ingero| matches!(ingero.derived, Derived::Measurements(_)));
        let exemplar = exemplar.filter(|_| !one_by_one || self.measurements < MEASUREMENTS);
        self.measurements += usize::from(one_by_one && exemplar.is_some());
        self.change(metric, attributes, empty, |point| {
            match &mut point.value {
                Number::Explicit(histogram) => histogram.record(value),
                Number::Exponential(histogram) => histogram.record(value),
                Number::Int(_) | Number::Double(_) => {}
            }
            if let Some(exemplar) = exemplar {
                if !one_by_one && point.exemplars.len() == EXEMPLARS {
                    point.exemplars.remove(0);
                }
                point.exemplars.push(exemplar);
            }
        })
    }

    /// Forgets one series: what it was about is gone.
    pub fn forget(&mut self, metric: &'static Metric, attributes: &Object) {
        if let Some(series) = self.families.get_mut(metric) {
            series.remove(&series_key(attributes));
        }
    }

    /// Forgets all series of a metric, as before its levels are said anew.
    pub fn clear(&mut self, metric: &'static Metric) {
        self.families.remove(metric);
    }

    /// Measurements that were not taken as they were said, ever.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// All series, in the table's order. Exemplars are those since the last snapshot.
    pub fn snapshot(&mut self, resource: Object, at: UnixNanos) -> Snapshot {
        self.measurements = 0;
        if self.refused > 0 {
            let refused = Number::Int(i64::try_from(self.refused).unwrap_or(i64::MAX));
            let _ = self.set(&metric::METRIC_REFUSED, Object::new(), refused);
        }
        let mut families = Vec::new();
        for metric in metric::ALL {
            let Some(series) = self.families.get_mut(*metric) else {
                continue;
            };
            let mut series: Vec<_> = series.iter_mut().collect();
            series.sort_by(|a, b| a.0.cmp(b.0));
            let points = series.into_iter().map(|(_, point)| {
                let exemplars = std::mem::take(&mut point.exemplars);
                Point {
                    at,
                    exemplars,
                    ..point.clone()
                }
            });
            let points = points.collect();
            families.push(Family { metric, points });
        }
        Snapshot { resource, families }
    }

    fn change(
        &mut self,
        metric: &'static Metric,
        attributes: Object,
        empty: Number,
        change: impl FnOnce(&mut Point),
    ) -> Result<(), Refused> {
        let series = self.families.entry(metric).or_default();
        let mut key = series_key(&attributes);
        let mut attributes = attributes;
        let mut taken = Ok(());
        if series.len() >= self.limit && !series.contains_key(&key) {
            self.refused += 1;
            taken = Err(Refused);
            if !metric.accumulates() {
                return taken;
            }
            attributes = Object::new();
            attributes.insert("otel.metric.overflow", true);
            key = series_key(&attributes);
        }
        let start = match metric.accumulates() {
            true => self.start,
            false => UnixNanos(0),
        };
        let point = series.entry(key).or_insert_with(|| Point {
            attributes,
            start,
            at: start,
            value: empty,
            exemplars: Vec::new(),
        });
        change(point);
        taken
    }
}

/// What a series is known by: its attributes, whatever their order.
pub(crate) fn series_key(attributes: &Object) -> Box<str> {
    let mut pairs: Vec<_> = attributes.iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    let mut text = String::new();
    for (key, value) in pairs {
        use std::fmt::Write as _;
        // Lengths make it unambiguous, whatever is in the texts.
        let _ = match value.as_str() {
            Some(value) => write!(text, "{}:{key}{}:{value}", key.len(), value.len()),
            None => write!(text, "{}:{key}{value:?}", key.len()),
        };
    }
    text.into_boxed_str()
}

impl Point {
    /// What its series is known by among those of its metric, whatever the order of the attributes.
    pub fn series(&self) -> Box<str> {
        series_key(&self.attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn of(pid: i64) -> Object {
        Object::from_pairs(vec![("process.pid".into(), Value::from(pid))])
    }

    #[test]
    fn series_are_bounded_and_what_does_not_fit_is_counted_without_its_attributes() {
        let mut meter = Meter::new(UnixNanos(5), 3);
        for pid in 0..10 {
            let taken = meter.add(&metric::CUDA_LAUNCH_COUNT, of(pid), 2);
            assert_eq!(taken.is_ok(), pid < 3, "{pid}");
            let _ = meter.record(&metric::CUDA_LAUNCH_BLOCK_SIZE, of(pid), 64.0, None);
            let _ = meter.set(&metric::SERVING_REQUEST_RUNNING, of(pid), Number::Int(1));
        }
        assert_eq!(meter.refused(), 21);
        let snapshot = meter.snapshot(Object::new(), UnixNanos(9));
        let family = |metric| {
            snapshot
                .families
                .iter()
                .find(|f| f.metric == metric)
                .unwrap()
        };
        let launches = &family(&metric::CUDA_LAUNCH_COUNT).points;
        let sum = launches.iter().map(|point| match point.value {
            Number::Int(n) => n,
            _ => 0,
        });
        assert_eq!(sum.sum::<i64>(), 20, "nothing of a sum is lost");
        assert_eq!(launches.len(), 4);
        assert!(
            launches
                .iter()
                .any(|p| p.attributes.contains("otel.metric.overflow"))
        );
        assert!(
            launches
                .iter()
                .all(|p| p.start == UnixNanos(5) && p.at == UnixNanos(9))
        );
        assert_eq!(family(&metric::SERVING_REQUEST_RUNNING).points.len(), 3);
        let refused = &family(&metric::METRIC_REFUSED).points[0];
        assert_eq!(refused.value, Number::Int(21));
    }

    #[test]
    fn the_order_of_attributes_makes_no_other_series() {
        let mut meter = Meter::new(UnixNanos(0), 10);
        for keys in [["a", "b"], ["b", "a"]] {
            let pairs = keys.map(|key| (key.into(), Value::from(key)));
            let attributes = Object::from_pairs(pairs.to_vec());
            meter.add(&metric::BLAME_TIME, attributes, 1).unwrap();
        }
        let snapshot = meter.snapshot(Object::new(), UnixNanos(1));
        assert_eq!(snapshot.len(), 1);
        assert_eq!(snapshot.families[0].points[0].value, Number::Int(2));
    }

    #[test]
    fn a_snapshot_takes_the_exemplars_and_leaves_the_counts() {
        let mut meter = Meter::new(UnixNanos(0), 10);
        let exemplar = |value| {
            Some(Exemplar {
                value,
                at: UnixNanos(1),
                context: None,
                attributes: Object::new(),
            })
        };
        for i in 0..100 {
            let value = f64::from(i);
            meter
                .record_explicit(
                    &metric::UNIT_DURATION,
                    Object::new(),
                    value,
                    exemplar(value),
                )
                .unwrap();
            meter
                .record(
                    &metric::NCCL_COLLECTIVE_DURATION,
                    Object::new(),
                    value,
                    exemplar(value),
                )
                .unwrap();
        }
        let first = meter.snapshot(Object::new(), UnixNanos(1));
        let kept = |snapshot: &Snapshot| -> Vec<usize> {
            snapshot
                .families
                .iter()
                .map(|f| f.points[0].exemplars.len())
                .collect()
        };
        // In the table's order: a collective's single calls are points elsewhere, of others the last few are kept.
        assert_eq!(kept(&first), [100, EXEMPLARS]);
        let second = meter.snapshot(Object::new(), UnixNanos(2));
        assert_eq!(kept(&second), [0, 0]);
        assert!(
            matches!(&second.families[1].points[0].value, Number::Explicit(h) if h.count() == 100)
        );
    }
}
