"""What a job has said to a recorder, for tests of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import Recorder, module_or_skip

from warptrace import AnnotationWriter

__all__ = ["Said", "module_or_skip"]


class Said:
    """A recorder, a writer to it, and what came in on all connections."""

    def __init__(self, path: Path) -> None:
        self.recorder = Recorder(path)
        self.writer = AnnotationWriter(path)

    def lines(self, connections: int = 1) -> list[dict[str, Any]]:
        """All lines, in the order of each connection; ends the writer, so that the last one is in."""
        self.writer.close()
        return [line for n in range(connections) for line in self.ended(n)]

    def words(self) -> list[str]:
        """Steps by their numbers, "" where one ends and none follows at once, and phases by their names."""
        labels = [line["labels"] for line in self.lines()]
        return [label["step"] if "step" in label else label["phase"] for label in labels]

    def ended(self, connection: int) -> list[dict[str, Any]]:
        """The lines of a connection that its writer has ended."""
        return [json.loads(line) for line in self.recorder.ended(connection)]

    def steps(self, connections: int = 1) -> list[tuple[str, str | None]]:
        """Step and epoch of the annotations that begin a step."""
        labels = [line["labels"] for line in self.lines(connections) if "span_end" not in line]
        return [(label["step"], label.get("epoch")) for label in labels if label["step"]]

    def phases(self) -> list[str]:
        """The phases that are over, in the order of their ends."""
        return [line["labels"]["phase"] for line in self.lines() if "span_end" in line]

    def in_order(self) -> None:
        """Holds the lines against each other: times never run backwards, phases begin before they end."""
        last = 0
        for line in self.lines():
            at = line.get("span_end", line["ts"])
            assert at >= last
            last = at
            assert line.get("span_start", at) <= at
