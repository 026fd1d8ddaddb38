"""The recorder of a training job: warptrace's training telemetry, with the names and value types of this package."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from warptrace import _native as native
from warptrace.compat.nv_one_logger._enums import text_of
from warptrace.compat.nv_one_logger._guard import guarded
from warptrace.compat.nv_one_logger.api.config import OneLoggerConfig, OneLoggerErrorHandlingStrategy
from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.core.attributes import Attributes
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError
from warptrace.compat.nv_one_logger.core.span import Span, SpanName, StandardSpanName
from warptrace.compat.nv_one_logger.core.time import TracingTimestamp
from warptrace.compat.nv_one_logger.exporter.exporter import Exporter
from warptrace.compat.nv_one_logger.recorder.default_recorder import (
    Bridge,
    DefaultRecorder,
    ExportCustomizationMode,
)
from warptrace.compat.nv_one_logger.training_telemetry.api.attributes import attributes_of
from warptrace.compat.nv_one_logger.training_telemetry.api.config import TrainingTelemetryConfig
from warptrace.compat.nv_one_logger.training_telemetry.api.spans import StandardTrainingJobSpanName

DEFAULT_BLACKLIST: list[SpanName] = [StandardTrainingJobSpanName(name) for name in native.SHORT_SPANS]
"""Spans that are too short and too many to be exported, unless that is asked for."""

_NAMES = {str(name) for name in (*StandardTrainingJobSpanName, *StandardSpanName)}
_TIMED_NAMES = {
    "checkpoint_load",
    "checkpoint_save_async",
    "checkpoint_save_sync",
    "training_single_iteration",
    "validation_single_iteration",
}


def settings_of(config: TrainingTelemetryConfig) -> SimpleNamespace:
    """The configuration as warptrace's training telemetry takes it: a field is a value or a function."""
    return SimpleNamespace(
        **{name.removesuffix("_or_fn"): getattr(config, name) for name in TrainingTelemetryConfig.model_fields}
    )


