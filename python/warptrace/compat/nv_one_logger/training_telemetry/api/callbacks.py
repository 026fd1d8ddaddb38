"""What a training job does, said where it begins and ends. Starts give the span, or None when calls are skipped.

Times are milliseconds since the epoch; None and 0 are now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from warptrace.compat.nv_one_logger._guard import guarded
from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.core.span import Span
from warptrace.compat.nv_one_logger.training_telemetry.api.training_recorder import TrainingRecorder


def _recorder() -> TrainingRecorder:
    return cast(TrainingRecorder, OneLoggerProvider.instance().recorder)


@guarded
def on_app_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("app", start_time_msec)


@guarded
def on_app_end(finish_time_msec: float | None = None) -> None:
    """Stops whatever is open, and closes the exporters."""
    _recorder().end("app", finish_time_msec)


@guarded
def on_distributed_init_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("distributed_init", start_time_msec)


@guarded
def on_distributed_init_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("distributed_init", finish_time_msec)


@guarded
def on_model_init_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("model_init", start_time_msec)


@guarded
def on_model_init_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("model_init", finish_time_msec)


@guarded
def on_dataloader_init_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("dataloader_init", start_time_msec)


@guarded
def on_dataloader_init_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("dataloader_init", finish_time_msec)


@guarded
def on_optimizer_init_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("optimizer_init", start_time_msec)


@guarded
def on_optimizer_init_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("optimizer_init", finish_time_msec)


@guarded
def on_load_checkpoint_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("load_checkpoint", start_time_msec)


@guarded
def on_load_checkpoint_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("load_checkpoint", finish_time_msec)


@guarded
def on_train_start(
    train_iterations_start: int,
    train_samples_start: int | None = None,
    train_iterations_target_or_fn: int | Callable[[], int] | None = None,
    train_samples_target_or_fn: int | Callable[[], int] | None = None,
    start_time_msec: float | None = None,
) -> Span:
    """Samples begin at iterations times batch size, and targets are the configuration's, unless they are given."""
    return _recorder().begin(
        "train",
        start_time_msec,
        train_iterations_start=train_iterations_start,
        train_samples_start=train_samples_start,
        train_iterations_target=train_iterations_target_or_fn,
        train_samples_target=train_samples_target_or_fn,
    )


@guarded
def on_train_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("train", finish_time_msec)


@guarded
def on_training_single_iteration_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("training_single_iteration", start_time_msec)


@guarded
def on_training_single_iteration_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("training_single_iteration", finish_time_msec)


@guarded
def on_validation_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("validation", start_time_msec)


@guarded
def on_validation_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("validation", finish_time_msec)


@guarded
def on_validation_single_iteration_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("validation_single_iteration", start_time_msec)


@guarded
def on_validation_single_iteration_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("validation_single_iteration", finish_time_msec)


@guarded
def on_testing_start(start_time_msec: float | None = None) -> Span:
    return _recorder().begin("testing", start_time_msec)


@guarded
def on_testing_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("testing", finish_time_msec)


@guarded
def on_save_checkpoint_start(global_step: int, start_time_msec: float | None = None) -> Span:
    return _recorder().begin("save_checkpoint", start_time_msec, global_step=global_step)


@guarded
def on_save_checkpoint_success(global_step: int, time_msec: float | None = None) -> None:
    _recorder().checkpoint_saved(global_step, time_msec)


@guarded
def on_save_checkpoint_end(finish_time_msec: float | None = None) -> None:
    _recorder().end("save_checkpoint", finish_time_msec)
