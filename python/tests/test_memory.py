"""warptrace.MemoryTracker on simgpu's driver, and against a stand-in for PyTorch's allocator counters."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from warptrace import MemoryTracker, load_memory
from warptrace.memory import MemorySink


def simulated_driver() -> str:
    """simgpu's libnvidia-ml.so.1, as a build of the programs leaves it."""
    for profile in ("debug", "release"):
        built = sorted((ROOT / "target" / profile / "build").glob("warptrace-*/out/guests/*/release/libsimgpu_nvml.so"))
        if built:
            return str(built[-1])
    pytest.skip("simgpu is not built (cargo build)")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    library = simulated_driver()
    monkeypatch.setenv("SIMGPU_STATE", str(tmp_path / "simgpu"))
    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    return library


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if result := happened():
            return result
        time.sleep(0.005)
    raise AssertionError("it did not happen in 30 s")


def test_the_driver_alone_is_sampled_into_a_folder(driver: str, tmp_path: Path) -> None:
    with MemoryTracker(tmp_path / "m", interval_secs=0.01, source="nvml", nvml_library=driver) as tracker:
        assert tracker.is_running
        sample = until(tracker.latest)
    assert not tracker.is_running
    assert tracker.sources == ("nvml",)
    assert sample["device_total_bytes"] > 0
    assert sample["device_used_bytes"] + sample["device_free_bytes"] <= sample["device_total_bytes"]
    # The allocator is another matter, and nobody asked it.
    assert sample["allocator_allocated_bytes"] is None
    assert sample["allocator_change_bytes"] is None
    counts = tracker.counts
    assert (counts["dropped"], counts["refused"], counts["failures"]) == (0, 0, 0)
    table = load_memory(tmp_path / "m")
    assert table.skipped == {}
    rows = table.to_arrow().to_pylist() if _has("pyarrow") else []
    if rows:
        assert [r["event_type"] for r in (rows[0], rows[-1])] == ["start", "stop"]
        assert {r["session_id"] for r in rows} == {tracker.session_id}
        assert rows[1]["device_total_bytes"] == sample["device_total_bytes"]
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [s["status"] for s in manifest["sessions"]] == ["completed"]


def _has(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def test_the_package_that_defines_the_format_reads_what_is_written(driver: str, tmp_path: Path) -> None:
    stormlog = pytest.importorskip("stormlog.telemetry", reason="stormlog is not installed")
    with MemoryTracker(tmp_path / "m", interval_secs=0.01, nvml_library=driver, rank=1, world_size=4) as tracker:
        until(tracker.latest)
    events = stormlog.load_telemetry_events(tmp_path / "m")
    assert events[0].event_type == "start"
    assert events[-1].event_type == "stop"
    assert {(e.rank, e.world_size, e.session_id) for e in events} == {(1, 4, tracker.session_id)}


def test_without_a_device_nothing_is_sampled_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "warptrace"):
        tracker = MemoryTracker(tmp_path / "m", interval_secs=0.01, nvml_library="libno-such.so").start()
        until(lambda: caplog.records)
        tracker.stop()
    assert len(caplog.records) == 1
    assert "no NVIDIA driver" in caplog.text
    assert tracker.latest() is None
    assert tracker.sources == ()
    assert [e["event_type"] for e in tracker.events()] == ["start", "stop"]
    assert tracker.counts["failures"] == 0


def torch_like(stats: dict[str, int], *, initialized: bool = True, uuid: str = "") -> Any:
    """What of PyTorch a sample asks: the allocator's counters and the device, without a device."""
    properties = types.SimpleNamespace(uuid=uuid)
    cuda = types.SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: 1,
        memory_stats=lambda device: dict(stats),
        mem_get_info=lambda device: (60, 100),
        get_device_properties=lambda device: properties,
    )
    return types.SimpleNamespace(cuda=cuda, version=types.SimpleNamespace(hip=None))


def allocator(current: int, peak: int) -> dict[str, int]:
    return {
        "allocated_bytes.all.current": current,
        "allocated_bytes.all.peak": peak,
        "reserved_bytes.all.current": 40,
        "active_bytes.all.current": current,
        "inactive_split_bytes.all.current": 2,
    }


def test_the_allocators_own_counter_shows_peaks_between_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = allocator(10, 10)
    monkeypatch.setitem(sys.modules, "torch", torch_like(stats))
    tracker = MemoryTracker(interval_secs=0.005, nvml_library="libno-such.so").start()
    first = until(tracker.latest)
    # 30 came and went; 12 stayed.
    stats.update(allocator(12, 30))
    until(lambda: len([e for e in tracker.events() if e["event_type"] == "peak"]) == 2)
    tracker.stop()
    assert first["allocator_allocated_bytes"] == 10
    assert first["allocator_change_bytes"] is None
    # Without NVML the driver is asked through CUDA.
    assert (first["device_used_bytes"], first["device_free_bytes"], first["device_total_bytes"]) == (40, 60, 100)
    peak = [e for e in tracker.events() if e["event_type"] == "peak"][-1]
    assert peak["metadata"]["allocator_peak_bytes"] == 30
    assert peak["allocator_allocated_bytes"] == 12
    assert peak["allocator_change_bytes"] == 2
    assert peak["metadata"]["memory_capabilities"]["supports_fragmentation_analysis"] is True
    assert tracker.counts["failures"] == 0


