//! What a program links to say what it does: spans and events, and writers of annotations, memory telemetry and run logs.
//! They never block it, never panic, and count what they drop.

pub mod annotation;
pub mod bridge;
pub mod capture;
pub mod exporter;
pub mod memory_sink;
mod os;
pub mod run_log;
pub mod span;
pub mod training;

use os::{fork, owned, ticks};

pub use fork::{process_id, thread_id};
