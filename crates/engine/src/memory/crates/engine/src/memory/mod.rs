//! GPU memory over time: what it was, what it reached, and whether something is wrong with it.
//!
//! [`Analyzer`] takes the events of memory collectors, of any number of processes, ranks and devices, and concludes at the end:
//! each (session, process, rank, device) is a series of its own, its memory is bounded, and a check that cannot tell says
//! why. The rules are one file each. What is absent stays absent; device memory in use, which is everybody's, is never
//! derived from one process's allocator, nor the other way round.
//!
//! Beside it are the small forms of the telemetry format that others compare with (derived fields, classes, phases, markers,
//! fingerprints), and in [`stormlog`] the analyses of the Python package of that name, as they are.
//!
//! Pure: no clock, no files. What it does not know: where events come from, how findings are worded.

mod analysis;
mod classify;
mod derived;
mod findings;
mod fingerprint;
mod fragmentation;
mod hidden;
mod leak;
mod markers;
mod math;
mod phases;
mod ranks;
mod rules;
mod series;
pub mod stormlog;
mod text;

#[cfg(test)]
mod tests;

pub use analysis::{Analyzer, Counts, Issue, MemoryReport, OomMoment, PhaseUse, SessionUse};
pub use classify::{
    OomReason, backend, classify_oom, is_alert, is_collector_degradation, is_oom, issue, severity,
};
pub use derived::{Derived, DerivedSession};
pub use findings::{Check, CheckKind, MemoryFinding, What};
pub use fingerprint::{Fingerprint, FingerprintError, IssueKind, fingerprint};
pub use fragmentation::{Fragmentation, fragmentation};
pub use hidden::{Hidden, HiddenSpike, hidden};
pub use leak::{Leak, LeakRules, Unknown, Verdict, leak};
pub use markers::{Marker, MarkerKind, MarkerSource, markers};
pub use phases::{PhaseAttribution, PhaseLog, PhaseOrigin, PhaseSource, PhaseSpan, Phases};
pub use ranks::{Confidence, FirstCause, Outlier, RankReport, RankRules, Rise, Steps, compare};
pub use rules::{Caps, FragmentationRules, FullRules, HiddenRules, Rules};
pub use series::{Level, Peak, Point, Range, Series, SeriesKey};
pub use text::{
    alert_category, bytes_text, error_stem, normalized, normalized_value, retry_delay_secs,
};
