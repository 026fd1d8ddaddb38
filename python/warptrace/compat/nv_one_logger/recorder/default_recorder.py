"""The recorder: warptrace's own, with the names and value types of this package."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from warptrace import _native as native
from warptrace.compat.nv_one_logger._enums import text_of
from warptrace.compat.nv_one_logger._guard import guarded
from warptrace.compat.nv_one_logger._log import logger
from warptrace.compat.nv_one_logger.api.recorder import Recorder
from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event, StandardEventName, TelemetryDataError
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that
from warptrace.compat.nv_one_logger.core.span import Span, SpanName
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp
from warptrace.compat.nv_one_logger.exporter.exporter import Exporter

EVENTS_KEPT = 1000
"""Events of the recorder's own making that a span keeps, as metrics of its iterations; all of them are exported."""


class ExportCustomizationMode(Enum):
    EXPORT_ALL_SPANS = 1
    WHITELIST_SPANS = 2
    BLACKLIST_SPANS = 3


class _Hand(threading.local):
    """What the call of this thread was given, so that exporters see just that, and not a copy."""

    start: tuple[SpanName, Attributes | None, Attributes | None, Span | None, TracingTimestamp] | None = None
    stop: tuple[Attributes | None, TracingTimestamp] | None = None
    event: Event | None = None
    interrupt: BaseException | None = None


class Bridge:
    """This package's spans and events for those of the recorder behind it."""

    def __init__(self, attributes_of: Callable[[str], type[Attributes]] = lambda name: Attributes) -> None:
        self.hand = _Hand()
        self._attributes_of = attributes_of
        # The recorder knows its spans' counterparts weakly.
        self._open: set[Span] = set()

    def span(self, behind: native.Span) -> Span:
        """The span for one of the recorder's; made when it is seen first."""
        known = behind.wrapper()
        if known is not None:
            return known  # type: ignore[no-any-return]
        given, self.hand.start = self.hand.start, None
        if given is None:
            start = behind.start_event
            at = TracingTimestamp(*start.timestamp)
            name: SpanName = behind.name
            attributes: Attributes | None = self._attributes_of(behind.name)(behind.initial_attributes)
            event_attributes: Attributes | None = Attributes(start.own_attributes)
            parent = None
        else:
            name, attributes, event_attributes, parent, at = given
        if parent is None and (above := behind.parent) is not None:
            parent = self.span(above)
        start_event = Event(StandardEventName.SPAN_START, at, event_attributes)
        made = Span(behind.id, name, start_event, parent, attributes)
        made._native = behind
        behind.set_wrapper(made)
        if behind.active:
            self._open.add(made)
        return made

    def event(self, behind: native.Event) -> Event:
        name, at = behind.name, TracingTimestamp(*behind.timestamp)
        own = behind.own_attributes
        if name == StandardEventName.ERROR:
            kind, text = own.pop("exception_type", None), own.pop("exception_message", None)
            message, trace = own.pop("error_message", ""), own.pop("exception_traceback", None)
            return ErrorEvent(at, message, kind, text, trace, Attributes(own))
        return Event(name, at, self._attributes_of(name)(own))

    def stopped(self, behind: native.Span) -> Span:
        """The same, once it was stopped behind."""
        span = self.span(behind)
        if span.active and not behind.active:
            given, self.hand.stop = self.hand.stop, None
            if given is not None:
                attributes, at = given
            elif (stop := behind.stop_event) is not None:
                attributes, at = Attributes(stop.own_attributes), TracingTimestamp(*stop.timestamp)
            else:
                return span
            span._stop_with(Event(StandardEventName.SPAN_STOP, at, attributes))
            self._open.discard(span)
        return span

    def all_stopped(self) -> None:
        """Spans that no exporter is told of were stopped as well."""
        for span in list(self._open):
            if span._native is not None:
                self.stopped(span._native)


