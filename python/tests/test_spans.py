"""Spans as a Python program uses them."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from warptrace import spans


@pytest.fixture
def kept() -> Iterator[spans.MemoryExporter]:
    exporter = spans.MemoryExporter()
    spans.configure(exporters=[exporter])
    yield exporter
    spans.shutdown()


def finished(exporter: spans.MemoryExporter) -> dict[str, dict[str, Any]]:
    recorder = spans.global_recorder()
    assert recorder is None or recorder.flush()
    return {span["name"]: span for span in exporter.finished()}


def test_spans_nest_and_carry_what_was_said_of_them(kept: spans.MemoryExporter) -> None:
    with spans.span("outer", {"n": 1, "l": [1, 2], "none": None}) as outer:
        outer["n"] = 2
        outer.update({"x": 0.5, "deep": {"k": [True]}})
        spans.event("e", {"k": "v"})
        with spans.span("inner") as inner:
            assert inner.parent == outer
            assert spans.current_span() == inner
        assert spans.current_span() == outer
    assert spans.current_span() is None
    out = finished(kept)
    assert out["inner"]["parent_span_id"] == out["outer"]["span_id"]
    assert out["inner"]["trace_id"] == out["outer"]["trace_id"]
    attributes = out["outer"]["attributes"]
    assert attributes.pop("duration_msec") >= 0
    assert attributes == {"n": 2, "l": [1, 2], "none": None, "x": 0.5, "deep": {"k": [True]}}
    assert [(name, said) for name, _, said in out["outer"]["events"]] == [("e", {"k": "v"})]


def test_an_exception_passes_through_unchanged_and_is_recorded(kept: spans.MemoryExporter) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    for raised in (ValueError("bad"), Silent()):
        with pytest.raises(type(raised)) as caught, spans.span(type(raised).__name__):
            raise raised
        assert caught.value is raised
    out = finished(kept)
    assert out["ValueError"]["error"] == "ValueError: bad"
    assert "test_spans.py" in out["ValueError"]["events"][0][2]["exception_traceback"]
    assert out["Silent"]["error"] == "Silent"


def test_what_only_ends_the_program_is_no_error(kept: spans.MemoryExporter) -> None:
    with pytest.raises(KeyboardInterrupt), spans.span("interrupted"):
        raise KeyboardInterrupt
    assert finished(kept)["interrupted"]["error"] is None


def test_tasks_have_their_own_latest_span(kept: spans.MemoryExporter) -> None:
    async def work(name: str) -> None:
        with spans.span(name):
            await asyncio.sleep(0)
            with spans.span(f"in {name}"):
                await asyncio.sleep(0)

    async def all_of_them() -> None:
        with spans.span("root"):
            await asyncio.gather(work("a"), work("b"))

    asyncio.run(all_of_them())
    out = finished(kept)
    assert out["in a"]["parent_span_id"] == out["a"]["span_id"]
    assert out["in b"]["parent_span_id"] == out["b"]["span_id"]
    assert out["a"]["parent_span_id"] == out["root"]["span_id"]


def test_a_thread_begins_without_a_span_unless_it_runs_in_a_copied_context(kept: spans.MemoryExporter) -> None:
    def work(name: str) -> None:
        with spans.span(name):
            pass

    with spans.span("root"):
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=work, args=("alone",)),
            threading.Thread(target=context.run, args=(work, "copied")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    out = finished(kept)
    assert out["alone"]["parent_span_id"] is None
    assert out["copied"]["parent_span_id"] == out["root"]["span_id"]


def test_decorated_functions_are_spans(kept: spans.MemoryExporter) -> None:
    @spans.span("plain", {"k": 1})
    def plain(x: int) -> int:
        return x + 1

    @spans.span("async")
    async def later(x: int) -> int:
        return x + 1

    assert plain(1) == 2
    assert plain(2) == 3
    assert asyncio.run(later(3)) == 4
    names = [span["name"] for span in kept.finished()] if spans.global_recorder().flush() else []
    assert names == ["plain", "plain", "async"]
    assert plain.__name__ == "plain"


def test_without_a_recorder_nothing_happens() -> None:
    assert spans.global_recorder() is None
    with spans.span("x", {"k": object()}) as span:
        span["y"] = 1
        span.event("e")
        spans.event("f")
    assert not span.recorded


def test_a_value_that_cannot_be_had_costs_the_value_only_unless_asked_otherwise() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    kept = spans.MemoryExporter()
    recorder = spans.Recorder([kept])
    with recorder.span("a") as span:
        span["odd"] = Odd()
        span["mixed"] = [1, "a"]
        span["fine"] = 1
    assert recorder.flush()
    attributes = kept.finished()[0]["attributes"]
    assert attributes.pop("duration_msec") >= 0
    assert attributes == {"fine": 1}
    assert recorder.counts().failed_calls == 2
    strict = spans.Recorder([], on_error="raise")
    with strict.span("a") as span:
        with pytest.raises(spans.SpanError) as refused:
            span["mixed"] = [1, "a"]
        assert refused.value.code == "list_attribute_mixed_types"
        with pytest.raises(RuntimeError):
            span["odd"] = Odd()


class Listening(spans.Exporter):
    """Keeps what it hears of, and fails on demand."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.heard: list[str] = []
        self.fails = fails

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        if what.split()[0] in self.fails:
            raise OSError("on purpose")

    def start(self, span: spans.Span) -> None:
        self._hear(f"start {span.name}")

    def stop(self, span: spans.Span) -> None:
        assert not span.active
        self._hear(f"stop {span.name}")

    def event(self, event: spans.Event, span: spans.Span) -> None:
        self._hear(f"event {event.name} {span.name}")

    def error(self, event: spans.Event, span: spans.Span) -> None:
        self._hear(f"error {event.attributes['exception_type']} {span.name}")

    def data_error(self, event: spans.Event) -> None:
        self.heard.append(f"data_error {event.attributes['telemetry_data_error_type']}")

    def close(self) -> None:
        self._hear("close")


