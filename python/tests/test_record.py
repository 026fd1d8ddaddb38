"""A job that is recorded and says by spans what it does: from its loop to the account of each of its steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import ROOT, program

STEPS = 40
SLOW = 30

# A training loop on the simulated device. In one step it takes and gives back memory 400 times.
JOB = f"""
import sys

sys.path.insert(0, sys.argv[1])
import warptrace
from train import Dim3, Runtime
from warptrace.exporters import AgentSocket

warptrace.configure(exporters=[AgentSocket()])
runtime = Runtime("libcudart.so.12")
runtime.cudaSetDevice(0)
kernel, stream = runtime.kernel("layer"), runtime.stream()
with warptrace.span("train.epoch", {{"epoch": 3}}):
    for step in range({STEPS}):
        with warptrace.span("train.step", {{"step": step}}) as span:
            with warptrace.span("train.forward"):
                for _ in range(10):
                    runtime.cudaLaunchKernel(kernel, Dim3(2000, 1, 1), Dim3(256, 1, 1), None, 0, stream)
            if step == {SLOW}:
                for _ in range(400):
                    runtime.cudaFree(runtime.allocate(64 << 20))
            runtime.cudaStreamSynchronize(stream)
            span["loss"] = 1 / (step + 1)
"""


def test_spans_of_a_recorded_job_are_the_steps_that_are_accounted_for(tmp_path: Path) -> None:
    warptrace = program()
    environment = os.environ | {
        "HOME": str(tmp_path),
        "WARPTRACE_DATA": str(tmp_path / "data"),
        "SIMGPU_SHM": str(tmp_path / "simgpu.shm"),
    }

    def run(*args: str) -> str:
        done = subprocess.run(
            [warptrace, *args], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # It writes the libraries that it carries.
    subprocess.run([warptrace, "check"], env=environment, capture_output=True, timeout=120, check=False)
    (libraries,) = (tmp_path / "data").glob("*/simgpu")
    environment["LD_LIBRARY_PATH"] = str(libraries)
    job = tmp_path / "job.py"
    job.write_text(JOB)
    run("record", "--annotate", "--quiet", "--", sys.executable, str(job), str(ROOT / "simgpu/workload/python"))

    answer = json.loads(run("explain", "--by-step", "--json"))
    steps: dict[str, dict[str, Any]] = {unit["value"]: unit for unit in answer["units"]}
    assert sorted(map(int, steps)) == list(range(STEPS))
    for step in steps.values():
        assert step["labels"]["span"] == "train.step"
        assert sum(part["ns"] for part in step["parts"]) == step["dur_ns"]
    allocator = {
        value: sum(part["ns"] for part in step["parts"] if part["category"] == "allocator")
        for value, step in steps.items()
    }
    assert max(allocator, key=lambda value: allocator[value]) == str(SLOW), allocator
