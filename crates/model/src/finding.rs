//! What the engine concluded.

use warptrace_record::OpId;

use crate::{BootNanos, Tid, UnitKey, Window};

/// Why time was lost. An open list: names are for ever, new ones may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cause {
    RunQueueWait,
    CpuQuota,
    DiskWait,
    PageFault,
    Reclaim,
    LockWait,
    NetworkWait,
    Sleep,
    Allocator,
    Copy,
    GpuWork,
    GpuContention,
    GpuThrottle,
    PeerWait,
    Collective,
    LaunchGap,
    ColdStart,
    Oom,
    Hang,
    DeviceLost,
    Unexplained,
}

impl Cause {
    /// All, in the order that breaks ties.
    pub const ALL: [Cause; 21] = [
        Cause::RunQueueWait,
        Cause::CpuQuota,
        Cause::DiskWait,
        Cause::PageFault,
        Cause::Reclaim,
        Cause::LockWait,
        Cause::NetworkWait,
        Cause::Sleep,
        Cause::Allocator,
        Cause::Copy,
        Cause::GpuWork,
        Cause::GpuContention,
        Cause::GpuThrottle,
        Cause::PeerWait,
        Cause::Collective,
        Cause::LaunchGap,
        Cause::ColdStart,
        Cause::Oom,
        Cause::Hang,
        Cause::DeviceLost,
        Cause::Unexplained,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Cause::RunQueueWait => "run_queue_wait",
            Cause::CpuQuota => "cpu_quota",
            Cause::DiskWait => "disk_wait",
            Cause::PageFault => "page_fault",
            Cause::Reclaim => "reclaim",
            Cause::LockWait => "lock_wait",
            Cause::NetworkWait => "network_wait",
            Cause::Sleep => "sleep",
            Cause::Allocator => "allocator",
            Cause::Copy => "copy",
            Cause::GpuWork => "gpu_work",
            Cause::GpuContention => "gpu_contention",
            Cause::GpuThrottle => "gpu_throttle",
            Cause::PeerWait => "peer_wait",
            Cause::Collective => "collective",
            Cause::LaunchGap => "launch_gap",
            Cause::ColdStart => "cold_start",
            Cause::Oom => "oom",
            Cause::Hang => "hang",
            Cause::DeviceLost => "device_lost",
            Cause::Unexplained => "unexplained",
        }
    }

    pub fn by_name(name: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// Ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Low => "LOW",
            Severity::Medium => "MEDIUM",
            Severity::High => "HIGH",
            Severity::Critical => "CRITICAL",
        }
    }

    /// Case does not matter.
    pub fn by_name(name: &str) -> Option<Severity> {
        [
            Severity::Low,
            Severity::Medium,
            Severity::High,
            Severity::Critical,
        ]
        .into_iter()
        .find(|s| s.name().eq_ignore_ascii_case(name))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// Units became slower than is usual, from a first one to a last one.
    Incident,
    /// A part of the usual unit.
    Steady,
    /// A fact by itself (an OOM kill), with no blame.
    Rule,
}

impl FindingKind {
    pub const fn name(self) -> &'static str {
        match self {
            FindingKind::Incident => "incident",
            FindingKind::Steady => "steady",
            FindingKind::Rule => "rule",
        }
    }

    pub fn by_name(name: &str) -> Option<FindingKind> {
        [
            FindingKind::Incident,
            FindingKind::Steady,
            FindingKind::Rule,
        ]
        .into_iter()
        .find(|k| k.name() == name)
    }
}

/// Unique in a session and stable from the finding's first update to its last: a hash of its key, cause and start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FindingId(pub u64);

impl std::fmt::Display for FindingId {
    /// Sixteen hex digits. People may type any unique beginning.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One cause's part of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    pub cause: Cause,
    /// Exposed: what of it lengthened the units, ns.
    pub ns: u64,
    /// What the cause took in all, hidden behind other work or not, ns.
    pub lost_ns: u64,
    /// Who or what, in a few words ("stress-ng (pid 4890) held cpu 1"); empty when that is not known.
    pub detail: String,
}

