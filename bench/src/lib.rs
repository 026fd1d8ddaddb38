//! Benchmarks, each a ratio against a peer in the same run. Here is what several of them start and measure.

pub mod caller;
pub mod watched;
