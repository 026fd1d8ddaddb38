//! GPU memory telemetry: levels of a device and of a process's allocator, as the job's own collectors said them.
//!
//! An event is in the form of the newest version of the format (v4 of the Python package `stormlog` 0.4.3); older forms are
//! upgraded where they are read, and say so. Absent is `None`, never 0. Nothing here knows how any of it is written.

use std::sync::Arc;

use crate::{Identity, Int, Object, UnixNanos, Value};

/// One event of a memory collector: a sample of counters, or something that happened, with the counters of the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryEvent {
    /// The form in which it was read.
    pub said: MemoryVersion,
    pub session_id: Arc<str>,
    /// Nanoseconds since the Unix epoch, not negative. See [`MemoryEvent::time`].
    pub timestamp_ns: Int,
    /// An open vocabulary, not blank. Collectors say `start`, `stop`, `sample`, `peak`, `allocation`, `deallocation`,
    /// `warning`, `critical`, `error`, `cleanup`, `collector_degraded`, `collector_recovered`, `phase_enter`, `phase_exit`.
    pub event_type: Arc<str>,
    /// Who measured, for example `stormlog.cuda_tracker`. Not blank.
    pub collector: Arc<str>,
    /// Not negative.
    pub sampling_interval_ms: Int,
    /// −1 when unknown.
    pub pid: Int,
    /// `unknown` when unknown.
    pub host: Arc<str>,
    pub identity: Identity,
    /// −1 for the CPU or none.
    pub device_id: Int,
    /// What the allocator's users hold. Not negative.
    pub allocator_allocated_bytes: Option<Int>,
    /// What the allocator holds from the device. Not negative.
    pub allocator_reserved_bytes: Option<Int>,
    /// Not negative.
    pub allocator_active_bytes: Option<Int>,
    /// Free blocks within segments in use (split blocks). Not negative.
    pub allocator_inactive_bytes: Option<Int>,
    /// Change of allocated since the sample before; any sign.
    pub allocator_change_bytes: Option<Int>,
    /// Not negative, at most the total.
    pub device_used_bytes: Option<Int>,
    /// Not negative, at most the total.
    pub device_free_bytes: Option<Int>,
    /// Not negative.
    pub device_total_bytes: Option<Int>,
    /// A text for people; may be empty.
    pub context: Option<Arc<str>>,
    /// Shared by events that say the same.
    pub metadata: Arc<Metadata>,
}

impl MemoryEvent {
    /// The time, if a clock can hold it (till the year 2554).
    pub fn time(&self) -> Option<UnixNanos> {
        self.timestamp_ns.to_u64().map(UnixNanos)
    }

    pub fn capabilities(&self) -> &Capabilities {
        &self.metadata.capabilities
    }

    /// Whether its type is exactly `sample`.
    pub fn is_sample(&self) -> bool {
        &*self.event_type == "sample"
    }
}

/// The forms of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryVersion {
    /// Without `schema_version`: dumps of trackers and profilers before version 2.
    Legacy,
    V2,
    V3,
    V4,
}

/// What an event says beyond the fields of the format.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// All of it, `memory_capabilities` included.
    pub values: Object,
    /// `memory_capabilities`, checked.
    pub capabilities: Capabilities,
    /// The record did not say its capabilities: they were concluded from its counters.
    pub inferred: bool,
}

/// What a collector can measure. A counter is null where its flag is false; null with a true flag is a partial sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    pub backend: Box<str>,
    pub telemetry_collector: Box<str>,
    pub sampling_source: Box<str>,
    pub supports_allocator_allocated: bool,
    pub supports_allocator_reserved: bool,
    pub supports_allocator_active: bool,
    pub supports_allocator_inactive: bool,
    pub supports_device_used: bool,
    pub supports_device_free: bool,
    pub supports_device_total: bool,
    pub supports_native_allocator_history: bool,
    pub supports_fragmentation_analysis: bool,
    pub supports_allocator_attribution: bool,
    pub supports_bounded_profiling: bool,
}

/// How a session of a collector stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionStatus {
    // In order of preference: the best to look at first.
    Completed,
    Interrupted,
    Incomplete,
    Running,
}

impl SessionStatus {
    pub const fn name(self) -> &'static str {
        match self {
            SessionStatus::Completed => "completed",
            SessionStatus::Interrupted => "interrupted",
            SessionStatus::Incomplete => "incomplete",
            SessionStatus::Running => "running",
        }
    }

    pub fn from_name(name: &str) -> Option<SessionStatus> {
        [
            SessionStatus::Completed,
            SessionStatus::Interrupted,
            SessionStatus::Incomplete,
            SessionStatus::Running,
        ]
        .into_iter()
        .find(|status| status.name() == name)
    }
}

/// One run of a collector. Not to be confused with a session of ours, which may hold many of these.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSummary {
    pub session_id: Arc<str>,
    pub status: SessionStatus,
    /// Nanoseconds since the Unix epoch.
    pub started_at_ns: Int,
    pub ended_at_ns: Option<Int>,
    pub host: Arc<str>,
    /// −1 when unknown.
    pub pid: Int,
    /// A string or null; the format lets a writer put any value here, and it is kept.
    pub job_id: Value,
    pub rank: Int,
    pub local_rank: Int,
    /// At least 1.
    pub world_size: Int,
    /// Who made the summary: a producer, or `artifact:<file name>` when it was inferred from events.
    pub source: Arc<str>,
}

impl SessionSummary {
    /// Its place among sessions, first the one to look at: completed before interrupted before incomplete before running,
    /// then the latest end (or start, where there is no end or it is 0), then the latest start, then the id.
    pub fn order(&self, other: &SessionSummary) -> std::cmp::Ordering {
        let last = |s: &SessionSummary| match &s.ended_at_ns {
            Some(end) if *end != 0 => end.clone(),
            _ => s.started_at_ns.clone(),
        };
        self.status
            .cmp(&other.status)
            .then_with(|| last(other).cmp(&last(self)))
            .then_with(|| other.started_at_ns.cmp(&self.started_at_ns))
            .then_with(|| self.session_id.cmp(&other.session_id))
    }

    /// The summary at its end: what was running is completed, any other status stays.
    pub fn finalized(mut self, ended_at_ns: Int) -> SessionSummary {
        if self.status == SessionStatus::Running {
            self.status = SessionStatus::Completed;
        }
        self.ended_at_ns = Some(ended_at_ns);
        self
    }
}

/// A session with its events, as loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedSession {
    pub summary: SessionSummary,
    /// In order of time; of equal times in the order of the files.
    pub events: Vec<MemoryEvent>,
    /// Paths that contributed, sorted.
    pub sources_loaded: Vec<String>,
    pub warnings: Vec<String>,
}

/// The session to look at when nobody names one, by its index: the first in order that has events, else the first in order.
pub fn default_session(sessions: &[LoadedSession]) -> Option<usize> {
    let order = |a: &usize, b: &usize| sessions[*a].summary.order(&sessions[*b].summary);
    (0..sessions.len())
        .filter(|at| !sessions[*at].events.is_empty())
        .min_by(order)
        .or_else(|| (0..sessions.len()).min_by(order))
}
