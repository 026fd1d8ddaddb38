//! Metrics on their way out: a bounded queue of snapshots, one thread behind it, and counts of what became of their points.

mod queue;
mod sender;
mod settings;

pub use warptrace_formats::otlp::Temporality;

pub use self::sender::MetricSender;
pub use self::settings::MetricSettings;
