"""What a recorder can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event
from warptrace.compat.nv_one_logger.core.span import Span, SpanName
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp


class Recorder(ABC):
    """Makes spans and events. A call that is skipped gives None in place of the span or event."""

    @abstractmethod
    def start(
        self,
        span_name: SpanName,
        span_attributes: Attributes | None = None,
        start_event_attributes: Attributes | None = None,
        start_time: TracingTimestamp | None = None,
        parent_span: Span | None = None,
    ) -> Span: ...

    @abstractmethod
    def stop(
        self,
        span: Span,
        stop_event_attributes: Attributes | None = None,
        stop_time: TracingTimestamp | None = None,
    ) -> None: ...

    @abstractmethod
    def event(self, span: Span, event: Event) -> Event: ...

    @abstractmethod
    def error(self, span: Span, error_message: str, exception: Exception | None = None) -> ErrorEvent: ...

    @abstractmethod
    def telemetry_data_error(self, error_message: str, attributes: Attributes | None = None) -> None: ...

    @abstractmethod
    def close(self) -> None: ...
