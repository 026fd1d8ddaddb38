"""Configuration, provider, and the recorder's interface."""

from warptrace.compat.nv_one_logger.api.config import (
    LoggerConfig,
    OneLoggerConfig,
    OneLoggerErrorHandlingStrategy,
)

__all__ = ["LoggerConfig", "OneLoggerConfig", "OneLoggerErrorHandlingStrategy"]
