"""A file of JSON lines."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from warptrace.compat.nv_one_logger.exporter.base_json_exporter import BaseJsonExporter

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class FileExporter(BaseJsonExporter):
    """Writes each record as a line, at once: a write that fails is a failed export.

    The file begins empty. A forked child writes whole lines of its own to the same file, with its own pid.
    """

    def __init__(self, file_path: Path) -> None:
        super().__init__()
        self._path = Path(file_path)
        self._file: int | None = None

    def initialize(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._file is not None:
            os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
        super().initialize()

    def close(self) -> None:
        if self._file is None:
            return
        try:
            super().close()
        finally:
            os.close(self._file)
            self._file = None

    def _write(self, record: dict[str, Any]) -> None:
        try:
            text = _ENCODER.encode(record)
        except ValueError:
            text = _ENCODER.encode(_finite(record))
        line = memoryview(text.encode("ascii") + b"\n")
        assert self._file is not None
        while line:
            line = line[os.write(self._file, line) :]


def _finite(value: Any) -> Any:
    """The same with doubles that JSON has no number for as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
