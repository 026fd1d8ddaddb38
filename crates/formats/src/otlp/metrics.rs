//! Metrics as a collector takes them.
//!
//! # What becomes of a metric
//!
//! | ours | OTLP |
//! |---|---|
//! | counter | `sum`, monotonic |
//! | up-down counter | `sum`, not monotonic, always cumulative |
//! | gauge | `gauge` |
//! | histogram | `histogram` or `exponentialHistogram`, as its points are; both, if its series differ |
//!
//! Names of ours are in the scope `warptrace`, another tracer's in its own (`ingero`), so that one request can have both.

use warptrace_model::Object;
use warptrace_model::metric::{Explicit, Exponential, Family, Instrument, Number, Snapshot};

use super::proto::{
    AnyValue, Buckets, Data, Exemplar, ExemplarValue, ExponentialHistogram,
    ExponentialHistogramDataPoint, ExportMetricsServiceRequest, Gauge, Histogram,
    HistogramDataPoint, InstrumentationScope, KeyValue, Metric, NumberDataPoint, PointValue,
    Resource, ResourceMetrics, ScopeMetrics, Sum, Variant,
};
use super::{attributes, text};
use crate::metrics::{Dialect, Label, Names, Written, WrittenPoint, ingero, native, resource};

/// What sums and histograms count from: their series' start, or the export before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Temporality {
    #[default]
    Cumulative,
    /// For backends that add up themselves. See [`Deltas`](super::Deltas).
    Delta,
}

impl Temporality {
    const fn code(self) -> i32 {
        match self {
            Temporality::Delta => 1,
            Temporality::Cumulative => 2,
        }
    }
}

/// How metrics are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsEncoder {
    pub names: Names,
    /// What the snapshots' values are; this converts nothing.
    pub temporality: Temporality,
    /// Write exponential histograms with the buckets of the table, for backends that know no others.
    pub explicit_histograms: bool,
    /// Of warptrace, for the scopes.
    pub version: String,
}

impl MetricsEncoder {
    /// One request with all of `snapshot`; without metrics when it has none.
    pub fn request(&self, snapshot: &Snapshot) -> ExportMetricsServiceRequest {
        let mut scopes = Vec::new();
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for family in &snapshot.families {
            if self.names.has_native() {
                let bounds = family.metric.bounds;
                ours.extend(self.metrics(native(family, Dialect::Otlp), bounds));
            }
            if self.names.has_ingero() {
                for written in ingero(family, Dialect::Otlp) {
                    // Under one name it is one metric, and ours has it.
                    if self.names.has_native() && written.name == family.metric.name {
                        continue;
                    }
                    theirs.extend(self.metrics(written, &[]));
                }
            }
        }
        for (name, metrics) in [("warptrace", ours), ("ingero", theirs)] {
            if !metrics.is_empty() {
                scopes.push(ScopeMetrics {
                    scope: Some(InstrumentationScope {
                        name: name.to_owned(),
                        version: self.version.clone(),
                        ..InstrumentationScope::default()
                    }),
                    metrics,
                    ..ScopeMetrics::default()
                });
            }
        }
        if scopes.is_empty() {
            return ExportMetricsServiceRequest::default();
        }
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource(&snapshot.resource)),
                scope_metrics: scopes,
                ..ResourceMetrics::default()
            }],
        }
    }

    fn resource(&self, ours: &Object) -> Resource {
        Resource {
            attributes: attributes(&resource(ours, self.names)),
            ..Resource::default()
        }
    }

    /// One metric, or for a histogram whose series differ in kind, two.
    fn metrics(&self, written: Written<'_>, bounds: &[f64]) -> Vec<Metric> {
        let metric = |data| Metric {
            name: written.name.to_string(),
            description: written.meaning.to_owned(),
            unit: written.unit.to_owned(),
            data: Some(data),
        };
        let temporality = self.temporality.code();
        match written.kind {
            Instrument::Gauge => {
                let data_points = written.points.iter().filter_map(number).collect();
                vec![metric(Data::Gauge(Gauge { data_points }))]
            }
            kind @ (Instrument::Counter | Instrument::UpDownCounter) => {
                let is_monotonic = kind == Instrument::Counter;
                let cumulative = Temporality::Cumulative.code();
                vec![metric(Data::Sum(Sum {
                    data_points: written.points.iter().filter_map(number).collect(),
                    aggregation_temporality: if is_monotonic {
                        temporality
                    } else {
                        cumulative
                    },
                    is_monotonic,
                }))]
            }
            Instrument::Histogram => {
                let (mut plain, mut exponential) = (Vec::new(), Vec::new());
                for point in &written.points {
                    match &*point.value {
                        Number::Explicit(h) => plain.push(explicit_point(point, h)),
                        Number::Exponential(h) if self.explicit_histograms => {
                            plain.push(explicit_point(point, &h.to_explicit(1.0, bounds)));
                        }
                        Number::Exponential(h) => exponential.push(exponential_point(point, h)),
                        Number::Int(_) | Number::Double(_) => {}
                    }
                }
                let mut metrics = Vec::new();
                if !plain.is_empty() {
                    metrics.push(metric(Data::Histogram(Histogram {
                        data_points: plain,
                        aggregation_temporality: temporality,
                    })));
                }
                if !exponential.is_empty() {
                    metrics.push(metric(Data::ExponentialHistogram(ExponentialHistogram {
                        data_points: exponential,
                        aggregation_temporality: temporality,
                    })));
                }
                metrics
            }
        }
    }
}

