"""A span: a named unit of work."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import TYPE_CHECKING, Any

from warptrace.compat.nv_one_logger._enums import StrEnum, text_of
from warptrace.compat.nv_one_logger.core.attributes import Attribute, Attributes
from warptrace.compat.nv_one_logger.core.event import Event, StandardEventName
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp

if TYPE_CHECKING:
    from warptrace._native import Span as NativeSpan

SpanName = Enum | str


class StandardSpanName(StrEnum):
    APPLICATION = "application"


class StandardSpanAttributeName(StrEnum):
    DURATION_MSEC = "duration_msec"
    NVTX_COLOR = "nvtx_color"


class NVTXColor(StrEnum):
    UNSET = "unset"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    RAPIDS = "rapids"
    CYAN = "cyan"
    RED = "red"
    WHITE = "white"
    DARK_GREEN = "darkgreen"
    ORANGE = "orange"


class Span:
    """A span with its attributes and events, from its start on.

    It holds its parent, and its parent nothing of it: what a span costs does not depend on what others have collected.
    """

    def __init__(
        self,
        id: uuid.UUID | str,
        name: SpanName,
        start_event: Event,
        parent_span: Span | None = None,
        span_attributes: Attributes | None = None,
    ) -> None:
        if not start_event.timestamp.perf_counter_seconds:
            raise OneLoggerError(f"span {text_of(name)!r} starts without a monotonic time", "invalid_start_timestamp")
        self._id = id
        self._name = name
        self._parent = parent_span
        self._events = [start_event]
        self._stop: Event | None = None
        self._initial = Attributes() if span_attributes is None else span_attributes
        self._updated = type(self._initial).__new__(type(self._initial))
        # The recorder's own span behind it; None for one that no recorder started.
        self._native: NativeSpan | None = None

    @classmethod
    def create(
        cls,
        name: SpanName,
        parent_span: Span | None = None,
        span_attributes: Attributes | None = None,
        start_event_attributes: Attributes | None = None,
        start_time: TracingTimestamp | None = None,
    ) -> Span:
        """A span that begins now, unless a moment is given."""
        start = Event.create(StandardEventName.SPAN_START, start_event_attributes, start_time)
        return cls(uuid.uuid4(), name, start, parent_span, span_attributes)

    @property
    def id(self) -> uuid.UUID:
        if self._native is not None and isinstance(self._id, str):
            self._id = uuid.UUID(self._id)
        return self._id  # type: ignore[return-value]

    @property
    def name(self) -> SpanName:
        return self._name

    @property
    def name_str(self) -> str:
        return text_of(self._name)

    @property
    def parent_span(self) -> Span | None:
        return self._parent

    @property
    def active(self) -> bool:
        return self._stop is None

    @property
    def events(self) -> list[Event]:
        """All events, from that of the start to that of the stop."""
        return self._events

    @property
    def start_event(self) -> Event:
        return self._events[0]

    @property
    def stop_event(self) -> Event | None:
        """None while the span is active."""
        return self._stop

    @property
    def attributes(self) -> Attributes:
        """What the span was started with, and over it what was said of it later."""
        return type(self._initial).merge(self._initial, self._updated)

    @property
    def updated_attributes(self) -> Attributes:
        """What was said of the span later."""
        return self._updated

    def duration_msec(self) -> int:
        """Milliseconds from start to stop, truncated; by the monotonic clock. Raises OneLoggerError while it is
        active.
        """
        if self._stop is None:
            raise OneLoggerError(f"span {self.name_str!r} is still running", "span_not_stopped")
        start, stop = self.start_event.timestamp, self._stop.timestamp
        return int((stop.perf_counter_seconds - start.perf_counter_seconds) * 1000)

    def add_attribute(self, name: str, value: Any) -> Attribute:
        self._updated.add(name, value)
        if self._native is not None:
            self._native.set(str(name), value)
        return self._updated[name]

    def add_attributes(self, attributes: Attributes) -> None:
        self._updated.add_attributes(attributes)
        if self._native is not None:
            self._native.update(attributes.plain())

    def add_event(self, event: Event) -> Event:
        """Raises OneLoggerError when the span was stopped."""
        assert_that(self.active, f"span {self.name_str!r} was stopped: no event can be added", "span_not_running")
        self._events.append(event)
        return event

    def stop(self, stop_event_attributes: Attributes | None = None, stop_time: TracingTimestamp | None = None) -> None:
        """Stops the span, once. Recorders do so by themselves."""
        if self.active:
            self._stop_with(Event.create(StandardEventName.SPAN_STOP, stop_event_attributes, stop_time))

    def _stop_with(self, stop_event: Event) -> None:
        self._events.append(stop_event)
        self._stop = stop_event
        self._updated.add("duration_msec", self.duration_msec())

    def __repr__(self) -> str:
        return f"<Span {self.name_str!r} {self._id}{'' if self.active else ' stopped'}>"

    def to_json(self) -> dict[str, Any]:
        """What can be written as JSON; ``from_json`` reads it, without the parent but for its id."""
        written: dict[str, Any] = {
            "name": self.name_str,
            "id": str(self._id),
            "events": [event.to_json() for event in self._events],
        }
        if attributes := self.attributes.to_json():
            written["attributes"] = attributes
        if self._parent is not None:
            written["parent_id"] = str(self._parent.id)
        return written

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Span:
        """The span that was written; stopped, if it was. Its id stays text."""
        data = data or {}
        assert_that(data.get("name") and data.get("id"), "a span has a name and an id", "span_json_incomplete")
        assert_that(data.get("events"), "a span has events", "span_json_no_events")
        events = [Event.from_json(event) for event in data["events"]]
        new = cls(data["id"], data["name"], events[0], None, Attributes.from_json(data.get("attributes")))
        new._events = events
        if len(events) > 1 and events[-1].name_str == StandardEventName.SPAN_STOP:
            new._stop = events[-1]
        return new
