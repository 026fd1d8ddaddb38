//! Every telemetry format that warptrace reads or writes, both ways: bytes to the words of [`warptrace_model`] and back.
//!
//! One module and one feature a format. No files, no sockets, no clock: callers bring bytes and times, so that a decoder can
//! be fuzzed, replayed and tested as it is. What a decoder refuses it says with the place: line, field, and why.

#[cfg(feature = "annotation")]
pub mod annotation;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(any(feature = "openmetrics", feature = "otlp"))]
pub mod metrics;
#[cfg(feature = "openmetrics")]
pub mod openmetrics;
#[cfg(feature = "otlp")]
pub mod otlp;
#[cfg(feature = "outlier-stream")]
pub mod outlier_stream;
#[cfg(feature = "prometheus-text")]
pub mod prometheus_text;
#[cfg(feature = "run-log")]
pub mod run_log;
#[cfg(feature = "serving")]
pub mod serving;
#[cfg(feature = "span-record")]
pub mod span_record;

pub mod json;
#[cfg(any(feature = "run-log", feature = "span-record"))]
mod lines;
#[cfg(any(feature = "memory", feature = "span-record"))]
pub mod open_json;
#[cfg(any(feature = "outlier-stream", feature = "run-log"))]
pub mod utc;
