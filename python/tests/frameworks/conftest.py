"""What the tests with real frameworks share. `cargo xtask test-frameworks` runs them; elsewhere they are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_support import Said

from warptrace.adapters import _quiet


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    said = Said(tmp_path / "annotate.sock")
    yield said
    said.recorder.stop()


@pytest.fixture(autouse=True)
def no_failures_yet() -> None:
    _quiet._failures.clear()
