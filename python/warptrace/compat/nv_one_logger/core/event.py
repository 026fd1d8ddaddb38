"""What happens within a span."""

from __future__ import annotations

import traceback
from enum import Enum
from typing import Any, ClassVar

from warptrace.compat.nv_one_logger._enums import StrEnum, text_of
from warptrace.compat.nv_one_logger.core.attributes import Attribute, Attributes
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp

EventName = Enum | str


class StandardEventName(StrEnum):
    SPAN_START = "span_start"
    SPAN_STOP = "span_stop"
    ERROR = "error"
    TELEMETRY_DATA_ERROR = "telemetry_data_error"


class StandardEventAttributeName(StrEnum):
    TIMESTAMP_MSEC = "timestamp_msec"
    ERROR_MESSAGE = "error_message"
    EXCEPTION_TYPE = "exception_type"
    EXCEPTION_MESSAGE = "exception_message"
    EXCEPTION_TRACEBACK = "exception_traceback"
    TELEMETRY_DATA_ERROR_TYPE = "telemetry_data_error_type"


class Event:
    """A name, a moment, and attributes, of which ``timestamp_msec`` is the moment's milliseconds.

    The attributes are a copy of those that were given: one container may serve for many events.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, name: EventName, timestamp: TracingTimestamp, attributes: Attributes | None = None) -> None:
        self._name = name
        self._timestamp = timestamp
        self._attributes = own = Attributes.__new__(Attributes) if attributes is None else attributes.copy()
        own["timestamp_msec"] = Attribute("timestamp_msec", timestamp.milliseconds_since_epoch)

    @classmethod
    def create(
        cls, name: EventName, attributes: Attributes | None = None, timestamp: TracingTimestamp | None = None
    ) -> Event:
        """An event of now, unless a moment is given."""
        return Event(name, timestamp or TracingTimestamp.now(), attributes)

    @property
    def name(self) -> EventName:
        return self._name

    @property
    def name_str(self) -> str:
        return text_of(self._name)

    @property
    def timestamp(self) -> TracingTimestamp:
        return self._timestamp

    @property
    def attributes(self) -> Attributes:
        return self._attributes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        mine = (self._name, self._timestamp, self._attributes)
        return mine == (other._name, other._timestamp, other._attributes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name_str!r}>"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name_str,
            "timestamp": self._timestamp.to_json(),
            "attributes": self._attributes.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Event:
        """The event that was written: an ErrorEvent by its name, else an Event."""
        name, timestamp, attributes = _parts(data)
        if name == StandardEventName.ERROR:
            return ErrorEvent._of_parts(data, timestamp, attributes)
        return Event(name, timestamp, attributes)


def _parts(data: dict[str, Any]) -> tuple[str, TracingTimestamp, Attributes]:
    complete = isinstance(data, dict) and data.get("name") and data.get("timestamp")
    assert_that(complete, f"an event has a name and a moment, not {data}", "event_json_incomplete")
    return data["name"], TracingTimestamp.from_json(data["timestamp"]), Attributes.from_json(data.get("attributes"))


class ErrorEvent(Event):
    """An error of the program, with the exception behind it when there is one."""

    def __init__(
        self,
        timestamp: TracingTimestamp,
        error_message: str,
        exception_type: str | None = None,
        exception_message: str | None = None,
        exception_traceback: str | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        if exception_type and not exception_message:
            raise OneLoggerError(f"{exception_type} without a message", "exception_message_required")
        self._set(timestamp, error_message, exception_type, exception_message, exception_traceback, attributes)

    def _set(
        self,
        timestamp: TracingTimestamp,
        error_message: str,
        exception_type: str | None,
        exception_message: str | None,
        exception_traceback: str | None,
        attributes: Attributes | None,
    ) -> None:
        own = Attributes().add("error_message", error_message)
        if exception_type:
            own.add("exception_type", exception_type).add("exception_message", exception_message)
        if exception_traceback:
            own.add("exception_traceback", exception_traceback)
        super().__init__(StandardEventName.ERROR, timestamp, Attributes.merge(own, attributes))
        self.error_message = error_message
        self.exception_type = exception_type
        self.exception_message = exception_message
        if exception_type and not exception_traceback:
            exception_traceback = traceback.format_exc()
        self.exception_traceback = exception_traceback

    @classmethod
    def create(  # type: ignore[override]
        cls, error_message: str, exception: BaseException | None = None, exception_traceback: str | None = None
    ) -> ErrorEvent:
        """Raises OneLoggerError for an exception whose text is empty; recorders record that one, too."""
        now = TracingTimestamp.now()
        if exception is None:
            return cls(now, error_message, None, None, exception_traceback)
        return cls(now, error_message, type(exception).__name__, str(exception), exception_traceback)

    @classmethod
    def recorded(cls, timestamp: TracingTimestamp, message: str, exception: BaseException | None) -> ErrorEvent:
        """What a recorder makes of an exception: its text may be empty."""
        new = cls.__new__(cls)
        if exception is None:
            new._set(timestamp, message, None, None, None, None)
        else:
            handled = traceback.format_exc()
            new._set(timestamp, message, type(exception).__name__, str(exception), handled, None)
        return new

    def to_json(self) -> dict[str, Any]:
        written = super().to_json()
        written["error_message"] = self.error_message
        if self.exception_type:
            written["exception_type"] = self.exception_type
            written["exception_message"] = self.exception_message
            written["exception_traceback"] = self.exception_traceback
        return written

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ErrorEvent:
        _, timestamp, attributes = _parts(data)
        return cls._of_parts(data, timestamp, attributes)

    @classmethod
    def _of_parts(cls, data: dict[str, Any], timestamp: TracingTimestamp, attributes: Attributes) -> ErrorEvent:
        new = cls.__new__(cls)
        exception = (data.get("exception_type"), data.get("exception_message"), data.get("exception_traceback"))
        new._set(timestamp, data["error_message"], *exception, attributes)
        return new


class TelemetryDataError(Event):
    """Says that what was exported is missing or cannot be relied on, as opposed to an error of the program."""

    class ErrorType(StrEnum):
        NO_TELEMETRY_DATA = "no_telemetry_data"
        INCOMPLETE_TELEMETRY_DATA = "incomplete_telemetry_data"

    def __init__(
        self,
        timestamp: TracingTimestamp,
        error_type: TelemetryDataError.ErrorType,
        error_message: str,
        attributes: Attributes | None = None,
    ) -> None:
        own = Attributes().add("error_message", error_message).add("telemetry_data_error_type", str(error_type))
        super().__init__(StandardEventName.TELEMETRY_DATA_ERROR, timestamp, Attributes.merge(own, attributes))
        self.error_type = error_type
        self.error_message = error_message

    @classmethod
    def create(  # type: ignore[override]
        cls,
        error_type: TelemetryDataError.ErrorType,
        error_message: str,
        attributes: Attributes | None = None,
    ) -> TelemetryDataError:
        return cls(TracingTimestamp.now(), error_type, error_message, attributes)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "error_type": str(self.error_type), "error_message": self.error_message}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TelemetryDataError:
        _, timestamp, attributes = _parts(data)
        return cls(timestamp, cls.ErrorType(data["error_type"]), data["error_message"], attributes)
