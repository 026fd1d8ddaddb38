"""record(): blocks that are recorded, with recorders that answer as real ones do."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class Capture:
    """A recorder that answers each request to resume, and each to pause."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.path = path
        self._answer = answer
        self._changed = threading.Condition()
        self._heard: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                with self._changed:
                    self._heard.append(line.strip())
                    self._changed.notify_all()
                connection.sendall(self._answer if line.startswith(b"resume") else b"paused\n")

    def heard(self, count: int) -> list[str]:
        """What was asked for, once there is as much."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._heard) >= count, timeout=30), f"got {self._heard} only"
            return [line.decode() for line in self._heard]

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def in_a_job(code: str, folder: Path) -> str:
    """What a process of its own prints, which finds recorders in `folder` alone: each remembers who listens."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "WARPTRACE_CAPTURE_SOCKET": str(folder / "c"),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def paused(tmp_path: Path) -> Iterator[Capture]:
    recorder = Capture(tmp_path / "c", b"resumed\n")
    yield recorder
    recorder.stop()


def test_a_paused_recorder_records_the_block_and_pauses_after_it(paused: Capture, tmp_path: Path) -> None:
    code = """
import warptrace
with warptrace.record() as r:
    print(r.answer)
    with warptrace.record() as inner:
        print(inner.answer)
print(r.answer)
with warptrace.record():
    pass
"""
    assert in_a_job(code, tmp_path).split() == ["resumed", "resumed", "None"]
    # Nested blocks are one.
    assert paused.heard(4) == ["resume/1", "pause/1"] * 2


def test_functions_and_coroutines_are_recorded_while_they_run(paused: Capture, tmp_path: Path) -> None:
    code = """
import asyncio, warptrace
@warptrace.record()
def add(a, *, b):
    "adds"
    return a + b
@warptrace.record()
async def wait(n):
    await asyncio.sleep(0)
    return n
print(add(1, b=2), add.__doc__, asyncio.run(wait(4)))
"""
    assert in_a_job(code, tmp_path).split() == ["3", "adds", "4"]
    assert paused.heard(4) == ["resume/1", "pause/1"] * 2


def test_an_exception_of_the_block_goes_on_and_the_recorder_pauses(paused: Capture, tmp_path: Path) -> None:
    code = """
import warptrace
try:
    with warptrace.record():
        raise KeyError("mine")
except KeyError as e:
    print(e)
"""
    assert in_a_job(code, tmp_path).strip() == "'mine'"
    assert paused.heard(2) == ["resume/1", "pause/1"]


@pytest.mark.parametrize(
    ("answer", "name", "words"),
    [(b"on\n", "on", 0), (b"refused\n", "refused", 1), (None, "nobody", 1)],
)
def test_what_is_not_recorded_is_said_once_and_runs_all_the_same(
    answer: bytes | None, name: str, words: int, tmp_path: Path
) -> None:
    recorder = None if answer is None else Capture(tmp_path / "c", answer)
    code = """
import logging, warptrace
logging.basicConfig(format="WARNED %(message)s")
for n in range(3):
    with warptrace.record() as r:
        print(r.answer, n)
"""
    out = in_a_job(code, tmp_path)
    answers = [line.split() for line in out.splitlines() if not line.startswith("WARNED")]
    # Afterwards it is remembered for a while that there is no recorder for this process.
    assert answers[0] == [name, "0"]
    assert [n for _, n in answers] == ["0", "1", "2"]
    assert out.count("WARNED record()") == words
    if recorder is not None:
        recorder.stop()
