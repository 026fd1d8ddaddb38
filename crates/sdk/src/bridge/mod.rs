//! Between our spans and other libraries'.
//!
//! Any library that speaks W3C Trace Context is reached by [`warptrace_model::SpanContext::traceparent`] and
//! [`warptrace_model::SpanContext::parse_traceparent`]; those below are for programs that use the libraries themselves.

#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
#[cfg(feature = "tracing-layer")]
pub mod tracing;