def test_a_context_on_the_device_is_never_begun_for_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = torch_like(allocator(1, 1), initialized=False)
    stub.cuda.memory_stats = stub.cuda.mem_get_info = lambda device: pytest.fail("asked")
    monkeypatch.setitem(sys.modules, "torch", stub)
    tracker = MemoryTracker(interval_secs=0.005, nvml_library="libno-such.so").start()
    until(lambda: tracker._sampler is not None and tracker._sampler._said_nothing)
    tracker.stop()
    assert tracker.latest() is None


def test_a_sample_that_fails_costs_a_sample_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub = torch_like(allocator(1, 1))

    def broken(device: int) -> dict[str, int]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    stub.cuda.memory_stats = broken
    monkeypatch.setitem(sys.modules, "torch", stub)
    tracker = MemoryTracker(interval_secs=0.005, nvml_library="libno-such.so").start()
    until(lambda: tracker.counts["failures"] > 3)
    tracker.stop()
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert "unspecified launch failure" in tracker.counts["last_failure"]


def test_a_device_is_found_by_its_uuid_and_not_by_its_index(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_like(allocator(1, 1), uuid="no-such-device"))
    tracker = MemoryTracker(interval_secs=0.005, nvml_library=driver).start()
    sample = until(tracker.latest)
    tracker.stop()
    # The driver knows no such device, so CUDA itself is asked.
    assert sample["device_total_bytes"] == 100


@pytest.mark.parametrize(("visible", "devices"), [("", 0), ("0", 1), ("7", 0), ("-1", 0), ("GPU-nobody", 0)])
def test_only_devices_that_this_process_may_use_are_sampled(
    visible: str, devices: int, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warptrace.memory import _Sampler

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    samples = _Sampler("nvml", None, driver).samples()
    assert len([s for s in samples if s.counters["device_total_bytes"] is not None]) == devices


def test_a_folder_that_another_writes_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = MemoryTracker(tmp_path / "m", nvml_library="libno-such.so").start()
    second = MemoryTracker(tmp_path / "m", nvml_library="libno-such.so").start()
    assert second.is_running
    assert "another process writes this folder" in caplog.text
    second.stop()
    first.stop()
    assert second.counts["failures"] == 1


def test_what_launchers_say_is_in_every_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with MemoryTracker(nvml_library="libno-such.so") as tracker:
        pass
    start = tracker.events()[0]
    assert (start["rank"], start["local_rank"], start["world_size"], start["job_id"]) == (3, 1, 8, "77")
    monkeypatch.setenv("RANK", "nine")
    with MemoryTracker(nvml_library="libno-such.so") as tracker:
        pass
    assert tracker.events()[0]["rank"] == 0
    assert "RANK" in tracker.counts["last_failure"] or "rank" in tracker.counts["last_failure"]


def test_a_forked_child_does_not_end_its_parents_session(tmp_path: Path) -> None:
    tracker = MemoryTracker(tmp_path / "m", nvml_library="libno-such.so").start()
    child = os.fork()
    if child == 0:
        tracker.stop()
        os._exit(0 if not tracker.is_running else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert tracker.is_running
    tracker.stop()
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [s["status"] for s in manifest["sessions"]] == ["completed"]


def test_a_program_that_ends_without_a_word_ends_its_session(tmp_path: Path) -> None:
    code = f"import warptrace; warptrace.MemoryTracker({str(tmp_path / 'm')!r}, nvml_library='libno-such.so').start()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [s["status"] for s in manifest["sessions"]] == ["completed"]


def test_an_exception_passes_through_and_the_session_is_incomplete(tmp_path: Path) -> None:
    tracker = MemoryTracker(tmp_path / "m", nvml_library="libno-such.so")
    with pytest.raises(KeyError), tracker:
        raise KeyError
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [s["status"] for s in manifest["sessions"]] == ["incomplete"]


@pytest.mark.parametrize(
    "wrong", [{"source": "rocm"}, {"interval_secs": 0}, {"interval_secs": float("nan")}, {"max_events": 0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MemoryTracker(**wrong)


def test_a_sink_takes_records_and_counts_what_is_none(tmp_path: Path) -> None:
    sink = MemorySink(tmp_path / "m")
    session = sink.start_session("a test", {"rank": 2, "world_size": 4})
    assert session["rank"] == 2
    assert sink.append({"memory_allocated": 1, "timestamp": 5.0, "session_id": session["session_id"]})
    assert not sink.append({"memory_allocated": "many", "timestamp": 5.0})
    assert not sink.append(object())  # type: ignore[arg-type]
    assert sink.close()
    assert sink.counts["refused"] == 2
    assert len(load_memory(tmp_path / "m")) == 1
    with pytest.raises(ValueError, match="rollover_max_bytes"):
        MemorySink(tmp_path / "n", rollover_max_bytes=0)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        MemorySink(tmp_path / "file")


def test_sampling_never_happens_in_the_thread_that_starts_it(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    stub = torch_like(allocator(1, 1))
    counters = stub.cuda.memory_stats
    stub.cuda.memory_stats = lambda device: seen.add(threading.current_thread().name) or counters(device)
    monkeypatch.setitem(sys.modules, "torch", stub)
    with MemoryTracker(interval_secs=0.005, nvml_library=driver) as tracker:
        until(tracker.latest)
    assert seen == {"wt-memory"}
