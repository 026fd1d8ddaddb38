"""What every application configures."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, TypeVar

try:
    from pydantic import BaseModel, ConfigDict, Field, model_validator
except ImportError as e:
    raise ImportError("the configuration needs pydantic: pip install warptrace[nv-one-logger]") from e

from warptrace.compat.nv_one_logger._log import logger
from warptrace.compat.nv_one_logger.api.telemetry_config import TelemetryConfig

T = TypeVar("T")

Metadata = dict[str, str | bool | int | float | list[str | bool | int | float]]


class InvalidConfig(ValueError):
    """What a field's own type does not say; ``code`` is a word for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def value_of(value_or_fn: T | Callable[[], T]) -> T:
    """The value, or what the function gives now."""
    return value_or_fn() if callable(value_or_fn) else value_or_fn


class OneLoggerErrorHandlingStrategy(Enum):
    PROPAGATE_EXCEPTIONS = "propagate_exceptions"
    DISABLE_QUIETLY_AND_REPORT_METRIC_ERROR = "disable_quietly_and_report_metric_error"


class LoggerConfig(BaseModel):
    """The library's own log. Its files are made when there is something to say."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: str = "%(name)s - %(levelname)s - %(message)s"
    log_file_path_for_info: str = "onelogger.log"
    log_file_path_for_err: str = "onelogger.err"


class OneLoggerConfig(BaseModel):
    """An application, and what happens when telemetry fails.

    What is named ``x_or_fn`` is a value or a function, which is called each time ``x`` is read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    application_name: str
    world_size_or_fn: int | Callable[[], int]
    session_tag_or_fn: str | Callable[[], str]
    is_baseline_run_or_fn: bool | Callable[[], bool] = False
    custom_metadata: Metadata | None = None
    error_handling_strategy: OneLoggerErrorHandlingStrategy = OneLoggerErrorHandlingStrategy.PROPAGATE_EXCEPTIONS
    enable_for_current_rank: bool = True
    logger_config: LoggerConfig = Field(default_factory=LoggerConfig)
    summary_data_schema_version: str = "1.0.0"
    telemetry_config: TelemetryConfig | None = None

    @property
    def world_size(self) -> int:
        return value_of(self.world_size_or_fn)

    @property
    def session_tag(self) -> str:
        return value_of(self.session_tag_or_fn)

    @property
    def is_baseline_run(self) -> bool:
        return value_of(self.is_baseline_run_or_fn)

    @model_validator(mode="before")
    @classmethod
    def _quiet_where_disabled(cls, data: Any) -> Any:
        """A rank that reports nothing is quiet, unless it is told how to treat errors."""
        if not isinstance(data, dict) or data.get("enable_for_current_rank", True):
            return data
        if "error_handling_strategy" in data:
            return data
        strategy = OneLoggerErrorHandlingStrategy.DISABLE_QUIETLY_AND_REPORT_METRIC_ERROR
        data = {**data, "error_handling_strategy": strategy}
        log = data.get("logger_config", {})
        if isinstance(log, dict):
            data["logger_config"] = {"log_level": "CRITICAL", **log}
        logger.warning("telemetry is off for rank %s", os.environ.get("RANK", "0"))
        return data

    @model_validator(mode="after")
    def _validated(self) -> OneLoggerConfig:
        if not self.application_name.strip():
            raise InvalidConfig("the application has no name", "application_name_empty")
        if self.world_size <= 0:
            raise InvalidConfig("a world size is positive", "world_size_not_positive")
        if any(not key.strip() for key in self.custom_metadata or {}):
            raise InvalidConfig("a key of the custom metadata is blank", "custom_metadata_key_empty")
        return self
