"""A span around a block or a function."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress

from warptrace.compat.nv_one_logger._enums import text_of
from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.api.recorder import Recorder
from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.span import Span, SpanName


def get_recorder() -> Recorder:
    """The process's own recorder; OneLoggerError before it was configured."""
    return OneLoggerProvider.instance().recorder


@contextmanager
def timed_span(
    name: SpanName,
    span_attributes: Attributes | None = None,
    start_event_attributes: Attributes | None = None,
) -> Generator[Span, None, None]:
    """A span around the block, or as a decorator around each call; its value is the span, or None when calls are
    skipped.

    An exception of the block is recorded, and goes on as it is, whatever becomes of its record.
    """
    recorder = get_recorder()
    span = recorder.start(name, span_attributes, start_event_attributes)
    try:
        yield span
    except BaseException as e:
        with suppress(Exception):
            if isinstance(e, Exception):
                recorder.error(span, f"Error in {text_of(name)}: ", e)
        with suppress(Exception):
            recorder.stop(span)
        raise
    recorder.stop(span)