/// Units of an incident, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitSpan {
    pub first: u64,
    pub last: u64,
    pub slow: u64,
    pub worst: u64,
}

/// Where in the job's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Option<String>,
    pub line: Option<u32>,
    pub function: Option<String>,
    pub op: Option<OpId>,
}

/// One overlap that shows a cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// In a few words.
    pub what: String,
    pub pid: Option<u32>,
    pub tid: Option<u32>,
    pub comm: Option<String>,
    /// Path of a file, or a chain of threads (`main ← loader-3 ← disk`).
    pub path: Option<String>,
    pub start: BootNanos,
    pub dur: u64,
}

/// What was concluded. `blame` adds up to `excess_ns`, [`Cause::Unexplained`] is always its last part.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub id: FindingId,
    pub kind: FindingKind,
    pub severity: Severity,
    pub cause: Cause,
    /// The second explained cause, when it has at least a quarter.
    pub second: Option<Cause>,
    pub key: UnitKey,
    /// The op that ended the worst unit, or the call itself.
    pub op: Option<OpId>,
    pub tid: Tid,
    /// Name of the lead thread, or of who a fact is about.
    pub comm: String,
    pub place: Option<Place>,
    pub window: Window,
    pub units: UnitSpan,
    /// It lasted so long that it became the new usual.
    pub shifted: bool,
    /// Duration of the usual unit, ns, times nothing: one unit's.
    pub baseline_ns: u64,
    /// From how many units the baseline came.
    pub baseline_units: u64,
    /// Over all slow units, ns.
    pub excess_ns: u64,
    pub blame: Vec<Blame>,
    pub evidence: Vec<Evidence>,
}

/// Something that could not be known, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub code: GapCode,
    pub detail: String,
    pub count: u64,
}

/// What sort of thing is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GapCode {
    /// Who held the CPU, who woke a thread: preload has no switch records.
    NoSchedulerRecords,
    /// A process ran before it was watched.
    AttachedLate,
    /// A probe could not be attached.
    ProbeMissing,
    /// A library without symbols.
    NoSymbols,
    /// Records were lost.
    RecordsLost,
    /// Records came too late to be explained.
    LateRecords,
    /// Units with a suspend or a stop in them were left out.
    UnitsLeftOut,
    /// No device poller.
    NoNvml,
    /// No stacks, so no lines.
    NoStacks,
    /// A session that was not sealed.
    TornSession,
    /// A bounded table gave something up.
    Evicted,
    /// Disk waits could not be tied to requests.
    NoBlockIo,
    /// What an imported trace does not say.
    NotRecorded,
    /// Capture was switched off for a time; the count is ms.
    CapturePaused,
}

impl GapCode {
    pub const ALL: [GapCode; 14] = [
        GapCode::NoSchedulerRecords,
        GapCode::AttachedLate,
        GapCode::ProbeMissing,
        GapCode::NoSymbols,
        GapCode::RecordsLost,
        GapCode::LateRecords,
        GapCode::UnitsLeftOut,
        GapCode::NoNvml,
        GapCode::NoStacks,
        GapCode::TornSession,
        GapCode::Evicted,
        GapCode::NoBlockIo,
        GapCode::NotRecorded,
        GapCode::CapturePaused,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            GapCode::NoSchedulerRecords => "no_scheduler_records",
            GapCode::AttachedLate => "attached_late",
            GapCode::ProbeMissing => "probe_missing",
            GapCode::NoSymbols => "no_symbols",
            GapCode::RecordsLost => "records_lost",
            GapCode::LateRecords => "late_records",
            GapCode::UnitsLeftOut => "units_left_out",
            GapCode::NoNvml => "no_nvml",
            GapCode::NoStacks => "no_stacks",
            GapCode::TornSession => "torn_session",
            GapCode::Evicted => "evicted",
            GapCode::NoBlockIo => "no_block_io",
            GapCode::NotRecorded => "not_recorded",
            GapCode::CapturePaused => "capture_paused",
        }
    }

    pub fn by_name(name: &str) -> Option<GapCode> {
        GapCode::ALL.into_iter().find(|c| c.name() == name)
    }
}
