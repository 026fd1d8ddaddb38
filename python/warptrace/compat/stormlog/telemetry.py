"""``stormlog.telemetry`` 0.4.3: records of any version, sessions and projected records.

What its functions take and give is the same, and so are their errors; documents and folders are read by our own
decoder. Where that package's own code fails by accident (a KeyError for a record without metadata), ours is a
ValueError.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from warptrace._native import memory_identity, memory_projected, memory_record, memory_sessions
from warptrace.compat.stormlog.session import (
    SessionSummary,
    select_default_loaded_session,
    session_summary_from_dict,
)

__all__ = [
    "SCHEMA_VERSION_LATEST",
    "SCHEMA_VERSION_V2",
    "SCHEMA_VERSION_V3",
    "SCHEMA_VERSION_V4",
    "LoadedTelemetrySession",
    "ProjectedTelemetryRecord",
    "TelemetryEvent",
    "TelemetryEventLike",
    "TelemetryEventV2",
    "TelemetryEventV3",
    "TelemetryEventV4",
    "load_telemetry_events",
    "load_telemetry_sessions",
    "project_telemetry_event",
    "project_telemetry_events",
    "resolve_distributed_identity",
    "telemetry_event_from_record",
    "telemetry_event_to_dict",
    "validate_telemetry_record",
]

SCHEMA_VERSION_V2 = 2
SCHEMA_VERSION_V3 = 3
SCHEMA_VERSION_V4 = 4
SCHEMA_VERSION_LATEST = SCHEMA_VERSION_V4
UNKNOWN_PID = -1
UNKNOWN_HOST = "unknown"

REQUIRED_V2_FIELDS = (
    "schema_version",
    "timestamp_ns",
    "event_type",
    "collector",
    "sampling_interval_ms",
    "pid",
    "host",
    "device_id",
    "allocator_allocated_bytes",
    "allocator_reserved_bytes",
    "allocator_active_bytes",
    "allocator_inactive_bytes",
    "allocator_change_bytes",
    "device_used_bytes",
    "device_free_bytes",
    "device_total_bytes",
    "context",
    "metadata",
)
REQUIRED_V3_FIELDS = ("schema_version", "session_id", *REQUIRED_V2_FIELDS[1:])
REQUIRED_V4_FIELDS = REQUIRED_V3_FIELDS
OPTIONAL_V2_FIELDS = ("job_id", "rank", "local_rank", "world_size")
OPTIONAL_V3_FIELDS = OPTIONAL_V2_FIELDS
OPTIONAL_V4_FIELDS = OPTIONAL_V2_FIELDS
KNOWN_V2_FIELD_SET = frozenset(REQUIRED_V2_FIELDS + OPTIONAL_V2_FIELDS)
KNOWN_V3_FIELD_SET = frozenset(REQUIRED_V3_FIELDS + OPTIONAL_V3_FIELDS)
KNOWN_V4_FIELD_SET = KNOWN_V3_FIELD_SET


@dataclasses.dataclass
class TelemetryEventV2:
    """A record of version 2."""

    schema_version: Literal[2]
    timestamp_ns: int
    event_type: str
    collector: str
    sampling_interval_ms: int
    pid: int
    host: str
    device_id: int
    allocator_allocated_bytes: int
    allocator_reserved_bytes: int
    allocator_active_bytes: int | None
    allocator_inactive_bytes: int | None
    allocator_change_bytes: int
    device_used_bytes: int
    device_free_bytes: int | None
    device_total_bytes: int | None
    context: str | None
    job_id: str | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TelemetryEventV3:
    """A record of version 3, which names its session."""

    schema_version: Literal[3]
    session_id: str
    timestamp_ns: int
    event_type: str
    collector: str
    sampling_interval_ms: int
    pid: int
    host: str
    device_id: int
    allocator_allocated_bytes: int
    allocator_reserved_bytes: int
    allocator_active_bytes: int | None
    allocator_inactive_bytes: int | None
    allocator_change_bytes: int
    device_used_bytes: int
    device_free_bytes: int | None
    device_total_bytes: int | None
    context: str | None
    job_id: str | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TelemetryEventV4:
    """A record of version 4, in which any counter may be unknown."""

    schema_version: Literal[4]
    session_id: str
    timestamp_ns: int
    event_type: str
    collector: str
    sampling_interval_ms: int
    pid: int
    host: str
    device_id: int
    allocator_allocated_bytes: int | None
    allocator_reserved_bytes: int | None
    allocator_active_bytes: int | None
    allocator_inactive_bytes: int | None
    allocator_change_bytes: int | None
    device_used_bytes: int | None
    device_free_bytes: int | None
    device_total_bytes: int | None
    context: str | None
    job_id: str | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


TelemetryEvent = TelemetryEventV4
TelemetryEventLike: TypeAlias = TelemetryEventV2 | TelemetryEventV3 | TelemetryEventV4


@dataclasses.dataclass(frozen=True)
class ProjectedTelemetryRecord:
    """A record as the view of it that no backend shows in; it does not change."""

    schema_version: Literal[1]
    record_id: str
    timestamp_ns: int
    observed_timestamp_ns: int
    session_id: str
    source_kind: str
    event_type: str
    stage: str | None
    severity: str | None
    severity_text: str | None
    body: str | None
    resource: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    correlation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("resource", "attributes", "correlation"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(v) for key, v in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_thawed(v) for v in value]
    return value


@dataclasses.dataclass
class LoadedTelemetrySession:
    """A session with its events, in order of time."""

    summary: SessionSummary
    events: list[TelemetryEventV4]
    sources_loaded: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def telemetry_records(self) -> list[ProjectedTelemetryRecord]:
        return project_telemetry_events(self.events)

    def resources(self) -> list[dict[str, Any]]:
        """What the records say of their resource, each once, in the order in which they say it."""
        return _distinct(record.resource for record in self.telemetry_records())

    def correlations(self) -> list[dict[str, Any]]:
        """What the records say of their correlation, likewise."""
        return _distinct(record.correlation for record in self.telemetry_records())


def _distinct(values: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    distinct: list[dict[str, Any]] = []
    for value in values:
        thawed = _thawed(value)
        if thawed not in distinct:
            distinct.append(thawed)
    return distinct


def telemetry_event_from_record(
    record: Mapping[str, Any],
    permissive_legacy: bool = True,
    default_collector: str = "legacy.unknown",
    default_sampling_interval_ms: int = 0,
    default_session_id: str | None = None,
) -> TelemetryEventV4:
    """A record of any version, in the newest form; raises ValueError with the first rule that it breaks."""
    return TelemetryEventV4(
        **memory_record(
            record,
            permissive_legacy=permissive_legacy,
            default_collector=default_collector,
            default_sampling_interval_ms=default_sampling_interval_ms,
            default_session_id=default_session_id,
        )
    )


def telemetry_event_to_dict(event: TelemetryEventLike) -> dict[str, Any]:
    """A record as a dict, once it has been found right; raises ValueError otherwise."""
    # A version has the fields of its class; an attribute that is none is no field.
    record = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    required = REQUIRED_V2_FIELDS if event.schema_version == SCHEMA_VERSION_V2 else REQUIRED_V3_FIELDS
    ordered = {name: record[name] for name in _ORDER if name in record}
    if missing := [name for name in required if name not in ordered]:
        raise ValueError(f"Missing required telemetry fields: {', '.join(missing)}")
    validate_telemetry_record(ordered)
    return ordered


# Of a record as it is written.
_ORDER = (*REQUIRED_V3_FIELDS[:8], *OPTIONAL_V2_FIELDS, *REQUIRED_V3_FIELDS[8:])


def validate_telemetry_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError with the first rule of its version that a record breaks."""
    version = record.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError("schema_version must be an integer")
    if version not in (SCHEMA_VERSION_V2, SCHEMA_VERSION_V3, SCHEMA_VERSION_V4):
        raise ValueError(f"Unsupported schema_version: {version}")
    required = REQUIRED_V2_FIELDS if version == SCHEMA_VERSION_V2 else REQUIRED_V3_FIELDS
    known = KNOWN_V2_FIELD_SET if version == SCHEMA_VERSION_V2 else KNOWN_V3_FIELD_SET
    if missing := [name for name in required if name not in record]:
        raise ValueError(f"Missing required telemetry fields: {', '.join(missing)}")
    if unknown := sorted(name for name in record if name not in known):
        raise ValueError(f"Unknown telemetry fields: {', '.join(unknown)}")
    if version != SCHEMA_VERSION_V2:
        # An upgrade would make one where there is none.
        session_id = record["session_id"]
        if session_id is None or (isinstance(session_id, str) and not session_id.strip()):
            raise ValueError("session_id must be a non-empty string")
        if not isinstance(session_id, str):
            raise ValueError("session_id must be a string")
    metadata = record["metadata"]
    if version == SCHEMA_VERSION_V4 and isinstance(metadata, Mapping) and "memory_capabilities" not in metadata:
        # An upgrade would conclude them; what comes before them in the order of rules is said first.
        memory_record(record)
        raise ValueError("metadata.memory_capabilities must be an object")
    memory_record(record)