class _Outlet(native.Exporter):
    """An exporter of this package, as the recorder calls it."""

    def __init__(self, exporter: Exporter, bridge: Bridge, first: bool) -> None:
        self._exporter = exporter
        self._bridge = bridge
        self._is_first = first

    def start(self, span: native.Span) -> None:
        self._call(self._exporter.export_start, self._bridge.span(span))

    def stop(self, span: native.Span) -> None:
        self._call(self._exporter.export_stop, self._bridge.stopped(span))

    def event(self, event: native.Event, span: native.Span) -> None:
        self._call(self._exporter.export_event, *self._recorded(event, span))

    def error(self, event: native.Event, span: native.Span) -> None:
        self._call(self._exporter.export_error, *self._recorded(event, span))

    def data_error(self, event: native.Event) -> None:
        own = event.own_attributes
        message, kind = own.pop("error_message"), TelemetryDataError.ErrorType(own.pop("telemetry_data_error_type"))
        error = TelemetryDataError(TracingTimestamp(*event.timestamp), kind, message, Attributes(own))
        self._call(self._exporter.export_telemetry_data_error, error)

    def flush(self) -> None:
        getattr(self._exporter, "flush", bool)()

    def close(self) -> None:
        self._call(self._exporter.close)

    def _recorded(self, event: native.Event, span: native.Span) -> tuple[Any, Span]:
        mine = self._bridge.span(span)
        given = self._bridge.hand.event
        if given is not None:
            return given, mine
        made = self._bridge.event(event)
        latest = mine.events[-1]
        # Where there are many exporters, the first one's call has brought the event.
        if not self._is_first and latest == made:
            return latest, mine
        return (mine.add_event(made) if len(mine.events) < EVENTS_KEPT else made), mine

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        try:
            method(*args)
        except Exception as e:
            logger.error("%s failed: %s: %s", type(self._exporter).__name__, type(e).__name__, e)
            raise
        except BaseException as e:
            # Not a failure of the exporter: somebody wants the program to end.
            self._bridge.hand.interrupt = e


