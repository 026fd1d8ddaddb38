//! How metrics are pushed, by OpenTelemetry's variables.

use std::time::Duration;

use warptrace_formats::metrics::Names;
use warptrace_formats::otlp::Temporality;

use crate::otlp::{Ignored, Retry, Variables};

/// How metrics are written, how many may wait, and for how long a request is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricSettings {
    /// How often a snapshot is to be taken and offered: whoever has the metrics keeps to it, the sender has no clock for that.
    pub interval: Duration,
    pub names: Names,
    pub temporality: Temporality,
    /// Write no exponential histograms.
    pub explicit_histograms: bool,
    /// Points in a request, at most; so that it stays within the 4 MiB that a gRPC server takes.
    pub batch_points: usize,
    /// Snapshots that wait, at most; one more pushes the oldest out.
    pub queue_snapshots: usize,
    /// Bytes that wait, at most. A larger snapshot is dropped.
    pub queue_bytes: usize,
    pub retry: Retry,
}

impl Default for MetricSettings {
    /// A push every 10 s, cumulative, and up to 16 MiB kept while a collector is away.
    fn default() -> MetricSettings {
        MetricSettings {
            interval: Duration::from_secs(10),
            names: Names::Native,
            temporality: Temporality::Cumulative,
            explicit_histograms: false,
            batch_points: 1000,
            queue_snapshots: 64,
            queue_bytes: 16 << 20,
            retry: Retry::default(),
        }
    }
}

impl MetricSettings {
    /// By `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_METRIC_EXPORT_TIMEOUT` (of a request with all its tries),
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` and `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION`, and
    /// which of them were ignored.
    ///
    /// `lowmemory` is `delta` here: all of our counters and histograms are of the kinds that it means.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> (MetricSettings, Vec<Ignored>) {
        let variables = Variables::new(lookup);
        let mut settings = MetricSettings::default();
        let millis = |name| variables.get(name).and_then(|said| said.millis());
        if let Some(interval) = millis("OTEL_METRIC_EXPORT_INTERVAL") {
            settings.interval = interval;
        }
        if let Some(total) = millis("OTEL_METRIC_EXPORT_TIMEOUT") {
            settings.retry.total = total;
        }
        let preference = variables.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE");
        let preference = preference.and_then(|said| {
            said.read("cumulative, delta or lowmemory", |text| {
                match text.to_ascii_lowercase().as_str() {
                    "cumulative" => Some(Temporality::Cumulative),
                    "delta" | "lowmemory" => Some(Temporality::Delta),
                    _ => None,
                }
            })
        });
        settings.temporality = preference.unwrap_or_default();
        let histograms = variables.get("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION");
        let histograms = histograms.and_then(|said| {
            let expected = "explicit_bucket_histogram or base2_exponential_bucket_histogram";
            said.read(expected, |text| match text.to_ascii_lowercase().as_str() {
                "explicit_bucket_histogram" => Some(true),
                "base2_exponential_bucket_histogram" => Some(false),
                _ => None,
            })
        });
        settings.explicit_histograms = histograms.unwrap_or_default();
        (settings, variables.ignored())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_hold_where_they_can_be_read() {
        let from = |pairs: &[(&str, &str)]| {
            MetricSettings::from_env(|name| {
                let found = pairs.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
        const PREFERENCE: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        const HISTOGRAMS: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
        assert_eq!(from(&[]), (MetricSettings::default(), Vec::new()));
        let (settings, ignored) = from(&[
            (INTERVAL, "500"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "7000"),
            (PREFERENCE, "Delta"),
            (HISTOGRAMS, "explicit_bucket_histogram"),
        ]);
        assert_eq!(ignored, []);
        assert_eq!(settings.interval, Duration::from_millis(500));
        assert_eq!(settings.retry.total, Duration::from_secs(7));
        assert_eq!(settings.temporality, Temporality::Delta);
        assert!(settings.explicit_histograms);
        let (settings, ignored) = from(&[
            (INTERVAL, "0"),
            (PREFERENCE, "both"),
            (HISTOGRAMS, "sparse"),
        ]);
        assert_eq!((settings, ignored.len()), (MetricSettings::default(), 3));
    }
}
