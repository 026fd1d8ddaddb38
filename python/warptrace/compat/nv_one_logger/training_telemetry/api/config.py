"""How a job trains."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, model_validator

from warptrace.compat.nv_one_logger.api.config import Metadata, value_of
from warptrace.compat.nv_one_logger.api.telemetry_config import ApplicationType
from warptrace.compat.nv_one_logger.core.exceptions import assert_that
from warptrace.compat.nv_one_logger.training_telemetry.api.checkpoint import CheckPointStrategy

IntOrFn = int | Callable[[], int]
BoolOrFn = bool | Callable[[], bool]


class TrainingTelemetryConfig(BaseModel):
    """What is named ``x_or_fn`` is a value or a function, which is called each time ``x`` is used.

    Raises OneLoggerError for a batch size or an interval that is not positive, and for throughput without
    ``flops_per_sample``.
    """

    perf_tag_or_fn: str | list[str] | Callable[[], str | list[str]]
    global_batch_size_or_fn: IntOrFn
    is_train_iterations_enabled_or_fn: BoolOrFn = True
    is_validation_iterations_enabled_or_fn: BoolOrFn = True
    is_test_iterations_enabled_or_fn: BoolOrFn = True
    is_save_checkpoint_enabled_or_fn: BoolOrFn = True
    custom_metadata: Metadata | None = None
    micro_batch_size_or_fn: IntOrFn | None = None
    seq_length_or_fn: IntOrFn | None = None
    flops_per_sample_or_fn: IntOrFn | None = None
    train_iterations_target_or_fn: IntOrFn | None = None
    train_samples_target_or_fn: IntOrFn | None = None
    log_every_n_train_iterations: int = 50
    is_log_throughput_enabled_or_fn: BoolOrFn = False
    save_checkpoint_strategy: CheckPointStrategy = CheckPointStrategy.SYNC

    @property
    def app_type(self) -> ApplicationType | str:
        return ApplicationType.TRAINING

    @property
    def perf_tag(self) -> str | list[str]:
        tag = self.perf_tag_or_fn
        return tag() if callable(tag) else tag

    @property
    def global_batch_size(self) -> int:
        return value_of(self.global_batch_size_or_fn)

    @property
    def is_train_iterations_enabled(self) -> bool:
        return value_of(self.is_train_iterations_enabled_or_fn)

    @property
    def is_validation_iterations_enabled(self) -> bool:
        return value_of(self.is_validation_iterations_enabled_or_fn)

    @property
    def is_test_iterations_enabled(self) -> bool:
        return value_of(self.is_test_iterations_enabled_or_fn)

    @property
    def is_save_checkpoint_enabled(self) -> bool:
        return value_of(self.is_save_checkpoint_enabled_or_fn)

    @property
    def micro_batch_size(self) -> int | None:
        return value_of(self.micro_batch_size_or_fn)

    @property
    def seq_length(self) -> int | None:
        return value_of(self.seq_length_or_fn)

    @property
    def flops_per_sample(self) -> int | None:
        return value_of(self.flops_per_sample_or_fn)

    @property
    def train_iterations_target(self) -> int | None:
        return value_of(self.train_iterations_target_or_fn)

    @property
    def train_samples_target(self) -> int | None:
        return value_of(self.train_samples_target_or_fn)

    @property
    def is_log_throughput_enabled(self) -> bool:
        return value_of(self.is_log_throughput_enabled_or_fn)

    @model_validator(mode="after")
    def _validated(self) -> TrainingTelemetryConfig:
        assert_that(self.global_batch_size > 0, "the batch size is positive", "global_batch_size_not_positive")
        assert_that(self.log_every_n_train_iterations > 0, "the interval is positive", "log_every_n_not_positive")
        if self.is_log_throughput_enabled:
            flops = self.flops_per_sample or 0
            assert_that(flops > 0, "throughput needs flops_per_sample", "flops_per_sample_required")
        return self
