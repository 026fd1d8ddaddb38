"""Recording switched on around a block of the job's work.

>>> for step, batch in enumerate(loader):
...     with record() if 100 <= step < 110 else nullcontext():
...         train(batch)

Under ``warptrace record --paused -- python train.py`` nothing is recorded but these blocks.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TypeVar

from warptrace._native import CaptureHold, resume_capture

__all__ = ["record"]

_F = TypeVar("_F", bound=Callable[..., Any])

_WARNINGS = {
    "nobody": "record(): nothing is recorded, since no recorder listens (start the job by `warptrace record -- ...`)",
    "refused": "record(): nothing is recorded, since the recorder that listens does not record this process",
}
_warned = threading.Event()


class record:
    """Has the block recorded: a context manager, and a decorator of functions, coroutines too.

    A recorder that is paused records the whole job, all threads and processes of it, as long as any such block lasts.
    One that records in any case goes on as it is. Where none listens, this says so once, and costs an attempt to
    connect at most twice a second. The ends of a block wait for the recorder's answer: tens of microseconds, 200 ms
    at most for each place where one may listen. It never raises; the block's own exceptions pass through.
    """

    def __init__(self) -> None:
        self._held = threading.local()

    def __enter__(self) -> record:
        hold = resume_capture()
        self._holds.append(hold)
        if hold.answer in _WARNINGS and not _warned.is_set():
            _warned.set()
            logging.getLogger("warptrace").warning("%s (said once)", _WARNINGS[hold.answer])
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self._holds:
            self._holds.pop().release()

    def __call__(self, function: _F) -> _F:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def recorded_async(*args: Any, **kwargs: Any) -> Any:
                with record():
                    return await function(*args, **kwargs)

            return recorded_async  # type: ignore[return-value]

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with record():
                return function(*args, **kwargs)

        return recorded  # type: ignore[return-value]

    @property
    def answer(self) -> Literal["resumed", "on", "refused", "nobody"] | None:
        """What the recorder said to this thread's block, ``resumed`` or ``on`` where it is recorded; None outside."""
        return self._holds[-1].answer if self._holds else None

    @property
    def _holds(self) -> list[CaptureHold]:
        # A block of one object may be entered again, and in several threads.
        holds: list[CaptureHold] | None = getattr(self._held, "holds", None)
        if holds is None:
            holds = self._held.holds = []
        return holds
