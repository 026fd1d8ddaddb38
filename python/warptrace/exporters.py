"""Exporters of spans, the registry from which configurations name them, and configurations.

>>> configure(exporters=[JsonlFile("spans-{rank}.jsonl")])     # the SDK's own
>>> configure(exporters=[Otlp("http://localhost:4318", service_name="train")])
>>> configure(exporters=[WandB(project="llm")])                # through the package wandb, as it is set up
>>> configure(exporters=[MLflow(experiment="llm")])            # through the package mlflow, likewise
>>> configure(exporters=[Derived(WandB(project="llm"), running=[Running(event="step", attribute="loss", every=100)])])
>>> configure(exporters=[build("mlflow", experiment="llm")])   # by name
>>> configure(exporters=load("exporters.yaml"))                # what a file asks for

All are called from a recorder's own thread, so that what they wait for is not the job's time. A third party registers
its exporter by an entry point of the group ``warptrace.exporters``; nothing else can be named.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from warptrace._native import create_exporter, derive_exporter, resolve_exporters
from warptrace.spans import Event, Exporter, NativeExporter, Span

__all__ = [
    "DEFAULTS_GROUP",
    "FLAT",
    "GROUP",
    "HIERARCHICAL",
    "AgentSocket",
    "Console",
    "Derived",
    "JsonlFile",
    "LogLines",
    "MLflow",
    "Naming",
    "Otlp",
    "RunLogExporter",
    "Running",
    "WandB",
    "build",
    "load",
    "registered",
]

GROUP = "warptrace.exporters"
"""The group of entry points; each is a class or a function that gives an exporter for keyword arguments."""

DEFAULTS_GROUP = "warptrace.exporter_configs"
"""The group of entry points that ask for exporters: each has ``get_default_config()``, which gives one entry."""

# Ours, which an entry point cannot replace.
_OURS = {
    "agent": "warptrace.exporters:AgentSocket",
    "console": "warptrace.exporters:Console",
    "file": "warptrace.exporters:JsonlFile",
    "log": "warptrace.exporters:LogLines",
    "memory": "warptrace.spans:MemoryExporter",
    "mlflow": "warptrace.exporters:MLflow",
    "otlp": "warptrace.exporters:Otlp",
    "run_log": "warptrace.exporters:RunLogExporter",
    "wandb": "warptrace.exporters:WandB",
}


def JsonlFile(
    path: str | os.PathLike[str],
    *,
    existing: Literal["append", "truncate", "rotate"] | None = None,
    max_bytes: int | None = None,
    keep: int | None = None,
    keys: Literal["all", "one_logger"] | None = None,
    merge_starts: bool = False,
    each_record: bool = False,
) -> NativeExporter:
    """Spans and events as JSON, one record a line; whole records, also from several processes.

    `path` may have ``{pid}`` and ``{rank}`` in it. A file above `max_bytes` is renamed, `keep` of them stay. `keys`:
    also parents, threads and exact times, or nv-one-logger's alone. `merge_starts`: a span with nothing in it is one
    record, written at its end. `each_record`: a write for each, not for all that there are.
    """
    return create_exporter(
        "file",
        {
            "path": os.fspath(path),
            "existing": existing,
            "max_bytes": max_bytes,
            "keep": keep,
            "keys": keys,
            "merge_starts": merge_starts,
            "each_record": each_record,
        },
    )


def Console() -> NativeExporter:
    """A line for each span's end, to the standard error output."""
    return create_exporter("console", {})


class LogLines(Exporter):
    """A line for each span's end and each error, to a logger of Python's."""

    def __init__(self, logger: logging.Logger | None = None, *, level: int = logging.INFO) -> None:
        self._logger = logger or logging.getLogger("warptrace.spans")
        self._level = level

    def stop(self, span: Span) -> None:
        self._logger.log(self._level, "%s %d ms %s", span.name, span.duration_msec, span.attributes)

    def error(self, event: Event, span: Span) -> None:
        self._logger.error("%s: %s", span.name, event.own_attributes)

    def data_error(self, event: Event) -> None:
        self._logger.error("%s", event.own_attributes)


def Otlp(
    endpoint: str | None = None,
    *,
    protocol: Literal["http/protobuf", "http/json", "grpc"] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_ms: int | None = None,
    compression: Literal["none", "gzip"] | None = None,
    service_name: str | None = None,
) -> NativeExporter:
    """Spans to an OpenTelemetry collector. What is not given, OpenTelemetry's variables say.

    `endpoint` is a base, as ``http://localhost:4318``. Batches are sent again when the collector is away, for as long
    as there is room for them; then spans are dropped and counted.
    """
    return create_exporter(
        "otlp",
        {
            "endpoint": endpoint,
            "protocol": protocol,
            "headers": None if headers is None else dict(headers),
            "timeout_ms": timeout_ms,
            "compression": compression,
            "service_name": service_name,
        },
    )


