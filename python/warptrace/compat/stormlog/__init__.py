"""The telemetry names of the package ``stormlog`` 0.4.3, over ours.

``warptrace.compat.stormlog.telemetry`` is its module ``stormlog.telemetry``, and ``session`` what that needs of
``stormlog.session``. Its trackers, profilers and analyses are not here: ``warptrace.MemoryTracker`` and
``warptrace memory`` do their work.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["session", "telemetry"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    telemetry = importlib.import_module(f"{__name__}.telemetry")
    if name in telemetry.__all__:
        return getattr(telemetry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
