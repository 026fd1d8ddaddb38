"""What several test modules need."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
"""The root of the repository."""


def conformance() -> Path:
    """The folder of the vectors: that named by WARPTRACE_CONFORMANCE, else ours."""
    return Path(os.environ.get("WARPTRACE_CONFORMANCE", ROOT / "testdata/conformance"))


def vectors(name: str) -> list[dict[str, Any]]:
    """The records of a file of vectors: one JSON object a line, or one array."""
    text = (conformance() / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return list(json.loads(text))


def by_id(records: list[dict[str, Any]], kind: str | None = None) -> list[Any]:
    """Records as parameters of a test, each under its id."""
    return [pytest.param(r, id=r["id"]) for r in records if kind is None or r["kind"] == kind]


def module_or_skip(name: str) -> Any:
    """A module; a test that needs one which is not installed is skipped, and says so."""
    return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed")


def program() -> str:
    """The program warptrace: the wheel's, else what `cargo build` made."""
    beside = Path(sys.executable).with_name("warptrace")
    built = ROOT / "target/debug/warptrace"
    for candidate in (beside, built):
        if candidate.exists():
            return str(candidate)
    pytest.skip("the program warptrace is not built")


class Recorder:
    """Somebody who listens for annotations, as a thread that keeps what each connection says."""

    def __init__(self, path: Path, *, reads: bool = True) -> None:
        self.path = path
        self._reads = reads
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._received: list[bytes] = []
        self._ended: list[bool] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                number = len(self._sockets)
                self._sockets.append(connection)
                self._received.append(b"")
                self._ended.append(False)
                self._changed.notify_all()
            if self._reads:
                threading.Thread(target=self._read, args=(number, connection), daemon=True).start()

    def _read(self, number: int, connection: socket.socket) -> None:
        while True:
            try:
                data = connection.recv(1 << 16)
            except OSError:
                data = b""
            with self._changed:
                self._received[number] += data
                self._ended[number] = not data
                self._changed.notify_all()
            if not data:
                return

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, timeout=30), f"got {self._received} only"

    def lines(self, count: int, connection: int = 0, flush: Callable[[], object] | None = None) -> list[bytes]:
        """The lines of a connection, once there are as many; `flush` has the writer send what it holds."""
        deadline = time.monotonic() + 30
        while flush is not None and time.monotonic() < deadline:
            flush()
            with self._changed:
                if self._received and self._received[connection].count(b"\n") >= count:
                    break
                self._changed.wait(0.01)
        self._wait(lambda: len(self._received) > connection and self._received[connection].count(b"\n") >= count)
        return self._received[connection].splitlines()

    def hang_up(self, connection: int = 0) -> None:
        """Ends one connection, and goes on listening."""
        self._wait(lambda: len(self._sockets) > connection)
        self._sockets[connection].shutdown(socket.SHUT_RDWR)
        self._sockets[connection].close()

    def ended(self, connection: int = 0) -> list[bytes]:
        """The lines of a connection that its writer has ended."""
        self._wait(lambda: len(self._ended) > connection and self._ended[connection])
        return self._received[connection].splitlines()

    @property
    def connections(self) -> int:
        return len(self._sockets)

    def stop(self) -> None:
        """Ends everything, and frees the path."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.path.unlink()
