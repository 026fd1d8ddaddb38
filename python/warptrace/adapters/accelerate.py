"""Accelerate (0.20 or later).

>>> from warptrace.adapters import accelerate
>>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
>>> accelerate.follow(accelerator, optimizer, model=model)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warptrace.adapters._quiet import around, quietly
from warptrace.adapters._steps import Steps
from warptrace.adapters.torch import advance
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training


def follow(
    accelerator: Any,
    optimizer: Any,
    *,
    model: Any = None,
    start: int = 0,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Steps:
    """Steps end with those of a prepared optimizer; ``save_state`` and ``load_state`` are phases; the loop stays as
    it is.

    While gradients are accumulated the optimizer takes no step, and ours goes on; a step that a gradient scaler skips
    is none. With several optimizers, name the one that counts. With ``model``, a step begins with its next forward
    pass in training mode, so that a validation in between is in none; otherwise when the one before ends.
    """
    steps = Steps(training=training, writer=writer, run_id=run_id)
    _watch(accelerator, steps)
    # A prepared optimizer steps the true one, or does not; what DeepSpeed prepares is a stand-in without one.
    advance(getattr(optimizer, "optimizer", optimizer), steps, model=model, start=start)
    return steps


@quietly
def _watch(accelerator: Any, steps: Steps) -> None:
    steps.label(rank=accelerator.process_index, world_size=accelerator.num_processes)
    around(
        accelerator,
        "save_state",
        lambda: steps.begin_checkpoint(steps.done),
        lambda error: steps.end_checkpoint(steps.done, error),
    )
    around(
        accelerator,
        "load_state",
        lambda: steps.begin_phase("checkpoint_load"),
        lambda error: steps.end_phase("checkpoint_load", error),
    )
