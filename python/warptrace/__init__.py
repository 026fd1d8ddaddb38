"""Tells you why your GPU job is slow, from inside the job.

Nothing here raises into a job or makes it wait: what cannot be delivered is dropped, counted, and said once.

Importing this package is cheap: it loads neither its native module nor anything of others until a name is used.
"""

from __future__ import annotations

import importlib

# Type checkers take it for true. `typing` itself takes most of the time that an import of this package may take.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from warptrace._native import __version__ as __version__
    from warptrace.annotation import AnnotationCounts as AnnotationCounts
    from warptrace.annotation import AnnotationWriter as AnnotationWriter
    from warptrace.capture import record as record
    from warptrace.memory import MemoryTracker as MemoryTracker
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
    from warptrace.tables import ArrowTable as ArrowTable
    from warptrace.tables import load_annotations as load_annotations
    from warptrace.tables import load_memory as load_memory
    from warptrace.tables import load_run_log as load_run_log
    from warptrace.tables import load_session_table as load_session_table
    from warptrace.training import Training as Training
    from warptrace.training import TrainingConfig as TrainingConfig

# Public names by the module that has them; loaded when first asked for (PEP 562).
_NAMES: dict[str, str] = {
    "AnnotationCounts": "warptrace.annotation",
    "AnnotationWriter": "warptrace.annotation",
    "Event": "warptrace.spans",
    "Exporter": "warptrace.spans",
    "ArrowTable": "warptrace.tables",
    "MemoryExporter": "warptrace.spans",
    "MemoryTracker": "warptrace.memory",
    "Recorder": "warptrace.spans",
    "RunLog": "warptrace.run_log",
    "Span": "warptrace.spans",
    "SpanError": "warptrace.spans",
    "Training": "warptrace.training",
    "TrainingConfig": "warptrace.training",
    "__version__": "warptrace._native",
    "configure": "warptrace.spans",
    "current_span": "warptrace.spans",
    "event": "warptrace.spans",
    "load_annotations": "warptrace.tables",
    "load_memory": "warptrace.tables",
    "load_run_log": "warptrace.tables",
    "load_session_table": "warptrace.tables",
    "record": "warptrace.capture",
    "shutdown": "warptrace.spans",
    "span": "warptrace.spans",
}
_MODULES: frozenset[str] = frozenset(
    {
        "adapters",
        "annotation",
        "capture",
        "compat",
        "exporters",
        "memory",
        "opentelemetry",
        "run_log",
        "spans",
        "tables",
        "training",
    }
)

__all__ = [
    "AnnotationCounts",
    "AnnotationWriter",
    "ArrowTable",
    "Event",
    "Exporter",
    "MemoryExporter",
    "MemoryTracker",
    "Recorder",
    "RunLog",
    "Span",
    "SpanError",
    "Training",
    "TrainingConfig",
    "__version__",
    "configure",
    "current_span",
    "event",
    "load_annotations",
    "load_memory",
    "load_run_log",
    "load_session_table",
    "record",
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