def resolve_distributed_identity(
    *,
    job_id: Any = None,
    rank: Any = None,
    local_rank: Any = None,
    world_size: Any = None,
    metadata: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Who a process is among those of its job; raises ValueError for what cannot be."""
    stated = {"job_id": job_id, "rank": rank, "local_rank": local_rank, "world_size": world_size}
    return memory_identity(stated, metadata=metadata, env=None if env is None else dict(env))


def project_telemetry_event(event: TelemetryEventLike | Mapping[str, Any]) -> ProjectedTelemetryRecord:
    """A record, or an event, as the view of it that no backend shows in."""
    record = event if isinstance(event, Mapping) else dataclasses.asdict(event)
    return ProjectedTelemetryRecord(**memory_projected(record))


def project_telemetry_events(
    events: Iterable[TelemetryEventLike | Mapping[str, Any]],
) -> list[ProjectedTelemetryRecord]:
    return [project_telemetry_event(event) for event in events]


def load_telemetry_sessions(
    path: str | Path, permissive_legacy: bool = True, events_key: str | None = None
) -> list[LoadedTelemetrySession]:
    """All sessions of a file or a sink's folder, the one to look at first in front."""
    loaded = memory_sessions(os.fspath(path), permissive_legacy=permissive_legacy, events_key=events_key)
    return [
        LoadedTelemetrySession(
            summary=session_summary_from_dict(summary),
            events=[TelemetryEventV4(**event) for event in events],
            sources_loaded=sources,
            warnings=warnings,
        )
        for summary, events, sources, warnings in loaded
    ]


def load_telemetry_events(
    path: str | Path,
    permissive_legacy: bool = True,
    events_key: str | None = None,
    session_id: str | None = None,
) -> list[TelemetryEventV4]:
    """The events of one session: of ``session_id``, or of the one to look at first."""
    sessions = load_telemetry_sessions(path, permissive_legacy, events_key)
    if not sessions:
        return []
    if session_id is None:
        chosen = select_default_loaded_session(sessions)
    else:
        chosen = next((s for s in sessions if s.summary.session_id == session_id), None)
        if chosen is None:
            raise ValueError(f"Requested session_id not found: {session_id}")
    return list(chosen.events) if chosen is not None else []
