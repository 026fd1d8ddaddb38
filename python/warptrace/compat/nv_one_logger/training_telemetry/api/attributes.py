"""What spans and events of a training job say of themselves.

Each class has ``create``, which takes its fields in their order or by name, and reads each of them by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that
from warptrace.compat.nv_one_logger.training_telemetry.api.checkpoint import CheckPointStrategy

T = TypeVar("T")
_A = TypeVar("_A", bound="TypedAttributes")


class _Field:
    def __init__(self, *kinds: type) -> None:
        self.kinds = kinds
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def read(self, attributes: Attributes) -> Any:
        attribute = attributes.get(self.name)
        if attribute is None:
            return None
        value = attribute.value
        if CheckPointStrategy in self.kinds:
            return CheckPointStrategy(value)
        kinds = (*self.kinds, int) if float in self.kinds else self.kinds
        assert_that(isinstance(value, kinds), f"attribute {self.name!r} is {value!r}", "attribute_type_mismatch")
        return value


class _Required(_Field, Generic[T]):
    def __get__(self, attributes: Attributes, owner: type) -> T:
        value = self.read(attributes)
        assert_that(value is not None, f"{self.name} is missing", "attribute_missing")
        return cast(T, value)


class _Optional(_Field, Generic[T]):
    def __get__(self, attributes: Attributes, owner: type) -> T | None:
        return cast("T | None", self.read(attributes))


class TypedAttributes(Attributes):
    """Attributes whose names are known."""

    _fields: ClassVar[dict[str, _Field]] = {}
    _signature: ClassVar[inspect.Signature] = inspect.Signature()

    def __init_subclass__(cls) -> None:
        cls._fields = {name: field for name, field in vars(cls).items() if isinstance(field, _Field)}
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if isinstance(field, _Required) else None,
            )
            for name, field in cls._fields.items()
        ]
        cls._signature = inspect.Signature(parameters)

    @classmethod
    def create(cls: type[_A], *args: Any, **kwargs: Any) -> _A:
        """The attributes with these fields; None leaves out one that may be missing."""
        given = cls._signature.bind(*args, **kwargs).arguments
        new = cls()
        for name, field in cls._fields.items():
            value = given.get(name)
            if value is not None:
                new.add(name, value)
            elif isinstance(field, _Required):
                raise OneLoggerError(f"{name} is required", "attribute_missing")
        return new


def _metadata(given: dict[str, Any]) -> dict[str, Any]:
    """Custom metadata as it is exported: a list of ``key:value``."""
    metadata = given.get("custom_metadata")
    if isinstance(metadata, Mapping):
        given = {**given, "custom_metadata": [f"{key}:{value}" for key, value in metadata.items()] or None}
    return given


class TrainingLoopAttributes(TypedAttributes):
    train_iterations_start = _Required[int](int)
    train_samples_start = _Required[int](int)
    train_tokens_target = _Optional[int](int)
    completed_floating_point_operations_overall = _Optional[int](int)
    train_iterations_target = _Optional[int](int)
    train_samples_target = _Optional[int](int)


class CheckpointSaveSpanAttributes(TypedAttributes):
    checkpoint_strategy = _Required[CheckPointStrategy](CheckPointStrategy)
    current_iteration = _Required[int](int)
    save_checkpoint_attempt_count = _Required[int](int)


class OneLoggerInitializationAttributes(TypedAttributes):
    world_size = _Required[int](int)
    one_logger_training_telemetry_version = _Required[str](str)
    enable_for_current_rank = _Required[bool](bool)
    session_tag = _Required[str](str)
    is_baseline_run = _Required[bool](bool)
    summary_data_schema_version = _Required[str](str)
    node_name = _Required[str](str)
    rank = _Required[int](int)
    custom_metadata = _Optional[list[str]](list)

    @classmethod
    def create(cls: type[_A], *args: Any, **kwargs: Any) -> _A:
        given = _metadata(dict(cls._signature.bind(*args, **kwargs).arguments))
        return super().create(**given)


class TrainingTelemetryAttributes(TypedAttributes):
    perf_tag = _Required["str | list[str]"](str, list)
    global_batch_size = _Required[int](int)
    log_every_n_train_iterations = _Required[int](int)
    micro_batch_size = _Optional[int](int)
    seq_length = _Optional[int](int)
    flops_per_sample = _Optional[int](int)
    train_iterations_target = _Optional[int](int)
    train_samples_target = _Optional[int](int)
    checkpoint_strategy = _Optional[CheckPointStrategy](CheckPointStrategy)
    is_train_iterations_enabled = _Optional[bool](bool)
    is_validation_iterations_enabled = _Optional[bool](bool)
    is_test_iterations_enabled = _Optional[bool](bool)
    is_save_checkpoint_enabled = _Optional[bool](bool)
    is_log_throughput_enabled = _Optional[bool](bool)
    custom_metadata = _Optional[list[str]](list)

    @classmethod
    def create(cls: type[_A], *args: Any, **kwargs: Any) -> _A:
        given = _metadata(dict(cls._signature.bind(*args, **kwargs).arguments))
        return super().create(**given)

    @property
    def app_type(self) -> str | None:
        return self.get_str_value("app_type")


class TrainingMetricsUpdateAttributes(TypedAttributes):
    train_iterations_start = _Required[int](int)
    current_iteration = _Required[int](int)
    num_iterations = _Required[int](int)
    train_samples_start = _Required[int](int)
    num_train_samples = _Required[int](int)
    interval = _Required[int](int)
    avg_iteration_time_sec = _Required[float](float)
    min_iteration_time_sec = _Required[float](float)
    max_iteration_time_sec = _Required[float](float)
    total_iteration_time_sec = _Required[float](float)
    avg_forward_time_sec = _Optional[float](float)
    avg_backward_time_sec = _Optional[float](float)
    avg_dataloader_time_sec = _Optional[float](float)
    avg_tflops = _Optional[float](float)
    train_tokens = _Optional[int](int)
    avg_tokens_per_second = _Optional[float](float)
    latest_loss = _Optional[float](float)
    avg_batch_size = _Optional[int](int)
    completed_floating_point_operations_overall = _Optional[int](int)
    total_flops = _Optional[int](int)
    train_throughput_per_gpu = _Optional[float](float)
    train_throughput_per_gpu_max = _Optional[float](float)
    train_throughput_per_gpu_min = _Optional[float](float)
    first_logged_train_iterations_finish_timestamp_sec = _Optional[float](float)
    last_logged_train_iterations_finish_timestamp_sec = _Optional[float](float)


class ValidationMetricsUpdateAttributes(TypedAttributes):
    current_iteration = _Required[int](int)
    interval = _Required[int](int)
    avg_iteration_time_sec = _Optional[float](float)
    min_iteration_time_sec = _Optional[float](float)
    max_iteration_time_sec = _Optional[float](float)
    total_iteration_time_sec = _Optional[float](float)


class TestingMetricsUpdateAttributes(TypedAttributes):
    __test__ = False

    current_iteration = _Required[int](int)
    interval = _Required[int](int)


class SaveCheckpointSuccessEventAttributes(TypedAttributes):
    checkpoint_strategy = _Required[CheckPointStrategy](CheckPointStrategy)
    current_iteration = _Required[int](int)
    first_successful_save_checkpoint_timestamp_sec = _Required[float](float)
    latest_successful_save_checkpoint_timestamp_sec = _Required[float](float)
    save_checkpoint_success_count = _Required[int](int)
    productive_train_iterations = _Required[int](int)
    productive_train_samples = _Required[int](int)
    productive_train_iterations_sec = _Required[float](float)
    productive_validation_iterations_sec = _Required[float](float)
    productive_train_tflops = _Optional[float](float)
    checkpoint_size = _Optional[int](int)
    checkpoint_directory = _Optional[str](str)
    training_start_timestamp_sec = _Optional[float](float)


class SyncCheckpointMetricsUpdateAttributes(TypedAttributes):
    save_checkpoint_sync_time_total_sec = _Required[float](float)
    save_checkpoint_sync_time_min_sec = _Required[float](float)
    save_checkpoint_sync_time_max_sec = _Required[float](float)


_BY_NAME: dict[str, type[Attributes]] = {
    "training_loop": TrainingLoopAttributes,
    "checkpoint_save_sync": CheckpointSaveSpanAttributes,
    "checkpoint_save_async": CheckpointSaveSpanAttributes,
    "one_logger_initialization": OneLoggerInitializationAttributes,
    "update_training_telemetry_config": TrainingTelemetryAttributes,
    "training_metrics_update": TrainingMetricsUpdateAttributes,
    "validation_metrics_update": ValidationMetricsUpdateAttributes,
    "testing_metrics_update": TestingMetricsUpdateAttributes,
    "save_checkpoint_success": SaveCheckpointSuccessEventAttributes,
    "sync_checkpoint_metrics_update": SyncCheckpointMetricsUpdateAttributes,
}


def attributes_of(name: str) -> type[Attributes]:
    """The class of what a span or event of that name says."""
    return _BY_NAME.get(name, Attributes)
