"""vLLM's request logger: hooks and records as vLLM 0.33.0 has them; tests/frameworks holds them against its source."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapters_support import Said

from warptrace.adapters import _quiet, failures
from warptrace.adapters._vllm_processes import Processes
from warptrace.adapters.vllm import RequestLogger, say_outputs


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    _quiet._failures.clear()
    said = Said(tmp_path / "s")
    yield said
    said.recorder.stop()


@dataclass
class Finished:
    """``vllm.v1.metrics.stats.FinishedRequestStats``, as far as it is read."""

    request_id: str | None = "q1"
    e2e_latency: float = 2.0
    num_prompt_tokens: int = 8
    num_preemptions: int = 1
    num_generation_tokens: int = 4
    decode_time: float = 1.5


@dataclass
class Iteration:
    """``vllm.v1.metrics.stats.IterationStats``, likewise."""

    finished_requests: list[Finished] = field(default_factory=list)
    iteration_timestamp: float = 1_700_000_010.0


CONFIG = SimpleNamespace(model_config=SimpleNamespace(served_model_name="llm", model="/models/llm"))


def logger(said: Said) -> RequestLogger:
    return RequestLogger(CONFIG, 0, writer=said.writer)


def test_a_request_that_has_finished_is_an_interval_with_eight_labels(said: Said) -> None:
    logger(said).record(None, Iteration([Finished()]), mm_cache_stats=None, engine_idx=0)
    (line,) = said.lines()
    assert line["labels"] == {
        "request_id": "q1",
        "model": "llm",
        "prompt_len": "8",
        "output_len": "4",
        "preempted": "1",
        "arrival": "1700000008000000000",
        "first_token": "1700000008500000000",
        "finished": "1700000010000000000",
    }
    assert (line["span_start"], line["span_end"]) == (1_700_000_008_000_000_000, 1_700_000_010_000_000_000)
    assert line["pid"] == os.getpid()
    assert failures() == {}


def test_a_request_without_output_has_no_first_token(said: Said) -> None:
    logger(said).record(None, Iteration([Finished(num_generation_tokens=0, decode_time=0.0)]))
    assert "first_token" not in said.lines()[0]["labels"]


def test_an_iteration_that_finishes_nothing_says_nothing(said: Said) -> None:
    its = logger(said)
    its.log_engine_initialized()
    its.record(None, None)
    its.record(None, Iteration())
    its.record(None, Iteration([Finished()]))
    assert len(said.lines()) == 1


def test_a_vllm_that_does_not_name_requests_is_a_failure_of_ours_alone(said: Said) -> None:
    logger(said).record(None, Iteration([Finished(request_id=None)] * 3))
    logger(said).record(None, object())
    assert failures() == {"naming requests": 1, "RequestLogger.record": 1}


def test_outputs_of_generate_are_said_with_the_engines_own_times(said: Said) -> None:
    now, mono = time.time(), time.monotonic()
    stats = SimpleNamespace(
        num_generation_tokens=2,
        num_preemptions=0,
        arrival_time=now - 3,
        first_token_ts=mono - 2,
        last_token_ts=mono - 1,
    )
    outputs: list[Any] = [SimpleNamespace(request_id="0", prompt_token_ids=[1, 2], metrics=stats)]
    say_outputs(outputs, model="m", writer=said.writer)
    (line,) = said.lines()
    assert line["labels"]["prompt_len"] == "2"
    second = 1_000_000_000
    # The offset of the clocks is read a moment later than the times above.
    assert round((int(line["labels"]["first_token"]) - line["span_start"]) / second) == 1
    assert round((line["span_end"] - line["span_start"]) / second) == 2


def test_outputs_without_metrics_are_a_failure_of_ours_alone(said: Said) -> None:
    say_outputs([SimpleNamespace(request_id="0", prompt_token_ids=[1], metrics=None)], writer=said.writer)
    assert failures() == {"naming requests": 1}


class Machine:
    """A /proc with processes that are titled as vLLM titles its own."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def has(self, pid: int, parent: int, title: str = "python") -> None:
        entry = self.proc / str(pid)
        entry.mkdir()
        (entry / "stat").write_bytes(f"{pid} (a b) c) S {parent} 1 1 0".encode())
        (entry / "cmdline").write_bytes(title.encode() + b"\0serve\0")

    def of_engine(self, index: int) -> list[int]:
        return Processes(self.proc).of_engine(index)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("")
    return Machine(proc)


def test_without_other_processes_the_engine_is_in_this_one(machine: Machine) -> None:
    machine.has(os.getpid(), 1)
    machine.has(7, 1, "VLLM::EngineCore")
    assert machine.of_engine(0) == [os.getpid()]


def test_the_engines_core_uses_the_device_where_it_has_no_workers(machine: Machine) -> None:
    machine.has(os.getpid(), 1)
    machine.has(1_000_007, os.getpid(), "VLLM::EngineCore")
    machine.has(1_000_008, os.getpid(), "VLLM::DPCoordinator")
    assert machine.of_engine(0) == [1_000_007]


def test_workers_use_the_device_and_their_core_does_not(machine: Machine) -> None:
    machine.has(os.getpid(), 1)
    machine.has(1_000_007, os.getpid(), "VLLM::EngineCore")
    machine.has(1_000_009, 1_000_007, "VLLM::Worker_TP1")
    machine.has(1_000_008, 1_000_007, "VLLM::Worker_TP0")
    assert machine.of_engine(0) == [1_000_008, 1_000_009]


def test_of_several_engines_each_has_its_own_processes(machine: Machine) -> None:
    machine.has(1_000_001, 1)
    machine.has(os.getpid(), 1_000_001, "VLLM::APIServer_0")
    for rank in (0, 1, 11):
        machine.has(1_000_010 + rank, 1_000_001, f"VLLM::EngineCore_DP{rank}")
    assert machine.of_engine(1) == [1_000_011]
    machine.has(1_000_050, 1_000_011, "VLLM::Worker_DP1_TP0")
    machine.has(1_000_051, 1_000_010, "VLLM::Worker_DP0_TP0")
    assert machine.of_engine(0) == [1_000_051]


def test_the_folder_for_the_path_has_the_entry_point_of_vllms_group() -> None:
    folder = subprocess.run(
        [sys.executable, "-m", "warptrace.adapters.vllm"], check=True, capture_output=True, text=True
    ).stdout.strip()
    code = "from importlib.metadata import entry_points as e; print(*e(group='vllm.stat_logger_plugins'))"
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    point = "warptrace.adapters.vllm:RequestLogger"
    assert point in out.stdout
    assert EntryPoint("warptrace", point, "vllm.stat_logger_plugins").load() is RequestLogger
