"""Exporters of spans that are written in Python, and the registry from which configurations name exporters.

>>> configure(exporters=[WandB(project="llm")])            # the package wandb, with the settings and the key that it
has >>> configure(exporters=[MLflow(experiment="llm")])        # the package mlflow, likewise >>>
configure(exporters=[build("mlflow", experiment="llm")])

Both are called from a recorder's own thread, so that what they wait for is not the job's time. A third party registers
its exporter by an entry point of the group ``warptrace.exporters``; nothing else can be named.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from warptrace.spans import Event, Exporter, NativeExporter, Span

__all__ = ["FLAT", "GROUP", "HIERARCHICAL", "MLflow", "Naming", "WandB", "build", "registered"]

GROUP = "warptrace.exporters"
"""The group of entry points; each is a class or a function that gives an exporter for keyword arguments."""

# Ours, which an entry point cannot replace.
_OURS = {
    "memory": "warptrace.spans:MemoryExporter",
    "mlflow": "warptrace.exporters:MLflow",
    "wandb": "warptrace.exporters:WandB",
}


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


def _maker(name: str) -> Callable[..., object]:
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
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
