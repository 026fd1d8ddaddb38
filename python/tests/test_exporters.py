"""The SDK's own exporters from Python, and configurations of exporters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from warptrace import exporters, spans


def record_two(recorder: spans.Recorder) -> None:
    with recorder.span("outer", {"x": float("nan"), "text": "ä"}), recorder.span("inner"):
        current = recorder.current_span()
        assert current is not None
        current.event("e", {"k": 1})
    recorder.close()


def test_a_file_of_spans_is_read_by_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    path = tmp_path / "spans-{pid}.jsonl"
    record_two(spans.Recorder([exporters.JsonlFile(path)]))
    written = tmp_path / f"spans-{os.getpid()}.jsonl"
    for line in written.read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    table = pandas.read_json(written, lines=True)
    assert list(table["type"]) == ["start", "start", "event", "stop", "stop"]
    stops = table[table["type"] == "stop"].set_index("name")
    starts = table[table["type"] == "start"].set_index("name")
    assert starts.loc["inner", "parent_id"] == starts.loc["outer", "id"]
    assert set(table["pid"]) == {os.getpid()}
    assert stops.loc["outer", "attributes"]["text"] == "ä"


def test_a_killed_program_leaves_what_began(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    program = f"""
        import time
        from warptrace import exporters, spans
        recorder = spans.configure(exporters=[exporters.JsonlFile({str(path)!r})])
        spans.span("open").__enter__()
        with spans.span("done"): pass
        assert recorder.flush()
        print("recorded", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "recorded\n"
        process.send_signal(signal.SIGKILL)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["type"], r["name"]) for r in records] == [("start", "open"), ("start", "done"), ("stop", "done")]


def test_a_file_that_cannot_be_written_is_an_error_at_once_and_a_full_one_is_counted(tmp_path: Path) -> None:
    with pytest.raises(spans.SpanError):
        spans.Recorder([exporters.JsonlFile("/proc/no/such/spans.jsonl")])
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    recorder = spans.Recorder([exporters.JsonlFile("/dev/full", each_record=True)])
    for _ in range(20):
        with recorder.span("a"):
            pass
    recorder.close()
    (counts,) = recorder.counts().exporters
    assert counts.refused + counts.lost + counts.dropped > 0


def test_exporters_have_names_and_wrong_ones_say_what_there_is() -> None:
    assert {"agent", "console", "file", "log", "memory", "otlp", "run_log"} <= set(exporters.registered())
    with pytest.raises(LookupError, match="file"):
        exporters.build("fiel")
    with pytest.raises(ValueError, match="paht"):
        exporters.create_exporter("file", {"path": "x", "paht": "y"})


def test_a_file_says_which_exporters_there_are_and_the_program_what_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "exporters.yaml"
    config.write_text(
        textwrap.dedent(
            f"""
            exporters:
              - class_name: file
                config: {{path: {tmp_path}/a.jsonl, keys: one_logger}}
              - class_name: os.system
                config: {{command: "touch {tmp_path}/harm"}}
              - class_name: console
                enabled: false
            """
        )
    )
    made = exporters.load(config, exporters=[{"class_name": "file", "config": {"path": f"{tmp_path}/b.jsonl"}}])
    assert len(made) == 1
    assert "os.system" in caplog.text
    record_two(spans.Recorder(made))
    assert not (tmp_path / "a.jsonl").exists()
    assert not (tmp_path / "harm").exists()
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert "parent_id" not in first
    monkeypatch.setenv("WARPTRACE_EXPORTERS_CONFIG", str(config))
    assert len(exporters.load()) == 1
    assert exporters.load(tmp_path / "missing.yaml") == []
    assert "missing.yaml" in caplog.text


def test_a_file_in_the_working_directory_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_logger_exporters_config.yaml").write_text("exporters: [{class_name: console}]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WARPTRACE_EXPORTERS_CONFIG", raising=False)
    assert exporters.load() == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_nobody_at_the_other_end_costs_the_spans_and_counts_them(protocol: str) -> None:
    recorder = spans.Recorder([exporters.Otlp("http://127.0.0.1:1", protocol=protocol, service_name="test")])  # type: ignore[arg-type]
    for _ in range(10):
        with recorder.span("a"):
            pass
    recorder.close(timeout_secs=0.2)
    # A request that was under way at the close is known to have failed a moment later.
    give_up = time.monotonic() + 30
    while (counts := recorder.counts().exporters[0]).lost < 10:
        assert time.monotonic() < give_up, (counts.lost, counts.refused, counts.dropped)
        time.sleep(0.01)
    assert (counts.lost, counts.refused, counts.dropped) == (10, 0, 0)


class Said(spans.Exporter):
    """Keeps what it is told of events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.stopped: list[str] = []

    def event(self, event: spans.Event, span: spans.Span) -> None:
        self.events.append((event.name, event.own_attributes))

    def stop(self, span: spans.Span) -> None:
        self.stopped.append(span.name)


def test_a_derived_exporter_is_told_running_averages_in_place_of_every_event() -> None:
    said = Said()
    asked: list[tuple[str, str]] = []

    def only(event: spans.Event, span: spans.Span) -> bool:
        asked.append((event.name, span.name))
        if event.name == "odd":
            raise RuntimeError("expected")
        return event.name != "step"

    running = [exporters.Running(event="step", attribute="loss", every=2, as_event="loss")]
    recorder = spans.Recorder([exporters.Derived(said, running=running, only=only)])
    with recorder.span("training") as span:
        for loss in (4.0, 2.0, float("nan"), 3):
            span.event("step", {"loss": loss})
        span.event("step", {"other": 1})
        span.event("saved")
        span.event("odd")
        span.event("step", {"loss": 7.0})
    recorder.close()
    averages = [(name, round(own["loss_avg"], 6), own["loss_min"], own["loss_max"]) for name, own in said.events[:1]]
    assert averages == [("loss", 3.0, 2.0, 4.0)]
    assert [name for name, _ in said.events] == ["loss", "saved", "odd", "loss"]
    last = said.events[-1][1]
    assert (last["loss_avg"], last["loss_min"], last["loss_max"], last["count"]) == (4.0, 2.0, 7.0, 4)
    assert said.stopped == ["training"]
    assert asked[0] == ("step", "training")


def test_a_native_exporter_is_derived_from_once() -> None:
    kept = spans.MemoryExporter()
    recorder = spans.Recorder([exporters.Derived(kept)])
    with recorder.span("a"):
        pass
    recorder.close()
    assert [span["name"] for span in kept.finished()] == ["a"]
    with pytest.raises(ValueError, match="already"):
        exporters.Derived(kept)
