"""DeepSpeed engines, the pipeline engine too (0.10 or later).

>>> from warptrace.adapters.deepspeed import follow
>>> engine, *_ = deepspeed.initialize(...)
>>> follow(engine)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warptrace.adapters._quiet import around, quietly
from warptrace.adapters._steps import Steps
from warptrace.adapters.torch import follow_forward
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training


def follow(
    engine: Any,
    *,
    training: Training | None = None,
    writer: AnnotationWriter | None = None,
    run_id: str | None = None,
) -> Steps:
    """A step is one of ``engine.global_steps``, however many micro-batches it takes; the loop stays as it is.

    It begins with a forward pass in training mode, or with a pipeline's ``train_batch``. A pipeline's ``eval_batch``,
    ``save_checkpoint`` and ``load_checkpoint`` are phases.
    """
    steps = Steps(training=training, writer=writer, run_id=run_id)
    _watch(engine, steps)
    return steps


@quietly
def _watch(engine: Any, steps: Steps) -> None:
    steps.label(rank=engine.global_rank, world_size=engine.world_size)

    @quietly
    def stepped(error: BaseException | None) -> None:
        if error is not None:
            steps.fail(error)
        elif engine.global_steps != steps.step:
            steps.end()

    if hasattr(engine, "train_batch"):
        # A pipeline, whose own `step` raises.
        around(engine, "train_batch", lambda: steps.begin(engine.global_steps), stepped)
    else:
        # `engine.eval()` is the module's alone.
        follow_forward(engine, steps, lambda: engine.global_steps, mode_of=engine.module)
        around(engine, "step", lambda: None, stepped)
    around(
        engine,
        "eval_batch",
        lambda: steps.begin_phase("validation"),
        lambda error: steps.end_phase("validation", error),
    )
    around(
        engine,
        "save_checkpoint",
        lambda: steps.begin_checkpoint(engine.global_steps),
        lambda error: steps.end_checkpoint(engine.global_steps, error),
    )
    around(
        engine,
        "load_checkpoint",
        lambda: steps.begin_phase("checkpoint_load"),
        lambda error: steps.end_phase("checkpoint_load", error),
    )
