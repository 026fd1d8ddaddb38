"""What a span costs: warptrace, nv-one-logger 2.3.1 and opentelemetry-sdk, each in a process of its own.

    target/venv/bin/python3 python/bench/spans.py

Prints the least of seven runs, µs of the recording thread's CPU time for a span's start and stop by a `with` block,
with the collector of garbage off; and, for warptrace, an iteration of training telemetry with updates at the beginning
and after a million. Where there is an exporter with a thread of its own, that thread's time is told, too.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUNS = 7


def least(run: Callable[[int], None], spans: int, settle: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """µs of this thread, and of the others, a span."""
    run(spans // 10)
    settle()
    gc.disable()
    best, others = float("inf"), 0.0
    for _ in range(RUNS):
        own, whole = time.thread_time(), time.process_time()
        run(spans)
        own = time.thread_time() - own
        settle()
        whole = time.process_time() - whole
        if own < best:
            best, others = own, max(0.0, whole - own)
    return best / spans * 1e6, others / spans * 1e6


def warptrace(case: str) -> tuple[float, float]:
    from warptrace import exporters, spans

    kinds = {
        "no exporter": lambda: [],
        "a file": lambda: [exporters.JsonlFile(Path(tempfile.mkdtemp()) / "spans.jsonl")],
        "a disabled rank": lambda: [],
    }
    recorder = spans.configure(exporters=kinds[case](), enabled=case != "a disabled rank", queue_items=1 << 20)
    span = spans.span

    def run(count: int) -> None:
        for _ in range(count):
            with span("work"):
                pass

    result = least(run, 20_000, recorder.flush)
    dropped = sum(e.dropped + e.refused + e.lost for e in recorder.counts().exporters)
    assert dropped == 0, dropped
    return result


def nv_one_logger(case: str) -> tuple[float, float]:
    logging.disable(logging.CRITICAL)
    from nv_one_logger.api.config import OneLoggerConfig
    from nv_one_logger.api.one_logger_provider import OneLoggerProvider
    from nv_one_logger.api.timed_span import timed_span
    from nv_one_logger.exporter import FileExporter
    from nv_one_logger.recorder.default_recorder import DefaultRecorder

    given = [FileExporter(Path(tempfile.mkdtemp()) / "spans.jsonl")] if case == "a file" else []
    config = OneLoggerConfig(
        application_name="bench",
        session_tag_or_fn="s",
        world_size_or_fn=1,
        enable_for_current_rank=case != "a disabled rank",
    )
    OneLoggerProvider.instance().configure(config, DefaultRecorder(given))

    def run(count: int) -> None:
        for _ in range(count):
            with timed_span("work"):
                pass

    return least(run, 2_000)


def opentelemetry(case: str) -> tuple[float, float]:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("bench")
    assert case == "no exporter"

    def run(count: int) -> None:
        for _ in range(count):
            with tracer.start_as_current_span("work"):
                pass

    return least(run, 5_000)


def iteration(case: str) -> tuple[float, float]:
    """An iteration with an update, of training telemetry, at the beginning or after `case` iterations."""
    from warptrace.training import Training, TrainingConfig

    config = TrainingConfig(perf_tag="bench", global_batch_size=8, log_every_n_train_iterations=1)
    training = Training([], application_name="bench", world_size=1, session_tag="s", config=config)
    training.on_app_start()
    training.on_train_start(train_iterations_start=0)

    def run(count: int) -> None:
        for _ in range(count):
            training.on_training_single_iteration_start()
            training.on_training_single_iteration_end()

    run(int(case))
    return least(run, 10_000)


WHAT: dict[str, Callable[[str], tuple[float, float]]] = {
    "warptrace": warptrace,
    "nv-one-logger": nv_one_logger,
    "opentelemetry": opentelemetry,
    "iteration": iteration,
}


def measured(what: str, case: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__), what, case],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    own, others = done.stdout.split()
    return float(own), float(others)


def main() -> None:
    print(f"{'':<18}{'warptrace':>12}{'nv-one-logger':>16}{'ratio':>8}")
    for case in ("no exporter", "a file", "a disabled rank"):
        (ours, thread), (theirs, _) = measured("warptrace", case), measured("nv-one-logger", case)
        note = f"   and {thread:.2f} in the exporter's thread" if thread > ours / 10 else ""
        print(f"{case:<18}{ours:>12.3f}{theirs:>16.2f}{ours / theirs:>8.3f}{note}")
    ours, theirs = measured("warptrace", "no exporter")[0], measured("opentelemetry", "no exporter")[0]
    print(f"opentelemetry-sdk: {theirs:.2f}, ratio {ours / theirs:.3f}")
    first, late = measured("iteration", "10")[0], measured("iteration", "1000000")[0]
    print(f"an iteration with an update: {first:.2f} after 10, {late:.2f} after 1,000,000")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(*WHAT[sys.argv[1]](sys.argv[2]))
    else:
        main()