class TrainingRecorder(DefaultRecorder):
    """A recorder that knows what a training job does: the callbacks drive it. Names of its spans are active at most
    once.

    Its own ``on_...`` methods take moments; they are for those who call them already, and raise what is wrong.
    """

    def __init__(
        self,
        config: OneLoggerConfig,
        exporters: Sequence[Exporter | native.NativeExporter],
        export_customization_mode: ExportCustomizationMode = ExportCustomizationMode.BLACKLIST_SPANS,
        span_name_filter: list[SpanName] | None = DEFAULT_BLACKLIST,
    ) -> None:
        self._job = config
        super().__init__(exporters, export_customization_mode, span_name_filter)

    def _make_bridge(self) -> Bridge:
        return Bridge(attributes_of)

    def _make_recorder(
        self, outlets: Sequence[native.Exporter | native.NativeExporter], options: dict[str, Any]
    ) -> native.Recorder:
        job = self._job
        training: Any = job.telemetry_config
        self._training = native.Training(
            outlets,
            application_name=job.application_name,
            world_size=job.world_size_or_fn,
            session_tag=job.session_tag_or_fn,
            is_baseline_run=job.is_baseline_run_or_fn,
            custom_metadata=job.custom_metadata,
            summary_data_schema_version=job.summary_data_schema_version,
            app_type=str(training.app_type) if training is not None else "training",
            config=settings_of(training) if isinstance(training, TrainingTelemetryConfig) else None,
            one_logger=True,
            all_spans=not {"include", "exclude"} & options.keys(),
            **options,
        )
        return self._training.recorder

    def start(
        self,
        span_name: SpanName,
        span_attributes: Attributes | None = None,
        start_event_attributes: Attributes | None = None,
        start_time: TracingTimestamp | None = None,
        parent_span: Span | None = None,
    ) -> Span:
        """Starts a span of the program's own; the job's are started by the callbacks, and there is one of each at
        most.
        """
        if self._job.error_handling_strategy is OneLoggerErrorHandlingStrategy.PROPAGATE_EXCEPTIONS:
            self._check_name(text_of(span_name))
        return super().start(span_name, span_attributes, start_event_attributes, start_time, parent_span)

    def _check_name(self, name: str) -> None:
        """What the recorder behind would refuse, without a report to the exporters: their data is not wrong."""
        if name not in _NAMES or not OneLoggerProvider.instance().one_logger_enabled:
            return
        if self._recorder.open_spans(name):
            raise OneLoggerError(f"a span {name} is active already", "duplicate_active_span")
        if name in _TIMED_NAMES:
            raise OneLoggerError(f"a span {name} is started by its callback", "span_timer_not_active")

    def set_config(self, config: TrainingTelemetryConfig) -> None:
        """Says how the job trains, once."""
        self._update_application_span_with_training_telemetry_config(config)

    @guarded
    def _update_application_span_with_training_telemetry_config(self, config: TrainingTelemetryConfig) -> None:
        self._training.set_config(settings_of(config))
        self._let_out()

    def begin(self, what: str, time_msec: float | None, **more: Any) -> Span:
        """Calls ``on_<what>_start`` of the telemetry behind."""
        return self._begun(getattr(self._training, f"on_{what}_start")(start_time_msec=time_msec or None, **more))

    def end(self, what: str, time_msec: float | None) -> None:
        """Calls ``on_<what>_end``."""
        getattr(self._training, f"on_{what}_end")(finish_time_msec=time_msec or None)
        self._bridge.all_stopped()
        self._let_out()

    def checkpoint_saved(self, global_step: int, time_msec: float | None) -> None:
        self._training.on_save_checkpoint_success(global_step=global_step, time_msec=time_msec or None)
        self._let_out()

    def _begun(self, behind: native.Span | None) -> Span:
        span = None if behind is None else self._bridge.span(behind)
        self._let_out()
        return span  # type: ignore[return-value]

    def on_app_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("app", _msec(start_time))

    def on_app_end(self, stop_time: TracingTimestamp) -> None:
        self.end("app", _msec(stop_time))

    def on_distributed_init_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("distributed_init", _msec(start_time))

    def on_distributed_init_end(self, stop_time: TracingTimestamp) -> None:
        self.end("distributed_init", _msec(stop_time))

    def on_model_init_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("model_init", _msec(start_time))

    def on_model_init_end(self, stop_time: TracingTimestamp) -> None:
        self.end("model_init", _msec(stop_time))

    def on_dataloader_init_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("dataloader_init", _msec(start_time))

    def on_dataloader_init_end(self, stop_time: TracingTimestamp) -> None:
        self.end("dataloader_init", _msec(stop_time))

    def on_optimizer_init_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("optimizer_init", _msec(start_time))

    def on_optimizer_init_end(self, stop_time: TracingTimestamp) -> None:
        self.end("optimizer_init", _msec(stop_time))

    def on_load_checkpoint_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("load_checkpoint", _msec(start_time))

    def on_load_checkpoint_end(self, stop_time: TracingTimestamp) -> None:
        self.end("load_checkpoint", _msec(stop_time))

    def on_training_loop_start(
        self,
        train_iterations_start: int,
        train_samples_start: int,
        train_iterations_target: int | None = None,
        train_samples_target: int | None = None,
        train_tokens_target: int | None = None,
        start_time: TracingTimestamp | None = None,
    ) -> Span:
        """``train_tokens_target`` follows from the other targets."""
        return self.begin(
            "train",
            None if start_time is None else _msec(start_time),
            train_iterations_start=train_iterations_start,
            train_samples_start=train_samples_start,
            train_iterations_target=train_iterations_target,
            train_samples_target=train_samples_target,
        )

    def on_training_loop_end(self, stop_time: TracingTimestamp) -> None:
        self.end("train", _msec(stop_time))

    def on_training_single_iteration_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("training_single_iteration", _msec(start_time))

    def on_training_single_iteration_end(self, stop_time: TracingTimestamp) -> None:
        self.end("training_single_iteration", _msec(stop_time))

    def on_validation_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("validation", _msec(start_time))

    def on_validation_end(self, stop_time: TracingTimestamp) -> None:
        self.end("validation", _msec(stop_time))

    def on_validation_single_iteration_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("validation_single_iteration", _msec(start_time))

    def on_validation_single_iteration_end(self, stop_time: TracingTimestamp) -> None:
        self.end("validation_single_iteration", _msec(stop_time))

    def on_testing_start(self, start_time: TracingTimestamp) -> Span:
        return self.begin("testing", _msec(start_time))

    def on_testing_end(self, stop_time: TracingTimestamp) -> None:
        self.end("testing", _msec(stop_time))

    def on_save_checkpoint_start(self, current_iteration: int, start_time: TracingTimestamp) -> Span:
        return self.begin("save_checkpoint", _msec(start_time), global_step=current_iteration)

    def on_save_checkpoint_success(self, current_iteration: int, timestamp: TracingTimestamp) -> None:
        self.checkpoint_saved(current_iteration, _msec(timestamp))

    def on_save_checkpoint_end(self, stop_time: TracingTimestamp) -> None:
        self.end("save_checkpoint", _msec(stop_time))


def _msec(at: TracingTimestamp) -> float:
    return at.seconds_since_epoch * 1000.0
