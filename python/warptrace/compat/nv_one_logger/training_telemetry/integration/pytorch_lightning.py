"""Training telemetry of PyTorch Lightning: a callback, and trainers that have it."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, TypeVar

try:
    from lightning.pytorch import Callback, Trainer
except ImportError:
    from pytorch_lightning import Callback, Trainer

from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.api.timed_span import get_recorder
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError
from warptrace.compat.nv_one_logger.training_telemetry.api import callbacks
from warptrace.compat.nv_one_logger.training_telemetry.api.spans import StandardTrainingJobSpanName
from warptrace.compat.nv_one_logger.training_telemetry.api.training_recorder import TrainingRecorder
from warptrace.compat.nv_one_logger.training_telemetry.api.training_telemetry_provider import (
    TrainingTelemetryProvider,
)

T = TypeVar("T", bound=type[Any])


class TimeEventCallback(Callback):  # type: ignore[misc]
    """Says what Lightning's hooks say; the application starts with the callback, unless that is said not to be.

    Calls that Lightning has no hook for are made by the application, or by a trainer of ``hook_trainer_cls``.
    report_tests: ``trainer.test`` is a ``testing_loop``; otherwise the application says so itself, by
    ``on_testing_start`` and ``on_testing_end``.
    """

    def __init__(
        self,
        training_telemetry_provider: TrainingTelemetryProvider,
        call_on_app_start: bool = True,
        *,
        report_tests: bool = False,
    ) -> None:
        super().__init__()
        self._provider = training_telemetry_provider
        self._reports_tests = report_tests
        if call_on_app_start:
            callbacks.on_app_start()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        config = OneLoggerProvider.instance().config.telemetry_config
        if config is None:
            raise OneLoggerError("the training is not configured", "training_config_missing")
        step = trainer.global_step
        callbacks.on_train_start(step, step * config.global_batch_size)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        callbacks.on_train_end()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        callbacks.on_training_single_iteration_start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        callbacks.on_training_single_iteration_end()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        callbacks.on_validation_start()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        _end_validation_iteration()
        callbacks.on_validation_end()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        _end_validation_iteration()
        callbacks.on_validation_single_iteration_start()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        callbacks.on_validation_single_iteration_end()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if self._reports_tests:
            callbacks.on_testing_start()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        if self._reports_tests:
            callbacks.on_testing_end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Records it in the innermost of the spans that are open, which end with the application."""
        if not isinstance(exception, Exception) or not OneLoggerProvider.instance().one_logger_enabled:
            return
        recorder = get_recorder()
        names = StandardTrainingJobSpanName
        for name in (
            names.VALIDATION_SINGLE_ITERATION,
            names.TRAINING_SINGLE_ITERATION,
            names.VALIDATION_LOOP,
            names.TESTING_LOOP,
            names.TRAINING_LOOP,
        ):
            if isinstance(recorder, TrainingRecorder) and (spans := recorder.get_active_spans_by_name(name)):
                recorder.error(spans[-1], f"Error in {name}: ", exception)
                return

    def on_save_checkpoint_start(self, global_step: int) -> None:
        callbacks.on_save_checkpoint_start(global_step)

    def on_save_checkpoint_success(self, global_step: int) -> None:
        callbacks.on_save_checkpoint_success(global_step)

    def on_save_checkpoint_end(self, global_step: int | None = None) -> None:
        callbacks.on_save_checkpoint_end()

    def on_app_end(self) -> None:
        callbacks.on_app_end()

    def on_model_init_start(self) -> None:
        callbacks.on_model_init_start()

    def on_model_init_end(self) -> None:
        callbacks.on_model_init_end()

    def on_dataloader_init_start(self) -> None:
        callbacks.on_dataloader_init_start()

    def on_dataloader_init_end(self) -> None:
        callbacks.on_dataloader_init_end()

    def on_optimizer_init_start(self) -> None:
        callbacks.on_optimizer_init_start()

    def on_optimizer_init_end(self) -> None:
        callbacks.on_optimizer_init_end()

    def on_load_checkpoint_start(self) -> None:
        callbacks.on_load_checkpoint_start()

    def on_load_checkpoint_end(self) -> None:
        callbacks.on_load_checkpoint_end()

    def on_testing_start(self) -> None:
        callbacks.on_testing_start()

    def on_testing_end(self) -> None:
        callbacks.on_testing_end()


def _end_validation_iteration() -> None:
    """Ends an iteration that is still open."""
    provider = OneLoggerProvider.instance()
    if not provider.one_logger_enabled or not isinstance(provider.recorder, TrainingRecorder):
        return
    if provider.recorder.get_active_spans_by_name(StandardTrainingJobSpanName.VALIDATION_SINGLE_ITERATION):
        callbacks.on_validation_single_iteration_end()


def _with_callback(callback: TimeEventCallback, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A trainer's arguments with the callback before all others."""
    given = kwargs.get("callbacks")
    if given is not None and not isinstance(given, list):
        raise ValueError(f"callbacks must be a list, not {type(given).__name__}")
    return {**kwargs, "callbacks": [callback, *(c for c in given or [] if c is not callback)]}


def _timed_save(save: Any, trainer: Any, callback: TimeEventCallback, *args: Any, **kwargs: Any) -> None:
    """Saves, as a checkpoint of the trainer's step; where saving raises, neither success nor end is reported."""
    step = trainer.global_step
    callback.on_save_checkpoint_start(step)
    save(trainer, *args, **kwargs)
    callback.on_save_checkpoint_success(step)
    callback.on_save_checkpoint_end(step)


def hook_trainer_cls(
    cls: T,
    training_telemetry_provider: TrainingTelemetryProvider,
    telemetry_callback: TimeEventCallback | None = None,
) -> tuple[T, TimeEventCallback]:
    """Changes a trainer's class: its trainers have the callback before all others, and tell it of checkpoints.

    They give it as ``nv_one_logger_callback``.
    """
    callback = telemetry_callback or TimeEventCallback(training_telemetry_provider)
    init, save = cls.__init__, cls.save_checkpoint

    @functools.wraps(init)
    def hooked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **_with_callback(callback, kwargs))

    @functools.wraps(save)
    def hooked_save(self: Any, *args: Any, **kwargs: Any) -> None:
        _timed_save(save, self, callback, *args, **kwargs)

    cls.__init__ = hooked_init
    cls.save_checkpoint = hooked_save
    cls.nv_one_logger_callback = property(lambda self: callback)
    return cls, callback


class OneLoggerPTLTrainer(Trainer):  # type: ignore[misc]
    """A trainer that has the callback."""

    def __init__(self, trainer_config: dict[str, Any], training_telemetry_provider: TrainingTelemetryProvider) -> None:
        self._telemetry_callback = TimeEventCallback(training_telemetry_provider)
        super().__init__(**_with_callback(self._telemetry_callback, trainer_config))

    @property
    def nv_one_logger_callback(self) -> TimeEventCallback:
        return self._telemetry_callback

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = False, storage_options: Any | None = None
    ) -> None:
        more = {}
        if "storage_options" in inspect.signature(Trainer.save_checkpoint).parameters:
            more["storage_options"] = storage_options
        _timed_save(Trainer.save_checkpoint, self, self._telemetry_callback, filepath, weights_only, **more)
