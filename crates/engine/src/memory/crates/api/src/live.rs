//! What a live view shows: the state of a running recording.

use serde::Serialize;
use warptrace_model::SystemSample;

use crate::{Drop, Finding, Gap};

/// One moment of a running recording. Made a few times a second at most; not stored.
#[derive(Debug, Clone, Default)]
pub struct Live {
    pub session: String,
    /// What is watched, in words ("python train.py (pid 4711)", "all CUDA processes").
    pub target: String,
    pub sources: Vec<&'static str>,
    /// Since the recording began, ns.
    pub elapsed_ns: u64,
    /// Records taken in so far.
    pub records: u64,
    /// Traced calls so far, exactly.
    pub calls: u64,
    /// Percentiles and counts of a stated, recent window; largest total first.
    pub window_ns: u64,
    pub ops: Vec<LiveOp>,
    pub host: HostContext,
    pub system: Option<SystemSample>,
    pub drops: Vec<Drop>,
    pub gaps: Vec<Gap>,
    pub findings: Vec<Finding>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveOp {
    /// `cuda`, `driver`, `cuda_graph`, `nccl`.
    pub layer: &'static str,
    pub op: &'static str,
    pub pid: u32,
    pub device: Option<u16>,
    /// In the whole recording.
    pub count: u64,
    /// In the window.
    pub recent: u64,
    pub p50_ns: u64,
    pub p95_ns: u64,
    pub p99_ns: u64,
    /// Of the window, all threads together: 1 is one thread all the time.
    pub wall_share: f64,
    /// The p99 is more than 3 times the median (and there are more than 10 calls).
    pub tail: bool,
}

/// What the kernel saw of the traced threads, in the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HostContext {
    /// Waiting for a CPU, ns.
    pub run_queue_ns: u64,
    pub quota_ns: u64,
    pub blocked_ns: u64,
    pub disk_ns: u64,
    pub reclaim_ns: u64,
    pub switches: u64,
    pub block_io: u64,
    pub retransmits: u64,
    /// Who ran most on a CPU while a traced thread waited for it: name, pid, ns.
    pub occupants: Vec<(String, u32, u64)>,
}
