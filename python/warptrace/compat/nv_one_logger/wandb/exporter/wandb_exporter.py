"""Spans and events as metrics of a run in Weights & Biases."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import wandb

from warptrace.compat.nv_one_logger.core.attributes import Attribute, Attributes
from warptrace.compat.nv_one_logger.core.event import ErrorEvent, Event, TelemetryDataError
from warptrace.compat.nv_one_logger.core.span import Span
from warptrace.compat.nv_one_logger.exporter.exporter import BaseExporter, ExportError

_RUN_NAME = f"one-logger-tracking-run-{uuid.uuid4()}"
_LOGIN_TIMEOUT_SECS = 5
_FIRST_ANSWER_SECS = 0.1
CLOSE_TIMEOUT_SECS = 30.0
"""How long ``WandBExporterAsync.close`` waits for what was sent to be brought out."""


@dataclass
class Config:
    """The account, and the run."""

    entity: str
    host: str = "https://api.wandb.ai"
    api_key: str = ""
    project: str = "one-logger-tracking"
    run_name: str = _RUN_NAME
    save_dir: str = "./wandb"
    tags: list[str] = field(default_factory=lambda: ["e2e_metrics_enabled"])


class MetricNamingStrategy(ABC):
    """What metrics are called."""

    @abstractmethod
    def from_span_attribute(self, span: Span, attribute: Attribute) -> str: ...

    @abstractmethod
    def from_event_attribute(self, span: Span, event: Event, attribute: Attribute) -> str: ...


class HierarchicalMetricNamingStrategy(MetricNamingStrategy):
    """``span.attribute`` and ``span.event.attribute``."""

    def __init__(self, separator: str = ".") -> None:
        self._separator = separator

    def from_span_attribute(self, span: Span, attribute: Attribute) -> str:
        return self._separator.join((span.name_str, str(attribute.name)))

    def from_event_attribute(self, span: Span, event: Event, attribute: Attribute) -> str:
        return self._separator.join((span.name_str, event.name_str, str(attribute.name)))


class FlatMetricNamingStrategy(MetricNamingStrategy):
    """The attribute's name alone."""

    def from_span_attribute(self, span: Span, attribute: Attribute) -> str:
        return str(attribute.name)

    def from_event_attribute(self, span: Span, event: Event, attribute: Attribute) -> str:
        return str(attribute.name)


class WandBExporterBase(BaseExporter):
    """Makes metrics of what is exported; subclasses bring them to the run."""

    def __init__(self, config: Config, metric_naming_strategy: MetricNamingStrategy) -> None:
        super().__init__()
        self._config = config
        self._naming = metric_naming_strategy

    @abstractmethod
    def _log_metrics(self, metrics: dict[str, Any]) -> None:
        """Logs them in one commit."""

    def export_start(self, span: Span) -> None:
        super().export_start(span)
        self._commit({**self._of_span(span, span.attributes), **self._of_event(span, span.start_event)})

    def export_event(self, event: Event, span: Span) -> None:
        super().export_event(event, span)
        self._commit(self._of_event(span, event))

    def export_stop(self, span: Span) -> None:
        super().export_stop(span)
        assert span.stop_event is not None
        self._commit({**self._of_span(span, span.updated_attributes), **self._of_event(span, span.stop_event)})

    def export_error(self, event: ErrorEvent, span: Span) -> None:
        """Errors are no metrics."""
        super().export_error(event, span)

    def export_telemetry_data_error(self, error: TelemetryDataError) -> None:
        super().export_telemetry_data_error(error)
        self._commit({"telemetry_data_error": error.error_type.name})

    def _of_span(self, span: Span, attributes: Attributes) -> dict[str, Any]:
        return {self._naming.from_span_attribute(span, a): a.value for a in attributes.values()}

    def _of_event(self, span: Span, event: Event) -> dict[str, Any]:
        return {self._naming.from_event_attribute(span, event, a): a.value for a in event.attributes.values()}

    def _commit(self, metrics: dict[str, Any]) -> None:
        if metrics:
            metrics["app_last_log_time"] = round(time.time() * 1000)
            self._log_metrics(metrics)


