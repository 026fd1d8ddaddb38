"""The vectors of the annotation protocol that are about a Python writer, and the public names.

All run twice: against the package ``ingero-annotate`` itself and against ``warptrace.compat.ingero_annotate``.
"""

import collections
import inspect
import logging
import os
import re
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from support import Recorder, by_id, module_or_skip, vectors

from warptrace import AnnotationWriter

RECORDS = vectors("annotate.jsonl")
EXPECT = {r["id"]: r["expect"] for r in RECORDS if r["kind"] == "behaviour"}
TESTED_HERE = set()


@pytest.fixture(params=["ingero_annotate", "warptrace.compat.ingero_annotate"])
def api(request: pytest.FixtureRequest) -> Any:
    return module_or_skip(request.param)


class Text(str):
    """A subclass, as callers have them."""


def said(value: Any) -> Any:
    """A value of the vectors' own notation."""
    if isinstance(value, list):
        return [said(v) for v in value]
    if not isinstance(value, dict):
        return value
    key = next((k for k in value if k.startswith("$")), None)
    of = value.get(key)
    match key:
        case "$int":
            return int(of)
        case "$float":
            return float(of)
        case "$bytes":
            return bytes.fromhex(of)
        case "$repeat":
            return said(of[0]) * of[1]
        case "$concat":
            return "".join(said(part) for part in of)
        case "$codepoints":
            return "".join(map(chr, of))
        case "$tuple":
            return tuple(said(v) for v in of)
        case "$dict":
            return {said(k): said(v) for k, v in of}
        case "$strsubclass":
            return Text(said(of))
        case "$type":
            items = said(value["value"])
            return {
                "OrderedDict": collections.OrderedDict,
                "defaultdict": lambda d: collections.defaultdict(str, d),
                "mappingproxy": types.MappingProxyType,
                "UserDict": collections.UserDict,
            }[of](items)
    return {k: said(v) for k, v in value.items()}


def outcome(api: Any, record: dict[str, Any]) -> dict[str, Any]:
    arguments = {k: said(v) for k, v in record["input"].items()}
    try:
        line = api.encode_annotation(**arguments)
    except api.AnnotationError:
        return {"outcome": "rejected", "exception": "AnnotationError", "bytes": ""}
    except Exception as e:
        return {"outcome": "error", "exception": type(e).__name__, "bytes": ""}
    return {"outcome": "accepted", "bytes": line.decode("ascii"), "n_bytes": len(line)}


@pytest.mark.parametrize("record", by_id(RECORDS, "writer"))
def test_what_is_encoded(api: Any, record: dict[str, Any]) -> None:
    want = {k: v for k, v in record["writer"].items() if k != "reason"}
    got = outcome(api, record)
    assert {k: got[k] for k in want if k in got} == want


def test_our_writer_sends_the_same_labels(tmp_path: Path) -> None:
    """Process and time it says by itself; here they are none, and 5."""
    recorder = Recorder(tmp_path / "s")
    writer = AnnotationWriter(recorder.path)
    want = []
    for record in RECORDS:
        if record["kind"] != "writer" or record["writer"]["outcome"] != "accepted":
            continue
        line = re.sub(r'(,"pid":-?\d+)?(,"ts":-?\d+)?}\n$', ',"ts":5}\n', record["writer"]["bytes"])
        fits = len(line) <= 16384
        assert writer.write(said(record["input"]["labels"]), pid=0, ts_ns=5) is fits, record["id"]
        if fits:
            want.append(line.rstrip("\n").encode("ascii"))
    assert len(want) > 50
    assert recorder.lines(len(want), flush=writer.connect) == want
    recorder.stop()


def behaviour(id: str) -> Any:
    TESTED_HERE.add(id)
    return EXPECT.get(id) or pytest.skip(f"{id} is not among the vectors")


def step(n: int) -> dict[str, str]:
    return {"step": str(n)}


