//! Events in, units and findings out: time that adds up.
//!
//! The engine follows the threads that wait for a device. From the end of one such wait to the end of the next is a
//! *unit*; its time is a partition by what the thread did, nanosecond by nanosecond ([`Unit::parts`]). What is usual is
//! learnt per key; a slow unit's *excess* over it is blamed on causes, each nanosecond once, and what nothing explains is
//! said to be unexplained. Slow units of one cause that lie together are an *incident*; what is always slow is a *steady*
//! finding; facts that need no baseline are *rules*.
//!
//! Pure: no clock, no files, no threads. The same events give the same answer, in whatever order they come within the
//! merge window, live or replayed. Memory is bounded by [`Rules::caps`], and what is given up is counted.
//!
//! What it deliberately does not know: where events come from, how findings are worded and shown, how they are stored.
//! Not judged here yet: ranks of a collective.
//!
//! What is not known is not invented. A thread with switch records is known whole. One with stretches only (recorded from
//! inside the process) has amounts without moments and without names. One with neither has its calls: the rest of its time
//! is unexplained, and a gap says so.
//!
//! [`Unit::parts`]: warptrace_model::Unit::parts

mod allocations;
mod baseline;
mod blame;
mod capped;
mod cold_start;
mod engine;
mod incidents;
mod inference;
mod judge;
mod labels;
pub mod memory;
mod order;
mod partition;
mod paused;
mod profile;
mod rules;
mod serving;
mod stats;
mod thresholds;
mod units;
mod world;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use allocations::{Allocations, AllocatorLevel};
pub use engine::{Engine, MemorySample, Output};
pub use inference::{
    Admission, Inference, InferenceCaps, InferenceOutput, InferenceSettings, KvLineage, PhaseRules,
    SettingsError, ShiftRules, cgroup_hash,
};
pub use labels::{Forgotten, Joined, LabelCaps, LabelIndex, join};
pub use serving::{Serving, ServingCaps};
pub use stats::OpStats;
pub use thresholds::{
    BaselineRules, Caps, ColdStartRules, DeviceRules, FactRules, FindingRules, Rules, SteadyRules,
};

#[cfg(test)]
mod tests;