class WandBExporterSync(WandBExporterBase):
    """Logs in the thread that records."""

    def __init__(self, config: Config, metric_naming_strategy: MetricNamingStrategy | None = None) -> None:
        super().__init__(config, metric_naming_strategy or HierarchicalMetricNamingStrategy())
        self._run: Any = None

    def initialize(self) -> None:
        self._run = _begin(self._config)
        super().initialize()

    def close(self) -> None:
        super().close()
        run, self._run = self._run, None
        if run is not None:
            _finish(run)

    def _log_metrics(self, metrics: dict[str, Any]) -> None:
        self._run.log(metrics, commit=True)


class WandBExporterAsync(WandBExporterBase):
    """Logs in a process of its own. What it cannot log is an ExportError of a later call."""

    def __init__(self, config: Config, metric_naming_strategy: MetricNamingStrategy | None = None) -> None:
        super().__init__(config, metric_naming_strategy or HierarchicalMetricNamingStrategy())
        self._here, self._there = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_log_all, args=(config, self._there), daemon=True)
        self._has_sent = False

    def initialize(self) -> None:
        self._process.start()
        # So that the end of that process is the end of the pipe.
        self._there.close()
        super().initialize()

    def close(self) -> None:
        super().close()
        if self._process.pid is None:
            return
        with contextlib.suppress(OSError):
            self._here.send(None)
        self._process.join(CLOSE_TIMEOUT_SECS)
        if self._process.is_alive():
            self._process.terminate()
            raise ExportError(f"not all was logged within {CLOSE_TIMEOUT_SECS} s", "wandb_timeout")
        with contextlib.suppress(EOFError):
            if self._here.poll():
                raise ExportError(self._here.recv(), "wandb_failed")

    def _log_metrics(self, metrics: dict[str, Any]) -> None:
        wait_secs = 0.0 if self._has_sent else _FIRST_ANSWER_SECS
        self._has_sent = True
        if self._here.poll(wait_secs):
            try:
                failure = self._here.recv()
            except EOFError:
                failure = "the process that logs has ended"
            raise ExportError(failure, "wandb_failed")
        if not self._process.is_alive():
            raise ExportError("the process that logs has ended", "wandb_failed")
        self._here.send(metrics)


def _log_all(config: Config, pipe: Connection) -> None:
    """In the process that logs: until it is told to end, or nobody is left to tell."""
    try:
        run = _begin(config)
        while True:
            try:
                metrics = pipe.recv()
            except EOFError:
                break
            if metrics is None:
                break
            try:
                run.log(metrics, commit=True)
            except Exception as e:
                pipe.send(f"{type(e).__name__}: {e}")
        _finish(run)
    except Exception as e:
        with contextlib.suppress(OSError):
            pipe.send(f"{type(e).__name__}: {e}")


def _finish(run: Any) -> None:
    """Ends the run well; newer versions of W&B know no ``quiet``."""
    options = {"quiet": False} if "quiet" in inspect.signature(run.finish).parameters else {}
    run.finish(exit_code=0, **options)


def _begin(config: Config) -> Any:
    """Logs in, and begins the run, whatever run the program has itself."""
    with _without("WANDB_RUN_ID", "WANDB_SERVICE"):
        options: dict[str, Any] = {"host": config.host, "timeout": _LOGIN_TIMEOUT_SECS}
        if config.api_key:
            options["key"] = config.api_key
        elif "anonymous" in inspect.signature(wandb.login).parameters:
            options["anonymous"] = "allow"
        wandb.login(**options)
        return wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.run_name,
            dir=config.save_dir,
            tags=config.tags,
            settings=wandb.Settings(x_disable_stats=True),
        )


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Takes variables out of the environment, for a while."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
