//! How a name of ours is spelt in Prometheus.
//!
//! Source: OpenTelemetry specification, *Prometheus and OpenMetrics Compatibility*: characters that a name cannot have become
//! `_`, the unit is a suffix, counters end in `_total`, gauges of unit `1` in `_ratio`.

use super::{Instrument, Metric};

/// The name of the family, without the `_total` of a counter, and its unit, empty if it has none.
pub fn prometheus_name(metric: &Metric) -> (String, &'static str) {
    let unit = match metric.unit {
        "s" => "seconds",
        "By" => "bytes",
        "Hz" => "hertz",
        "Cel" => "celsius",
        "W" => "watts",
        "1" if metric.instrument == Instrument::Gauge => "ratio",
        _ => "",
    };
    let mut name: String = metric
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if !unit.is_empty() && !name.ends_with(&format!("_{unit}")) {
        name.push('_');
        name.push_str(unit);
    }
    (name, unit)
}
