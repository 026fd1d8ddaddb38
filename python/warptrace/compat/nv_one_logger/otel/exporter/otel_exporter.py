"""Spans as OpenTelemetry spans, through any of its span exporters."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode

from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event, TelemetryDataError
from warptrace.compat.nv_one_logger.core.span import Span
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp
from warptrace.compat.nv_one_logger.exporter.exporter import BaseExporter, ExportError

_ID = "one_logger_span_id"
_NO_CONTEXT = trace.set_span_in_context(trace.INVALID_SPAN)


class OTelExporter(BaseExporter):
    """Each span, and a span of no length for each of its events, which stands as an event on the span itself, too.

    The parent is that of the span, also when it has ended or is not exported; a span without one is the child of the
    program's own current OpenTelemetry span, which stays as it is. A telemetry data error belongs to the latest span
    that is open.

    span_id_as_text: ``one_logger_span_id`` as 32 hexadecimal digits; by default it is a number of 128 bits, which
    in-process exporters take and OTLP cannot carry.
    """

    def __init__(self, otel_span_exporter: SpanExporter, *, span_id_as_text: bool = False) -> None:
        super().__init__()
        self._to = otel_span_exporter
        self._as_text = span_id_as_text
        self._provider: TracerProvider | None = None
        self._open: dict[Any, trace.Span] = {}
        # A child may start after its parent has ended.
        self._contexts: weakref.WeakKeyDictionary[Span, Any] = weakref.WeakKeyDictionary()

    @cached_property
    def _tracer(self) -> trace.Tracer:
        # Made when the first span is exported: then the application's name is known.
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(BatchSpanProcessor(self._to))
        return self._provider.get_tracer("one_logger")

    def initialize(self) -> None:
        vars(self).pop("_tracer", None)
        super().initialize()

    def close(self) -> None:
        super().close()
        if self._provider is not None:
            self._provider.shutdown()
        else:
            self._to.shutdown()
        self._open.clear()

    def flush(self) -> None:
        """Brings out what has ended."""
        if self._provider is not None:
            self._provider.force_flush()

    def export_start(self, span: Span) -> None:
        super().export_start(span)
        id: int | str = span.id.hex if self._as_text else span.id.int
        attributes = {_ID: id, **_values(span.attributes)}
        start = span.start_event
        # Too large a number for the declared type, which only OTLP minds.
        made = self._tracer.start_span(
            span.name_str, self._above(span), attributes=attributes, start_time=_ns(start.timestamp)
        )
        self._open[span.id] = made
        self._contexts[span] = trace.set_span_in_context(made, _NO_CONTEXT)
        self._happened(start, span, made)

    def export_stop(self, span: Span) -> None:
        super().export_stop(span)
        made = self._of(span)
        del self._open[span.id]
        stop = span.stop_event
        assert stop is not None
        made.set_attributes(_values(span.attributes))
        self._happened(stop, span, made)
        made.end(_ns(stop.timestamp))

    def export_event(self, event: Event, span: Span) -> None:
        super().export_event(event, span)
        self._happened(event, span, self._of(span))

    def export_error(self, event: ErrorEvent, span: Span) -> None:
        super().export_error(event, span)
        made = self._of(span)
        status = Status(StatusCode.ERROR, event.error_message)
        self._point(f"error_for_{span.name_str}", event, self._contexts[span], status)
        made.add_event(event.name_str, _values(event.attributes), _ns(event.timestamp))
        made.set_status(status)

    def export_telemetry_data_error(self, error: TelemetryDataError) -> None:
        super().export_telemetry_data_error(error)
        at = _ns(error.timestamp)
        latest = next(reversed(self._open.values()), None)
        context = None if latest is None else trace.set_span_in_context(latest, _NO_CONTEXT)
        point = self._tracer.start_span("span_for_telemetry_data_error", context, start_time=at)
        point.add_event(error.name_str, _values(error.attributes), at)
        point.set_status(Status(StatusCode.ERROR, error.error_message))
        point.end(at)

    def _above(self, span: Span) -> Any:
        """The context of the nearest ancestor that was exported; None for the program's own."""
        parent = span.parent_span
        while parent is not None:
            context = self._contexts.get(parent)
            if context is not None:
                return context
            parent = parent.parent_span
        return None

    def _of(self, span: Span) -> trace.Span:
        made = self._open.get(span.id)
        if made is None:
            raise ExportError(f"span {span.name_str!r} was not started here", "otel_span_not_exported")
        return made

    def _happened(self, event: Event, span: Span, made: trace.Span) -> None:
        self._point(f"{event.name_str}_event_for_{span.name_str}", event, self._contexts[span])
        made.add_event(event.name_str, _values(event.attributes), _ns(event.timestamp))

    def _point(self, name: str, event: Event, context: Any, status: Status | None = None) -> None:
        at = _ns(event.timestamp)
        point = self._tracer.start_span(name, context, attributes=_values(event.attributes), start_time=at)
        if status is not None:
            point.set_status(status)
        point.end(at)


def _ns(at: TracingTimestamp) -> int:
    return int(at.seconds_since_epoch * 1e9)


def _values(attributes: Attributes) -> dict[str, Any]:
    return {name: _value(value) for name, value in attributes.plain().items()}


def _value(value: Any) -> Any:
    """The value, or its text where OpenTelemetry has no kind for it."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        items = list(value)
        for kind in (str, bool, int, float):
            if all(isinstance(item, kind) for item in items):
                return items
    return str(value)


def _resource() -> Resource:
    """What the environment says; the application's name, unless it names the service."""
    from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider

    resource = Resource.create()
    provider = OneLoggerProvider.instance()
    unnamed = str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    if provider.one_logger_ready and unnamed:
        resource = resource.merge(Resource({SERVICE_NAME: provider.config.application_name}))
    return resource
