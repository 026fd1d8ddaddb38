"""Hugging Face ``Trainer`` (transformers 4.30 or later), and what is built on it.

>>> from warptrace.adapters.transformers import WarptraceCallback
>>> trainer = Trainer(model, args, callbacks=[WarptraceCallback()])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warptrace.adapters._quiet import quietly
from warptrace.adapters._steps import Steps
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training


def _base() -> Any:
    try:
        from transformers import TrainerCallback  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return object
    return TrainerCallback


_Base: Any = _base()


class WarptraceCallback(_Base):  # type: ignore[misc]
    """Says the steps of the optimizer, evaluations and checkpoints.

    The Trainer has no hook before it evaluates or saves: these phases begin where it says that it is about to. It has
    none for exceptions either: a job that fails ends without its last phase.
    """

    def __init__(
        self,
        *,
        training: Training | None = None,
        writer: AnnotationWriter | None = None,
        run_id: str | None = None,
    ) -> None:
        self._steps = Steps(training=training, writer=writer, run_id=run_id)
        self._saving = False

    @quietly
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.label(rank=args.process_index, world_size=args.world_size)
        self._steps.begin_loop(state.global_step, target=state.max_steps if state.max_steps > 0 else None)

    @quietly
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.begin(state.global_step, epoch=None if state.epoch is None else int(state.epoch))

    @quietly
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.end()
        self._about_to(state, control)

    @quietly
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.end()
        self._about_to(state, control)

    @quietly
    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Begun by the caller of `evaluate` itself; its first batch is over.
        self._steps.begin_phase("validation")

    @quietly
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.end_phase("validation")
        if control.should_save and self._steps.step is None:
            self._save(state)

    @quietly
    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self._steps.end_phase("validation")

    @quietly
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._saving:
            self._saving = False
            self._steps.end_checkpoint(state.global_step)

    @quietly
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.end_phase("validation")
        self._steps.end_loop()

    def _about_to(self, state: Any, control: Any) -> None:
        if control.should_evaluate:
            self._steps.begin_phase("validation")
        elif control.should_save:
            self._save(state)

    def _save(self, state: Any) -> None:
        if not self._saving:
            self._saving = True
            self._steps.begin_checkpoint(state.global_step)
