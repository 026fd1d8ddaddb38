"""Records of spans as JSON objects, one for each thing that happened.

A span that is started is written when something else is exported or time has come to flush; when its stop comes
first, both are one record of type ``complete``.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from abc import abstractmethod
from typing import Any

from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event, TelemetryDataError
from warptrace.compat.nv_one_logger.core.span import Span
from warptrace.compat.nv_one_logger.exporter.exporter import BaseExporter

_open: weakref.WeakSet[BaseJsonExporter] = weakref.WeakSet()


class BaseJsonExporter(BaseExporter):
    """Subclasses write a record somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._count = 0
        self._pending: Span | None = None

    @abstractmethod
    def _write(self, record: dict[str, Any]) -> None:
        """Brings one record out, as a whole."""

    def initialize(self) -> None:
        super().initialize()
        self._pending = None
        _open.add(self)

    def flush(self) -> None:
        """Writes a start that was held back."""
        with self._lock:
            span, self._pending = self._pending, None
            if span is not None:
                self._record("start", **_span(span), start_event=_event(span.start_event))

    def export_start(self, span: Span) -> None:
        super().export_start(span)
        with self._lock:
            self.flush()
            self._pending = span

    def export_stop(self, span: Span) -> None:
        super().export_stop(span)
        stop = span.stop_event
        assert stop is not None
        with self._lock:
            if self._pending is span:
                self._pending = None
                start = _event(span.start_event)
                self._record("complete", **_span(span), start_event=start, stop_event=_event(stop))
                return
            self.flush()
            self._record("stop", **_span(span), stop_event=_event(stop))

    def export_event(self, event: Event, span: Span) -> None:
        super().export_event(event, span)
        self._happened("event", span_id=str(span.id), event=_event(event))

    def export_error(self, event: ErrorEvent, span: Span) -> None:
        super().export_error(event, span)
        self._happened("application_error", span_id=str(span.id), event=_event(event))

    def export_telemetry_data_error(self, error: TelemetryDataError) -> None:
        super().export_telemetry_data_error(error)
        self._happened("telemetry_data_error", error=_event(error))

    def close(self) -> None:
        if self.ready:
            self.flush()
        _open.discard(self)
        super().close()

    def _happened(self, kind: str, **what: Any) -> None:
        with self._lock:
            self.flush()
            self._record(kind, **what)

    def _record(self, kind: str, **what: Any) -> None:
        self._count += 1
        self._write({"type": kind, **what, "count": self._count, "pid": os.getpid()})


def _span(span: Span) -> dict[str, Any]:
    written: dict[str, Any] = {"id": str(span.id), "name": span.name_str}
    if attributes := span.attributes.plain():
        written["attributes"] = attributes
    return written


def _event(event: Event) -> dict[str, Any]:
    attributes: Attributes = event.attributes
    return {"name": event.name_str, "attributes": attributes.plain()}


@atexit.register
def _flush_all() -> None:
    """A program that ends without closing leaves the start of what it was doing."""
    for exporter in list(_open):
        try:
            exporter.flush()
        except Exception:
            continue
