"""Which processes of a vLLM server use the device, as its main process sees them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

# How often they are looked up, s.
_LOOKUP_SECS = 60.0


class Processes:
    """Which processes of an engine use the device, by the titles that vLLM gives them (``VLLM::Worker_TP0``)."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._found: dict[int, list[int]] = {}
        self._looked = -_LOOKUP_SECS

    def of_engine(self, index: int) -> list[int]:
        """Of the engine with that index: its workers, else its core, else this process itself."""
        if time.monotonic() - self._looked >= _LOOKUP_SECS:
            self._looked = time.monotonic()
            self._found.clear()
        if index not in self._found:
            self._found[index] = self._look(index)
        return self._found[index]

    def _look(self, index: int) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in self._proc.iterdir():
            if entry.name.isdecimal() and (parent := self._parent(entry)) is not None:
                children.setdefault(parent, []).append(int(entry.name))
        me = os.getpid()
        roots = [me]
        # One of several front ends has its engines beside it, below one parent.
        if self._title(me).startswith("APIServer") and (parent := self._parent(self._proc / str(me))) is not None:
            roots.append(parent)
        for root in roots:
            titled = {pid: title for pid in _below(root, children) if (title := self._title(pid))}
            for kind in ("Worker", "EngineCore"):
                of_kind = {pid: title for pid, title in titled.items() if title.startswith(kind)}
                apart = any("_DP" in title for title in of_kind.values())
                pids = [pid for pid, title in of_kind.items() if not apart or f"{title}_".find(f"_DP{index}_") >= 0]
                if pids:
                    return sorted(pids)
        return [me]

    def _parent(self, entry: Path) -> int | None:
        try:
            return int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return None

    def _title(self, pid: int) -> str:
        try:
            title = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except OSError:
            return ""
        prefix, colons, name = title.partition("::")
        return name if colons and prefix == os.environ.get("VLLM_PROCESS_NAME_PREFIX", "VLLM") else ""


def _below(root: int, children: dict[int, list[int]]) -> Iterable[int]:
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            yield pid
            waiting.append(pid)
