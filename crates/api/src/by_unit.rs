//! `explain --by-step`, `--by-request`: where the time of each step or request went, beside what is usual for it.

use std::collections::BTreeMap;

use serde::Serialize;
use warptrace_engine::{LabelCaps, LabelIndex};
use warptrace_model::{Category, ClockAnchor, Finding, NamedBy, Parts, Unit, UnitKey};
use warptrace_store::{MemoryLevel, Session, StoreError};

use crate::explain::{profiles, since};
use crate::{Key, Profile, WindowUnix, answer::as_text};

/// Value of [`ByUnit::schema`].
pub const BY_UNIT_SCHEMA: &str = "warptrace.by_unit/v1";

/// What holds of every account by request.
pub const OVERLAP_CAVEAT: &str = "A request is shown with all that happened while it was in flight. Requests overlap and share the GPU: \
     the same launch serves many of them, so their times must not be added up, nor read as one request's own cost.";

/// Which units to account for.
#[derive(Debug, Clone)]
pub struct ByUnitQuestion {
    pub by: NamedBy,
    /// Only the last so many ns of the session.
    pub since_nanos: Option<u64>,
    /// Only units that carry this label with this value, or whose process does at their begin.
    pub label: Option<(String, String)>,
}

/// Steps or requests, each with its time taken apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByUnit {
    pub schema: &'static str,
    pub session: String,
    pub window: WindowUnix,
    /// `step` or `request_id`.
    pub by: &'static str,
    /// What must be kept in mind when reading the numbers.
    pub caveat: Option<&'static str>,
    /// The usual unit of each key, most time first.
    pub profile: Vec<Profile>,
    /// In order of time.
    pub units: Vec<NamedUnit>,
    /// How many of them were slow.
    pub slow: usize,
}

/// One step or request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NamedUnit {
    /// What the job calls it.
    pub value: String,
    pub key: Key,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    pub dur_ns: u64,
    pub slow: bool,
    /// Mean of its key's units that were not slow; `null` when all were.
    pub usual_ns: Option<u64>,
    /// `dur_ns` less `usual_ns`; negative when it was shorter.
    pub excess_ns: Option<i64>,
    /// Adds up to `dur_ns`; what took longer than usual first.
    pub parts: Vec<PartBeside>,
    /// Launches and graph nodes that it waited for.
    pub launches: u64,
    /// Records were lost in it.
    pub incomplete: bool,
    /// Ids of the findings that it is part of.
    pub findings: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Device and allocator at its end, as far as it was sampled.
    pub memory: Option<MemoryAt>,
}

/// A part of a unit beside that of the usual one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartBeside {
    pub category: &'static str,
    pub ns: u64,
    pub usual_ns: u64,
}

/// The last sample of memory at or before a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryAt {
    #[serde(serialize_with = "as_text")]
    pub at_unix_ns: u64,
    /// What the process's allocator holds for it; absent when nothing measured it.
    pub allocated_bytes: Option<u64>,
    pub reserved_bytes: Option<u64>,
    /// In use on the device, by all processes.
    pub device_used_bytes: Option<u64>,
    pub device_total_bytes: Option<u64>,
}

/// Accounts for each named unit of `session`. Cost: one pass over its units, annotations and memory samples.
///
/// # Errors
/// [`StoreError::Io`] when a table cannot be read.
pub fn by_unit(session: &Session, question: &ByUnitQuestion) -> Result<ByUnit, StoreError> {
    let (window, filter) = since(session, question.since_nanos)?;
    let anchor = session.anchor();
    let mut units = session.units(filter)?;
    units.retain(|u| u.name.as_ref().is_some_and(|n| n.label == question.by));
    let labels = label_index(session)?;
    if let Some((key, value)) = &question.label {
        units.retain(|u| {
            labels_of(&labels, u)
                .get(key.as_str())
                .is_some_and(|v| v == value)
        });
    }
    let findings = session.findings()?;
    let memory = session.memory_levels()?;
    let models = profiles(units.iter());
    let usual: BTreeMap<UnitKey, &warptrace_model::Profile> =
        models.iter().map(|p| (p.key, p)).collect();
    let mut profile: Vec<Profile> = models.iter().map(Profile::from_model).collect();
    profile.sort_by_key(|p| std::cmp::Reverse(p.mean_ns.saturating_mul(p.units)));
    let rows: Vec<NamedUnit> = units
        .iter()
        .map(|u| {
            let mean = usual.get(&u.key);
            NamedUnit {
                value: u
                    .name
                    .as_ref()
                    .map_or_else(String::new, |n| n.value.to_string()),
                key: Key::from_model(&u.key),
                start_unix_ns: anchor.unix(u.start).0,
                dur_ns: u.dur,
                slow: u.slow,
                usual_ns: mean.map(|p| p.mean),
                excess_ns: mean.map(|p| difference(u.dur, p.mean)),
                parts: beside(u, mean.map(|p| &p.parts)),
                launches: u.launches,
                incomplete: u.incomplete,
                findings: findings
                    .iter()
                    .filter(|f| belongs(f, u))
                    .map(|f| f.id.to_string())
                    .collect(),
                labels: labels_of(&labels, u),
                memory: memory_at(&memory, u, &anchor),
            }
        })
        .collect();
    Ok(ByUnit {
        schema: BY_UNIT_SCHEMA,
        session: session.meta().id.clone(),
        window: WindowUnix {
            start_unix_ns: anchor.unix(window.start).0,
            end_unix_ns: anchor.unix(window.end).0,
        },
        by: question.by.label(),
        caveat: (question.by == NamedBy::Request).then_some(OVERLAP_CAVEAT),
        profile,
        slow: rows.iter().filter(|u| u.slow).count(),
        units: rows,
    })
}

