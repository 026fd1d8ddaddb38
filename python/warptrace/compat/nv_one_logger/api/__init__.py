"""Configuration, provider, and the recorder's interface. The configuration, which needs pydantic, is loaded when it
is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warptrace.compat.nv_one_logger.api.config import (
        LoggerConfig,
        OneLoggerConfig,
        OneLoggerErrorHandlingStrategy,
    )

__all__ = ["LoggerConfig", "OneLoggerConfig", "OneLoggerErrorHandlingStrategy"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from warptrace.compat.nv_one_logger.api import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
