//! Where spans go: files, logs, a terminal, the agent, a run log.
//!
//! Each is a [`span::Exporter`](crate::span::Exporter), to be given to a recorder, which calls it from a thread of its own
//! ([`Builder::exporter`](crate::span::Builder::exporter)) or from the program's
//! ([`Builder::direct_exporter`](crate::span::Builder::direct_exporter)). What an exporter took and could not bring out is counted
//! ([`Exporter::dropped`](crate::span::Exporter::dropped)).
//!
//! [`config`] makes exporters of names and settings.

mod agent_socket;
pub mod config;
mod console;
mod file;
mod log_lines;
#[cfg(feature = "otlp")]
mod otlp;
mod records;
mod run_log;
mod tee;

pub use agent_socket::{AgentSocket, STEP_SPANS};
pub use console::Console;
pub use file::{Existing, JsonlFile, Rotation};
pub use log_lines::LogLines;
#[cfg(feature = "otlp")]
pub use otlp::Otlp;
pub use run_log::RunLogExporter;
pub use tee::{Discard, Tee};
#[cfg(feature = "otlp")]
pub use warptrace_export as export;
pub use warptrace_formats::span_record::Keys;
