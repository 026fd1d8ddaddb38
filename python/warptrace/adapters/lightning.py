"""Lightning (``lightning.pytorch``, or ``pytorch_lightning``), 2.2 or later.

>>> from warptrace.adapters.lightning import WarptraceCallback
>>> trainer = Trainer(callbacks=[WarptraceCallback()])
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from warptrace.adapters._quiet import around, quietly
from warptrace.adapters._steps import Steps
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training


def _base() -> Any:
    """The Callback of the package that the job uses; a plain object when there is neither."""
    for package in sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules):
        try:
            module = __import__(f"{package}.callbacks", fromlist=["Callback"])
        except ImportError:
            continue
        return module.Callback
    return object


_Base: Any = _base()


class WarptraceCallback(_Base):  # type: ignore[misc]
    """Says the steps, the phases between them, and what failed.

    A step is one of the optimizer: with gradient accumulation it is several batches. Phases: ``setup`` (from the
    begin of fit to its first batch), ``sanity_check``, ``validation``, ``test``, ``predict``, ``checkpoint``,
    ``checkpoint_load`` and, with ``AsyncCheckpointIO``, ``checkpoint_write`` for what its thread does.

    training: is told as well. The sanity check is no validation there, and its application span is yours.
    """

    def __init__(
        self,
        *,
        training: Training | None = None,
        writer: AnnotationWriter | None = None,
        run_id: str | None = None,
    ) -> None:
        super().__init__()
        self._steps = Steps(training=training, writer=writer, run_id=run_id)
        self._checking = False
        self._unwritten: deque[int] = deque()

    @quietly
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._steps.label(rank=trainer.global_rank, world_size=trainer.world_size)
        if stage == "fit":
            self._steps.begin_phase("setup")
        self._watch_checkpoints(trainer)

    @quietly
    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_phase("setup")
        self._checking = True
        self._steps.begin_phase("sanity_check")

    @quietly
    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        self._checking = False
        self._steps.end_phase("sanity_check")

    @quietly
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_phase("setup")
        target = trainer.max_steps if trainer.max_steps > 0 else None
        self._steps.begin_loop(trainer.global_step, target=target)

    @quietly
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._steps.step is None:
            self._steps.begin(trainer.global_step, epoch=trainer.current_epoch)

    @quietly
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # The same count: gradients are accumulated, and the step goes on.
        if trainer.global_step != self._steps.step:
            self._steps.end()

    @quietly
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end()

    @quietly
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_loop()

    @quietly
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._checking:
            self._steps.begin_phase("validation")

    @quietly
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._checking:
            self._steps.begin_item("validation")

    @quietly
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._steps.end_item("validation")

    @quietly
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_item("validation")
        self._steps.end_phase("validation")

    @quietly
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.begin_phase("test")

    @quietly
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_phase("test")

    @quietly
    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.begin_phase("predict")

    @quietly
    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end_phase("predict")

    @quietly
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._checking = False
        self._steps.fail(exception)

    def _watch_checkpoints(self, trainer: Any) -> None:
        """Lightning has a hook for the begin of a checkpoint alone, so this is around what saves and loads one."""
        steps = self._steps
        strategy = trainer.strategy
        inner = self._inner_of_async(strategy)

        @quietly
        def begin() -> None:
            if inner is not None:
                self._unwritten.append(trainer.global_step)
            steps.begin_checkpoint(trainer.global_step)

        @quietly
        def end(error: BaseException | None) -> None:
            steps.end_checkpoint(trainer.global_step, error, written=inner is None)

        around(trainer, "save_checkpoint", begin, end)
        around(
            strategy,
            "load_checkpoint",
            lambda: steps.begin_phase("checkpoint_load"),
            lambda error: steps.end_phase("checkpoint_load", error),
        )
        if inner is None:
            return
        started_ns = 0

        # Its one thread writes them in order.
        def begin_write() -> None:
            nonlocal started_ns
            started_ns = time.time_ns()

        @quietly
        def end_write(error: BaseException | None) -> None:
            steps.checkpoint_written(self._unwritten.popleft(), started_ns, error)

        around(inner, "save_checkpoint", begin_write, end_write)

    @staticmethod
    def _inner_of_async(strategy: Any) -> Any:
        """What the thread of an AsyncCheckpointIO writes with; None when the training thread writes checkpoints."""
        # Known by its name: its module need not be imported, and a wrapper of the user's may be around it.
        checkpoint_io = getattr(strategy, "checkpoint_io", None)
        while checkpoint_io is not None:
            inner = getattr(checkpoint_io, "checkpoint_io", None)
            if any(base.__name__ == "AsyncCheckpointIO" for base in type(checkpoint_io).__mro__):
                return inner
            checkpoint_io = inner
        return None
