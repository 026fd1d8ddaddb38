"""Tells you why your GPU job is slow, from inside the job.

Nothing here raises into a job or makes it wait: what cannot be delivered is dropped, counted, and said once.

Importing this package is cheap: it loads neither its native module nor anything of others until a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warptrace._native import __version__ as __version__
    from warptrace.annotation import AnnotationCounts as AnnotationCounts
    from warptrace.annotation import AnnotationWriter as AnnotationWriter
    from warptrace.run_log import RunLog as RunLog
    from warptrace.spans import Event as Event
    from warptrace.spans import Exporter as Exporter
    from warptrace.spans import MemoryExporter as MemoryExporter
    from warptrace.spans import Recorder as Recorder
    from warptrace.spans import Span as Span
    from warptrace.spans import SpanError as SpanError
    from warptrace.spans import configure as configure
    from warptrace.spans import current_span as current_span
    from warptrace.spans import event as event
    from warptrace.spans import shutdown as shutdown
    from warptrace.spans import span as span

# Public names by the module that has them; loaded when first asked for (PEP 562).
_NAMES: dict[str, str] = {
    "AnnotationCounts": "warptrace.annotation",
    "AnnotationWriter": "warptrace.annotation",
    "Event": "warptrace.spans",
    "Exporter": "warptrace.spans",
    "MemoryExporter": "warptrace.spans",
    "Recorder": "warptrace.spans",
    "RunLog": "warptrace.run_log",
    "Span": "warptrace.spans",
    "SpanError": "warptrace.spans",
    "__version__": "warptrace._native",
    "configure": "warptrace.spans",
    "current_span": "warptrace.spans",
    "event": "warptrace.spans",
    "shutdown": "warptrace.spans",
    "span": "warptrace.spans",
}
_MODULES: frozenset[str] = frozenset({"annotation", "compat", "run_log", "spans"})

__all__ = [
    "AnnotationCounts",
    "AnnotationWriter",
    "Event",
    "Exporter",
    "MemoryExporter",
    "Recorder",
    "RunLog",
    "Span",
    "SpanError",
    "__version__",
    "configure",
    "current_span",
    "event",
    "shutdown",
    "span",
]


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is not None:
        value = getattr(importlib.import_module(module), name)
    elif name in _MODULES:
        value = importlib.import_module(f"warptrace.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
