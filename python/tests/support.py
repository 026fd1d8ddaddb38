"""What several test modules need."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The root of the repository."""


def conformance() -> Path:
    """The folder of the vectors: that named by WARPTRACE_CONFORMANCE, else ours."""
    return Path(os.environ.get("WARPTRACE_CONFORMANCE", ROOT / "testdata/conformance"))
