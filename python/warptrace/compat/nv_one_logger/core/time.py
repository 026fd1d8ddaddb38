"""Moments by two clocks: what is shown is wall time, what something lasted is monotonic time."""

from __future__ import annotations

import time
from typing import Any

from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that

WINDOW_SECS = 600.0
"""How far from now a moment that is given may lie, either way."""


def read_clocks() -> tuple[float, float]:
    """Seconds since the epoch, and seconds of ``time.perf_counter``, in this order."""
    return time.time(), time.perf_counter()


class TracingTimestamp:
    """One moment, of both clocks. It does not change."""

    __slots__ = ("_perf_counter_seconds", "_seconds_since_epoch")

    def __init__(self, _seconds_since_epoch: float, _perf_counter_seconds: float) -> None:
        object.__setattr__(self, "_seconds_since_epoch", _seconds_since_epoch)
        object.__setattr__(self, "_perf_counter_seconds", _perf_counter_seconds)

    _seconds_since_epoch: float
    _perf_counter_seconds: float

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a moment does not change: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return TracingTimestamp, self.pair

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TracingTimestamp):
            return NotImplemented
        return self.pair == other.pair

    def __hash__(self) -> int:
        return hash(self.pair)

    def __repr__(self) -> str:
        return (
            f"TracingTimestamp(_seconds_since_epoch={self._seconds_since_epoch}, "
            f"_perf_counter_seconds={self._perf_counter_seconds})"
        )

    @classmethod
    def now(cls) -> TracingTimestamp:
        return cls(*read_clocks())

    @classmethod
    def for_timestamp(
        cls, timestamp_sec: float, perf_counter: float | None = None, validate_timestamp: bool = True
    ) -> TracingTimestamp:
        """A moment of the wall clock; on the monotonic clock, if not given, it is as far from now as on the wall clock.

        Raises OneLoggerError for one that is more than ten minutes from now, if it is validated.
        """
        now = cls.now()
        if validate_timestamp:
            if timestamp_sec > now._seconds_since_epoch + WINDOW_SECS:
                raise OneLoggerError(f"{timestamp_sec} is more than 600 s in the future", "timestamp_in_future")
            if not timestamp_sec >= now._seconds_since_epoch - WINDOW_SECS:
                raise OneLoggerError(f"{timestamp_sec} is more than 600 s ago", "timestamp_too_old")
        if not perf_counter:
            perf_counter = now._perf_counter_seconds - (now._seconds_since_epoch - timestamp_sec)
        return cls(timestamp_sec, perf_counter)

    @property
    def seconds_since_epoch(self) -> float:
        return self._seconds_since_epoch

    @property
    def perf_counter_seconds(self) -> float:
        return self._perf_counter_seconds

    @property
    def milliseconds_since_epoch(self) -> int:
        return int(self._seconds_since_epoch * 1000)

    @property
    def pair(self) -> tuple[float, float]:
        """Both numbers, as warptrace's own calls take a moment."""
        return self._seconds_since_epoch, self._perf_counter_seconds

    def to_json(self) -> dict[str, float]:
        return {
            "seconds_since_epoch": self._seconds_since_epoch,
            "perf_counter_seconds": self._perf_counter_seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TracingTimestamp:
        assert_that(data, "no moment", "timestamp_json_missing")
        secs, perf = data.get("seconds_since_epoch"), data.get("perf_counter_seconds")
        assert_that(secs and perf, f"a moment has two numbers, not {data}", "timestamp_json_incomplete")
        return cls(float(secs or 0), float(perf or 0))


class Timer:
    """Adds up how long it ran."""

    def __init__(self) -> None:
        self._started: TracingTimestamp | None = None
        self._elapsed = 0.0

    @property
    def running(self) -> bool:
        return self._started is not None

    def start(self, start_time: TracingTimestamp | None = None) -> None:
        assert_that(not self.running, "the timer runs already", "timer_already_active")
        self._started = start_time or TracingTimestamp.now()

    def stop(self, reset: bool = False) -> float:
        """Stops, and gives the seconds so far; ``reset`` begins the sum anew afterwards."""
        started = self._started
        if started is None:
            raise OneLoggerError("the timer does not run", "timer_not_active")
        self._elapsed += TracingTimestamp.now().perf_counter_seconds - started.perf_counter_seconds
        elapsed = self._elapsed
        self._started = None
        if reset:
            self._elapsed = 0.0
        return elapsed

    def reset(self, start: bool = False) -> None:
        """Forgets what it counted, and stops; ``start`` starts it at once."""
        self._started = None
        self._elapsed = 0.0
        if start:
            self.start()