def test_ann_368_no_socket_at_construction(api: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expect = behaviour("ann-368")
    with caplog.at_level(logging.DEBUG, "ingero.annotate"):
        writer = api.AnnotationWriter(str(tmp_path / "none"))
        assert writer.active is expect["active"]
        assert [writer.write(step(1)), writer.write(step(2))] == expect["write_returns"]
    want = expect["log_records"]
    assert [(r.name, r.levelname) for r in caplog.records] == [(want["logger"], want["level"])] * want["count"]


def test_ann_370_the_path_is_a_regular_file(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-370")
    (tmp_path / "file").touch()
    assert api.AnnotationWriter(str(tmp_path / "file")).active is expect["active"]


def test_ann_373_close_is_idempotent_and_permanent(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-373")
    recorder = Recorder(tmp_path / "s")
    writer = api.AnnotationWriter(str(recorder.path))
    first = writer.write(step(1))
    writer.close()
    writer.close()
    assert [first, writer.write(step(2))] == expect["write_returns"]
    assert writer.active is expect["active_after_close"]
    assert len(recorder.ended()) == expect["lines_received"]
    assert recorder.connections == expect["connections_seen"]
    recorder.stop()


def test_ann_374_a_with_block_closes(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-374")
    recorder = Recorder(tmp_path / "s")
    with api.AnnotationWriter(str(recorder.path)) as writer:
        assert writer.active is expect["active_inside"]
    assert writer.active is expect["active_after"]
    recorder.stop()


def test_ann_375_the_peer_hangs_up_and_goes_on_listening(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-375")
    recorder = Recorder(tmp_path / "s")
    writer = api.AnnotationWriter(str(recorder.path))
    returns = [writer.write(step(1))]
    recorder.lines(1)
    recorder.hang_up()
    returns.append(writer.write(step(2)))
    assert returns == expect["write_returns"]
    got = [[line.decode() for line in recorder.lines(1, connection=n)] for n in range(expect["connections_seen"])]
    assert got == expect["received_per_connection"]
    assert writer.active is expect["active"]
    recorder.stop()


def test_ann_377_the_server_is_started_again(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-377")
    recorder = Recorder(tmp_path / "s")
    writer = api.AnnotationWriter(str(recorder.path))
    returns = [writer.write(step(1))]
    recorder.lines(1)
    recorder.stop()
    recorder = Recorder(tmp_path / "s")
    returns.append(writer.write(step(2)))
    assert returns == expect["write_returns"]
    assert [line.decode() for line in recorder.lines(1)] == expect["new_server_received"]
    recorder.stop()


def test_ann_379_a_line_that_the_peer_never_read_is_lost(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-379")
    recorder = Recorder(tmp_path / "s", reads=False)
    writer = api.AnnotationWriter(str(recorder.path))
    returns = [writer.write(step(1))]
    recorder.hang_up()
    recorder._reads = True
    returns.append(writer.write(step(2)))
    assert returns == expect["write_returns"]
    assert [line.decode() for line in recorder.lines(1, connection=1)] == expect["received"]
    recorder.stop()


def test_ann_381_threads_never_interleave_lines(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-381")
    recorder = Recorder(tmp_path / "s")
    writer = api.AnnotationWriter(str(recorder.path))

    def work(n: int) -> None:
        for i in range(200):
            # Ours does not wait for a reader that falls behind, and says so; this reader does not.
            while not writer.write({"n": str(n), "i": str(i)}):
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Ours holds what the socket does not take at once, and sends it with the next line.
    held = getattr(writer, "_writer", None)
    recorder.lines(expect["whole_lines_received"], flush=held.connect if held else None)
    writer.close()
    lines = recorder.ended()
    assert len(set(lines)) == len(lines) == expect["whole_lines_received"]
    assert recorder.connections == expect["connections_seen"]
    recorder.stop()


def test_ann_383_there_are_no_spans(api: Any) -> None:
    expect = behaviour("ann-383")
    assert hasattr(api.AnnotationWriter, "write_span") is expect["has_write_span"]
    with pytest.raises(TypeError):
        api.encode_annotation(step(1), span_start=1)


def test_ann_384_positional_arguments(api: Any, tmp_path: Path) -> None:
    expect = behaviour("ann-384")
    recorder = Recorder(tmp_path / "s")
    writer = api.AnnotationWriter(str(recorder.path))
    assert writer.write(step(1), 7, 9)
    assert recorder.lines(1)[0].decode() == expect["line"]
    recorder.stop()


def test_ann_385_the_default_path(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expect = behaviour("ann-385")
    if os.path.exists("/run/ingero/annotate.sock"):
        pytest.skip("somebody listens at /run/ingero/annotate.sock here")
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("WARPTRACE_ANNOTATE_SOCKET", raising=False)
    assert api.default_socket_path() == expect["returns"]
    assert api.AnnotationWriter().socket_path == expect["returns"]
    assert api.AnnotationWriter("").socket_path == expect["returns"]
    assert api.AnnotationWriter("/other").socket_path == "/other"


def test_ann_387_the_callers_labels_are_left_alone(api: Any) -> None:
    expect = behaviour("ann-387")
    labels = {"b": "1", "a": "2"}
    api.encode_annotation(labels)
    assert list(labels.items()) == list(expect["labels_after"].items())


def test_ann_388_constants(api: Any) -> None:
    expect = behaviour("ann-388")
    assert {name: getattr(api, name) for name in expect} == expect


def test_every_behaviour_among_the_vectors_is_tested() -> None:
    assert set(EXPECT) <= TESTED_HERE


def test_signatures(api: Any) -> None:
    def parameters(of: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(of).parameters.values()]

    empty = inspect.Parameter.empty
    assert parameters(api.AnnotationWriter) == [("socket_path", None), ("connect_timeout", 2.0)]
    assert parameters(api.AnnotationWriter.write)[1:] == [("labels", empty), ("pid", None), ("ts_ns", None)]
    assert parameters(api.encode_annotation) == [("labels", empty), ("pid", None), ("ts_ns", None)]
    for name in ["validate_labels", "is_valid_label_key", "default_socket_path", "now_ns"]:
        assert callable(getattr(api, name))
    assert issubclass(api.AnnotationError, ValueError)
    assert api.logger.name == "ingero.annotate"


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("step", True),
        ("a.b-c_9", True),
        ("..", True),
        ("", False),
        ("a b", False),
        ("é", False),
        ("x" * 64, True),
        ("x" * 65, False),
        ("step\n", False),
        ("\u0661", False),
    ],
)
def test_keys(api: Any, key: str, valid: bool) -> None:
    assert api.is_valid_label_key(key) is valid


@pytest.mark.parametrize("labels", [{}, None, [], "", 0, {"k": 1}, {1: "v"}, {"k": None}, {"k": "\x7f"}])
def test_labels_that_are_refused(api: Any, labels: Any) -> None:
    with pytest.raises(api.AnnotationError):
        api.validate_labels(labels)


def test_labels_that_are_taken(api: Any) -> None:
    assert api.validate_labels({"k": "v", "e": "", "u": "\u2028é🚀"}) is None


def test_errors_are_raised_also_when_nobody_listens(api: Any, tmp_path: Path) -> None:
    writer = api.AnnotationWriter(str(tmp_path / "none"))
    with pytest.raises(api.AnnotationError):
        writer.write({})
    writer.close()
    with pytest.raises(api.AnnotationError):
        writer.write({"k": "x" * 257})


def test_now_is_unix_time_in_nanoseconds(api: Any) -> None:
    assert type(api.now_ns()) is int
    assert api.now_ns() > 1_700_000_000_000_000_000
