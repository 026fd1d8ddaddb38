"""The packages that can be driven, and the placeholders that stand for what each writes in its own words."""

from __future__ import annotations

import importlib
import re
from typing import Any

ORIGINAL = "nv_one_logger"
OURS = "warptrace.compat.nv_one_logger"

_NAMES = {
    "api.config": "OneLoggerConfig LoggerConfig OneLoggerErrorHandlingStrategy",
    "api.one_logger_provider": "OneLoggerProvider",
    "api.timed_span": "timed_span get_recorder",
    "core.attributes": "Attributes",
    "core.event": "Event ErrorEvent TelemetryDataError",
    "core.span": "Span",
    "core.time": "TracingTimestamp",
    "core.exceptions": "OneLoggerError",
    "recorder.default_recorder": "DefaultRecorder ExportCustomizationMode",
    "exporter.exporter": "BaseExporter ExportError",
    "exporter": "FileExporter LoggerExporter",
    "exporter.exporter_config": "ExporterConfig",
    "exporter.export_config_manager": "ExporterConfigManager",
    "otel.exporter.otel_exporter": "OTelExporter",
    "wandb.exporter.wandb_exporter": (
        "Config WandBExporterSync HierarchicalMetricNamingStrategy FlatMetricNamingStrategy"
    ),
    "training_telemetry.api.callbacks": "",
    "training_telemetry.api.config": "TrainingTelemetryConfig",
    "training_telemetry.api.context": "",
    "training_telemetry.api.training_telemetry_provider": "TrainingTelemetryProvider",
    "training_telemetry.integration.pytorch_lightning": "TimeEventCallback",
}

# What the original 2.3.1 says when it refuses something, as far as a code can be told from it.
_ORIGINAL_SAYS: list[tuple[str, str]] = [
    (r"world_size must be", "world_size_not_positive"),
    (r"application_name cannot be empty", "application_name_empty"),
    (r"custom_metadata.*(empty|blank|whitespace)", "custom_metadata_key_empty"),
    (r"global_batch_size must be", "global_batch_size_not_positive"),
    (r"log_every_n_train_iterations must be", "log_every_n_not_positive"),
    (r"flops_per_sample must be", "flops_per_sample_required"),
    (r"^Exporter not initialized", "exporter_not_initialized"),
    (r"^Exporter.*closed", "exporter_closed"),
    (r"^keys cannot contain dots", "key_contains_dot"),
    (r"^Log string must be enclosed", "log_line_not_bracketed"),
    (r"Cannot find the parent span", "otel_parent_not_exported"),
    (r"^All elements of a list attribute", "list_attribute_mixed_types"),
    (r"^Attribute \S+ must be", "attribute_type_mismatch"),
    (r"^timestamp is in the future", "timestamp_in_future"),
    (r"^timestamp is too", "timestamp_too_old"),
    (r"^TracingTimestamp must have", "timestamp_json_incomplete"),
    (r"^exception_message must be provided", "exception_message_required"),
    (r"^Span must have a name and an id", "span_json_incomplete"),
    (r"^Span must have.*event", "span_json_no_events"),
    (r"^Span must be running or stopped", "span_not_stopped"),
    (r"start event with a valid timestamp", "invalid_start_timestamp"),
    (r"^Event must have", "event_json_incomplete"),
    (r"^Event data must be", "event_json_incomplete"),
    (r"train_iterations_time_total must be", "zero_iteration_time"),
    (r"^Cannot stop timer with a stop time", "timer_stop_before_start"),
    (r"TracingTimestamp", "timestamp_json_missing"),
    (r"singleton|instance\(\)$|directly", "singleton_direct_instantiation"),
    (r"^Timer for span \S+ was automatically stopped", "timer_auto_stopped"),
    (r"only call configure_provider once", "configure_provider_already_called"),
    (r"called only before configure_provider", "builder_already_configured"),
    (r"only call with_base_config once", "base_config_already_set"),
    (r"only call with_export_customization once", "export_customization_already_set"),
    (r"before accessing the (recorder|config)", "not_configured"),
    (r"^OneLoggerProvider already configured", "already_configured"),
    (r"^Span \S+ not found$", "span_not_active"),
    (r"^No span", "no_span"),
    (r"span that is not running", "span_not_running"),
    (r"^Recorder is already closed", "recorder_closed"),
    (r"^span_name_filter ", "invalid_span_filter"),
    (r"^train_iterations_target is required", "train_iterations_target_required"),
    (r"^train_samples_target is required", "train_samples_target_required"),
    (r"^Expected to have one and only one span", "active_span_count"),
    (r"^Timer for span \S+ is not active", "span_timer_not_active"),
    (r"^Cannot start span .* already active", "duplicate_active_span"),
    (r"^Training telemetry config must be set", "training_config_missing"),
    (r"^Training telemetry config has already", "training_config_already_set"),
    (r"^Cannot update training metrics", "app_not_started"),
    (r"^Cannot stop timer since it is not active", "timer_not_active"),
    (r"^Cannot start timer", "timer_already_active"),
    (r"^No configuration was provided", "no_config_provided"),
    (r"^Invalid configuration", "invalid_config"),
    (r"^Invalid value for train_iterations_start", "negative_train_iterations_start"),
    (r"^Invalid value for train_samples_start", "negative_train_samples_start"),
]

# What warptrace says where the code does not go with it: in exported texts.
_OURS_SAYS: list[tuple[str, str]] = [(r"was stopped while it was being timed", "timer_auto_stopped")]


class Package:
    """A package's names, imported once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.is_original = root == ORIGINAL
        self.modules: dict[str, Any] = {}
        for path, names in _NAMES.items():
            module = self.modules[path] = importlib.import_module(f"{root}.{path}")
            for name in names.split():
                setattr(self, name, getattr(module, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def code_of(self, error: BaseException) -> str | None:
        """The code of an error that the package raised in its own words."""
        if not self.is_original:
            return getattr(error, "code", None)
        return _find(_ORIGINAL_SAYS, str(error))

    def placeholder(self, message: str) -> str:
        """The vectors' form of an exported text of the package's own."""
        return (self._original if self.is_original else self._ours)(message)

    def _original(self, message: str) -> str:
        if m := re.fullmatch(r"(?s)Exception in telemetry code when calling (\w+): (.*)", message):
            return f"<guard:{m[1]}:{_find(_ORIGINAL_SAYS, m[2]) or m[2]}>"
        if m := re.fullmatch(r"(?s)Error exporting data via exporter (\w+): (.*)", message):
            return f"<export_failure:{m[1]}:{_find(_ORIGINAL_SAYS, m[2]) or m[2]}>"
        return "<timer_auto_stopped>" if _find(_ORIGINAL_SAYS, message) == "timer_auto_stopped" else message

    def _ours(self, message: str) -> str:
        if m := re.fullmatch(r"(?s)error in (\w+): (\w+): .*", message):
            return f"<guard:{m[1]}:{m[2]}>"
        if m := re.fullmatch(r"(?s)(\w+) failed: (.*)", message):
            return f"<export_failure:{m[1]}:{_find(_OURS_SAYS, m[2]) or m[2]}>"
        code = _find(_OURS_SAYS, message)
        return message if code is None else f"<{code}>"


def _find(table: list[tuple[str, str]], text: str) -> str | None:
    return next((code for pattern, code in table if re.search(pattern, text)), None)