def AgentSocket(*, step_spans: Iterable[str] | None = None) -> NativeExporter:
    """Spans to whoever records this job by ``warptrace``, for its timeline; `step_spans` are the job's steps."""
    return create_exporter("agent", {"step_spans": None if step_spans is None else list(step_spans)})


def RunLogExporter(path: str | os.PathLike[str], *, request_spans: Iterable[str] | None = None) -> NativeExporter:
    """Spans of requests, as records of a run log."""
    names = None if request_spans is None else list(request_spans)
    return create_exporter("run_log", {"path": os.fspath(path), "request_spans": names})


@dataclass(frozen=True, kw_only=True)
class Running:
    """The average and the extremes of a number that events carry, from the first one on; what is no finite number is
    passed over.
    """

    #: The name of the events, and of their attribute.
    event: str
    attribute: str
    #: An event is sent after that many; at least 1.
    every: int = 1
    #: Its name; else that of the events, and ``_running``. It carries ``ATTRIBUTE_avg``, ``ATTRIBUTE_min``,
    #: ``ATTRIBUTE_max`` and ``count``.
    as_event: str | None = None


def Derived(
    exporter: Exporter | NativeExporter,
    *,
    running: Iterable[Running] = (),
    only: Callable[[Event, Span], bool] | None = None,
) -> NativeExporter:
    """An exporter that is given other events than were recorded: those of which `only` says so, and those of `running`.

    What is derived always passes, also from events that do not; so do spans, and errors in them. Where `only` raises,
    the event passes. An exporter that reads a span's events from the span when it stops (OTLP, memory) has all of
    them there, and none that is derived.
    """
    asked = [(r.event, r.attribute, max(r.every, 1), r.as_event) for r in running]
    return derive_exporter(exporter, asked, only)


def registered() -> list[str]:
    """The names that `build` knows."""
    return sorted({*_OURS, *(point.name for point in entry_points(group=GROUP))})


def build(name: str, /, **config: Any) -> Exporter | NativeExporter:
    """An exporter by its registered name.

    Raises LookupError for a name that is not registered, TypeError for what is no exporter, and what its maker raises.
    """
    made = _maker(name)(**config)
    if not isinstance(made, (Exporter, NativeExporter)):
        raise TypeError(f"exporter {name!r} is a {type(made).__name__}, not a warptrace.Exporter")
    return made


def load(
    path: str | os.PathLike[str] | None = None, *, exporters: Iterable[Mapping[str, Any]] = (), packages: bool = True
) -> list[Exporter | NativeExporter]:
    """The exporters that packages, a file and the program ask for.

    Each entry is a mapping of ``class_name`` (a registered name), ``config`` and ``enabled``. Packages' entries
    (``DEFAULTS_GROUP``) hold unless the file has any, and `exporters` is merged over the result by name: settings one
    by one, all else whole. The file, YAML or JSON, is `path`, else what the variable ``WARPTRACE_EXPORTERS_CONFIG``
    names; never one that just lies somewhere. What cannot be read or made is left out with a warning; what is wrong
    with `exporters` raises ValueError.
    """
    asked = list(_defaults()) if packages else []
    file = None if path is None else os.fspath(path)
    entries, warnings = resolve_exporters(asked, file, [dict(e) for e in exporters])
    made: list[Exporter | NativeExporter] = []
    for name, config in entries:
        try:
            made.append(build(name, **config))
        except Exception as e:
            warnings.append(f"the exporter {name!r} is left out: {e}")
    for warning in warnings:
        logging.getLogger("warptrace").warning("%s", warning)
    return made


def _defaults() -> Iterator[tuple[str, dict[str, Any] | str]]:
    for point in entry_points(group=DEFAULTS_GROUP):
        try:
            yield point.name, dict(point.load().get_default_config())
        except Exception as e:
            yield point.name, f"{type(e).__name__}: {e}"


def _maker(name: str) -> Callable[..., object]:
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    if name.startswith("nv_one_logger."):
        # The names that nv-one-logger's configurations have; those that we can serve.
        return lambda **config: create_exporter(name, config)
    near = difflib.get_close_matches(name, registered(), n=1)
    hint = f", did you mean {near[0]!r}?" if near else f" (registered: {', '.join(registered())})"
    raise LookupError(f"no exporter {name!r}{hint}")


class Naming(Protocol):
    """How attributes are called where all metrics share one space of names."""

    def of_span(self, span: str, attribute: str) -> str: ...

    def of_event(self, span: str, event: str, attribute: str) -> str: ...


class _Hierarchical:
    def of_span(self, span: str, attribute: str) -> str:
        return f"{span}.{attribute}"

    def of_event(self, span: str, event: str, attribute: str) -> str:
        return f"{span}.{event}.{attribute}"


class _Flat:
    def of_span(self, span: str, attribute: str) -> str:
        return attribute

    def of_event(self, span: str, event: str, attribute: str) -> str:
        return attribute


HIERARCHICAL: Naming = _Hierarchical()
"""``training_loop.training_metrics_update.interval``"""
FLAT: Naming = _Flat()
"""``interval``: the last one of that name counts."""


