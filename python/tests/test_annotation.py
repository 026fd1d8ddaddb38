"""warptrace.AnnotationWriter against recorders that listen, stall, come late and go."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Recorder

from warptrace import AnnotationWriter
from warptrace.annotation import encode_annotation


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "s")
    yield recorder
    recorder.stop()


def test_a_line_is_about_this_process_now_and_its_values_are_text(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    before = time.time_ns()
    assert writer.write({"step": 7, "lr": 0.5, "phase": "train", "last": True, "big": 1 << 80})
    after = time.time_ns()
    line = json.loads(recorder.lines(1)[0])
    assert line["labels"] == {"step": "7", "lr": "0.5", "phase": "train", "last": "True", "big": str(1 << 80)}
    assert line["pid"] == os.getpid()
    assert before <= line["ts"] <= after


def test_a_line_may_name_a_process_or_none_and_a_time(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    assert writer.write({"run_id": "r"}, pid=0, ts_ns=5)
    assert writer.write({"run_id": "r"}, pid=4711, ts_ns=-5)
    assert writer.span({"request_id": "q"}, start_ns=5, end_ns=9, pid=7)
    lines = recorder.lines(3)
    assert lines[0] == b'{"labels":{"run_id":"r"},"ts":5}'
    assert lines[1] == b'{"labels":{"run_id":"r"},"pid":4711,"ts":-5}'
    assert lines[2].startswith(b'{"labels":{"request_id":"q"},"pid":7,"span_end":9,"span_start":5,"ts":')


class Items:
    def items(self) -> list[tuple[str, int]]:
        return [("step", 1)]


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"a b": "1"},
        {"k": "x" * 257},
        {"k": "\n"},
        {"k": "\ud800"},
        {"k": Unreadable()},
        {str(n): "" for n in range(33)},
        None,
        5,
        ["step"],
        "step",
    ],
)
def test_what_is_against_the_protocol_is_dropped_counted_and_said_once(
    labels: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = AnnotationWriter(tmp_path / "nobody")
    with caplog.at_level(logging.INFO, "warptrace"):
        assert writer.write(labels) is False
        assert writer.write(labels) is False
    assert (writer.counts.refused, writer.counts.no_agent) == (2, 0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("pid", "ts_ns"), [(-1, 1), (1 << 32, 1), ("7", 1), (1, 1 << 63), (1, "now"), (1, 1.5)])
def test_numbers_out_of_range_are_dropped_and_counted(pid: Any, ts_ns: Any, recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    assert writer.write({"step": 1}, pid=pid, ts_ns=ts_ns) is False
    assert writer.span({"step": 1}, start_ns=2, end_ns=1) is False
    assert writer.span({"step": 1}, start_ns=0, end_ns=1) is False
    assert writer.counts.refused == 3


def test_any_mapping_will_do(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    assert writer.write(Items(), ts_ns=1, pid=0)  # type: ignore[arg-type]
    assert recorder.lines(1) == [b'{"labels":{"step":"1"},"ts":1}']


def test_what_ends_a_program_is_not_swallowed(tmp_path: Path) -> None:
    class Interrupted:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AnnotationWriter(tmp_path / "nobody").write({"k": Interrupted()})


def test_a_recorder_that_comes_later_is_found(tmp_path: Path) -> None:
    writer = AnnotationWriter(tmp_path / "s")
    assert not writer.write({"step": 1})
    recorder = Recorder(tmp_path / "s")
    assert writer.write({"step": 2}, pid=0, ts_ns=1)
    assert recorder.lines(1) == [b'{"labels":{"step":"2"},"ts":1}']
    assert (writer.counts.no_agent, writer.counts.sent, writer.counts.connections) == (1, 1, 1)
    recorder.stop()


def test_a_recorder_that_does_not_read_costs_lines_and_never_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "s", reads=False)
    writer = AnnotationWriter(recorder.path)
    while writer.write({"k": "x" * 256}):
        pass
    assert not writer.write({"k": "x" * 256})
    counts = writer.counts
    assert counts.full == 2
    assert counts.sent > 0
    assert [r.name for r in caplog.records] == ["warptrace"]
    recorder.stop()


def test_threads_never_interleave_lines(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)

    def work(n: int) -> None:
        for i in range(200):
            writer.write({"n": n, "i": i}, pid=0, ts_ns=1)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    counts = writer.counts
    lines = recorder.ended()
    assert counts.sent == len(lines)
    # What the socket had not taken when the writer was closed counts as lost.
    assert counts.sent + counts.full + counts.no_agent == 1600
    assert len({(json.loads(line)["labels"]["n"], json.loads(line)["labels"]["i"]) for line in lines}) == len(lines)


def test_a_forked_child_has_a_connection_of_its_own(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    assert writer.write({"who": "parent"}, pid=0, ts_ns=1)
    child = os.fork()
    if child == 0:
        os._exit(0 if writer.write({"who": "child"}, pid=0, ts_ns=1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.write({"who": "parent"}, pid=0, ts_ns=2)
    assert recorder.ended(1) == [b'{"labels":{"who":"child"},"ts":1}']
    assert len(recorder.lines(2)) == 2


def test_after_close_nothing_is_sent_and_all_is_counted(recorder: Recorder) -> None:
    with AnnotationWriter(recorder.path) as writer:
        assert writer.connect()
        assert writer.is_connected
    assert not writer.is_connected
    assert not writer.connect()
    assert not writer.write({"step": 1})
    assert writer.counts.closed == 1
    assert "closed=1" in repr(writer.counts)


def test_the_socket_that_the_environment_names_is_taken(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPTRACE_ANNOTATE_SOCKET", str(recorder.path))
    assert AnnotationWriter().write({"step": 1}, pid=0, ts_ns=1)
    assert recorder.lines(1) == [b'{"labels":{"step":"1"},"ts":1}']


def test_a_line_encoded_before_goes_as_it_is(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    line = encode_annotation({"step": "1"}, pid=7)
    assert line == b'{"labels":{"step":"1"},"pid":7}\n'
    assert writer.write_encoded(line)
    assert not writer.write_encoded(b"{}")
    assert recorder.lines(1) == [line[:-1]]
    assert encode_annotation({"step": 1}) is None
    assert encode_annotation({}) is None


def test_what_is_plain_is_encoded_and_sent_in_one_call(recorder: Recorder) -> None:
    writer = AnnotationWriter(recorder.path)
    assert writer.write_plain({"step": "1"}, 7) is True
    assert writer.write_plain({"step": 1}) is None
    assert writer.write_plain({"step": "x" * 1000}) is None
    assert recorder.lines(1) == [b'{"labels":{"step":"1"},"pid":7}']
    writer.close()
    assert writer.write_plain({"step": "1"}) is False


def test_a_long_path_is_nobody() -> None:
    assert not AnnotationWriter("x" * 500).connect()
    assert isinstance(socket.AF_UNIX, int)
