"""What all adapters share: which step, and which phase between steps, one process is in.

A step is an annotation ``step=k`` at its begin, which holds until the next; so the wait for the next batch is the end
of a step. Where none follows at once, ``step=`` with an empty value ends it. A phase (``validation``, ``checkpoint``,
...) is an annotation with a begin and an end, sent when it is over. With a ``Training``, both are told to training
telemetry as well.

This knows no framework. Nothing here raises into a job: what goes wrong is counted by place, and logged once for each.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from warptrace.adapters._quiet import failed, quietly
from warptrace.annotation import AnnotationWriter

if TYPE_CHECKING:
    from warptrace.training import Training

T = TypeVar("T")

# Phases that training telemetry has a span for: its callbacks for begin and end.
_TOLD = {
    "validation": ("on_validation_start", "on_validation_end"),
    "test": ("on_testing_start", "on_testing_end"),
    "checkpoint_load": ("on_load_checkpoint_start", "on_load_checkpoint_end"),
    "distributed_init": ("on_distributed_init_start", "on_distributed_init_end"),
    "model_init": ("on_model_init_start", "on_model_init_end"),
    "dataloader_init": ("on_dataloader_init_start", "on_dataloader_init_end"),
    "optimizer_init": ("on_optimizer_init_start", "on_optimizer_init_end"),
}

_shared: AnnotationWriter | None = None


def shared_writer() -> AnnotationWriter:
    """The writer of this process for all adapters that are not given one."""
    global _shared
    if _shared is None:
        _shared = AnnotationWriter()
    return _shared


def place() -> tuple[int | None, int | None]:
    """Rank and world size, as the launcher says (torchrun, and who follows it), else as torch.distributed does."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if rank.isdecimal() and size.isdecimal():
        return int(rank), int(size)
    # Not imported for this: who has not done so is not distributed by it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None, None


