"""The process's own recorder and configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warptrace.compat.nv_one_logger import _log
from warptrace.compat.nv_one_logger._singleton import Singleton
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that

if TYPE_CHECKING:
    from warptrace.compat.nv_one_logger.api.config import OneLoggerConfig
    from warptrace.compat.nv_one_logger.api.recorder import Recorder


class OneLoggerProvider(Singleton):
    """Holds what ``configure`` was given, for good."""

    def __init__(self) -> None:
        self._config: OneLoggerConfig | None = None
        self._recorder: Recorder | None = None
        self._disabled = False

    def configure(self, config: OneLoggerConfig, recorder: Recorder) -> None:
        """Once; the same two objects are accepted again."""
        assert_that(config is not None, "no configuration", "config_required")
        assert_that(recorder is not None, "no recorder", "config_required")
        with Singleton._lock:
            if self.one_logger_ready:
                same = self._config is config and self._recorder is recorder
                assert_that(same, "configured already, with other objects", "already_configured")
                return
            self._config = config
            self._recorder = recorder
        if config.enable_for_current_rank:
            _log.configure(config.logger_config)

    @property
    def config(self) -> OneLoggerConfig:
        if self._config is None:
            raise OneLoggerError("no configuration: OneLoggerProvider.instance().configure() first", "not_configured")
        return self._config

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            raise OneLoggerError("no recorder: OneLoggerProvider.instance().configure() first", "not_configured")
        return self._recorder

    @property
    def one_logger_ready(self) -> bool:
        """Whether there are a configuration and a recorder."""
        return self._recorder is not None

    @property
    def one_logger_enabled(self) -> bool:
        """Whether anything is recorded."""
        config = self._config
        return config is not None and not self._disabled and config.enable_for_current_rank

    def force_disable_logging(self) -> None:
        """Nothing is recorded from now on."""
        self._disabled = True
