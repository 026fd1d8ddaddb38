//! Metrics as they are written: which names and shapes a family of [`warptrace_model::metric`] has, for any encoding.
//!
//! It chooses names, converts units, renames attributes and derives other tracers' metrics from ours; [`otlp`](crate::otlp) and
//! [`openmetrics`](crate::openmetrics) put the outcome in bytes.

use std::borrow::Cow;
use std::collections::HashMap;

use warptrace_model::metric::{
    Attribute, Derived, Exemplar, Family, Form, Ingero, Instrument, Number, Shape, attribute,
    prometheus_name, resource,
};
use warptrace_model::{Int, Object, UnixNanos, Value};

/// Whose names metrics and their attributes have: the setting `metrics.names`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// OpenTelemetry's, and ours.
    #[default]
    Native,
    /// Those of the tracer `ingero` 0.17.0, and no metric that it does not have.
    Ingero,
    Both,
}

impl Names {
    pub const ALL: [Names; 3] = [Names::Native, Names::Ingero, Names::Both];

    /// As in the setting.
    pub const fn name(self) -> &'static str {
        match self {
            Names::Native => "native",
            Names::Ingero => "ingero",
            Names::Both => "both",
        }
    }

    pub fn by_name(name: &str) -> Option<Names> {
        Names::ALL.into_iter().find(|names| names.name() == name)
    }

    pub(crate) const fn has_native(self) -> bool {
        !matches!(self, Names::Ingero)
    }

    pub(crate) const fn has_ingero(self) -> bool {
        !matches!(self, Names::Native)
    }
}

/// What names and attributes are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    #[cfg_attr(
        not(feature = "otlp"),
        allow(dead_code, reason = "its encoder is not built")
    )]
    Otlp,
    #[cfg_attr(
        not(feature = "openmetrics"),
        allow(dead_code, reason = "its encoder is not built")
    )]
    Prometheus,
}

/// A metric with its points, named and converted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written<'a> {
    /// In Prometheus without the `_total` of a counter of ours; another tracer's is as that has it.
    pub(crate) name: Cow<'static, str>,
    /// UCUM in OTLP; in Prometheus the suffix of the name, empty where there is none.
    pub(crate) unit: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) kind: Instrument,
    pub(crate) points: Vec<WrittenPoint<'a>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WrittenPoint<'a> {
    pub(crate) labels: Vec<(Cow<'static, str>, Label)>,
    pub(crate) start: UnixNanos,
    pub(crate) at: UnixNanos,
    pub(crate) value: Cow<'a, Number>,
    pub(crate) exemplars: &'a [Exemplar],
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Label {
    Text(String),
    Int(i64),
    Double(f64),
    Bool(bool),
}

/// Under our own name.
pub(crate) fn native(family: &Family, dialect: Dialect) -> Written<'_> {
    let metric = family.metric;
    let (name, unit) = match dialect {
        Dialect::Otlp => (Cow::Borrowed(metric.name), metric.unit),
        Dialect::Prometheus => {
            let (name, unit) = prometheus_name(metric);
            (Cow::Owned(name), unit)
        }
    };
    let points = family.points.iter().map(|point| {
        let mut labels = native_labels(metric.attributes, &point.attributes, dialect);
        if let Some(Value::Bool(true)) = point.attributes.get(OVERFLOW) {
            labels.push((spelt(OVERFLOW, dialect), Label::Bool(true)));
        }
        WrittenPoint {
            labels,
            start: point.start,
            at: point.at,
            value: Cow::Borrowed(&point.value),
            exemplars: &point.exemplars,
        }
    });
    // Alike where attributes were left out, or said of two processes that had one id after the other.
    let points = merged(points.collect(), metric.instrument != Instrument::Gauge);
    Written {
        name,
        unit,
        meaning: metric.meaning,
        kind: metric.instrument,
        points,
    }
}

/// Under another tracer's names: none, one, or several metrics.
pub(crate) fn ingero(family: &Family, dialect: Dialect) -> Vec<Written<'_>> {
    let adds = family.metric.instrument != Instrument::Gauge;
    let rows = family.metric.ingero.iter();
    let written = rows.filter_map(|row| {
        let name = match dialect {
            Dialect::Otlp => row.name,
            Dialect::Prometheus => row.prometheus,
        }?;
        let points = family.points.iter().filter(|point| match row.only {
            Some((key, value)) => {
                point.attributes.get(key.name).and_then(Value::as_str) == Some(value)
            }
            None => true,
        });
        let points = points.map(|point| WrittenPoint {
            labels: ingero_labels(row.attributes, &point.attributes, dialect),
            start: point.start,
            at: point.at,
            value: Cow::Borrowed(&point.value),
            exemplars: &point.exemplars,
        });
        let points = match row.derived {
            // Single calls are alike and yet not the same.
            Derived::Measurements(_) => points.collect(),
            _ => merged(points.collect(), adds),
        };
        let points: Vec<_> = points
            .into_iter()
            .flat_map(|point| derive(row, point, dialect))
            .collect();
        (!points.is_empty()).then_some(Written {
            name: Cow::Borrowed(name),
            unit: row.unit,
            meaning: family.metric.meaning,
            kind: match row.shape {
                Shape::IntGauge | Shape::DoubleGauge => Instrument::Gauge,
                Shape::Sum => Instrument::Counter,
                Shape::Histogram => Instrument::Histogram,
            },
            points,
        })
    });
    written.collect()
}

