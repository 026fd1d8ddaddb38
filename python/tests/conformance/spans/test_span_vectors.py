"""The span vectors, driven through nv-one-logger itself and through warptrace's names for it.

The original proves the driver: it must give what was once observed of it. Ours must, too, but for the cases of
DISPUTED.md, which must give what stands in `spans/reviewed`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from compare import scenario as difference
from package import ORIGINAL, OURS
from support import ROOT, conformance

COMMITTED = ROOT / "testdata/conformance"
SPANS = conformance() / "spans"
CASES = sorted(path for folder in ("scenarios", "exporter_config") for path in (SPANS / folder).glob("*.json"))
# Observed on Python 3.12; before that, the original cannot compare a string with an enumeration's members.
ORIGINAL_NEEDS_3_12 = {"training-48-default-filter"}


@cache
def disputed() -> frozenset[str]:
    """Ids in the table, which Rust's tests read as well, and in the list of what only Python answers."""
    text = (COMMITTED / "DISPUTED.md").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^(?:\| |- )`([a-z]+-\d+-[\w-]+)`", text, re.MULTILINE))


@cache
def answers(root: str) -> dict[str, Any]:
    """What a package does in all cases, from one process that forks for each."""
    driver = Path(__file__).with_name("driver.py")
    run = subprocess.run([sys.executable, driver, root, *CASES], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = {a["id"]: a["actual"] for a in map(json.loads, run.stdout.splitlines())}
    return found


def missing(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return None


def skip_without(root: str) -> None:
    """Skips where what the package needs is not installed."""
    needed = ["pydantic", "yaml", "opentelemetry.sdk"]
    if root == ORIGINAL:
        parts = (
            "core.time",
            "otel.exporter",
            "wandb.exporter",
            "training_telemetry.api",
            "training_telemetry.integration",
        )
        needed += [ORIGINAL, *(f"{ORIGINAL}.{part}" for part in parts)]
    if (name := missing(tuple(needed))) is not None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session", params=[ORIGINAL, OURS])
def package(request: pytest.FixtureRequest) -> str:
    root: str = request.param
    skip_without(root)
    return root


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in CASES])
def test_a_case_gives_what_was_observed_or_reviewed(package: str, path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    if package == ORIGINAL:
        if case["id"] in ORIGINAL_NEEDS_3_12 and sys.version_info < (3, 12):
            pytest.skip("the original needs Python 3.12 for this case")
        assert difference(case["expected"], answers(package)[case["id"]]) is None
        return
    got = answers(package)[case["id"]]
    found = difference(case["expected"], got)
    if case["id"] not in disputed():
        assert found is None
        return
    assert case["compat"] == "quirk", "only a quirk may be disputed"
    assert found is not None, "disputed, and passes: take it out of DISPUTED.md"
    reviewed = json.loads((COMMITTED / "spans/reviewed" / path.name).read_text(encoding="utf-8"))
    assert difference(reviewed["expected"], got) is None


def test_a_report_is_left_for_conformance() -> None:
    """As those of Rust's tests: `target/conformance/<format>.json`."""
    skip_without(OURS)
    expected = {c["id"]: c["expected"] for c in (json.loads(p.read_text(encoding="utf-8")) for p in CASES)}
    failed = {id for id, want in expected.items() if difference(want, answers(OURS)[id])}
    report = {
        "format": "spans-python",
        "passed": len(expected) - len(failed),
        "failed": sorted(failed - disputed()),
        "disputed": sorted(failed & disputed()),
        "elsewhere": 0,
    }
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "conformance"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spans-python.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(f"{report['passed']} passed, {len(failed)} not, {len(report['disputed'])} of them disputed")
    assert not report["failed"]
