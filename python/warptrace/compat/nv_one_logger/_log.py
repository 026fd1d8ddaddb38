"""The package's own log, as LoggerConfig has it: what is wrong with calls and exporters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warptrace.compat.nv_one_logger.api.config import LoggerConfig

logger = logging.getLogger("warptrace.compat.nv_one_logger")


class _File(logging.FileHandler):
    """Makes its file when there is something to say, and does without when it cannot."""

    def __init__(self, path: str, level: int, form: str) -> None:
        super().__init__(path, delay=True)
        self.setLevel(level)
        self.setFormatter(logging.Formatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is None:
                self.stream = self._open()
        except OSError:
            return
        super().emit(record)


def configure(config: LoggerConfig) -> None:
    """Level and files, unless the application has given the logger handlers of its own."""
    if logger.handlers:
        return
    logger.setLevel(config.log_level)
    logger.addHandler(_File(config.log_file_path_for_info, logging.INFO, config.log_format))
    logger.addHandler(_File(config.log_file_path_for_err, logging.ERROR, config.log_format))