@pytest.mark.parametrize("direct", [True, False])
def test_an_exporter_in_python_hears_all_in_order(direct: bool) -> None:
    listening = Listening()
    recorder = spans.Recorder([listening], direct=direct)

    @recorder.span("a")
    def fails() -> None:
        current = recorder.current_span()
        assert current is not None
        current.event("e")
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    recorder.close()
    assert listening.heard == ["start a", "event e a", "error ValueError a", "stop a", "close"]


@pytest.mark.parametrize("direct", [True, False])
def test_an_exporter_that_raises_is_told_once_and_left_out(direct: bool) -> None:
    failing = Listening(fails=("start", "stop"))
    fine = Listening()
    recorder = spans.Recorder([failing, fine], direct=direct)
    for _ in range(10):
        with recorder.span("a"):
            pass
    recorder.close()
    assert failing.heard.count("data_error no_telemetry_data") == 1
    assert len(failing.heard) == 5 + 1 + 1
    assert len(fine.heard) == 21
    counts = recorder.counts()
    assert [(e.name, e.refused, e.disabled) for e in counts.exporters] == [
        ("Listening", 20, True),
        ("Listening", 0, False),
    ]


def test_an_exporter_that_records_is_not_told_of_that() -> None:
    class Recursive(spans.Exporter):
        def start(self, span: spans.Span) -> None:
            with spans.span("from within"):
                pass

    recorder = spans.configure(exporters=[Recursive()])
    with spans.span("a"):
        pass
    assert recorder.flush()
    spans.shutdown()
    assert recorder.counts().from_exporters == 2


def test_after_close_calls_are_quiet() -> None:
    listening = Listening()
    recorder = spans.Recorder([listening])
    recorder.close()
    with recorder.span("late") as span:
        span["k"] = 1
    recorder.close()
    assert listening.heard == ["close", "close"]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )


def test_spans_that_are_open_at_the_end_of_the_program_are_stopped_and_exported() -> None:
    done = run(
        """
        from warptrace import spans
        class Printing(spans.Exporter):
            def stop(self, span): print("stop", span.name, flush=True)
            def close(self): print("close", flush=True)
        spans.configure(exporters=[Printing()])
        spans.span("outer").__enter__()
        spans.span("inner").__enter__()
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("stop inner\nstop outer\nclose\n", "", 0)


def test_a_forked_child_goes_on_in_the_middle_of_a_span() -> None:
    done = run(
        """
        import os, threading
        from warptrace import spans
        kept = spans.MemoryExporter()
        recorder = spans.configure(exporters=[kept])
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                with spans.span("busy"): pass
        threads = [threading.Thread(target=busy) for _ in range(4)]
        for t in threads: t.start()
        ids = []
        for round in range(20):
            with spans.span("forked") as span:
                read, write = os.pipe()
                pid = os.fork()
                if pid == 0:
                    with spans.span("child") as child:
                        assert child.parent == span
                        os.write(write, child.id.encode())
                    os._exit(0 if recorder.flush() else 1)
                ids.append(os.read(read, 100).decode())
                with spans.span("parent") as own:
                    ids.append(own.id)
                assert os.waitpid(pid, 0)[1] == 0, "the child"
        stop.set()
        for t in threads: t.join()
        assert len(set(ids)) == 40
        print("fine")
        """
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_many_threads_with_a_python_exporter_do_not_lock_each_other_out() -> None:
    listening = Listening()
    recorder = spans.Recorder([listening], direct=True)

    def work() -> None:
        for _ in range(200):
            with recorder.span("a") as span:
                span.event("e")

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert len(listening.heard) == 16 * 200 * 3 + 1


def test_a_parent_may_be_another_librarys(kept: spans.MemoryExporter) -> None:
    recorder = spans.global_recorder()
    span = recorder.start("a", parent=(0x1234, 0x5678))
    recorder.stop(span)
    out = finished(kept)["a"]
    assert (out["trace_id"], out["parent_span_id"]) == (0x1234, 0x5678)


def test_a_gigabyte_of_text_is_cut(kept: spans.MemoryExporter) -> None:
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 << 30:
        pytest.skip("less than 6 GiB of memory are free")
    with spans.span("huge") as span:
        span["text"] = "x" * (1 << 30)
    assert len(finished(kept)["huge"]["attributes"]["text"]) == 1 << 20


def test_opentelemetrys_spans_and_ours_are_each_others_parents(kept: spans.MemoryExporter) -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from warptrace.opentelemetry import context_with, span_in_context

    theirs = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(theirs))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("root"), span_in_context("ours") as ours:
        with tracer.start_as_current_span("inner", context=context_with(ours)):
            pass
        assert trace.get_current_span().get_span_context().span_id != ours.span_id
    assert not trace.get_current_span().get_span_context().is_valid
    root, inner = (next(s for s in theirs.get_finished_spans() if s.name == name) for name in ("root", "inner"))
    out = finished(kept)["ours"]
    assert (out["trace_id"], out["parent_span_id"]) == (root.context.trace_id, root.context.span_id)
    assert inner.context.trace_id == out["trace_id"]
    assert inner.parent is not None
    assert inner.parent.span_id == out["span_id"]
