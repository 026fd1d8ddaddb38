"""Spans and events: what the job does, when, and in what.

>>> kept = MemoryExporter()
>>> recorder = configure(exporters=[kept])
>>> with span("train.step", {"step": 1}) as step:
...     step["loss"] = 0.25
>>> recorder.flush()
True
>>> [s["name"] for s in kept.finished()]
['train.step']

Recording never waits for an exporter and never raises, unless a recorder is asked to (``on_error="raise"``).
Without a recorder, everything here does nothing.
"""

from __future__ import annotations

import atexit

from warptrace._native import (
    Event,
    Exporter,
    ExporterCounts,
    MemoryExporter,
    NativeExporter,
    Recorder,
    Span,
    SpanCounts,
    SpanError,
    close_recorders,
    event,
    global_recorder,
    set_global_recorder,
    span,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    _F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "Event",
    "Exporter",
    "ExporterCounts",
    "MemoryExporter",
    "NativeExporter",
    "Recorder",
    "Span",
    "SpanCounts",
    "SpanError",
    "configure",
    "current_span",
    "event",
    "global_recorder",
    "set_global_recorder",
    "shutdown",
    "span",
]

#: How long the end of the program waits for exporters, s.
EXIT_TIMEOUT_SECS = 5.0

atexit.register(close_recorders, EXIT_TIMEOUT_SECS)


def configure(
    *,
    exporters: Iterable[Exporter | NativeExporter] = (),
    direct: bool = False,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    on_error: str = "continue",
    enabled: bool = True,
    queue_items: int | None = None,
) -> Recorder:
    """Makes the process's own recorder, which `span` and `event` use, and closes the one before it.

    `include`, `exclude`: names of the spans that are exported, or are not. `direct`: exporters are called in the thread
    that records. `enabled=False`, for ranks that do not report, makes every call a branch. It is closed when the
    program ends.
    """
    recorder = Recorder(
        list(exporters),
        direct=direct,
        include=None if include is None else list(include),
        exclude=None if exclude is None else list(exclude),
        on_error=on_error,
        enabled=enabled,
        queue_items=queue_items,
    )
    before = global_recorder()
    set_global_recorder(recorder)
    if before is not None:
        before.close(timeout_secs=EXIT_TIMEOUT_SECS)
    return recorder


def shutdown(*, timeout_secs: float = EXIT_TIMEOUT_SECS) -> None:
    """Closes the process's own recorder; from then on nothing is recorded."""
    recorder = global_recorder()
    set_global_recorder(None)
    if recorder is not None:
        recorder.close(timeout_secs=timeout_secs)


def current_span() -> Span | None:
    """The latest span of this context that is active, of the process's own recorder."""
    recorder = global_recorder()
    return None if recorder is None else recorder.current_span()


def _decorate(function: _F, name: str, attributes: Mapping[str, Any] | None, recorder: Recorder | None = None) -> _F:
    """A span around each call of `function`; of its own name where none was given."""
    named = name or getattr(function, "__qualname__", "call")

    def open_span() -> Span:
        return span(named, attributes) if recorder is None else recorder.span(named, attributes)

    # Not at the top: they take longer than all the rest of this package.
    import functools
    import inspect

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def in_span_async(*args: Any, **kwargs: Any) -> Any:
            with open_span():
                return await function(*args, **kwargs)

        return in_span_async  # type: ignore[return-value]

    @functools.wraps(function)
    def in_span(*args: Any, **kwargs: Any) -> Any:
        with open_span():
            return function(*args, **kwargs)

    return in_span  # type: ignore[return-value]
