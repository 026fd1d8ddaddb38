//! What a program links to say what it does: spans and events, and writers of annotations, memory telemetry and run logs.
//! They never block it, never panic, and count what they drop.

pub mod annotation;
pub mod bridge;
pub mod capture;
pub mod exporter;
mod fork;
pub mod memory_sink;
pub mod run_log;
pub mod span;
mod ticks;
pub mod training;

pub use fork::{process_id, thread_id};
