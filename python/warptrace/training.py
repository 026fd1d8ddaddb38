"""Telemetry of a training job: what it does, by calls at the places where something begins and ends.

>>> from warptrace import MemoryExporter
>>> kept = MemoryExporter()
>>> training = Training(
...     [kept],
...     application_name="pretrain",
...     world_size=8,
...     session_tag="run-7",
...     config=TrainingConfig(perf_tag="llama-8b", global_batch_size=512, log_every_n_train_iterations=10),
... )
>>> with training.application():
...     with training.training_loop(train_iterations_start=0):
...         for step in range(20):
...             with training.training_iteration():
...                 pass  # forward, backward, step
>>> [span["name"] for span in kept.finished()]
['training_loop', 'application']

Spans, events and attributes are those of ``nv-one-logger-training-telemetry`` 2.3.1, with ours beside them;
``docs/sdk/training.md`` lists them. Nothing here raises into a job or makes it wait, but with ``on_error="raise"``;
a rank that does not report says ``enabled=False``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

# Closes what is still open when the program ends.
import warptrace.spans  # noqa: F401
from warptrace._native import SHORT_SPANS, Training, TrainingPhase

__all__ = ["SHORT_SPANS", "Training", "TrainingConfig", "TrainingPhase"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a job trains.

    What may be a function is asked each time it is needed.
    """

    #: The same for runs that are expected to be equally fast.
    perf_tag: str | Sequence[str] | Callable[[], str | Sequence[str]]
    #: Samples an iteration, over all ranks; positive.
    global_batch_size: int | Callable[[], int]
    # The first three of these flags are reported, and switch nothing off.
    is_train_iterations_enabled: bool | Callable[[], bool] = True
    is_validation_iterations_enabled: bool | Callable[[], bool] = True
    is_test_iterations_enabled: bool | Callable[[], bool] = True
    #: Without it, checkpoints are spans without metrics.
    is_save_checkpoint_enabled: bool | Callable[[], bool] = True
    custom_metadata: Mapping[str, object] | None = None
    micro_batch_size: int | Callable[[], int] | None = None
    #: Tokens a sample.
    seq_length: int | Callable[[], int] | None = None
    #: Floating-point operations a sample.
    flops_per_sample: int | Callable[[], int] | None = None
    train_iterations_target: int | Callable[[], int] | None = None
    train_samples_target: int | Callable[[], int] | None = None
    #: Metrics are sent whenever the count of iterations is a multiple of it; positive.
    log_every_n_train_iterations: int = 50
    #: Needs `flops_per_sample`, and both targets when the loop starts.
    is_log_throughput_enabled: bool | Callable[[], bool] = False
    save_checkpoint_strategy: Literal["sync", "async"] = "sync"


def _decorate(function: _F, phase: TrainingPhase) -> _F:
    """A phase around each call of `function`."""
    # Only those who decorate pay for this import.
    import inspect

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def in_phase_async(*args: Any, **kwargs: Any) -> Any:
            with phase:
                return await function(*args, **kwargs)

        return in_phase_async  # type: ignore[return-value]

    @functools.wraps(function)
    def in_phase(*args: Any, **kwargs: Any) -> Any:
        with phase:
            return function(*args, **kwargs)

    return in_phase  # type: ignore[return-value]