class Steps:
    """The steps of one process.

    training: is told as well. run_id and labels go with every annotation; what is None is left out.
    """

    def __init__(
        self,
        *,
        training: Training | None = None,
        writer: AnnotationWriter | None = None,
        run_id: str | None = None,
        **labels: object,
    ) -> None:
        self._training = training
        self._writer = writer
        self._labels: dict[str, object] = {}
        self._step: int | None = None
        self._done = 0
        self._named = False
        self._epoch: int | None = None
        self._in_loop = False
        self._phases: dict[str, int] = {}
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.label(run_id=run_id, **labels)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has a connection of its own; telemetry stays in the process that records it.
        if self._training is not None:
            failed("sending training telemetry to another process", TypeError("a Training belongs to one process"))
        return {"labels": self._labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Steps.__init__(self)
        self._labels = state["labels"]

    @property
    def writer(self) -> AnnotationWriter:
        return self._writer or shared_writer()

    @property
    def step(self) -> int | None:
        """The step that goes on."""
        return self._step

    @property
    def done(self) -> int:
        """The number of steps that are over, those before this process began among them."""
        return self._done

    def label(self, **labels: object) -> None:
        """Adds labels that go with every annotation from now on."""
        self._labels.update({key: value for key, value in labels.items() if value is not None})

    @quietly
    def begin(self, step: int, *, epoch: int | None = None) -> None:
        """A step begins; one that goes on is over by it. step: from 0, the count of optimizer steps before it."""
        if self._step is not None:
            self.end()
        self._step, self._done, self._epoch = step, step, epoch
        labels: dict[str, object] = {"step": step}
        if epoch is not None:
            labels["epoch"] = epoch
        self._named = True
        self.writer.write({**labels, **self._labels})
        if self._training is not None:
            if not self._in_loop:
                self.begin_loop(step)
            self._open["iteration"] = self._training.on_training_single_iteration_start()

    @quietly
    def end(self) -> None:
        """The step that goes on is over."""
        if self._step is None:
            return
        self._done = self._step + 1
        self._step = None
        if self._training is not None and self._open.pop("iteration", None) is not None:
            self._training.on_training_single_iteration_end()

    def over(self, batches: Iterable[T], *, start: int = 0, epoch: int | None = None) -> Loop[T]:
        """The same batches, each of which begins a step; iterated again, numbers go on."""
        return Loop(batches, self, start=start, epoch=epoch)

    @contextmanager
    def at(self, step: int, *, epoch: int | None = None) -> Iterator[None]:
        """A step around a block."""
        self.begin(step, epoch=epoch)
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
        self.end()

    @quietly
    def leave(self) -> None:
        """No step goes on, and none follows at once: what comes now is in none."""
        if self._named and self._step is None:
            self._named = False
            self.writer.write({"step": "", **self._labels})

    @quietly
    def begin_loop(self, step: int, *, target: int | None = None) -> None:
        """Training begins at a step, to go on until another one. Without this it begins with the first step."""
        if self._training is None or self._in_loop:
            return
        self._in_loop = True
        self._training.on_train_start(train_iterations_start=step, train_iterations_target=target)

    @quietly
    def end_loop(self) -> None:
        """Training is over."""
        self.end()
        self.leave()
        if self._training is not None and self._in_loop:
            self._in_loop = False
            self._training.on_train_end()

    @quietly
    def begin_phase(self, phase: str) -> None:
        """A phase begins, unless it goes on already."""
        with self._lock:
            if self._phases.setdefault(phase, now := time.time_ns()) != now:
                return
        self.leave()
        if self._training is not None and phase in _TOLD:
            self._open[phase] = getattr(self._training, _TOLD[phase][0])()

    @quietly
    def end_phase(self, phase: str, error: BaseException | None = None) -> None:
        """A phase is over, with an error or without."""
        with self._lock:
            start_ns = self._phases.pop(phase, None)
        if start_ns is None:
            return
        self.say(phase, start_ns)
        if self._training is not None and phase in _TOLD and (span := self._open.pop(phase, None)) is not None:
            if error is not None:
                self._training.recorder.error(span, f"{phase} failed", error)
            getattr(self._training, _TOLD[phase][1])()

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """``begin_phase`` and ``end_phase`` around a block."""
        self.begin_phase(phase)
        try:
            yield
        except BaseException as error:
            self.end_phase(phase, error)
            raise
        self.end_phase(phase)

    @quietly
    def begin_item(self, phase: str) -> None:
        """A batch of the validation begins."""
        if self._training is not None and phase == "validation":
            self.end_item(phase)
            self._open["item"] = self._training.on_validation_single_iteration_start()

    @quietly
    def end_item(self, phase: str) -> None:
        """A batch of the validation is over."""
        if self._training is not None and self._open.pop("item", None) is not None:
            self._training.on_validation_single_iteration_end()

    @quietly
    def begin_checkpoint(self, step: int) -> None:
        """The training thread begins to save a checkpoint of the state after ``step`` steps."""
        self._phases["checkpoint"] = time.time_ns()
        self.leave()
        if self._training is not None:
            self._open["checkpoint"] = self._training.on_save_checkpoint_start(global_step=step)

    @quietly
    def end_checkpoint(self, step: int, error: BaseException | None = None, *, written: bool = True) -> None:
        """The training thread goes on. written: the checkpoint is; otherwise ``checkpoint_written`` follows."""
        if (start_ns := self._phases.pop("checkpoint", None)) is None:
            return
        self.say("checkpoint", start_ns)
        if self._training is None or (span := self._open.pop("checkpoint", None)) is None:
            return
        if error is not None:
            self._training.recorder.error(span, "the checkpoint was not saved", error)
        elif written:
            self._training.on_save_checkpoint_success(global_step=step)
        self._training.on_save_checkpoint_end()

    @quietly
    def checkpoint_written(self, step: int, start_ns: int, error: BaseException | None = None) -> None:
        """A checkpoint that another thread wrote since ``start_ns`` (Unix time) is there, or failed."""
        self.say("checkpoint_write", start_ns)
        if self._training is not None and error is None:
            self._training.on_save_checkpoint_success(global_step=step)

    @quietly
    def fail(self, error: BaseException) -> None:
        """The job fails: says so in every span of ours that is open, innermost first, and ends them."""
        if self._training is None:
            self._step = None
            self._phases.clear()
            return
        recorder = self._training.recorder
        while self._open:
            name, span = self._open.popitem()
            if span is not None:
                recorder.error(span, f"{name} failed", error)
                recorder.stop(span)
        self._step = None
        self._phases.clear()
        self.end_loop()

    def say(self, phase: str, start_ns: int) -> None:
        """Sends the annotation of a phase that is over now."""
        labels = {"phase": phase} if self._epoch is None else {"phase": phase, "epoch": self._epoch}
        self.writer.span({**labels, **self._labels}, start_ns=start_ns, end_ns=time.time_ns())


class Loop(Generic[T]):
    """Batches, each of which begins a step; see ``Steps.over``. It has the length of what it is over."""

    def __init__(self, batches: Iterable[T], steps: Steps, *, start: int, epoch: int | None) -> None:
        self._batches = batches
        self._steps = steps
        self._next = start
        self._epoch = epoch

    def __len__(self) -> int:
        if not isinstance(self._batches, Sized):
            raise TypeError(f"{type(self._batches).__name__} has no length")
        return len(self._batches)

    def __iter__(self) -> Iterator[T]:
        try:
            for batch in self._batches:
                self._steps.begin(self._next, epoch=self._epoch)
                self._next += 1
                yield batch
                self._steps.end()
        finally:
            self._steps.end()
            self._steps.leave()
