"""What the adapters share, without any framework: steps, phases and requests as a recorder hears them."""

import copy
import importlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapters_support import Said

from warptrace.adapters import Steps, _quiet, failures
from warptrace.adapters.torch import follow, make, step, steps


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    _quiet._failures.clear()
    said = Said(tmp_path / "s")
    yield said
    said.recorder.stop()


class Told:
    """Training telemetry that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorder = SimpleNamespace(
            error=lambda span, message, error: self.calls.append(f"error in {span}: {error}"),
            stop=lambda span: self.calls.append(f"stop of {span}"),
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> str | None:
            given = {key: value for key, value in kwargs.items() if value is not None}
            self.calls.append(" ".join([name, *map(str, args), *(f"{k}={v}" for k, v in given.items())]))
            return name.removesuffix("_start") if name.endswith("_start") else None

        return call


def test_each_batch_begins_a_step_and_the_wait_for_the_next_is_its_end(said: Said) -> None:
    loop = steps(["a", "b"], writer=said.writer, run_id="r")
    assert len(loop) == 2
    assert [*loop, *loop] == ["a", "b", "a", "b"]
    lines = said.lines()
    assert said.words() == ["0", "1", "", "2", "3", ""]
    assert {line["labels"]["run_id"] for line in lines} == {"r"}
    assert {line["pid"] for line in lines} == {os.getpid()}
    said.in_order()


def test_a_loop_that_is_left_ends_its_step(said: Said) -> None:
    told: Any = Told()
    for n in steps(iter(range(5)), writer=said.writer, training=told):
        if n == 1:
            break
    assert told.calls == [
        "on_train_start train_iterations_start=0",
        "on_training_single_iteration_start",
        "on_training_single_iteration_end",
        "on_training_single_iteration_start",
        "on_training_single_iteration_end",
    ]


def test_what_has_no_length_says_so() -> None:
    with pytest.raises(TypeError, match="no length"):
        len(steps(iter(())))


def test_phases_are_intervals_that_know_their_epoch(said: Said) -> None:
    told: Any = Told()
    made = Steps(writer=said.writer, training=told, rank=3, world_size=None)
    with made.at(7, epoch=2):
        pass
    with made.phase("validation"):
        made.begin_item("validation")
        made.end_item("validation")
    made.end_loop()
    step_line, end, phase = said.lines()
    assert end["labels"] == {"step": "", "rank": "3"}
    assert step_line["labels"] == {"step": "7", "epoch": "2", "rank": "3"}
    assert phase["labels"] == {"phase": "validation", "epoch": "2", "rank": "3"}
    assert phase["span_start"] <= phase["span_end"]
    assert told.calls == [
        "on_train_start train_iterations_start=7",
        "on_training_single_iteration_start",
        "on_training_single_iteration_end",
        "on_validation_start",
        "on_validation_single_iteration_start",
        "on_validation_single_iteration_end",
        "on_validation_end",
        "on_train_end",
    ]


def test_an_error_is_told_in_each_open_span_from_the_inside_and_goes_on_unchanged(said: Said) -> None:
    told: Any = Told()
    made = Steps(writer=said.writer, training=told)
    error = ValueError("mine")

    def job() -> None:
        with made.at(0):
            made.begin_phase("validation")
            raise error

    with pytest.raises(ValueError, match="mine") as raised:
        job()
    assert raised.value is error
    assert told.calls[-5:] == [
        "error in on_validation: mine",
        "stop of on_validation",
        "error in on_training_single_iteration: mine",
        "stop of on_training_single_iteration",
        "on_train_end",
    ]
    assert failures() == {}


def test_a_checkpoint_is_a_success_when_it_is_written_and_only_then(said: Said) -> None:
    told: Any = Told()
    made = Steps(writer=said.writer, training=told)
    made.begin_checkpoint(4)
    made.end_checkpoint(4)
    made.begin_checkpoint(5)
    made.end_checkpoint(5, written=False)
    made.checkpoint_written(5, 1)
    made.begin_checkpoint(6)
    made.end_checkpoint(6, OSError("full"))
    assert [call.removeprefix("on_save_checkpoint_") for call in told.calls] == [
        *("start global_step=4", "success global_step=4", "end"),
        *("start global_step=5", "end", "success global_step=5"),
        *("start global_step=6", "error in on_save_checkpoint: full", "end"),
    ]
    phases = [line["labels"]["phase"] for line in said.lines()]
    assert phases == ["checkpoint", "checkpoint", "checkpoint_write", "checkpoint"]


def test_telemetry_that_fails_is_counted_said_once_and_stops_nothing(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "warptrace"):
        made = Steps(writer=said.writer, training=object())  # type: ignore[arg-type]
        for n in range(3):
            with made.at(n):
                pass
    assert len(said.steps()) == 3
    assert failures() == {"Steps.begin_loop": 1, "Steps.begin": 3}
    assert len(caplog.records) == 2


def test_a_copy_in_another_process_says_the_same_labels(said: Said) -> None:
    made = Steps(writer=said.writer, run_id="r", rank=1)
    assert pickle.loads(pickle.dumps(made))._labels == {"run_id": "r", "rank": 1}
    assert copy.deepcopy(made)._labels == made._labels


def test_rank_and_world_size_are_the_launchers(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with make(writer=said.writer).at(0):
        pass
    assert said.lines()[0]["labels"] == {"step": "0", "rank": "3", "world_size": "8"}


class Optimizer:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def step(self, scale: int = 1) -> int:
        if self.fails:
            raise RuntimeError("no step")
        return scale * 2


def test_an_optimizer_without_hooks_is_followed_and_is_as_it_was(said: Said) -> None:
    optimizer = Optimizer()
    follow(optimizer, writer=said.writer, start=5)
    assert [optimizer.step(), optimizer.step(scale=3)] == [2, 6]
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.step()
    assert [number for number, _ in said.steps()] == ["5", "6", "7"]


def test_who_follows_twice_follows_once(said: Said) -> None:
    optimizer = Optimizer()
    follow(optimizer)
    follow(optimizer, writer=said.writer)
    optimizer.step()
    assert [number for number, _ in said.steps()] == ["0", "1"]


def test_what_cannot_be_followed_is_a_failure_of_ours_alone(said: Said) -> None:
    follow(object(), writer=said.writer)
    assert failures() == {"following an optimizer": 1}


def test_a_step_without_a_recorder_is_a_block_like_any() -> None:
    with pytest.raises(KeyError), step(1):
        raise KeyError


def test_threads_may_say_phases_at_once(said: Said) -> None:
    made = Steps(writer=said.writer)
    threads = [threading.Thread(target=lambda n=n: made.checkpoint_written(n, 1)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said.lines()) == 20


@pytest.mark.parametrize("name", ["accelerate", "deepspeed", "lightning", "ray", "torch", "transformers", "vllm"])
def test_an_adapter_is_there_without_its_framework(name: str) -> None:
    code = (
        "import sys\n"
        "for name in 'torch lightning pytorch_lightning transformers accelerate ray deepspeed vllm'.split():\n"
        "    sys.modules[name] = None\n"
        f"import warptrace.adapters.{name}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adapters_load_no_framework_before_they_are_imported() -> None:
    code = "import sys, warptrace.adapters; print([m for m in ('torch', 'ray', 'lightning') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert importlib.import_module("warptrace").adapters.Steps is Steps
