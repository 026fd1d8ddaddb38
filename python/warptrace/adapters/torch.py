"""Plain PyTorch loops, and any other: nothing here needs torch.

>>> from warptrace.adapters.torch import steps
>>> for batch in steps(loader):
...     train(batch)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from warptrace.adapters._quiet import around, failed, quietly
from warptrace.adapters._steps import Loop, Steps, place
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training

T = TypeVar("T")


def make(
    *,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Steps:
    """Steps of this process, with its rank and world size.

    ``steps.over(loader)``, ``steps.at(number)`` and ``steps.phase("validation")`` are around what a loop does;
    ``steps.end_loop()`` comes after it.
    """
    rank, world_size = place()
    return Steps(training=training, writer=writer, run_id=run_id, rank=rank, world_size=world_size)


def steps(
    batches: Iterable[T],
    *,
    start: int = 0,
    epoch: int | None = None,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Loop[T]:
    """The same batches; each begins a step, which lasts until the next batch is there.

    start: the number of the first step. Iterated again, as the next epoch, numbers go on.
    """
    return make(training=training, writer=writer, run_id=run_id).over(batches, start=start, epoch=epoch)


def step(number: int, *, epoch: int | None = None) -> AbstractContextManager[None]:
    """A step around a block: ``with step(k): ...``."""
    return make().at(number, epoch=epoch)


def follow(
    optimizer: Any,
    *,
    model: Any = None,
    start: int = 0,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Steps:
    """A step ends with each ``optimizer.step()``; the loop stays as it is.

    With ``model``, the next begins with its next forward pass in training mode, so that a validation in between is in
    none; otherwise at once. This sees the host alone: nothing waits for the device.
    """
    made = make(training=training, writer=writer, run_id=run_id)
    advance(optimizer, made, model=model, start=start)
    return made


@quietly
def advance(optimizer: Any, of: Steps, *, model: Any, start: int) -> None:
    """Ends a step of ``of`` with each step of the optimizer, and begins the next with the model or at once."""
    number = start
    if model is None:
        of.begin(number)
    else:
        follow_forward(model, of, lambda: number)

    def stepped(*_: Any) -> None:
        nonlocal number
        number += 1
        if model is None:
            of.begin(number)
        else:
            of.end()

    register = getattr(optimizer, "register_step_post_hook", None)
    if register is not None:
        _once(optimizer, lambda: register(stepped))
    elif hasattr(optimizer, "step"):
        around(optimizer, "step", lambda: None, lambda error: stepped() if error is None else None)
    else:
        failed("following an optimizer", TypeError(f"{type(optimizer).__name__} has no step()"))


def follow_forward(model: Any, of: Steps, number: Callable[[], int], *, mode_of: Any = None) -> None:
    """Begins step ``number()`` with a forward pass in training mode, unless one goes on.

    mode_of: whose ``training`` says the mode, when it is not the model's.
    """
    mode = model if mode_of is None else mode_of

    @quietly
    def begin() -> None:
        if of.step is None and getattr(mode, "training", True):
            of.begin(number())

    if not hasattr(model, "register_forward_pre_hook"):
        around(model, "forward", begin, lambda _: None)
        return
    _once(model, lambda: model.register_forward_pre_hook(_Hook(begin)))


class _Hook:
    """A hook of a module. A copy of the module, or what is loaded from its pickle, is not followed."""

    def __init__(self, call: Callable[[], object] | None) -> None:
        self._call = call

    def __call__(self, *_: Any) -> None:
        if self._call is not None:
            self._call()

    def __reduce__(self) -> tuple[type[_Hook], tuple[None]]:
        return _Hook, (None,)


# What follows a model or an optimizer now.
_handles: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _once(target: Any, register: Callable[[], Any]) -> None:
    """Registers a hook of ours in place of the one before."""
    if (before := _handles.pop(target, None)) is not None:
        before.remove()
    _handles[target] = register()
