"""The callbacks as blocks, and as decorators. An exception of a block goes on as it is, and is not recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.core.span import Span
from warptrace.compat.nv_one_logger.training_telemetry.api import callbacks
from warptrace.compat.nv_one_logger.training_telemetry.api.checkpoint import CheckPointStrategy


def _around(span: Span, end: Callable[[], None]) -> Generator[Span, None, None]:
    try:
        yield span
    except BaseException:
        with suppress(Exception):
            end()
        raise
    end()


@contextmanager
def application() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_app_start(), callbacks.on_app_end)


@contextmanager
def model_init() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_model_init_start(), callbacks.on_model_init_end)


@contextmanager
def dataloader_init() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_dataloader_init_start(), callbacks.on_dataloader_init_end)


@contextmanager
def optimizer_init() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_optimizer_init_start(), callbacks.on_optimizer_init_end)


@contextmanager
def checkpoint_load() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_load_checkpoint_start(), callbacks.on_load_checkpoint_end)


@contextmanager
def training_loop(
    train_iterations_start: int,
    train_samples_start: int | None = None,
    train_iterations_target_or_fn: int | Callable[[], int] | None = None,
    train_samples_target_or_fn: int | Callable[[], int] | None = None,
) -> Generator[Span, None, None]:
    span = callbacks.on_train_start(
        train_iterations_start, train_samples_start, train_iterations_target_or_fn, train_samples_target_or_fn
    )
    yield from _around(span, callbacks.on_train_end)


@contextmanager
def training_iteration() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_training_single_iteration_start(), callbacks.on_training_single_iteration_end)


@contextmanager
def validation_loop() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_validation_start(), callbacks.on_validation_end)


@contextmanager
def validation_iteration() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_validation_single_iteration_start(), callbacks.on_validation_single_iteration_end)


@contextmanager
def testing_loop() -> Generator[Span, None, None]:
    yield from _around(callbacks.on_testing_start(), callbacks.on_testing_end)


@contextmanager
def checkpoint_save(global_step: int) -> Generator[Span, None, None]:
    """Reports success where saving ends with the block; what is saved asynchronously reports it by its callback."""
    span = callbacks.on_save_checkpoint_start(global_step)

    def succeeded() -> None:
        if span is not None and _is_synchronous():
            callbacks.on_save_checkpoint_success(global_step)

    try:
        yield span
        succeeded()
    except BaseException:
        with suppress(Exception):
            callbacks.on_save_checkpoint_end()
        raise
    callbacks.on_save_checkpoint_end()


def _is_synchronous() -> bool:
    config = OneLoggerProvider.instance().config.telemetry_config
    return getattr(config, "save_checkpoint_strategy", None) == CheckPointStrategy.SYNC
