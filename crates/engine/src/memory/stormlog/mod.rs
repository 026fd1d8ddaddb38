//! The analyses of the Python package `stormlog` 0.4.3, answer for answer, for those who compare with what they had.
//!
//! `warptrace memory` concludes by the rules beside this folder instead, because these mix ranks and devices in one series,
//! let an outlier widen the spread that it is measured by, take five rising samples for a leak, and align ranks by their
//! first samples, so that who started late is blamed for being early. They are kept as they are: a better rule here would be
//! no answer of that package any more.

mod collective;
mod cross_rank;
mod gap;

pub use collective::{
    CollectiveClass, CollectiveConfig, CollectiveError, CollectiveEvidence, CollectiveInterval,
    collective,
};
pub use cross_rank::{CrossRank, Suspect, cross_rank};
pub use gap::{GapEvidence, GapFinding, GapRules, gaps};

use warptrace_model::MemoryEvent;

/// Type `sample`, in any case.
fn is_sample(event: &MemoryEvent) -> bool {
    event.event_type.eq_ignore_ascii_case("sample")
}

/// A counter that arithmetic can hold.
fn counter(value: Option<&warptrace_model::Int>) -> Option<i128> {
    value?.to_i128()
}