/// The resource under the names that are wanted.
pub(crate) fn resource(ours: &Object, names: Names) -> Object {
    let mut to = Object::new();
    if names.has_ingero() {
        for row in resource::ALL {
            let (Some(theirs), Some(value)) = (row.ingero, ours.get(row.name)) else {
                continue;
            };
            let is_ours = row.name == resource::SERVICE_NAME && value.as_str() == Some("warptrace");
            match names == Names::Ingero && is_ours {
                true => to.insert(theirs, "ingero"),
                false => to.insert(theirs, value.clone()),
            }
        }
    }
    for (key, value) in ours.iter() {
        let renamed = resource::ALL
            .iter()
            .any(|row| row.name == key && row.ingero.is_some_and(|theirs| theirs != key));
        if (names.has_native() || !renamed) && !to.contains(key) {
            to.insert(key, value.clone());
        }
    }
    to
}

const OVERFLOW: &str = "otel.metric.overflow";

/// A name of ours in a dialect.
pub(crate) fn spelt(name: &'static str, dialect: Dialect) -> Cow<'static, str> {
    match dialect {
        Dialect::Otlp => Cow::Borrowed(name),
        Dialect::Prometheus => Cow::Owned(name.replace('.', "_")),
    }
}

pub(crate) fn native_labels(
    known: &[&'static Attribute],
    said: &Object,
    dialect: Dialect,
) -> Vec<(Cow<'static, str>, Label)> {
    let labels = known.iter().filter_map(|attribute| {
        let value = said.get(attribute.name)?;
        let label = match bits(value, attribute.form) {
            Some(bits) => Label::Text(match attribute.form {
                Form::Handle => format!("{bits:#x}"),
                Form::Command => format!("0x{bits:X}"),
                _ => format!("{bits:016x}"),
            }),
            None => plain(value)?,
        };
        Some((spelt(attribute.name, dialect), label))
    });
    labels.collect()
}

pub(crate) fn ingero_labels(
    known: &[&'static Attribute],
    said: &Object,
    dialect: Dialect,
) -> Vec<(Cow<'static, str>, Label)> {
    let labels = known.iter().filter_map(|attribute| {
        let name = match dialect {
            Dialect::Otlp => attribute.ingero,
            Dialect::Prometheus => attribute.label,
        }?;
        let value = said.get(attribute.name)?;
        // The peer of a collective that has none is 0 there, and left out.
        if **attribute == attribute::NCCL_PEER && *value == Value::Int(Int::ZERO) {
            return None;
        }
        let label = match bits(value, attribute.form) {
            Some(bits) => Label::Text(match (attribute.form, dialect) {
                (Form::Handle, _) => bits.to_string(),
                (Form::Command, _) => format!("0x{bits:X}"),
                (Form::Fingerprint, Dialect::Otlp) => format!("{bits:x}"),
                _ => format!("{bits:016x}"),
            }),
            None => plain(value)?,
        };
        Some((Cow::Borrowed(name), label))
    });
    labels.collect()
}

/// Of a value that is written in hexadecimal digits.
fn bits(value: &Value, form: Form) -> Option<u64> {
    match form {
        Form::Hash | Form::Fingerprint | Form::Handle | Form::Command => value.as_int()?.to_u64(),
        Form::Text | Form::Int | Form::Double => None,
    }
}

fn plain(value: &Value) -> Option<Label> {
    Some(match value {
        Value::String(text) => Label::Text(text.to_string()),
        Value::Int(n) => match n.to_i64() {
            Some(n) => Label::Int(n),
            None => Label::Text(n.to_string()),
        },
        Value::Float(x) => Label::Double(*x),
        Value::Bool(b) => Label::Bool(*b),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    })
}

/// What follows from a point of ours.
fn derive<'a>(row: &Ingero, point: WrittenPoint<'a>, dialect: Dialect) -> Vec<WrittenPoint<'a>> {
    let start = match row.shape {
        Shape::Sum | Shape::Histogram => point.start,
        Shape::IntGauge | Shape::DoubleGauge => UnixNanos(0),
    };
    let real = |x: f64| match row.shape {
        Shape::DoubleGauge => Number::Double(x),
        _ => Number::Int(x.round() as i64),
    };
    let one = |value: Number| {
        vec![WrittenPoint {
            labels: point.labels.clone(),
            start,
            at: point.at,
            value: Cow::Owned(value),
            exemplars: &[],
        }]
    };
    let (count, sum) = match &*point.value {
        Number::Explicit(h) => (h.count(), h.sum()),
        Number::Exponential(h) => (h.count(), h.sum()),
        Number::Int(n) => {
            let is_number = row.shape != Shape::Histogram;
            return match row.derived {
                Derived::Times(1.0) if is_number && row.shape != Shape::DoubleGauge => {
                    one(Number::Int(*n))
                }
                Derived::Times(factor) if is_number => one(real(*n as f64 * factor)),
                _ => Vec::new(),
            };
        }
        Number::Double(x) => {
            return match row.derived {
                Derived::Times(factor) if row.shape != Shape::Histogram => one(real(x * factor)),
                _ => Vec::new(),
            };
        }
    };
    let quantile = |q| match &*point.value {
        Number::Explicit(h) => h.quantile(q),
        Number::Exponential(h) => h.quantile(q),
        Number::Int(_) | Number::Double(_) => None,
    };
    match row.derived {
        Derived::Times(factor) => {
            let value = match &*point.value {
                Number::Explicit(h) => h.scaled(factor, row.bounds),
                Number::Exponential(h) => h.to_explicit(factor, row.bounds),
                Number::Int(_) | Number::Double(_) => return Vec::new(),
            };
            one(Number::Explicit(value))
        }
        Derived::Count => one(Number::Int(i64::try_from(count).unwrap_or(i64::MAX))),
        Derived::Sum => one(real(sum)),
        Derived::Percentiles(factor) => {
            let Some(key) = (match dialect {
                Dialect::Otlp => attribute::PERCENTILE.ingero,
                Dialect::Prometheus => attribute::PERCENTILE.label,
            }) else {
                return Vec::new();
            };
            let percentiles = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)].into_iter();
            let percentiles = percentiles.flat_map(|(name, q)| {
                let value = quantile(q).map(|value| (value * factor).floor());
                let mut points = value.map_or(Vec::new(), |value| one(Number::Double(value)));
                for point in &mut points {
                    let label = Label::Text(name.to_owned());
                    point.labels.push((Cow::Borrowed(key), label));
                }
                points
            });
            percentiles.collect()
        }
        Derived::Measurements(factor) => {
            let points = point.exemplars.iter().flat_map(|call| {
                let mut points = one(real(call.value * factor));
                points.iter_mut().for_each(|point| point.at = call.at);
                points
            });
            points.collect()
        }
    }
}

