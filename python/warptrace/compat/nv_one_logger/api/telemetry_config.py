"""What a configuration of one kind of application says to the core."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from warptrace.compat.nv_one_logger._enums import StrEnum


class ApplicationType(StrEnum):
    TRAINING = "training"
    VALIDATION = "validation"
    BATCH_INFERENCE = "batch_inference"
    ONLINE_INFERENCE = "online_inference"
    DATA_PROCESSING = "data_processing"


@runtime_checkable
class TelemetryConfig(Protocol):
    """Any object with these members."""

    @property
    def app_type(self) -> ApplicationType | str: ...

    @property
    def is_train_iterations_enabled(self) -> bool: ...

    @property
    def is_validation_iterations_enabled(self) -> bool: ...

    @property
    def is_test_iterations_enabled(self) -> bool: ...

    @property
    def is_save_checkpoint_enabled(self) -> bool: ...

    @property
    def custom_metadata(self) -> dict[str, Any] | None: ...