class _Metrics(Exporter):
    """Gives each start, stop and event as one set of metrics; errors in the job are none."""

    naming: Naming

    def commit(self, metrics: dict[str, Any], at_ns: int) -> None:
        """Takes one set, of a moment in Unix nanoseconds."""
        raise NotImplementedError

    def start(self, span: Span) -> None:
        self._commit(span, span.initial_attributes, span.start_event)

    def stop(self, span: Span) -> None:
        if (event := span.stop_event) is not None:
            self._commit(span, span.updated_attributes, event)

    def event(self, event: Event, span: Span) -> None:
        self._commit(span, {}, event)

    def error(self, event: Event, span: Span) -> None:
        pass

    def data_error(self, event: Event) -> None:
        kind = str(event.attributes.get("telemetry_data_error_type", ""))
        self.commit({"telemetry_data_error": kind.upper()}, event.unix_ns)

    def _commit(self, span: Span, attributes: Mapping[str, Any], event: Event) -> None:
        of_span, of_event = self.naming.of_span, self.naming.of_event
        metrics = {of_span(span.name, key): value for key, value in attributes.items()}
        metrics.update({of_event(span.name, event.name, key): value for key, value in event.attributes.items()})
        if metrics:
            self.commit(metrics, event.unix_ns)


class WandB(_Metrics):
    """Spans to Weights & Biases, a set of metrics for each start, stop and event, in a run of their own.

    What is given goes to ``wandb.init``, with ``options``; the key and the server are those that wandb is set up
    with. ``run``: a run that exists; then it is not finished when this closes. Every set has ``app_last_log_time``,
    ms since the epoch.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        run_name: str | None = None,
        tags: Iterable[str] | None = None,
        save_dir: str | None = None,
        naming: Naming = HIERARCHICAL,
        run: Any = None,
        **options: Any,
    ) -> None:
        self.naming = naming
        self._run = run
        self._owns = run is None
        given = {
            "project": project,
            "entity": entity,
            "name": run_name,
            "tags": None if tags is None else list(tags),
            "dir": save_dir,
        }
        self._init = {key: value for key, value in given.items() if value is not None} | options

    def initialize(self) -> None:
        if self._run is None:
            import wandb  # type: ignore[import-not-found, unused-ignore]

            # The job's own run, if it has one, keeps its steps.
            self._run = wandb.init(**{"reinit": "create_new", **self._init})

    def commit(self, metrics: dict[str, Any], at_ns: int) -> None:
        self._run.log({**metrics, "app_last_log_time": round(time.time() * 1000)}, commit=True)

    def close(self) -> None:
        if self._owns and self._run is not None:
            self._run.finish(exit_code=0)


# What a name of MLflow may hold besides word characters: `mlflow.utils.validation`, MLflow 3.17.
_NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]")
# And how long a tag may be there.
_MLFLOW_TAG_CHARACTERS = 8000


class MLflow(_Metrics):
    """Spans to MLflow: numbers are metrics with the time of their event, all else is a tag.

    A metric's step is the ``current_iteration`` or ``step`` beside it, else 0. ``run_id``: a run that exists; then it
    is not ended when this closes. Without it a run is made, by ``tracking_uri`` and ``experiment`` where they are
    given, else where mlflow is set up to.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        naming: Naming = HIERARCHICAL,
    ) -> None:
        self.naming = naming
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._run_name = run_name
        self._run_id = run_id
        self._owns = run_id is None
        self._tags = dict(tags or {})
        self._client: Any = None

    @property
    def run_id(self) -> str | None:
        """The run that is written to; None before there is one."""
        return self._run_id

    def initialize(self) -> None:
        from mlflow import MlflowClient  # type: ignore[import-not-found, unused-ignore]

        self._client = MlflowClient(tracking_uri=self._tracking_uri)
        if self._run_id is None:
            # By the client: which run is active in the job's own thread stays as it is.
            run = self._client.create_run(self._experiment_id(), tags=self._tags, run_name=self._run_name)
            self._run_id = run.info.run_id

    def _experiment_id(self) -> str:
        name = self._experiment or "Default"
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def commit(self, metrics: dict[str, Any], at_ns: int) -> None:
        from mlflow.entities import Metric, RunTag  # type: ignore[import-not-found, unused-ignore]

        by_last_name = {name.rpartition(".")[2]: value for name, value in metrics.items()}
        step = by_last_name.get("current_iteration", by_last_name.get("step", 0))
        step = step if isinstance(step, int) else 0
        numbers, tags = [], []
        for name, value in metrics.items():
            name = _NOT_IN_MLFLOW.sub("_", name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.append(Metric(name, float(value), at_ns // 1_000_000, step))
            else:
                text = value if isinstance(value, str) else json.dumps(value)
                tags.append(RunTag(name, text[:_MLFLOW_TAG_CHARACTERS]))
        self._client.log_batch(self._run_id, metrics=numbers, tags=tags)

    def close(self) -> None:
        if self._owns and self._run_id is not None:
            self._client.set_terminated(self._run_id)
