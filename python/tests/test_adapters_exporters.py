"""The registry of exporters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from warptrace import MemoryExporter
from warptrace.exporters import WandB, build, registered

THIRD = """
import warptrace

class Mine(warptrace.Exporter):
    def __init__(self, *, path):
        self.path = path

def not_one():
    return object()
"""

POINTS = """
[warptrace.exporters]
mine = third:Mine
not-one = third:not_one
memory = third:Mine
"""


def test_ours_are_registered_and_built_without_their_packages() -> None:
    assert {"memory", "mlflow", "wandb"} <= set(registered())
    assert isinstance(build("memory"), MemoryExporter)
    assert isinstance(build("wandb", project="p"), WandB)


def test_what_is_not_registered_cannot_be_named() -> None:
    with pytest.raises(LookupError, match="did you mean 'wandb'"):
        build("wandbb")
    for name in ("os.system", "subprocess:run", "", "warptrace.exporters.WandB"):
        with pytest.raises(LookupError):
            build(name)


def test_an_entry_point_registers_an_exporter_and_cannot_replace_ours(tmp_path: Path) -> None:
    (tmp_path / "third.py").write_text(THIRD)
    info = tmp_path / "third-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    code = (
        "from warptrace.exporters import build, registered\n"
        "print(*registered())\n"
        "print(type(build('mine', path='p')).__name__, build('mine', path='p').path)\n"
        "print(type(build('memory')).__name__)\n"
        "try:\n    build('not-one')\nexcept TypeError as e:\n    print(e)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    names, *rest = out.splitlines()
    assert {"memory", "mine", "mlflow", "not-one", "wandb"} <= set(names.split())
    assert names.split().count("memory") == 1
    assert rest == [
        "Mine p",
        "MemoryExporter",
        "exporter 'not-one' is a object, not a warptrace.Exporter",
    ]