class DefaultRecorder(Recorder):
    """Hands each span and event to every exporter, in order, in the thread that records.

    An exporter that fails is told so once, and is left out after five failures; the program sees none of that. Native
    exporters of ``warptrace.exporters`` may stand beside this package's.
    """

    def __init__(
        self,
        exporters: Sequence[Exporter | native.NativeExporter],
        export_customization_mode: ExportCustomizationMode = ExportCustomizationMode.EXPORT_ALL_SPANS,
        span_name_filter: list[SpanName] | None = None,
    ) -> None:
        self._exporters = list(exporters)
        options = filter_options(export_customization_mode, span_name_filter)
        mine = [e for e in self._exporters if not isinstance(e, native.NativeExporter)]
        for exporter in mine:
            exporter.initialize()
        # The one whose call brings a span the events of the recorder's own making.
        self._first = mine[0] if mine else None
        self._bridge = self._make_bridge()
        self._hand = self._bridge.hand
        options |= {"direct": True, "on_error": "raise", "failures_in_a_row": False, "clock": _clock}
        self._recorder = self._make_recorder([self._outlet(e) for e in self._exporters], options)

    def _make_bridge(self) -> Bridge:
        return Bridge()

    def _make_recorder(
        self, outlets: Sequence[native.Exporter | native.NativeExporter], options: dict[str, Any]
    ) -> native.Recorder:
        return native.Recorder(outlets, **options)

    def _outlet(self, exporter: Exporter | native.NativeExporter) -> native.Exporter | native.NativeExporter:
        if isinstance(exporter, native.NativeExporter):
            return exporter
        # Named as the exporter is, for its reports.
        kind: type[_Outlet] = type(type(exporter).__name__, (_Outlet,), {})
        return kind(exporter, self._bridge, exporter is self._first)

    @property
    def exporters(self) -> list[Exporter | native.NativeExporter]:
        return list(self._exporters)

    @guarded
    def start(
        self,
        span_name: SpanName,
        span_attributes: Attributes | None = None,
        start_event_attributes: Attributes | None = None,
        start_time: TracingTimestamp | None = None,
        parent_span: Span | None = None,
    ) -> Span:
        hand = self._hand
        at = start_time or TracingTimestamp.now()
        outer, hand.start = hand.start, (span_name, span_attributes, start_event_attributes, parent_span, at)
        try:
            behind = self._recorder.start(
                text_of(span_name),
                attributes=_plain(span_attributes),
                event_attributes=_plain(start_event_attributes),
                parent=None if parent_span is None else parent_span._native,
                start_time=at.pair,
            )
            span = None if behind is None else self._bridge.span(behind)
        finally:
            hand.start = outer
        self._let_out()
        return span  # type: ignore[return-value]

    @guarded
    def stop(
        self,
        span: Span,
        stop_event_attributes: Attributes | None = None,
        stop_time: TracingTimestamp | None = None,
    ) -> None:
        self._check_open()
        behind = self._behind(span)
        hand = self._hand
        at = stop_time or TracingTimestamp.now()
        outer, hand.stop = hand.stop, (stop_event_attributes, at)
        try:
            self._recorder.stop(behind, event_attributes=_plain(stop_event_attributes), stop_time=at.pair)
            self._bridge.stopped(behind)
        finally:
            hand.stop = outer
        self._let_out()

    @guarded
    def event(self, span: Span, event: Event) -> Event:
        self._check_open()
        behind = self._behind(span)
        span.add_event(event)
        hand = self._hand
        outer, hand.event = hand.event, event
        try:
            self._recorder.event(behind, event.name_str, event.attributes.plain(), time=event.timestamp.pair)
        finally:
            hand.event = outer
        self._let_out()
        return event

    @guarded
    def error(self, span: Span, error_message: str, exception: Exception | None = None) -> ErrorEvent:
        self._check_open()
        behind = self._behind(span)
        event = ErrorEvent.recorded(TracingTimestamp.now(), error_message, exception)
        span.add_event(event)
        hand = self._hand
        outer, hand.event = hand.event, event
        try:
            self._recorder.error(behind, error_message, exception, traceback=event.exception_traceback)
        finally:
            hand.event = outer
        self._let_out()
        return event

    @guarded
    def telemetry_data_error(self, error_message: str, attributes: Attributes | None = None) -> None:
        self._recorder.data_error(error_message, _plain(attributes))
        self._let_out()

    @guarded
    def close(self) -> None:
        self._recorder.close()
        self._bridge.all_stopped()
        self._let_out()

    def get_active_spans_by_name(self, span_name: SpanName) -> list[Span]:
        """The spans of that name that are open, in the order of their starts."""
        return [self._bridge.span(behind) for behind in self._recorder.open_spans(text_of(span_name))]

    def _check_open(self) -> None:
        if self._recorder.closed:
            raise OneLoggerError("the recorder is closed", "recorder_closed")

    @staticmethod
    def _behind(span: Span) -> native.Span:
        assert_that(span is not None, "no span", "no_span")
        if span._native is None:
            raise OneLoggerError(f"span {span.name_str!r} was started by no recorder", "span_not_active")
        return span._native

    def _let_out(self) -> None:
        """Raises what was to end the program while an exporter was called."""
        hand = self._hand
        if hand.interrupt is not None:
            interrupt, hand.interrupt = hand.interrupt, None
            raise interrupt


def _clock() -> tuple[float, float]:
    return TracingTimestamp.now().pair


def _plain(attributes: Attributes | None) -> dict[str, Any] | None:
    return attributes.plain() if attributes else None


def filter_options(mode: ExportCustomizationMode, names: list[SpanName] | None) -> dict[str, Any]:
    """Which spans are exported, as warptrace's recorder takes it."""
    if mode is ExportCustomizationMode.EXPORT_ALL_SPANS:
        assert_that(names is None, "a filter, and all spans are exported", "invalid_span_filter")
        return {}
    assert_that(names, f"{mode.name} without names of spans", "invalid_span_filter")
    texts = [text_of(name) for name in names or ()]
    return {"include" if mode is ExportCustomizationMode.WHITELIST_SPANS else "exclude": texts}
