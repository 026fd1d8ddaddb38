"""Where spans go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event, TelemetryDataError
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError
from warptrace.compat.nv_one_logger.core.span import Span


class ExportError(OneLoggerError):
    """An export that failed."""


class Exporter(ABC):
    """Takes what a recorder records. Any exception is a failed export: it reaches this exporter's report, never the
    program.

    Events of start and stop come with the span, not by ``export_event``.
    """

    @abstractmethod
    def initialize(self) -> None: ...

    @abstractmethod
    def export_start(self, span: Span) -> None: ...

    @abstractmethod
    def export_stop(self, span: Span) -> None: ...

    @abstractmethod
    def export_event(self, event: Event, span: Span) -> None: ...

    @abstractmethod
    def export_error(self, event: ErrorEvent, span: Span) -> None: ...

    @abstractmethod
    def export_telemetry_data_error(self, error: TelemetryDataError) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _State(Enum):
    NEW = "not initialized"
    READY = "ready"
    CLOSED = "closed"


class BaseExporter(Exporter):
    """An exporter that knows whether it may export: every export is an ExportError before ``initialize`` and after
    ``close``.
    """

    def __init__(self) -> None:
        self._state = _State.NEW

    @property
    def ready(self) -> bool:
        return self._state is _State.READY

    @property
    def closed(self) -> bool:
        return self._state is _State.CLOSED

    def initialize(self) -> None:
        self._state = _State.READY

    def close(self) -> None:
        self._state = _State.CLOSED

    def _check_ready(self) -> None:
        if self._state is not _State.READY:
            code = "exporter_closed" if self.closed else "exporter_not_initialized"
            raise ExportError(f"the exporter is {self._state.value}", code)

    def export_start(self, span: Span) -> None:
        self._check_ready()

    def export_stop(self, span: Span) -> None:
        self._check_ready()

    def export_event(self, event: Event, span: Span) -> None:
        self._check_ready()

    def export_error(self, event: ErrorEvent, span: Span) -> None:
        self._check_ready()

    def export_telemetry_data_error(self, error: TelemetryDataError) -> None:
        self._check_ready()
