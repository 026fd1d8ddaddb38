//! Metrics: the one table of their names, units, kinds, meanings and attributes, and plain data for their values.
//!
//! Names are OpenTelemetry's where it has one, else in the namespace `warptrace`. A row also says under which names, and in
//! which shape, another tracer's dashboards expect the same facts ([`Ingero`]); those points are derived from ours when they
//! are written, so that nobody records a value twice. `docs/metrics.md` is generated from here.
//!
//! It knows no encoding, no clock, and not where a value comes from.

mod attributes;
mod histogram;
mod inference;
mod meter;
mod names;
mod point;
mod table;

pub use self::attributes::{Attribute, Form, attribute};
pub use self::histogram::{Explicit, Exponential};
pub use self::inference::{
    ServerFacts, add_outlier_exemplars, inference_families, serving_families, workload_attributes,
};
pub use self::meter::{Meter, Refused, SERIES_LIMIT};
pub use self::names::prometheus_name;
pub use self::point::{Exemplar, Families, Family, Number, Point, Snapshot};
pub use self::table::{metric, resource};

/// What a measurement is. OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instrument {
    /// A sum that only grows, from its start time on.
    Counter,
    /// A level that can be added over its series: bytes in use, processes, states that are 0 or 1.
    UpDownCounter,
    /// A level that cannot: a fraction, a mean.
    Gauge,
    /// A distribution.
    Histogram,
}

impl Instrument {
    /// In lower case, as the documentation has it.
    pub const fn name(self) -> &'static str {
        match self {
            Instrument::Counter => "counter",
            Instrument::UpDownCounter => "updowncounter",
            Instrument::Gauge => "gauge",
            Instrument::Histogram => "histogram",
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub instrument: Instrument,
    /// UCUM: `s`, `By`, `Hz`, `Cel`, `W`, `1` for a fraction or a state, `{thing}` for what is counted.
    pub unit: &'static str,
    /// One sentence without its full stop.
    pub meaning: &'static str,
    /// What its series are told apart by. A point may have more for [`Metric::ingero`], which is left out under this name.
    pub attributes: &'static [&'static Attribute],
    /// Of a histogram: upper bounds of the buckets, ascending, each part of the bucket it closes. Where buckets must be written
    /// out, an exponential histogram is shown by them as well.
    pub bounds: &'static [f64],
    /// Names and shapes of the same facts elsewhere.
    pub ingero: &'static [Ingero],
}

impl Metric {
    /// Whether its values add up from a start time on.
    pub const fn accumulates(&self) -> bool {
        matches!(self.instrument, Instrument::Counter | Instrument::Histogram)
    }
}

impl PartialEq for Metric {
    /// Names are unique.
    fn eq(&self, other: &Metric) -> bool {
        self.name == other.name
    }
}

impl Eq for Metric {}

impl std::hash::Hash for Metric {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A metric of the tracer `ingero` (0.17.0), whose dashboards and collectors are to go on working: how it follows from ours.
#[derive(Debug)]
pub struct Ingero {
    /// In OTLP; `None` where only Prometheus has it.
    pub name: Option<&'static str>,
    /// In Prometheus; `None` where only OTLP has it.
    pub prometheus: Option<&'static str>,
    pub shape: Shape,
    pub unit: &'static str,
    /// Their names are [`Attribute::ingero`] and [`Attribute::label`]. Points that are then alike become one.
    pub attributes: &'static [&'static Attribute],
    /// Only points with this value of an attribute.
    pub only: Option<(&'static Attribute, &'static str)>,
    pub derived: Derived,
    /// Of a histogram: the bounds in its own unit.
    pub bounds: &'static [f64],
}

/// Kinds of metrics as that tracer has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    IntGauge,
    DoubleGauge,
    /// Cumulative and monotonic, of integers.
    Sum,
    Histogram,
}

/// How a value follows from a point of ours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Derived {
    /// The value, or each bucket's bound, times this.
    Times(f64),
    /// Three gauges, of the quantiles 0.5, 0.95 and 0.99 times this, rounded down, each with the attribute `percentile`.
    Percentiles(f64),
    /// How many a histogram has.
    Count,
    /// The sum of a histogram.
    Sum,
    /// Each measurement that a histogram's exemplars kept, times this: a point of its own, at its own time.
    Measurements(f64),
}

#[cfg(test)]
mod tests;
