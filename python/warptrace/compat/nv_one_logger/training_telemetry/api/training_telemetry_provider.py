"""The process's own training telemetry, and how it is configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from warptrace._native import NativeExporter
from warptrace.compat.nv_one_logger._log import logger
from warptrace.compat.nv_one_logger._singleton import Singleton
from warptrace.compat.nv_one_logger.api.config import OneLoggerConfig
from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that
from warptrace.compat.nv_one_logger.core.span import SpanName
from warptrace.compat.nv_one_logger.exporter.export_config_manager import ExporterConfigManager
from warptrace.compat.nv_one_logger.exporter.exporter import Exporter
from warptrace.compat.nv_one_logger.exporter.exporter_config import ExporterConfig
from warptrace.compat.nv_one_logger.recorder.default_recorder import ExportCustomizationMode
from warptrace.compat.nv_one_logger.training_telemetry.api.config import TrainingTelemetryConfig
from warptrace.compat.nv_one_logger.training_telemetry.api.training_recorder import (
    DEFAULT_BLACKLIST,
    TrainingRecorder,
)


class TrainingTelemetryProvider(Singleton):
    """Collects configuration and exporters, until ``configure_provider`` makes the recorder, once."""

    def __init__(self) -> None:
        self._base: OneLoggerConfig | None = None
        self._overrides: dict[str, Any] = {}
        self._exporters: list[Exporter | NativeExporter] = []
        self._customization: tuple[ExportCustomizationMode, list[SpanName] | None] | None = None
        self._configured = False
        self._manager = ExporterConfigManager()

    def with_base_config(self, one_logger_config: OneLoggerConfig) -> TrainingTelemetryProvider:
        self._check_building("with_base_config")
        assert_that(self._base is None, "there is a base configuration already", "base_config_already_set")
        self._base = one_logger_config
        return self

    def with_config_override(self, partial_config: dict[str, Any]) -> TrainingTelemetryProvider:
        """Over the base and earlier overrides; mappings are merged key by key."""
        self._check_building("with_config_override")
        self._overrides = _merged(self._overrides, partial_config)
        return self

    def with_config_override_from_json_file(self, file_path: Path) -> TrainingTelemetryProvider:
        self._check_building("with_config_override_from_json_file")
        raise NotImplementedError("overrides from a file")

    def with_config_override_from_config_server(self, config_server_url: str) -> TrainingTelemetryProvider:
        self._check_building("with_config_override_from_config_server")
        raise NotImplementedError("overrides from a server")

    def with_exporter(self, exporter: Exporter | NativeExporter) -> TrainingTelemetryProvider:
        self._check_building("with_exporter")
        self._exporters.append(exporter)
        return self

    def with_export_customization(
        self, export_customization_mode: ExportCustomizationMode, span_name_filter: list[SpanName] | None = None
    ) -> TrainingTelemetryProvider:
        """Which spans are exported; EXPORT_ALL_SPANS takes no filter."""
        self._check_building("with_export_customization")
        assert_that(self._customization is None, "exports are customized already", "export_customization_already_set")
        self._customization = (export_customization_mode, span_name_filter)
        return self

    def with_export_config(
        self,
        exporters_config: list[ExporterConfig] | list[dict[str, Any]] | None = None,
        config_file_path: str | None = None,
    ) -> TrainingTelemetryProvider:
        """Adds the exporters that installed packages, a file, and ``exporters_config`` say."""
        self._check_building("with_export_config")
        assert_that(self._base is not None, "with_base_config first", "no_config_provided")
        resolved = self._manager.generate_export_config(exporters_config, config_file_path)
        self._exporters += self._manager.create_exporters_from_config(resolved, self._base)
        return self

    def configure_provider(self) -> None:
        """Once: makes the recorder. Afterwards nothing can be added."""
        assert_that(not self._configured, "configured already", "configure_provider_already_called")
        config = self._effective()
        exporters = self._exporters
        provider = OneLoggerProvider.instance()
        if not config.enable_for_current_rank:
            exporters = []
        elif not exporters:
            logger.warning("no exporter: what is recorded goes nowhere")
        mode, names = self._customization or (ExportCustomizationMode.BLACKLIST_SPANS, None)
        if mode is ExportCustomizationMode.BLACKLIST_SPANS and names is None:
            names = DEFAULT_BLACKLIST
        provider.configure(config, TrainingRecorder(config, exporters, mode, names))
        if not config.enable_for_current_rank:
            provider.force_disable_logging()
        self._configured = True

    def set_training_telemetry_config(self, training_telemetry_config: TrainingTelemetryConfig) -> None:
        """Says how the job trains, where that was not known before; once."""
        config = OneLoggerProvider.instance().config
        known = config.telemetry_config is not None
        assert_that(not known, "the training is configured already", "training_config_already_set")
        config.telemetry_config = training_telemetry_config
        self.recorder.set_config(training_telemetry_config)

    @property
    def config(self) -> OneLoggerConfig:
        """A copy of the configuration that holds."""
        return OneLoggerProvider.instance().config.model_copy()

    @property
    def recorder(self) -> TrainingRecorder:
        return cast(TrainingRecorder, OneLoggerProvider.instance().recorder)

    @property
    def one_logger_ready(self) -> bool:
        return OneLoggerProvider.instance().one_logger_ready

    def force_disable_logging(self) -> None:
        OneLoggerProvider.instance().force_disable_logging()

    def _check_building(self, method: str) -> None:
        assert_that(not self._configured, f"{method} comes before configure_provider", "builder_already_configured")

    def _effective(self) -> OneLoggerConfig:
        base = self._base
        if base is None and not self._overrides:
            raise OneLoggerError("neither a base configuration nor overrides", "no_config_provided")
        if not self._overrides:
            return cast(OneLoggerConfig, base).model_copy()
        # What was left to its default follows from the rest anew.
        fields = {} if base is None else {name: getattr(base, name) for name in base.model_fields_set}
        try:
            merged = _merged(_as_mappings(fields, self._overrides), self._overrides)
            training = merged.get("telemetry_config")
            if isinstance(training, dict):
                merged["telemetry_config"] = TrainingTelemetryConfig(**training)
            return OneLoggerConfig(**merged)
        except OneLoggerError:
            raise
        except Exception as e:
            raise OneLoggerError(f"the configuration is not valid: {e}", "invalid_config") from e


def _as_mappings(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The same, with what is overridden key by key as mappings."""
    return {
        name: {key: getattr(value, key) for key in value.model_fields_set}
        if isinstance(overrides.get(name), dict) and hasattr(value, "model_fields_set")
        else value
        for name, value in fields.items()
    }


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
