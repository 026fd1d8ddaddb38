//! What is said of an inference server's iterations, watched from outside: workloads, phases, outliers, and the state that
//! goes out as metrics.
//!
//! Plain data. How it comes about is the engine's (`warptrace_engine::Inference`); names of metrics and messages are others'.

use std::fmt;

use warptrace_record::OpId;

use crate::{BootNanos, Device, Incarnation, Pid, SpanContext, Stream, Tid, Window};

/// The first 64 bits of SHA-256 of a process's cgroup path: tells containers apart and names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupHash(pub u64);

impl fmt::Display for CgroupHash {
    /// Sixteen hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a step of an inference server did, as far as its calls tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Few launches and small copies: a token for each request of the batch.
    Decode,
    /// Prompts and decodes in one batch.
    Mixed,
    /// Prompts are read.
    Prefill,
    Unknown,
}

impl Phase {
    pub const ALL: [Phase; 4] = [Phase::Decode, Phase::Mixed, Phase::Prefill, Phase::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Phase::Decode => "decode",
            Phase::Mixed => "mixed",
            Phase::Prefill => "prefill",
            Phase::Unknown => "unknown",
        }
    }

    pub fn by_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// How far out an outlier lies, ascending. A step is in one bucket only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutlierBucket {
    /// From 1.5 times the 95th percentile on.
    X1_5,
    /// From twice on.
    X2,
    /// From the outermost ratio on, which is 3 unless it was set otherwise.
    X3,
}

impl OutlierBucket {
    pub const ALL: [OutlierBucket; 3] = [OutlierBucket::X1_5, OutlierBucket::X2, OutlierBucket::X3];

    pub const fn name(self) -> &'static str {
        match self {
            OutlierBucket::X1_5 => "1.5x",
            OutlierBucket::X2 => "2x",
            OutlierBucket::X3 => "3x",
        }
    }

    pub fn by_name(name: &str) -> Option<OutlierBucket> {
        OutlierBucket::ALL.into_iter().find(|b| b.name() == name)
    }
}

/// Steps that are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// `None` when the process's cgroup is not known.
    pub cgroup: Option<CgroupHash>,
    pub process: Incarnation,
    /// 0 where the wait covered all streams of the device.
    pub stream: Stream,
    /// `None` when steps are not told apart by phase.
    pub phase: Option<Phase>,
    pub device: Option<Device>,
    /// Of the functions launched, in order; 0 when it is no part of the key.
    pub fingerprint: u64,
}

/// Names one outlier or one straggle for ever, in the form of a UUID. The same recording gives the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u128);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::SpanId::from_bits(self.0).fmt(f)
    }
}

/// A step that took much longer than is usual for its workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    pub id: EventId,
    /// The trace and the span that it is, when it is exported as one; both are its own.
    pub span: SpanContext,
    pub key: WorkloadKey,
    /// End of the wait that ended it.
    pub at: BootNanos,
    pub step_nanos: u64,
    /// 95th percentile and mean of the workload's healthy steps before it, ns.
    pub p95_nanos: u64,
    pub mean_nanos: u64,
    pub bucket: OutlierBucket,
    /// The thread that waited, and by which call.
    pub tid: Tid,
    pub op: OpId,
    /// Kernels and graphs launched in it, counted by calls.
    pub launches: u64,
    pub copied_bytes: u64,
    /// Calls that take device memory from the driver or give it back.
    pub memory_calls: u32,
    /// NVML's bits, of any moment of it, without *idle*.
    pub throttle_reasons: u64,
    /// Lowest clock that was sampled in it, or just before, MHz.
    pub min_sm_clock_mhz: Option<u32>,
    /// Ages of the oldest live allocations, the oldest first, ms; empty unless they are followed.
    pub kv_ages_millis: Vec<u64>,
    /// No other outlier of its workload came in the minute before: for logs that must not repeat themselves.
    pub first_in_minute: bool,
}

impl Outlier {
    pub fn window(&self) -> Window {
        Window {
            start: self.at.minus(self.step_nanos),
            end: self.at,
        }
    }
}

/// A slow-down (or what was one) that lasted so long that it is the usual now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaselineShift {
    pub key: WorkloadKey,
    /// From the first slow step to the one that settled it.
    pub window: Window,
    /// Steps in it, and how many of them were outliers.
    pub steps: u64,
    pub outliers: u64,
    pub from_p95_nanos: u64,
    pub from_mean_nanos: u64,
    pub to_p95_nanos: u64,
    pub to_mean_nanos: u64,
}

/// How much of the stream of events is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerState {
    /// One event in a hundred.
    Healthy,
    /// All: an outlier was just there, and its workload has not had an ordinary step since.
    Degraded,
    /// All, for what is left of 30 s, or because a process is in trouble.
    Cooldown,
}

impl SamplerState {
    pub const fn name(self) -> &'static str {
        match self {
            SamplerState::Healthy => "healthy",
            SamplerState::Degraded => "degraded",
            SamplerState::Cooldown => "cooldown",
        }
    }
}

/// The sampler went from keeping little to keeping all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degradation {
    pub at: BootNanos,
    /// The outlier that did it.
    pub outlier: EventId,
    pub key: WorkloadKey,
    pub bucket: OutlierBucket,
    /// When all is over, unless another outlier comes before.
    pub cooldown_end: BootNanos,
}