/// Points that have the same labels, as one: what can be added is, of the rest the last one holds.
fn merged(points: Vec<WrittenPoint<'_>>, adds: bool) -> Vec<WrittenPoint<'_>> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut out: Vec<WrittenPoint<'_>> = Vec::with_capacity(points.len());
    for point in points {
        let key = format!("{:?}", point.labels);
        match places.get(&key) {
            Some(at) => merge(&mut out[*at], point, adds),
            None => {
                places.insert(key, out.len());
                out.push(point);
            }
        }
    }
    out
}

fn merge<'a>(to: &mut WrittenPoint<'a>, from: WrittenPoint<'a>, adds: bool) {
    to.at = to.at.max(from.at);
    to.start = to.start.min(from.start);
    if !adds {
        to.value = from.value;
        to.exemplars = from.exemplars;
        return;
    }
    if to.exemplars.is_empty() {
        to.exemplars = from.exemplars;
    }
    let sum = match (to.value.to_mut(), &*from.value) {
        (Number::Int(a), Number::Int(b)) => Number::Int(a.saturating_add(*b)),
        (Number::Int(a), Number::Double(b)) => Number::Double(*a as f64 + b),
        (Number::Double(a), Number::Int(b)) => Number::Double(*a + *b as f64),
        (Number::Double(a), Number::Double(b)) => Number::Double(*a + b),
        (Number::Exponential(a), Number::Exponential(b)) => return a.merge(b),
        (Number::Explicit(a), Number::Explicit(b)) => {
            // Of servers with other bounds only one can be shown in one series.
            a.merge(b);
            return;
        }
        _ => return,
    };
    to.value = Cow::Owned(sum);
}

#[cfg(test)]
mod tests;
