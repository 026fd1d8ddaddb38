//! The `opentelemetry` crate: its spans as parents of ours, and ours of its.
//!
//! Neither library's current span is touched: a context is taken and given, never attached.

use ::opentelemetry::Context;
use ::opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};

use crate::span::{Parent, Span};

/// The span of an OpenTelemetry context, as the parent of one of ours; none where it has no valid span.
pub fn parent_of(context: &Context) -> Parent {
    let span = context.span();
    let span = span.span_context();
    match span.is_valid() {
        true => Parent::Remote(warptrace_model::SpanContext {
            trace: u128::from_be_bytes(span.trace_id().to_bytes()),
            span: u64::from_be_bytes(span.span_id().to_bytes()),
        }),
        false => Parent::None,
    }
}

/// `context` with our span in it, so that OpenTelemetry's spans that are started there are its children.
pub fn context_with(context: &Context, span: &Span) -> Context {
    let own = span.context();
    context.with_remote_span_context(SpanContext::new(
        TraceId::from_bytes(own.trace.to_be_bytes()),
        SpanId::from_bytes(own.span.to_be_bytes()),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Recorder, Start};

    #[test]
    fn parents_go_both_ways() {
        let recorder = Recorder::builder().build().unwrap();
        let ours = recorder.start(Start::named("ours")).unwrap().unwrap();
        let context = context_with(&Context::new(), &ours);
        let theirs = context.span().span_context().clone();
        assert_eq!(
            theirs.trace_id().to_bytes(),
            ours.context().trace.to_be_bytes()
        );
        let child = Start::named("child").parent(parent_of(&context));
        let child = recorder.start(child).unwrap().unwrap();
        assert_eq!(child.context().trace, ours.context().trace);
        assert_eq!(child.record().parent, Some(ours.context().span));
        assert!(matches!(parent_of(&Context::new()), Parent::None));
    }
}
