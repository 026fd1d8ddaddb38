"""Tells you why your GPU job is slow, from inside the job.

Nothing here raises into a job or makes it wait: what cannot be delivered is dropped, counted, and said once.

Importing this package is cheap: it loads neither its native module nor anything of others until a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warptrace._native import __version__ as __version__

# Public names by the module that has them; loaded when first asked for (PEP 562).
_NAMES: dict[str, str] = {
    "__version__": "warptrace._native",
}
_MODULES: frozenset[str] = frozenset({"compat"})

__all__ = ["__version__"]


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
