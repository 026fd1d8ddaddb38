"""The names of nv-one-logger's W&B exporters over the real package, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nv_one_logger_scripts as scripts
import pytest
from support import module_or_skip

PROGRAM = """
import sys
import nv_one_logger_scripts as s

s.ROOT = "warptrace.compat.nv_one_logger"
wandb = s.mod("wandb.exporter.wandb_exporter")

if __name__ == "__main__":
    exporter = getattr(wandb, sys.argv[1])(wandb.Config(entity="me", save_dir="."))
    recorder = s.configured([exporter])
    span = recorder.start("train", s.mod("core.attributes").Attributes({"x": 1}))
    recorder.event(span, s.mod("core.event").Event.create("update", s.mod("core.attributes").Attributes({"loss": 0.5})))
    recorder.stop(span)
    recorder.close()
    print(recorder._recorder.counts().exporters[0].refused)
"""


@pytest.mark.parametrize("name", ["WandBExporterSync", "WandBExporterAsync"])
def test_metrics_arrive_in_a_run(name: str, tmp_path: Path) -> None:
    module_or_skip("wandb")
    module_or_skip("pydantic")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    paths = [str(Path(scripts.__file__).parent), *filter(None, sys.path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, str(program), name], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0", done.stderr
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = run.read_bytes()
    for metric in (b"train.x", b"train.update.loss", b"train.duration_msec", b"app_last_log_time"):
        assert metric in written
