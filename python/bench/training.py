"""What a training iteration with metrics costs the thread that trains: ours, the drop-in names, and ``nv-one-logger``.

    target/venv/bin/python3 python/bench/training.py [--steps 1000000]

An iteration is a start and an end, with throughput and an update every ten; nobody exports. Wall time of the best of
several rounds, at the beginning of a job and after many steps of ours and of theirs. Each job runs in a process of its
own, since theirs is one a process.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable

Iteration = Callable[[], object]


def ours(*, enabled: bool = True) -> Iteration:
    from warptrace import Training, TrainingConfig

    config = TrainingConfig(
        perf_tag="bench",
        global_batch_size=32,
        log_every_n_train_iterations=10,
        is_log_throughput_enabled=True,
        flops_per_sample=10**12,
        train_iterations_target=10**7,
        train_samples_target=10**9,
    )
    training = Training([], application_name="bench", world_size=8, session_tag="s", config=config, enabled=enabled)
    training.on_app_start()
    training.on_train_start(train_iterations_start=0)
    start, end = training.on_training_single_iteration_start, training.on_training_single_iteration_end

    def iteration() -> None:
        start()
        end()

    return iteration


def named(package: str, *, enabled: bool = True) -> Iteration:
    """The same through the names of nv-one-logger."""
    api = f"{package}.training_telemetry.api"
    config = importlib.import_module(f"{api}.config").TrainingTelemetryConfig(
        perf_tag_or_fn="bench",
        global_batch_size_or_fn=32,
        log_every_n_train_iterations=10,
        is_log_throughput_enabled_or_fn=True,
        flops_per_sample_or_fn=10**12,
        train_iterations_target_or_fn=10**7,
        train_samples_target_or_fn=10**9,
    )
    base = importlib.import_module(f"{package}.api.config").OneLoggerConfig(
        application_name="bench",
        session_tag_or_fn="s",
        world_size_or_fn=8,
        telemetry_config=config,
        enable_for_current_rank=enabled,
    )
    provider = importlib.import_module(f"{api}.training_telemetry_provider").TrainingTelemetryProvider.instance()
    provider.with_base_config(base).configure_provider()
    callbacks = importlib.import_module(f"{api}.callbacks")
    callbacks.on_app_start()
    callbacks.on_train_start(train_iterations_start=0)

    def iteration() -> None:
        callbacks.on_training_single_iteration_start()
        callbacks.on_training_single_iteration_end()

    return iteration


def best_us(iteration: Iteration, count: int, rounds: int = 5) -> float:
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        for _ in range(count):
            iteration()
        best = min(best, (time.perf_counter_ns() - begun) / count / 1000)
    return best


def measure(title: str, make: Callable[[], Iteration], steps: int) -> None:
    """In a process of its own."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    import logging

    logging.disable(logging.CRITICAL)
    iteration = make()
    early = best_us(iteration, 100)
    for _ in range(max(0, steps - 500)):
        iteration()
    late = best_us(iteration, 100)
    print(f"{title:<44} {early:8.2f} us at the start {late:8.2f} us after {steps:>9,} steps", flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--their-steps", type=int, default=20_000)
    args = parser.parse_args()
    compat, original = "warptrace.compat.nv_one_logger", "nv_one_logger"
    measure("warptrace.training", ours, args.steps)
    measure("warptrace.compat.nv_one_logger", lambda: named(compat), args.steps)
    measure("nv_one_logger 2.3.1", lambda: named(original), args.their_steps)
    measure("warptrace.training, rank off", lambda: ours(enabled=False), args.steps)
    measure("warptrace.compat.nv_one_logger, rank off", lambda: named(compat, enabled=False), args.steps)
    measure("nv_one_logger 2.3.1, rank off", lambda: named(original, enabled=False), args.their_steps)


if __name__ == "__main__":
    main()
