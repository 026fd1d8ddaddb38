"""What a step of an adapter costs the thread that trains.

    target/venv/bin/python3 python/bench/adapters.py

CPU time of that thread beyond the same loop without an adapter, the best of several rounds that take turns. The
recorder reads as fast as it can, in another process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable

from annotation import serve

from warptrace import AnnotationWriter, MemoryExporter
from warptrace.adapters.torch import steps
from warptrace.training import Training, TrainingConfig


def cost_us(batches: Iterable[int], count: int) -> float:
    begun = time.thread_time_ns()
    for _ in batches:
        pass
    return (time.thread_time_ns() - begun) / count / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    count = args.count
    with tempfile.TemporaryDirectory() as folder:
        recorder = serve(f"{folder}/s")
        writer = AnnotationWriter(f"{folder}/s")
        nobody = AnnotationWriter(f"{folder}/nobody")
        training = Training(
            [MemoryExporter()],
            application_name="bench",
            session_tag="b",
            config=TrainingConfig(perf_tag="b", global_batch_size=1),
        )
        cases = {
            "the loop alone": lambda: range(count),
            "steps, nobody listens": lambda: steps(range(count), writer=nobody, epoch=1),
            "steps, a recorder listens": lambda: steps(range(count), writer=writer, epoch=1),
            "steps and training telemetry": lambda: steps(range(count), writer=writer, epoch=1, training=training),
        }
        best = dict.fromkeys(cases, float("inf"))
        for _ in range(args.rounds):
            for name, make in cases.items():
                best[name] = min(best[name], cost_us(make(), count))
        os.kill(recorder, 9)
        os.waitpid(recorder, 0)
    floor = best.pop("the loop alone")
    for name, us in best.items():
        print(f"{name:30} {us - floor:6.2f} us a step")


if __name__ == "__main__":
    main()
