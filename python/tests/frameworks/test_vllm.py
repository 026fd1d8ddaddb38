"""The request logger against vLLM's own classes, which can be imported without a GPU; its engine needs one."""

import inspect
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

from adapters_support import Said, module_or_skip

# Before torch looks for a device.
loggers = module_or_skip("vllm.v1.metrics.loggers")

from vllm.outputs import RequestOutput  # noqa: E402
from vllm.v1.engine import FinishReason  # noqa: E402
from vllm.v1.metrics.stats import IterationStats, RequestStateStats, SchedulerStats  # noqa: E402

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters import vllm as adapter  # noqa: E402

CONFIG = SimpleNamespace(model_config=SimpleNamespace(served_model_name="llm", model="/m"))


def finished(request_id: str) -> Any:
    """The statistics of an iteration in which a request finished, as vLLM's front end makes them."""
    now, mono = time.time(), time.monotonic()
    stats = RequestStateStats(
        num_generation_tokens=3,
        num_preemptions=2,
        arrival_time=now - 5,
        queued_ts=mono - 5,
        scheduled_ts=mono - 4,
        first_token_ts=mono - 3,
        last_token_ts=mono,
    )
    iteration = IterationStats()
    iteration.update_from_finished_request(
        finish_reason=FinishReason.STOP,
        request_id=request_id,
        num_prompt_tokens=7,
        max_tokens_param=16,
        req_stats=stats,
    )
    return iteration, stats


def test_the_hooks_are_vllms() -> None:
    assert issubclass(adapter.RequestLogger, loggers.StatLoggerBase)
    assert not inspect.isabstract(adapter.RequestLogger)
    for hook in ("__init__", "record", "log_engine_initialized", "log", "record_sleep_state"):
        theirs = inspect.signature(getattr(loggers.StatLoggerBase, hook)).parameters
        ours = inspect.signature(getattr(adapter.RequestLogger, hook)).parameters
        assert list(theirs) == list(ours)[: len(theirs)]
        extra = list(ours.values())[len(theirs) :]
        assert all(p.kind is p.KEYWORD_ONLY for p in extra)


def test_vllms_manager_of_loggers_makes_ours_and_hands_it_requests(said: Said) -> None:
    class Ours(adapter.RequestLogger):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            super().__init__(vllm_config, engine_index, writer=said.writer)

    manager = loggers.PerEngineStatLoggerAdapter(CONFIG, [0], Ours)
    manager.log_engine_initialized()
    iteration, _ = finished("cmpl-1")
    manager.record(SchedulerStats(), iteration, mm_cache_stats=None, engine_idx=0)
    manager.record(SchedulerStats(), IterationStats(), mm_cache_stats=None, engine_idx=0)
    manager.log()
    (line,) = said.lines()
    labels = line["labels"]
    assert labels.items() >= {"request_id": "cmpl-1", "model": "llm", "prompt_len": "7", "output_len": "3"}.items()
    assert labels["preempted"] == "2"
    arrival, first, end = (int(labels[key]) for key in ("arrival", "first_token", "finished"))
    assert (line["span_start"], line["span_end"]) == (arrival, end)
    assert [round((t - arrival) / 1e9) for t in (first, end)] == [2, 5]
    assert failures() == {}


def test_outputs_of_generate_are_said(said: Said) -> None:
    _, stats = finished("0")
    output = RequestOutput("0", "a", [1, 2, 3], None, [], True, metrics=stats)
    adapter.say_outputs([output], model="m", writer=said.writer)
    (line,) = said.lines()
    assert line["labels"].items() >= {"request_id": "0", "prompt_len": "3", "output_len": "3", "preempted": "2"}.items()
    assert failures() == {}


def test_a_server_finds_the_plugin_on_its_path_and_takes_it() -> None:
    code = (
        "from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories as load\n"
        "print(*[f'{c.__module__}.{c.__name__}' for c in load()])\n"
    )
    folder = subprocess.run(
        [sys.executable, "-m", "warptrace.adapters.vllm"], check=True, capture_output=True, text=True
    ).stdout.strip()
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "warptrace.adapters.vllm.RequestLogger" in done.stdout, done.stderr