impl Degradation {
    /// `3x:cgroup=f6f7a079fa79fb5d,pid=4242,phase=decode`.
    pub fn cause(&self) -> String {
        let cgroup = self.key.cgroup.map(|c| c.to_string());
        format!(
            "{}:cgroup={},pid={},phase={}",
            self.bucket.name(),
            cgroup.unwrap_or_default(),
            self.key.process.pid,
            self.key.phase.map_or("", Phase::name),
        )
    }
}

/// Where a process is that launches less than usual while others take its CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StraggleState {
    Began,
    Sustained,
    /// It launches as usual again, or is not held up any more.
    Resolved,
}

/// A process launches less than usual, and is preempted meanwhile. Said once a second while it lasts, and once when it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Straggle {
    /// The same from its begin to its end.
    pub id: EventId,
    pub at: BootNanos,
    pub process: Incarnation,
    /// Name of its main thread; empty when it is not known.
    pub comm: String,
    pub state: StraggleState,
    /// Fraction of the usual launches a second that is missing, in thousandths: 300 to 1000; of a resolved one what it is now.
    pub drop_millis: u32,
    /// Involuntary context switches of its threads in the last second.
    pub preemptions: u32,
    /// Who ran instead, the longest first; eight at most.
    pub preempted_by: Vec<Pid>,
}

/// Counts by upper bounds, a value on a bound being below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedHistogram<const N: usize> {
    /// One for each bound, and one for what is above the last.
    pub counts: [u64; N],
    pub sum: u64,
}

impl<const N: usize> Default for BoundedHistogram<N> {
    fn default() -> Self {
        BoundedHistogram {
            counts: [0; N],
            sum: 0,
        }
    }
}

impl<const N: usize> BoundedHistogram<N> {
    /// Counts `value`. `bounds` ascend and are one fewer than the counts.
    pub fn record(&mut self, value: u64, bounds: &[u64]) {
        let at = bounds.partition_point(|b| *b < value).min(N - 1);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.sum = self.sum.saturating_add(value);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |n, c| n.saturating_add(*c))
    }
}

/// Upper bounds of the histogram of steps, ns.
pub const STEP_BOUNDS_NANOS: [u64; 16] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds of the histogram of ages of allocations, ms.
pub const KV_AGE_BOUNDS_MILLIS: [u64; 15] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000,
    600_000,
];

/// Durations of steps, by [`STEP_BOUNDS_NANOS`].
pub type StepHistogram = BoundedHistogram<17>;

/// Ages of allocations, by [`KV_AGE_BOUNDS_MILLIS`].
pub type KvAgeHistogram = BoundedHistogram<16>;

/// One workload, as of now. Counts are since it was first seen, and never fall while it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadState {
    pub key: WorkloadKey,
    /// End of its first step: where its counts start.
    pub since: BootNanos,
    /// End of its last step.
    pub seen: BootNanos,
    /// It has had enough steps to be judged: before, mean and percentile are not to be relied on.
    pub warmed: bool,
    /// All its steps, outliers and those of a pause included.
    pub steps: u64,
    /// Of them, while a finding of its process paused judgement.
    pub paused_steps: u64,
    /// By [`OutlierBucket`], ascending.
    pub outliers: [u64; 3],
    /// Of them, while the device was held back.
    pub throttled_outliers: [u64; 3],
    /// Times that a lasting slow-down became the usual.
    pub shifts: u64,
    /// Of healthy steps, ns; 0 before the first.
    pub mean_nanos: u64,
    pub p95_nanos: u64,
    /// Healthy steps, and those of the warm-up.
    pub healthy: StepHistogram,
    /// All steps.
    pub all: StepHistogram,
}

/// All counters and gauges of an inference engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferenceState {
    /// Sorted by key.
    pub workloads: Vec<WorkloadState>,
    pub steps: u64,
    /// Steps by [`Phase`], in the order of [`Phase::ALL`].
    pub phases: [u64; 4],
    /// By [`OutlierBucket`], ascending; workloads that were forgotten included.
    pub outliers: [u64; 3],
    pub throttled_outliers: [u64; 3],
    pub paused_steps: u64,
    pub shifts: u64,
    /// Waits that could not become a step, by reason.
    pub left_out: LeftOutSteps,
    pub kv_ages: KvAgeHistogram,
    pub sampler: SamplerState,
    /// The last degradation, whether it is over or not.
    pub last_degradation: Option<Degradation>,
    pub degradations: u64,
    /// Events that the sampler let pass, the sum of their weights, and those that it shed.
    pub admitted: u64,
    pub admitted_weight: u64,
    pub shed: u64,
    /// Outliers and other messages that nobody took in time.
    pub dropped: u64,
    /// Entries of bounded tables that were given up while in use.
    pub evicted: u64,
}

/// Waits that ended no step that could be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOutSteps {
    /// The first of a stream: nothing says when the step began.
    pub first: u64,
    /// Longer than a minute, or not after the one before.
    pub length: u64,
    /// For an event whose record was not seen.
    pub unknown_event: u64,
    /// Records were lost in it.
    pub lost_records: u64,
    /// Capture was switched off, or the process was stopped, in it.
    pub paused: u64,
}
