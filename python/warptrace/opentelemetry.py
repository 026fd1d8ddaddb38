"""Between our spans and OpenTelemetry's, of the package `opentelemetry-api`.

Neither library's current span is touched: a context is taken and given, never attached.

>>> from opentelemetry import trace
>>> with span_in_context("load") as load:                       # ours, a child of OpenTelemetry's current span
...     with trace.get_tracer("job").start_as_current_span("read", context=context_with(load)):
...         pass                                                # theirs, a child of ours
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from warptrace import spans

if TYPE_CHECKING:
    from opentelemetry.context import Context

__all__ = ["context_with", "parent_of", "span_in_context"]


def parent_of(context: Context | None = None) -> tuple[int, int] | None:
    """The span of an OpenTelemetry context (the current one unless given), as `Recorder.start` takes a parent."""
    from opentelemetry import trace

    found = trace.get_current_span(context).get_span_context()
    return (found.trace_id, found.span_id) if found.is_valid else None


def context_with(span: spans.Span, context: Context | None = None) -> Context:
    """An OpenTelemetry context with our span in it; the given or the current one where our span is not recorded."""
    from opentelemetry import context as contexts
    from opentelemetry import trace

    base = contexts.get_current() if context is None else context
    if not span.recorded:
        return base
    ours = trace.SpanContext(
        trace_id=span.trace_id,
        span_id=span.span_id,
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(ours), base)


def span_in_context(
    name: str, attributes: Mapping[str, Any] | None = None, *, context: Context | None = None
) -> spans.Span:
    """A span of the process's own recorder, as a child of OpenTelemetry's span when ours has none around it."""
    recorder = spans.global_recorder()
    if recorder is None or recorder.current_span() is not None:
        return spans.span(name, attributes)
    return recorder.span(name, attributes, parent=parent_of(context))
