//! Telemetry going out of a process: OTLP over HTTP (protobuf or JSON) and, with the feature `grpc`, over gRPC; metrics also by
//! being asked for them.
//!
//! [`SpanSender`] is a bounded queue and one background thread that batches, sends, and tries again. Whoever pushes never
//! waits for a collector: what the queue cannot hold is dropped, and every drop is counted by reason ([`Counts`]) and
//! told to the collector as well, once it takes something. It works across `fork`: a child starts with a queue, counts and a
//! thread of its own.
//!
//! [`MetricSender`] does the same for snapshots of metrics, and [`Scrape`] serves the newest one to Prometheus.
//! [`resource_attributes`] says whose telemetry it is.
//!
//! [`SpanReceiver`] takes spans of others by OTLP over HTTP, and [`SpanRelay`] passes them on as they are.
//!
//! [`otlp`] is how a request travels, for any signal: configuration by the OpenTelemetry variables, transport, and what a
//! collector's answer means. It knows nothing of spans.
//!
//! Threads and blocking I/O; tokio only for gRPC, on its own thread. No configuration is read behind the caller's back: the
//! environment comes in as a function.

pub mod alert;
mod metrics;
pub mod otlp;
mod phase;
mod receive;
mod resource;
mod scrape;
mod server;
mod spans;

pub use metrics::{MetricSender, MetricSettings, Temporality};
pub use receive::{ReceiveConfig, Received, SpanReceiver, SpanRelay};
pub use resource::{HostFacts, ResourceOptions, cloud_provider, resource_attributes};
pub use scrape::{Scrape, ScrapeConfig, Stage};
pub use server::{ServeError, ServerTls};
pub use spans::{Batching, Counts, DropReason, SpanSender};

/// The first bytes of `text`, `limit` at most, ending with a whole character.
fn start_of(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
