"""What is raised for a call that cannot be done."""

from __future__ import annotations

from typing import Any


class OneLoggerError(Exception):
    """A call that was refused; ``code`` is a word for programs, such as ``span_not_active``."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def assert_that(condition: Any, message: str, code: str | None = None) -> None:
    """Raises OneLoggerError unless the condition holds."""
    if not condition:
        raise OneLoggerError(message, code)
