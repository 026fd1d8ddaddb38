"""Session summaries of ``stormlog.session``."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from warptrace._native import memory_legacy_id, memory_summary

SESSION_STATUS_RUNNING = "running"
SESSION_STATUS_COMPLETED = "completed"
SESSION_STATUS_INTERRUPTED = "interrupted"
SESSION_STATUS_INCOMPLETE = "incomplete"
SESSION_STATUSES = frozenset(
    {SESSION_STATUS_RUNNING, SESSION_STATUS_COMPLETED, SESSION_STATUS_INTERRUPTED, SESSION_STATUS_INCOMPLETE}
)

# In order of preference: the best to look at first.
_PREFERENCE = {
    status: place
    for place, status in enumerate(
        (SESSION_STATUS_COMPLETED, SESSION_STATUS_INTERRUPTED, SESSION_STATUS_INCOMPLETE, SESSION_STATUS_RUNNING)
    )
}


@dataclasses.dataclass(frozen=True)
class SessionSummary:
    """One run of a collector; times are Unix nanoseconds."""

    session_id: str
    status: str
    started_at_ns: int
    ended_at_ns: int | None
    host: str
    pid: int
    job_id: str | None = None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    source: str = "stormlog.session"


def now_ns() -> int:
    return time.time_ns()


def new_session_id() -> str:
    return str(uuid.uuid4())


def stable_legacy_session_id(*parts: object) -> str:
    """The id of what names no session: the same parts give the same id."""
    made = memory_legacy_id([part if isinstance(part, (str, int, float, type(None))) else str(part) for part in parts])
    if made is None:
        raise ValueError("no id can be made of these parts")
    return made


def normalize_session_status(value: object) -> str:
    """A status as it is written; raises ValueError for what is none."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("session status must be a non-empty string")
    status = value.strip().lower()
    if status not in SESSION_STATUSES:
        raise ValueError(f"Unsupported session status: {value}")
    return status


def create_session_summary(
    *,
    source: str,
    status: str = SESSION_STATUS_RUNNING,
    session_id: str | None = None,
    started_at_ns: int | None = None,
    ended_at_ns: int | None = None,
    host: str | None = None,
    pid: int | None = None,
    job_id: str | None = None,
    rank: int = 0,
    local_rank: int = 0,
    world_size: int = 1,
) -> SessionSummary:
    """A summary of this process, but for what is given."""
    return SessionSummary(
        session_id=session_id or new_session_id(),
        status=normalize_session_status(status),
        started_at_ns=now_ns() if started_at_ns is None else started_at_ns,
        ended_at_ns=ended_at_ns,
        host=host or socket.gethostname() or "unknown",
        pid=os.getpid() if pid is None else pid,
        job_id=job_id,
        rank=rank,
        local_rank=local_rank,
        world_size=max(world_size, 1),
        source=source,
    )


def finalize_session_summary(summary: SessionSummary, *, ended_at_ns: int | None = None) -> SessionSummary:
    """The summary at its end: what was running is completed, any other status stays."""
    status = SESSION_STATUS_COMPLETED if summary.status == SESSION_STATUS_RUNNING else summary.status
    return dataclasses.replace(summary, status=status, ended_at_ns=now_ns() if ended_at_ns is None else ended_at_ns)


def session_summary_to_dict(summary: SessionSummary) -> dict[str, Any]:
    return dataclasses.asdict(summary)


def session_summary_from_dict(payload: Mapping[str, Any]) -> SessionSummary:
    """Raises ValueError with the first rule that the payload breaks."""
    return SessionSummary(**memory_summary(payload))


def _order(summary: SessionSummary) -> tuple[int, int, int, str]:
    last = summary.ended_at_ns or summary.started_at_ns
    return (_PREFERENCE.get(summary.status, 99), -last, -summary.started_at_ns, summary.session_id)


def sort_session_summaries(summaries: Iterable[SessionSummary]) -> list[SessionSummary]:
    """The one to look at first in front."""
    return sorted(summaries, key=_order)


def select_default_loaded_session(sessions: Iterable[Any]) -> Any | None:
    """The first in order that has events, else the first in order; None of none."""
    ordered = sorted(sessions, key=lambda session: _order(session.summary))
    return next((session for session in ordered if session.events), ordered[0] if ordered else None)
