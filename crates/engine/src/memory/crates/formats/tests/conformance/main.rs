//! The conformance vectors, one module a format: inputs with the answers of the systems that we are compatible with.
//!
//! They are read from the folder that WARPTRACE_CONFORMANCE names, else from `testdata/conformance`. `cargo xtask conformance
//! [DIR]` runs them all and prints the ids that did not pass.

#[cfg(feature = "annotation")]
mod annotation;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "memory")]
mod memory_analysis;
#[cfg(feature = "run-log")]
mod run_log;
mod support;