fn difference(a: u64, b: u64) -> i64 {
    let magnitude = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
    if a >= b { magnitude } else { -magnitude }
}

/// What the job said in a session, by process and time.
pub(crate) fn label_index(session: &Session) -> Result<LabelIndex, StoreError> {
    // A session is bounded, and answers must not forget what it holds.
    let mut labels = LabelIndex::new(LabelCaps {
        processes: usize::MAX,
        keys: usize::MAX,
        instants: usize::MAX,
        spans: usize::MAX,
        bytes: usize::MAX,
    });
    for annotation in session.annotations()? {
        labels.push(&annotation);
    }
    Ok(labels)
}

/// The labels of a unit: those of its own span, or of the moment of its begin.
pub(crate) fn labels_of(labels: &LabelIndex, u: &Unit) -> BTreeMap<String, String> {
    let own = u.name.as_ref().and_then(|name| {
        let window = u.window();
        labels
            .spans(u.key.process, window)
            .into_iter()
            .find(|a| {
                a.span == Some(window) && a.labels.get(name.label.label()) == Some(&name.value)
            })
            .map(|a| &a.labels)
    });
    let text = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
    let mut all: BTreeMap<String, String> =
        labels.at(u.key.process, u.start).iter().map(text).collect();
    if let Some(own) = own {
        all.extend(own.iter().map(text));
    }
    if let Some(name) = &u.name {
        all.insert(name.label.label().to_owned(), name.value.to_string());
    }
    all
}

/// The parts of a unit beside the usual ones: what took longer first, then the longest.
fn beside(u: &Unit, usual: Option<&Parts>) -> Vec<PartBeside> {
    let mut parts: Vec<PartBeside> = Category::ALL
        .into_iter()
        .map(|c| PartBeside {
            category: c.name(),
            ns: u.parts[c],
            usual_ns: usual.map_or(0, |p| p[c]),
        })
        .filter(|p| p.ns > 0 || p.usual_ns > 0)
        .collect();
    parts.sort_by_key(|p| std::cmp::Reverse((p.ns.saturating_sub(p.usual_ns), p.ns)));
    parts
}

/// Whether a slow unit is one of those that a finding is about: of its key and within its window, or, for what was found by
/// other units of the process, at the same time.
fn belongs(f: &Finding, u: &Unit) -> bool {
    let near = f.window.overlap(&u.window()) > 0;
    u.slow && f.key.process.pid == u.key.process.pid && near
}

/// Samples of a process's device are looked through so far back for each counter.
const SAMPLES_BACK: usize = 64;

/// Each counter of the process's memory as it was sampled last at or before the end of a unit: a peak of its own, for one, has
/// no number of the driver.
fn memory_at(levels: &[MemoryLevel], u: &Unit, anchor: &ClockAnchor) -> Option<MemoryAt> {
    let end = u.window().end;
    let upto = levels.partition_point(|l| l.at <= end);
    let device = u.key.device.map(|d| d.0);
    let mut own = levels[..upto].iter().rev().filter(|l| {
        let own = l.pid.is_none_or(|pid| pid == u.key.process.pid.0);
        own && (device.is_none() || l.device == device)
    });
    let last = own.next()?;
    let mut memory = MemoryAt {
        at_unix_ns: anchor.unix(last.at).0,
        allocated_bytes: last.allocated_bytes,
        reserved_bytes: last.reserved_bytes,
        device_used_bytes: last.device_used_bytes,
        device_total_bytes: last.device_total_bytes,
    };
    for earlier in own.take(SAMPLES_BACK) {
        for (known, before) in [
            (&mut memory.allocated_bytes, earlier.allocated_bytes),
            (&mut memory.reserved_bytes, earlier.reserved_bytes),
            (&mut memory.device_used_bytes, earlier.device_used_bytes),
            (&mut memory.device_total_bytes, earlier.device_total_bytes),
        ] {
            *known = known.or(before);
        }
    }
    Some(memory)
}