impl ExportMetricsServiceRequest {
    /// As protobuf.
    pub fn to_protobuf(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// As OTLP's JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Only a map with keys that are no strings fails, and there is none in these messages.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.resource_metrics.is_empty()
    }

    /// Data points of all metrics.
    pub fn points(&self) -> usize {
        let scopes = self.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
        let metrics = scopes.flat_map(|scope| &scope.metrics);
        let points = metrics.map(|metric| match &metric.data {
            Some(Data::Gauge(data)) => data.data_points.len(),
            Some(Data::Sum(data)) => data.data_points.len(),
            Some(Data::Histogram(data)) => data.data_points.len(),
            Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
            None => 0,
        });
        points.sum()
    }
}

fn number(point: &WrittenPoint<'_>) -> Option<NumberDataPoint> {
    let value = match *point.value {
        Number::Int(n) => PointValue::AsInt(n),
        Number::Double(x) => PointValue::AsDouble(x),
        Number::Explicit(_) | Number::Exponential(_) => return None,
    };
    Some(NumberDataPoint {
        start_time_unix_nano: point.start.0,
        time_unix_nano: point.at.0,
        value: Some(value),
        exemplars: exemplars(point),
        attributes: labels(point),
        flags: 0,
    })
}

fn explicit_point(point: &WrittenPoint<'_>, histogram: &Explicit) -> HistogramDataPoint {
    let count = histogram.count();
    HistogramDataPoint {
        attributes: labels(point),
        start_time_unix_nano: point.start.0,
        time_unix_nano: point.at.0,
        count,
        sum: (count > 0).then(|| histogram.sum()),
        bucket_counts: histogram.counts().to_vec(),
        explicit_bounds: histogram.bounds().to_vec(),
        exemplars: exemplars(point),
        flags: 0,
        min: histogram.range().map(|(min, _)| min),
        max: histogram.range().map(|(_, max)| max),
    }
}

fn exponential_point(
    point: &WrittenPoint<'_>,
    histogram: &Exponential,
) -> ExponentialHistogramDataPoint {
    let count = histogram.count();
    ExponentialHistogramDataPoint {
        attributes: labels(point),
        start_time_unix_nano: point.start.0,
        time_unix_nano: point.at.0,
        count,
        sum: (count > 0).then(|| histogram.sum()),
        scale: histogram.scale(),
        zero_count: histogram.zero_count(),
        positive: Some(Buckets {
            offset: histogram.offset(),
            bucket_counts: histogram.counts().to_vec(),
        }),
        negative: None,
        flags: 0,
        exemplars: exemplars(point),
        min: histogram.range().map(|(min, _)| min),
        max: histogram.range().map(|(_, max)| max),
    }
}

fn exemplars(point: &WrittenPoint<'_>) -> Vec<Exemplar> {
    let exemplars = point.exemplars.iter().map(|exemplar| {
        let (trace_id, span_id) = match exemplar.context {
            Some((trace, span)) => (trace.to_be_bytes().to_vec(), span.to_be_bytes().to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        Exemplar {
            filtered_attributes: attributes(&exemplar.attributes),
            time_unix_nano: exemplar.at.0,
            value: Some(ExemplarValue::AsDouble(exemplar.value)),
            span_id,
            trace_id,
        }
    });
    exemplars.collect()
}

fn labels(point: &WrittenPoint<'_>) -> Vec<KeyValue> {
    let labels = point.labels.iter().map(|(key, value)| KeyValue {
        key: key.to_string(),
        value: Some(AnyValue {
            value: Some(match value {
                Label::Text(value) => Variant::StringValue(text(value)),
                Label::Int(n) => Variant::IntValue(*n),
                Label::Double(x) => Variant::DoubleValue(*x),
                Label::Bool(b) => Variant::BoolValue(*b),
            }),
        }),
    });
    labels.collect()
}

/// Cuts `snapshot` into ones of at most `points` points each, in their order.
pub fn split(snapshot: &Snapshot, points: usize) -> Vec<Snapshot> {
    let points = points.max(1);
    let mut parts: Vec<Snapshot> = Vec::new();
    let mut left = 0;
    for family in &snapshot.families {
        let mut rest = &family.points[..];
        while !rest.is_empty() {
            if left == 0 {
                parts.push(Snapshot {
                    resource: snapshot.resource.clone(),
                    families: Vec::new(),
                });
                left = points;
            }
            let (now, later) = rest.split_at(rest.len().min(left));
            if let Some(part) = parts.last_mut() {
                part.families.push(Family {
                    metric: family.metric,
                    points: now.to_vec(),
                });
            }
            left -= now.len();
            rest = later;
        }
    }
    parts
}
