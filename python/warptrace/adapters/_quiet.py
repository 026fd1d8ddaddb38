"""Hooks that never raise into a job, and how they are put around what a framework calls."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_failures: Counter[str] = Counter()


def failures() -> dict[str, int]:
    """How often an adapter could not do its part, by place; empty when all went well."""
    return dict(_failures)


def failed(place: str, error: BaseException) -> None:
    """Counts a failure of ours, and logs the first one of each place."""
    _failures[place] += 1
    if _failures[place] == 1:
        logging.getLogger("warptrace").warning("%s failed, and the job goes on: %r (said once)", place, error)


def quietly(hook: Callable[P, T]) -> Callable[P, T | None]:
    """Makes a hook that never raises; None stands for what it could not do."""

    @functools.wraps(hook)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return hook(*args, **kwargs)
        except Exception as error:
            failed(hook.__qualname__, error)
            return None

    return quiet


def around(
    target: object,
    method: str,
    before: Callable[[], object],
    after: Callable[[BaseException | None], object],
) -> None:
    """Has ``before`` and ``after`` called around a method of one object; its result and exceptions stay as they are.

    An object without such a method is left alone. Of several that do so, the last one is in effect.
    """
    inner = getattr(target, method, None)
    if not callable(inner):
        return
    inner = getattr(inner, "_warptrace_inner", inner)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        before()
        try:
            result = inner(*args, **kwargs)
        except BaseException as error:
            after(error)
            raise
        after(None)
        return result

    outer._warptrace_inner = inner  # type: ignore[attr-defined]
    setattr(target, method, outer)
