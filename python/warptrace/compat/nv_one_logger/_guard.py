"""What stands around every public call: off is off, and what fails goes by the configured strategy."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from warptrace._native import SpanError
from warptrace.compat.nv_one_logger._log import logger
from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError

if TYPE_CHECKING:
    from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider

P = ParamSpec("P")
R = TypeVar("R")


class _Reporting(threading.local):
    now = False


_reporting = _Reporting()
_provider: OneLoggerProvider | None = None
_said: set[str] = set()


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Skips the call, and gives None, while the library is off.

    What the call raises is reported to the exporters, once; then it is raised, or by the quiet strategy logged once,
    and the library is off from then on.
    """
    name = function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        provider = _provider or _provider_of_process()
        if not provider.one_logger_enabled:
            _say_once("telemetry is off, or not configured: calls are skipped")
            return None  # type: ignore[return-value]
        try:
            return function(*args, **kwargs)
        except SpanError as e:
            error = refused(e)
            if _propagates(provider, name, error):
                raise error from None
        except Exception as e:
            if _propagates(provider, name, e):
                raise
        return None  # type: ignore[return-value]

    return call


def refused(error: SpanError) -> OneLoggerError:
    """What warptrace's recorder refused, as this package raises it."""
    return OneLoggerError(str(error), error.code)


def describe(function: str, error: BaseException) -> str:
    """How an error of a call is told to exporters."""
    return f"error in {function}: {getattr(error, 'code', None) or type(error).__name__}: {error}"


def _provider_of_process() -> OneLoggerProvider:
    global _provider
    from warptrace.compat.nv_one_logger.api.one_logger_provider import OneLoggerProvider

    _provider = OneLoggerProvider.instance()
    return _provider


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)


def _propagates(provider: OneLoggerProvider, function: str, error: Exception) -> bool:
    from warptrace.compat.nv_one_logger.api.config import OneLoggerErrorHandlingStrategy

    if _reporting.now:
        # It is this report that failed.
        return True
    description = describe(function, error)
    recorder = provider.recorder
    _reporting.now = True
    try:
        recorder.telemetry_data_error(description)
    except Exception as e:
        logger.debug("not reported: %s", e)
    finally:
        _reporting.now = False
    if provider.config.error_handling_strategy is OneLoggerErrorHandlingStrategy.PROPAGATE_EXCEPTIONS:
        logger.error(description)
        return True
    if provider.one_logger_enabled:
        logger.error("telemetry is off from now on: %s", description)
        # What an exporter held back for the next call would otherwise never come out.
        for exporter in getattr(recorder, "exporters", ()):
            try:
                getattr(exporter, "flush", bool)()
            except Exception as e:
                logger.error("%s failed: %s", type(exporter).__name__, e)
        provider.force_disable_logging()
    return False
