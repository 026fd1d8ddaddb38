"""GPU memory of this process and of its devices, sampled beside the job.

>>> with MemoryTracker("memory/") as tracker:  # doctest: +SKIP
...     train()

A thread of its own samples what PyTorch's allocator holds (once the job has imported torch and begun to use CUDA;
nothing is imported or begun for it) and what the driver says of the device, for all processes. Both are kept apart:
neither is derived from the other, and what is not known is None. The folder is read by ``warptrace memory``,
``load_memory`` and stormlog.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from warptrace._native import MemorySink, Nvml, memory_identity

__all__ = ["MemorySink", "MemoryTracker"]

_logger = logging.getLogger("warptrace")

_COLLECTOR = "warptrace.memory_tracker"
_CAPABILITIES = (
    "supports_allocator_allocated",
    "supports_allocator_reserved",
    "supports_allocator_active",
    "supports_allocator_inactive",
    "supports_device_used",
    "supports_device_free",
    "supports_device_total",
    "supports_native_allocator_history",
    "supports_fragmentation_analysis",
    "supports_allocator_attribution",
    "supports_bounded_profiling",
)
_COUNTERS = (
    "allocator_allocated_bytes",
    "allocator_reserved_bytes",
    "allocator_active_bytes",
    "allocator_inactive_bytes",
    "device_used_bytes",
    "device_free_bytes",
    "device_total_bytes",
)


class MemoryTracker:
    """Samples GPU memory until it is stopped; also a context manager. Never raises into the job.

    folder: where to write; None keeps the last ``max_events`` only.
    interval_secs: between two samples.
    devices: CUDA indexes, as this process sees them; all when not given.
    source: ``auto``, ``torch`` (the allocator and the driver), or ``nvml`` (the driver alone).
    job_id, rank, local_rank, world_size: what launchers say in the environment when not given.
    nvml_library: another path than the linker's libnvidia-ml.so.1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        interval_secs: float = 0.1,
        devices: list[int] | None = None,
        source: str = "auto",
        job_id: str | None = None,
        rank: int | None = None,
        local_rank: int | None = None,
        world_size: int | None = None,
        max_events: int = 10_000,
        rollover_max_bytes: int = 64 << 20,
        retention_max_files: int = 8,
        retention_max_total_bytes: int = 512 << 20,
        nvml_library: str | None = None,
    ) -> None:
        if source not in ("auto", "torch", "nvml"):
            raise ValueError(f"source {source!r} is not auto, torch or nvml")
        if not interval_secs > 0:
            raise ValueError("interval_secs must be > 0")
        if max_events < 1:
            raise ValueError("max_events must be >= 1")
        self._folder = folder
        self._interval_secs = interval_secs
        self._devices = devices
        self._source = source
        self._stated = {"job_id": job_id, "rank": rank, "local_rank": local_rank, "world_size": world_size}
        self._sink_options = {
            "rollover_max_bytes": rollover_max_bytes,
            "retention_max_files": retention_max_files,
            "retention_max_total_bytes": retention_max_total_bytes,
        }
        self._nvml_library = nvml_library
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=max_events)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._pid = 0
        self._sink: MemorySink | None = None
        self._last_sink: MemorySink | None = None
        self._session: dict[str, Any] = {}
        self._failures = 0
        self._last_error: str | None = None
        self._sampler: _Sampler | None = None

    def start(self) -> MemoryTracker:
        """Begins a session; does nothing while one runs."""
        with self._lock:
            if self._thread is not None and self._pid == os.getpid():
                return self
            self._pid = os.getpid()
            self._stopping = threading.Event()
            self._sink = self._open_sink()
            self._last_sink = self._sink
            self._session = self._begin_session()
            self._sampler = _Sampler(self._source, self._devices, self._nvml_library)
            self._thread = threading.Thread(
                target=self._run, args=(self._sampler, self._stopping), name="wt-memory", daemon=True
            )
            self._thread.start()
        atexit.register(self.stop)
        return self

    def stop(self, *, status: str = "completed", timeout_secs: float = 5.0) -> None:
        """Ends the session, and waits until all is on the disk, or for ``timeout_secs``."""
        with self._lock:
            thread, sink = self._thread, self._sink
            self._thread, self._sink = None, None
        # A forked child has neither the thread nor the session of its parent.
        if thread is None or self._pid != os.getpid():
            return
        atexit.unregister(self.stop)
        self._stopping.set()
        thread.join(timeout_secs)
        if sink is not None:
            with self._quietly("the session was not ended"):
                if not sink.close(status, timeout_secs=timeout_secs):
                    self._fail("the session was not ended in time")

    def __enter__(self) -> MemoryTracker:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.stop()
        else:
            self.stop(status="interrupted" if issubclass(exc_type, KeyboardInterrupt) else "incomplete")

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._pid == os.getpid()

    @property
    def session_id(self) -> str | None:
        """Of the session that was begun last."""
        return self._session.get("session_id")

    @property
    def sources(self) -> tuple[str, ...]:
        """What answers: of ``torch`` and ``nvml``, those that have so far."""
        return () if self._sampler is None else self._sampler.sources

    @property
    def counts(self) -> dict[str, Any]:
        """Events that were kept, what became of those for the disk, and samples that failed with the last reason."""
        sink = self._last_sink
        counts: dict[str, Any] = dict(sink.counts) if sink is not None else {}
        return {"events": len(self._events), "failures": self._failures, **counts, "last_failure": self._last_error}

    def events(self) -> list[dict[str, Any]]:
        """The last ``max_events`` events, as records of the telemetry format."""
        return list(self._events)

    def latest(self, device: int | None = None) -> dict[str, Any] | None:
        """The last sample, of one device or of any."""
        for event in reversed(list(self._events)):
            if event["event_type"] == "sample" and device in (None, event["device_id"]):
                return dict(event)
        return None

    def _open_sink(self) -> MemorySink | None:
        if self._folder is None:
            return None
        try:
            return MemorySink(self._folder, **self._sink_options)
        except (OSError, RuntimeError) as e:
            self._fail(f"memory samples are kept in memory only: {e}")
            return None

    def _begin_session(self) -> dict[str, Any]:
        try:
            identity = memory_identity(self._stated, env=dict(os.environ))
        except ValueError as e:
            self._fail(f"rank and world size of memory samples are not known: {e}")
            identity = {"job_id": None, "rank": 0, "local_rank": 0, "world_size": 1}
        if self._sink is not None:
            return self._sink.start_session(_COLLECTOR, identity)
        import uuid  # Not needed by those who write a folder.

        host = os.uname().nodename or "unknown"
        return {"session_id": str(uuid.uuid4()), "host": host, "pid": os.getpid(), **identity}

    def _run(self, sampler: _Sampler, stopping: threading.Event) -> None:
        with self._quietly("the start was not written"):
            self._emit("start", "Memory tracking started", {}, None, {})
        due = time.monotonic()
        while not stopping.is_set():
            with self._quietly("a sample failed"):
                for sample in sampler.samples():
                    self._emit_sample(sample)
            # What took too long is left out, not caught up with.
            due = max(due + self._interval_secs, time.monotonic())
            stopping.wait(due - time.monotonic())
        with self._quietly("the end was not written"):
            self._emit("stop", "Memory tracking stopped", {}, None, {})

    def _emit_sample(self, sample: _Sample) -> None:
        if sample.new_peak_bytes is not None:
            self._emit("peak", None, sample.counters, sample, {"allocator_peak_bytes": sample.new_peak_bytes})
        self._emit("sample", None, sample.counters, sample, {})

    def _emit(
        self,
        event_type: str,
        context: str | None,
        counters: Mapping[str, int | None],
        sample: _Sample | None,
        metadata: Mapping[str, Any],
    ) -> None:
        session = self._session
        event = {
            "schema_version": 4,
            "session_id": session["session_id"],
            "timestamp_ns": time.time_ns() if sample is None else sample.unix_ns,
            "event_type": event_type,
            "collector": _COLLECTOR,
            "sampling_interval_ms": round(self._interval_secs * 1000),
            "pid": session["pid"],
            "host": session["host"],
            "job_id": session["job_id"],
            "rank": session["rank"],
            "local_rank": session["local_rank"],
            "world_size": session["world_size"],
            "device_id": -1 if sample is None else sample.device,
            **dict.fromkeys(_COUNTERS),
            **counters,
            "allocator_change_bytes": None if sample is None else sample.change_bytes,
            "context": context,
            "metadata": {**(_nothing() if sample is None else sample.metadata), **metadata},
        }
        self._events.append(event)
        sink = self._sink or self._last_sink
        if sink is not None:
            sink.append(event)

    @contextlib.contextmanager
    def _quietly(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            self._fail(f"{what}: {type(e).__name__}: {e}")

    def _fail(self, what: str) -> None:
        self._failures += 1
        self._last_error = what
        if self._failures == 1:
            _logger.warning("%s (said once; MemoryTracker.counts has the number)", what)


class _Sample:
    """The levels of one device at one time."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.unix_ns = time.time_ns()
        self.counters: dict[str, int | None] = {}
        self.change_bytes: int | None = None
        self.new_peak_bytes: int | None = None
        self.metadata: dict[str, Any] = {}


class _Sampler:
    """Asks PyTorch and the driver. Used by one thread."""

    def __init__(self, source: str, devices: list[int] | None, library: str | None) -> None:
        self._devices = devices
        self._wants_torch = source != "nvml"
        self._nvml: Nvml | None = None
        self._no_nvml: str | None = None
        try:
            self._nvml = Nvml(library)
        except RuntimeError as e:
            self._no_nvml = str(e)
        self._nvml_index: dict[int, int | None] = {}
        self._allocated: dict[int, int] = {}
        self._peak: dict[int, int] = {}
        self._metadata: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._answered: dict[str, None] = {}
        self._said_nothing = False

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._answered)

    def samples(self) -> list[_Sample]:
        torch = _torch_with_cuda() if self._wants_torch else None
        if torch is not None:
            devices = self._devices if self._devices is not None else range(torch.cuda.device_count())
        elif self._nvml is not None:
            devices = self._devices if self._devices is not None else range(self._visible_count())
        else:
            if not self._said_nothing:
                self._said_nothing = True
                _logger.info("no GPU memory to sample yet: %s, and no PyTorch that uses CUDA", self._no_nvml)
            return []
        return [self._sample(device, torch) for device in devices]

    def _sample(self, device: int, torch: Any) -> _Sample:
        sample = _Sample(device)
        if torch is not None:
            self._ask_torch(sample, torch)
        self._ask_driver(sample, torch)
        sample.counters = {name: sample.counters.get(name) for name in _COUNTERS}
        # The same object for all samples that say the same: it is written once, and read once.
        backend = "cuda" if torch is None or not getattr(torch.version, "hip", None) else "rocm"
        known = tuple(name for name in _COUNTERS if sample.counters[name] is not None)
        key = (backend, known, *sorted(sample.metadata.items()))
        sample.metadata = self._metadata.setdefault(key, _metadata(backend, known, sample.metadata))
        if len(self._metadata) > 64:
            self._metadata.clear()
        return sample

    def _ask_torch(self, sample: _Sample, torch: Any) -> None:
        device = sample.device
        stats = torch.cuda.memory_stats(device)
        if not stats:
            return
        self._answered["torch"] = None
        allocated = stats.get("allocated_bytes.all.current")
        sample.counters |= {
            "allocator_allocated_bytes": allocated,
            "allocator_reserved_bytes": stats.get("reserved_bytes.all.current"),
            "allocator_active_bytes": stats.get("active_bytes.all.current"),
            "allocator_inactive_bytes": stats.get("inactive_split_bytes.all.current"),
        }
        if allocated is not None:
            before = self._allocated.get(device)
            sample.change_bytes = None if before is None else allocated - before
            self._allocated[device] = allocated
        # The allocator's own peak counter sees what came and went between two samples. It is the job's, and is not
        # reset here; when the job does, peaks count from there.
        peak = stats.get("allocated_bytes.all.peak")
        if peak is not None:
            before = self._peak.get(device, 0)
            self._peak[device] = peak
            if peak > before:
                sample.new_peak_bytes = peak

    def _ask_driver(self, sample: _Sample, torch: Any) -> None:
        index = self._index(sample.device, torch)
        if self._nvml is not None and index is not None:
            memory = self._nvml.memory(index)
            if memory is not None:
                self._answered["nvml"] = None
                used, free, total = memory
                # Some drivers hold back a part that is neither; the format wants both within the total.
                sample.counters |= {
                    "device_used_bytes": min(used, total),
                    "device_free_bytes": min(free, total),
                    "device_total_bytes": total,
                }
                return
        if torch is not None:
            free, total = torch.cuda.mem_get_info(sample.device)
            sample.counters |= {
                "device_used_bytes": total - free,
                "device_free_bytes": free,
                "device_total_bytes": total,
            }

    def _index(self, device: int, torch: Any) -> int | None:
        """NVML's index of a CUDA device: NVML knows nothing of CUDA_VISIBLE_DEVICES."""
        if self._nvml is None:
            return None
        if device not in self._nvml_index:
            self._nvml_index[device] = self._find(device, torch)
        return self._nvml_index[device]

    def _find(self, device: int, torch: Any) -> int | None:
        assert self._nvml is not None
        if torch is not None:
            uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "") or "")
            if uuid:
                wanted = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
                for index in range(self._nvml.device_count):
                    if self._nvml.uuid(index) == wanted:
                        return index
                return None
        visible = _visible_devices()
        if visible is None:
            return device if device < self._nvml.device_count else None
        if device >= len(visible):
            return None
        name = visible[device]
        if name.isdecimal():
            return int(name)
        for index in range(self._nvml.device_count):
            if (self._nvml.uuid(index) or "").startswith(name):
                return index
        return None

    def _visible_count(self) -> int:
        assert self._nvml is not None
        visible = _visible_devices()
        count = self._nvml.device_count
        return count if visible is None else min(len(visible), count)


