"""Ray: the workers of Ray Train and Tune, and tasks.

>>> def train_loop(config):
...     steps = warptrace.adapters.ray.worker()
...     for batch in steps.over(loader):
...         train(batch)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from warptrace.adapters._quiet import failed, quietly
from warptrace.adapters._steps import Steps, shared_writer
from warptrace.adapters.torch import make
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training


def worker(
    *,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Worker:
    """The steps of this worker, to be called in it: in the training loop, not where the trainer is made.

    run_id: the name of the experiment, when it is not given.
    """
    steps = Worker(training=training, writer=writer, run_id=run_id)
    _label_by_train(steps, named=run_id is not None)
    return steps


class Worker(Steps):
    """The steps of one worker; see ``Steps``."""

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, **options: Any) -> None:
        """``ray.train.report`` as a phase, ``checkpoint`` with one, else ``report``: in it workers wait for another."""
        from ray import train  # type: ignore[import-not-found, unused-ignore]

        if checkpoint is None:
            with self.phase("report"):
                train.report(metrics, **options)
            return
        step = self.done
        self.begin_checkpoint(step)
        try:
            train.report(metrics, checkpoint=checkpoint, **options)
        except BaseException as error:
            self.end_checkpoint(step, error)
            raise
        self.end_checkpoint(step)


@quietly
def _label_by_train(steps: Steps, *, named: bool) -> None:
    from ray import train

    try:
        context = train.get_context()
        steps.label(rank=context.get_world_rank(), world_size=context.get_world_size())
        if not named:
            steps.label(run_id=context.get_experiment_name())
    except Exception as error:
        failed("asking Ray Train for the rank of a worker", error)
        steps.label(**make()._labels)
    trial = _trial()
    if trial:
        steps.label(trial_id=trial)


def _trial() -> str | None:
    """The trial of Ray Tune that this process is, if any."""
    try:
        from ray import tune  # type: ignore[import-not-found, unused-ignore]

        return str(tune.get_context().get_trial_id() or "") or None
    except Exception:
        # Not a trial.
        return None


@contextmanager
def task(name: str | None = None, *, writer: AnnotationWriter | None = None, **labels: object) -> Iterator[None]:
    """Says that a task or an actor's method runs, as an interval; used in it, or as a decorator under ``@ray.remote``.

    Labels: ``task_id`` and ``run_id`` (the job's) as Ray knows them, ``task_name``, and yours.
    """
    start_ns = time.time_ns()
    try:
        yield
    finally:
        _say_task(name, start_ns, writer or shared_writer(), labels)


@quietly
def _say_task(name: str | None, start_ns: int, writer: AnnotationWriter, labels: dict[str, object]) -> None:
    import ray  # type: ignore[import-not-found, unused-ignore]

    context = ray.get_runtime_context()
    known = {"task_id": context.get_task_id(), "run_id": context.get_job_id(), "task_name": name, **labels}
    said = {key: value for key, value in known.items() if value is not None}
    writer.span(said, start_ns=start_ns, end_ns=time.time_ns())
