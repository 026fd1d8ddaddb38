"""Loaders: what the tables hold, and that other packages take them as they are."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import module_or_skip, program

import warptrace
from warptrace import load_annotations, load_memory, load_run_log, load_session_table
from warptrace.tables import SESSION_TABLES


def rows(table: Any) -> list[dict[str, Any]]:
    return list(module_or_skip("pyarrow").table(table).to_pylist())


def test_annotations(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"labels":{"step":"1","epoch":"0"},"pid":7,"ts":5}\n'
        "not a line\n\n"
        '{"labels":{"request_id":"r"},"span_start":1,"span_end":9,"start_time":3}\n'
        '{"labels":{"a b":"1"}}'
    )
    table = load_annotations(file)
    assert table.skipped == {"json_syntax": 1, "bad_key": 1}
    assert table.column_names == ["ts_ns", "pid", "start_time", "span_start_ns", "span_end_ns", "labels"]
    assert len(table) == table.num_rows == 2
    first, second = rows(table)
    assert (first["ts_ns"], first["pid"], first["span_start_ns"]) == (5, 7, None)
    assert dict(first["labels"]) == {"epoch": "0", "step": "1"}
    assert (second["ts_ns"], second["pid"], second["start_time"]) == (None, None, 3)
    assert (second["span_start_ns"], second["span_end_ns"]) == (1, 9)
    assert "2 records left out" in repr(table)


def test_an_oversized_line_ends_the_table(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    line = '{"labels":{"step":"1"}}\n'
    file.write_text(line + "x" * 20_000 + "\n" + line)
    table = load_annotations(file)
    assert (len(table), table.skipped) == (1, {"line_too_long": 1})


def test_run_logs(tmp_path: Path) -> None:
    log = warptrace.RunLog(tmp_path / "log")
    log.request("early")
    log.run_start(model="m")
    log.request("m", prompt_tokens=3, completion_tokens=5, latency_micros=7, extra={"request_id": "r1"})
    log.error("m", status=503, code="overloaded")
    log.run_end()
    with (tmp_path / "log").open("a") as file:
        file.write("torn {\n")
    table = load_run_log(tmp_path / "log")
    assert table.skipped == {"corrupt": 1}
    early, start, request, error, end = rows(table)
    assert [r["run"] for r in (early, start, request, error, end)] == [0, 1, 1, 1, 1]
    assert (request["kind"], request["model"], request["request_id"]) == ("eval", "m", "r1")
    assert (request["prompt_tokens"], request["completion_tokens"], request["latency_micros"]) == (3, 5, 7)
    assert (error["kind"], error["status"], error["code"]) == ("error", 503, "overloaded")
    assert end["reason"] == "completed"
    assert json.loads(request["record"])["extra"]["request_id"] == "r1"


RECORD = {
    "timestamp_ns": 5,
    "session_id": "s",
    "memory_allocated": 7,
    "memory_reserved": 1 << 70,
    "device_used_bytes": 9,
    "total_memory": 100,
}


def test_memory(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    lines = [json.dumps(RECORD), "{", json.dumps({**RECORD, "session_id": "t", "context": "é"})]
    file.write_text("\n".join(lines) + "\n")
    table = load_memory(file)
    assert sum(table.skipped.values()) == 1 + 2
    assert table.skipped["integer_too_large"] == 2
    first, second = rows(table)
    assert (first["timestamp_ns"], first["allocator_allocated_bytes"], first["device_total_bytes"]) == (5, 7, 100)
    assert first["allocator_reserved_bytes"] is None
    assert first["allocator_active_bytes"] is None
    assert json.loads(first["metadata"])["memory_capabilities"]["supports_device_total"] is True
    assert (second["session_id"], second["context"]) == ("t", "é")
    assert [r["session_id"] for r in rows(load_memory(file, session_id="t"))] == ["t"]


def test_a_large_file_comes_in_batches(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text("".join(json.dumps({**RECORD, "timestamp_ns": n}) + "\n" for n in range(70_000)))
    table = load_memory(file)
    assert len(table) == 70_000
    column = module_or_skip("pyarrow").table(table)["timestamp_ns"]
    assert column.num_chunks == 2
    assert column.to_pylist() == list(range(70_000))


def test_other_packages_take_a_table_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text((json.dumps(RECORD) + "\n") * 3)
    table = load_memory(file)
    pyarrow = module_or_skip("pyarrow")
    taken = pyarrow.table(table)
    assert taken.num_rows == 3
    assert taken.schema == pyarrow.schema(table)
    again = pyarrow.table(table)
    # Without a copy: both look at the same memory.
    address = [t["timestamp_ns"].chunk(0).buffers()[1].address for t in (taken, again)]
    assert address[0] == address[1]
    del table
    assert taken["allocator_allocated_bytes"].to_pylist() == [7, 7, 7]


def test_polars(tmp_path: Path) -> None:
    module_or_skip("polars")
    file = tmp_path / "a.jsonl"
    file.write_text('{"labels":{"step":"1"},"ts":5}\n')
    frame = load_annotations(file).to_polars()
    assert frame["ts_ns"].to_list() == [5]


def test_pandas(tmp_path: Path) -> None:
    module_or_skip("pandas")
    module_or_skip("pyarrow")
    file = tmp_path / "a.jsonl"
    file.write_text('{"labels":{"step":"1"},"ts":5}\n')
    frame = load_annotations(file).to_pandas()
    assert frame["ts_ns"].tolist() == [5]


def test_duckdb(tmp_path: Path) -> None:
    duckdb = module_or_skip("duckdb")
    file = tmp_path / "a.jsonl"
    file.write_text('{"labels":{"step":"1"},"ts":5}\n{"labels":{"step":"2"},"ts":6}\n')
    lines = module_or_skip("pyarrow").table(load_annotations(file))
    assert lines.num_rows == 2
    assert duckdb.sql("select max(ts_ns) from lines").fetchall() == [(6,)]


@pytest.mark.parametrize("load", [load_annotations, load_memory, load_run_log])
def test_what_cannot_be_read_is_an_os_error_with_its_path(load: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


def test_an_empty_file_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").touch()
    for load in (load_annotations, load_memory, load_run_log):
        table = load(tmp_path / "e.jsonl")
        assert len(table) == 0
        assert rows(table) == []


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    for load in (load_annotations, load_memory, load_run_log):
        with pytest.raises((OSError, ValueError)):
            load(tmp_path / "p.jsonl")


def test_tables_of_a_recorded_session(tmp_path: Path) -> None:
    """A log of requests becomes a session by `warptrace ingest`; every table of it can be loaded."""
    log = warptrace.RunLog(tmp_path / "log.jsonl")
    log.run_start(model="m")
    for n in range(5):
        log.request("m", completion_tokens=n, latency_micros=1000)
    log.run_end()
    data = tmp_path / "data"
    subprocess.run([program(), "ingest", str(tmp_path / "log.jsonl"), "--data", str(data)], check=True, timeout=120)
    (session,) = (data / "sessions").iterdir()
    tables = {name: load_session_table(session, name) for name in SESSION_TABLES}
    assert len(tables["requests"]) == 5
    assert tables["requests"].unix_offset_ns is not None
    assert len(rows(tables["requests"])) == 5
    assert all(rows(table) == [] or len(table) for table in tables.values())
    with pytest.raises(ValueError, match="no table"):
        load_session_table(session, "nothing")
    with pytest.raises(ValueError, match="not a session"):
        load_session_table(tmp_path, "events")