def _visible_devices() -> list[str] | None:
    """CUDA_VISIBLE_DEVICES: indexes or UUIDs up to the first that is none; None when it is not set."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return None
    visible: list[str] = []
    for name in said.split(","):
        name = name.strip()
        if not name.isdecimal() and not name.startswith("GPU-"):
            break
        visible.append(name)
    return visible


def _torch_with_cuda() -> Any:
    """torch, if the job has imported it and begun to use CUDA: a sample must not make a context on a device."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    # While torch is being imported, it is there and has not all its names.
    if cuda is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return None
    return torch


def _nothing() -> dict[str, Any]:
    return _metadata("cuda", (), {})


def _metadata(backend: str, known: tuple[str, ...], more: Mapping[str, Any]) -> dict[str, Any]:
    supported = {f"supports_{name.removesuffix('_bytes')}": name in known for name in _COUNTERS}
    both = "allocator_allocated_bytes" in known and "allocator_reserved_bytes" in known
    inactive = "allocator_inactive_bytes" in known
    sources = ("torch.cuda.memory_stats",) * ("allocator_allocated_bytes" in known)
    sources += ("driver",) * ("device_used_bytes" in known)
    capabilities: dict[str, Any] = {
        "backend": backend,
        "telemetry_collector": _COLLECTOR,
        "sampling_source": "+".join(sources) or "none",
        **dict.fromkeys(_CAPABILITIES, False),
        **supported,
        "supports_fragmentation_analysis": both and inactive,
        "supports_allocator_attribution": both,
    }
    return {"backend": backend, "memory_capabilities": capabilities, **more}
