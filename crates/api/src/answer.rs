//! `warptrace.explain/v1`: the one object of `explain --json` and `demo --json`.
//!
//! Types are fixed by name: `*_unix_ns`, `total_ns`, pointers and hashes are strings, since JavaScript would round them;
//! every other `*_ns` is a number; `share` is in 0..1.

use serde::{Serialize, Serializer};

use crate::Cost;

/// Value of [`Explain::schema`].
pub const SCHEMA: &str = "warptrace.explain/v1";

/// What a session says about where the time went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explain {
    pub schema: &'static str,
    pub session: String,
    pub window: WindowUnix,
    /// The usual unit of each key, most time first.
    pub profile: Vec<Profile>,
    /// Calls, most time first.
    pub ops: Vec<Op>,
    /// By severity, then by excess.
    pub findings: Vec<Finding>,
    pub drops: Vec<Drop>,
    pub gaps: Vec<Gap>,
    /// Names for the people's output; not part of the JSON.
    #[serde(skip)]
    pub subject: Subject,
}

/// Who was watched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    pub command: Vec<String>,
    pub pid: Option<u32>,
    /// `ebpf`, `preload`.
    pub sources: Vec<String>,
    pub processes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WindowUnix {
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
}

/// What units are compared within.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    pub pid: u32,
    pub start_ticks: u64,
    pub device: Option<u16>,
    pub kind: &'static str,
    /// Work class: launches on a scale of ratio 1.25; -1 for units whose class is too rare to have its own.
    pub class: i32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    pub key: Key,
    pub units: u64,
    pub mean_ns: u64,
    /// Adds up to `mean_ns`; largest first.
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    pub category: &'static str,
    pub ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Op {
    pub op: &'static str,
    pub pid: u32,
    pub device: Option<u16>,
    /// Exact, whether or not single records were lost.
    pub count: u64,
    #[serde(serialize_with = "as_text")]
    pub total_ns: u64,
    /// Percentiles within 6.25 % (half a histogram bucket).
    pub p50_ns: u64,
    pub p95_ns: u64,
    pub p99_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub id: String,
    pub kind: &'static str,
    pub severity: &'static str,
    pub cause: &'static str,
    pub title: String,
    pub key: Key,
    pub op: Option<&'static str>,
    pub tid: u32,
    pub comm: String,
    #[serde(rename = "where")]
    pub place: Option<Place>,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    pub units: Units,
    pub shifted: bool,
    pub baseline_ns: u64,
    pub excess_ns: u64,
    /// By `ns`, with `unexplained` last and always there; adds up to `excess_ns`. Empty for kind `rule`.
    pub blame: Vec<Blame>,
    pub summary: String,
    /// A command to type, or what to change; empty when the evidence supports none.
    pub recommendation: String,
    pub evidence: Vec<Evidence>,
    /// `null` where there is no price, or nothing was lost.
    pub cost: Option<Cost>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: Option<String>,
    pub line: Option<u32>,
    pub function: Option<String>,
    pub op: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Units {
    pub first: u64,
    pub last: u64,
    pub slow: u64,
    pub worst: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blame {
    pub cause: &'static str,
    /// What lengthened the units.
    pub ns: u64,
    /// What the cause took in all, hidden behind other work or not.
    pub lost_ns: u64,
    /// `ns` of the finding's excess, 0..1.
    pub share: f64,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    pub what: String,
    pub pid: Option<u32>,
    pub tid: Option<u32>,
    pub comm: Option<String>,
    pub path: Option<String>,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    pub dur_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drop {
    pub source: String,
    pub reason: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub code: &'static str,
    pub detail: String,
    pub count: u64,
}

pub(crate) fn as_text<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
