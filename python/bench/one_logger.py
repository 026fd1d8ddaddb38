"""What a `timed_span` costs with nv-one-logger itself and with warptrace's names for it; each in a process of its own.

    target/venv/bin/python3 python/bench/one_logger.py

Prints the least of seven runs of 5,000 spans, µs of CPU time a span.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOTS = ("nv_one_logger", "warptrace.compat.nv_one_logger")
CASES = ("no exporter", "a file", "a disabled rank")
RUNS, SPANS = 7, 5_000


def measure(root: str, case: str) -> float:
    def mod(path: str):  # type: ignore[no-untyped-def]
        return importlib.import_module(f"{root}.{path}")

    logging.disable(logging.CRITICAL)
    exporters = []
    if case == "a file":
        exporters.append(mod("exporter").FileExporter(Path(tempfile.mkdtemp()) / "spans.jsonl"))
    config = mod("api.config").OneLoggerConfig(
        application_name="bench",
        session_tag_or_fn="s",
        world_size_or_fn=1,
        enable_for_current_rank=case != "a disabled rank",
    )
    recorder = mod("recorder.default_recorder").DefaultRecorder(exporters)
    mod("api.one_logger_provider").OneLoggerProvider.instance().configure(config, recorder)
    timed_span = mod("api.timed_span").timed_span

    def run() -> float:
        begun = time.thread_time()
        for _ in range(SPANS):
            with timed_span("x"):
                pass
        return (time.thread_time() - begun) / SPANS * 1e6

    run()
    return min(run() for _ in range(RUNS))


def main() -> None:
    if len(sys.argv) == 3:
        print(measure(sys.argv[1], sys.argv[2]))
        return
    for case in CASES:
        times = []
        for root in ROOTS:
            done = subprocess.run([sys.executable, __file__, root, case], capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
        print(f"{case}: {times[0]:.1f} µs, here {times[1]:.1f} µs ({times[0] / times[1]:.1f} times less)")


if __name__ == "__main__":
    main()
