//! What a program links to say what it does: writers that never block it, never panic, and count what they drop.

pub mod annotation;
pub mod memory_sink;
pub mod run_log;
