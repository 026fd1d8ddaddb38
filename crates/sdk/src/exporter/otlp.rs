//! Spans to a collector of OpenTelemetry.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use warptrace_export::otlp::{Config, ConfigError, Ignored, Signal, resource_from_env};
use warptrace_export::{Batching, Counts, SpanSender};
use warptrace_model::{Object, SpanId, SpanRecord};

use crate::fork::process_id;
use crate::span::{Event, ExportError, Exporter, Interest, Span};

/// The instrumentation scope of our spans.
const SCOPE: &str = "warptrace";

/// Sends each span when it has ended, by OTLP over HTTP or (feature `otlp-grpc`) gRPC.
///
/// The sender has a queue and a thread of its own and tries again, so that a call here never waits for a collector: it may be a
/// recorder's direct exporter, which spares a hop. A span's ids are its own in 64 and 128 bits, its parent is known by id alone, its
/// error is its status, its events are span events, and `thread.id` is among its attributes. A `telemetry_data_error` is a span
/// of that name without length, of status error. Nothing is ever made the current span of any OpenTelemetry library.
#[derive(Debug)]
pub struct Otlp {
    sender: SpanSender,
}

impl Otlp {
    /// By a sender that is set up already.
    pub fn new(sender: SpanSender) -> Otlp {
        Otlp {
            sender: sender.with_process_key(process_id),
        }
    }

    /// As OpenTelemetry's variables say (`OTEL_EXPORTER_OTLP_…`, `OTEL_BSP_…`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`), of a
    /// service that is called `service_name` where they say nothing else; and which of them were ignored.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_env(
        service_name: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<(Otlp, Vec<Ignored>), ConfigError> {
        let (config, ignored) = Config::from_env(Signal::Traces, &lookup);
        let (otlp, more) = Otlp::with_config(&config, service_name, lookup)?;
        Ok((otlp, [ignored, more].concat()))
    }

    /// The same, but where to and how is `config`'s.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn with_config(
        config: &Config,
        service_name: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<(Otlp, Vec<Ignored>), ConfigError> {
        let (batching, mut ignored) = Batching::from_env(&lookup);
        let mut resource = Object::new();
        resource.insert("service.name", service_name);
        resource.insert("process.pid", i64::from(process_id()));
        if let Ok(host) = nix::unistd::gethostname() {
            resource.insert("host.name", &*host.to_string_lossy());
        }
        resource.insert("telemetry.sdk.name", SCOPE);
        resource.insert("telemetry.sdk.language", "rust");
        resource.insert("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        let (said, more) = resource_from_env(lookup);
        for (name, value) in said.iter() {
            resource.insert(name, value.clone());
        }
        ignored.extend(more);
        let version = env!("CARGO_PKG_VERSION");
        let sender = SpanSender::new(config, batching, resource, SCOPE, version)?;
        Ok((Otlp::new(sender), ignored))
    }

    /// What became of the spans in this process.
    pub fn counts(&self) -> Counts {
        self.sender.counts()
    }

    /// What cannot be queued is dropped and counted by the sender, which also tells the collector.
    fn push(&self, record: SpanRecord) {
        self.sender.push(record);
    }
}

impl Exporter for Otlp {
    fn interest(&self) -> Interest {
        Interest::Finished
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let mut record = span.record();
        if !record.attributes.contains("thread.id") {
            record
                .attributes
                .insert("thread.id", i64::from(span.thread_id()));
        }
        self.push(record);
        Ok(())
    }

    /// Goes out with its span.
    fn event(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn error(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        let id = random_id();
        self.push(SpanRecord {
            trace: id.to_bits(),
            id,
            parent: None,
            name: event.name().into(),
            start: event.at().unix(),
            end: Some(event.at().unix()),
            attributes: Object::new(),
            events: vec![event.record()],
            dropped_events: 0,
            error: Some(event.error_message().unwrap_or_default().into()),
        });
        Ok(())
    }

    /// Waits until all has been sent or dropped; without patience it hurries nothing.
    fn flush(&self, patience: Duration) -> Result<(), ExportError> {
        if patience.is_zero() || self.sender.flush(Instant::now() + patience) {
            return Ok(());
        }
        Err(
            ExportError::new(format!("not all was sent within {patience:?}"))
                .with_code("flush_timed_out"),
        )
    }

    fn close(&self, patience: Duration) -> Result<(), ExportError> {
        if self.sender.close(Instant::now() + patience) {
            return Ok(());
        }
        let failure = self.sender.counts().last_failure;
        let why = failure.map_or_else(String::new, |failure| format!(": {failure}"));
        Err(
            ExportError::new(format!("not all was sent within {patience:?}{why}"))
                .with_code("close_timed_out"),
        )
    }

    fn dropped(&self) -> u64 {
        let counts = self.sender.counts();
        counts.dropped_in_all() + counts.rejected
    }
}

/// Of the operating system's randomness; rare enough for that.
fn random_id() -> SpanId {
    let random = RandomState::new();
    let half = |which: u8| {
        let mut hasher = random.build_hasher();
        hasher.write_u8(which);
        hasher.write_u32(process_id());
        u128::from(hasher.finish())
    };
    SpanId::from_random(half(0) << 64 | half(1))
}
