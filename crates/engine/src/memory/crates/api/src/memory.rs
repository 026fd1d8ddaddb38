//! `warptrace.memory/v1`: GPU memory over time, with what is wrong with it.
//!
//! The events are the caller's: of telemetry files, or of a session's table `memory`. Times are Unix time; `*_unix_ns` are
//! strings, sizes are numbers in bytes, shares are 0..1, and what was not measured is `null`, never 0.

mod words;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};
use warptrace_engine::memory::{
    self as engine, Analyzer, CheckKind, FirstCause, Level, MemoryReport, Range, Rules,
};
use warptrace_model::MemoryEvent;

use crate::WindowUnix;
use crate::answer::as_text;

pub use words::{size_text, size_words};

/// Value of [`Memory::schema`].
pub const MEMORY_SCHEMA: &str = "warptrace.memory/v1";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryQuestion {
    /// Points of each series in the answer, at most; 0 for none. What is more is joined, extremes kept.
    pub points: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    pub schema: &'static str,
    /// What was read: paths, or ids of sessions.
    pub sources: Vec<String>,
    /// `None` without events.
    pub window: Option<WindowUnix>,
    pub events: u64,
    pub measurements: u64,
    /// What was left out, by reason; empty means that nothing was.
    pub skipped: Vec<Skip>,
    pub sessions: Vec<MemorySession>,
    pub series: Vec<MemorySeries>,
    /// The worst first.
    pub findings: Vec<MemoryFinding>,
    /// What was looked for in each series, and whether it could be told.
    pub checks: Vec<MemoryCheck>,
    pub ranks: Vec<MemoryRanks>,
    pub markers: Vec<MemoryMarker>,
    /// By time in all, most first.
    pub phases: Vec<MemoryPhase>,
    /// The longest 2,000 of them, by start; empty where no points were asked for.
    pub spans: Vec<MemorySpan>,
    pub issues: Vec<MemoryIssue>,
}

/// Records or events that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    pub reason: String,
    pub count: u64,
}

/// One run of a collector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemorySession {
    pub session: String,
    pub job: Option<String>,
    pub host: String,
    pub world_size: i64,
    pub events: u64,
    pub samples: u64,
    pub alerts: u64,
    pub ooms: u64,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    /// Its last event is no `stop`.
    pub interrupted: bool,
    /// `completed`, `interrupted`, `incomplete` or `running`, where its writer or its file says so.
    pub status: Option<&'static str>,
}

/// The levels of one process's rank and device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemorySeries {
    pub session: String,
    pub job: Option<String>,
    pub host: String,
    /// −1 when unknown.
    pub pid: i64,
    pub rank: i64,
    pub local_rank: i64,
    pub world_size: i64,
    /// −1 for the CPU or none.
    pub device: i64,
    pub collector: String,
    pub backend: String,
    pub sampling_source: String,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    pub measurements: u64,
    /// Between measurements, typically.
    pub interval_ns: i64,
    /// The longest time without one.
    pub longest_silence_ns: i64,
    pub total_bytes: Option<i64>,
    /// The highest device-used of the total; allocated where that is not known.
    pub peak_utilization: Option<f64>,
    /// Device-used is the allocator's own number: nothing follows from it about the device.
    pub device_used_is_allocator: bool,
    pub levels: Vec<MemoryLevel>,
    /// Length of the points in `points`; 0 when each is one moment.
    pub point_ns: i64,
    pub points: Vec<MemoryPoint>,
}

/// One level of a series; levels that were never measured are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryLevel {
    /// `allocated`, `reserved`, `device_used`, `hidden`, `inactive`.
    pub level: &'static str,
    pub last_bytes: i64,
    pub mean_bytes: i64,
    pub peak_bytes: i64,
    #[serde(serialize_with = "as_text")]
    pub peak_unix_ns: u64,
    /// The job's phase at the peak, where it names its phases.
    pub peak_phase: Option<String>,
    /// Measurements without it.
    pub absent: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryPoint {
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    pub count: u32,
    pub allocated: Option<LevelRange>,
    pub reserved: Option<LevelRange>,
    pub device_used: Option<LevelRange>,
    pub hidden: Option<LevelRange>,
    pub inactive: Option<LevelRange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LevelRange {
    pub min_bytes: i64,
    pub mean_bytes: i64,
    pub max_bytes: i64,
    pub last_bytes: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryFinding {
    /// 16 hex digits, the same for the same events.
    pub id: String,
    pub kind: &'static str,
    pub severity: &'static str,
    pub title: String,
    pub summary: String,
    /// What to do; empty when the evidence supports nothing.
    pub recommendation: String,
    pub session: String,
    pub host: String,
    pub rank: i64,
    pub device: i64,
    /// Index in `series`.
    pub series: usize,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    /// 0..1.
    pub confidence: f64,
    pub phase: Option<String>,
    /// Numbers and words by name; names have units.
    pub evidence: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryCheck {
    /// Index in `series`.
    pub series: usize,
    /// `leak`, `hidden`, `fragmentation`.
    pub check: &'static str,
    /// `found`, `nothing`, `cannot_tell`.
    pub result: &'static str,
    /// Why it cannot be told.
    pub why: Option<String>,
}

/// The ranks of one job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryRanks {
    /// The job's id, else the session's.
    pub job: String,
    pub level: &'static str,
    pub world_size: i64,
    pub ranks: Vec<i64>,
    pub missing: Vec<i64>,
    pub hosts: usize,
    /// `steps` that the ranks name, or the common `clock`.
    pub compared_by: &'static str,
    pub rises: Vec<MemoryRise>,
    /// `none`, `rank`, `several`, `all`, `cannot_tell`.
    pub first: &'static str,
    pub first_ranks: Vec<i64>,
    pub confidence: Option<&'static str>,
    pub lead_ns: Option<i64>,
    pub lead_steps: Option<i64>,
    /// In a sentence.
    pub summary: String,
    /// Ranks whose own level could not be learnt.
    pub unsettled: Vec<i64>,
    pub outliers: Vec<MemoryOutlier>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryRise {
    pub rank: i64,
    pub device: i64,
    #[serde(serialize_with = "as_text")]
    pub at_unix_ns: u64,
    pub step: Option<i64>,
    pub level_bytes: i64,
    pub rise_bytes: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryOutlier {
    pub rank: i64,
    pub device: i64,
    pub bytes: i64,
    pub peers_bytes: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryMarker {
    pub session: String,
    pub rank: String,
    #[serde(serialize_with = "as_text")]
    pub at_unix_ns: u64,
    pub kind: &'static str,
    pub severity: &'static str,
    pub label: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryPhase {
    pub path: String,
    pub count: u64,
    pub total_ns: i64,
    pub peak_bytes: Option<i64>,
    #[serde(serialize_with = "as_text_or_null")]
    pub peak_unix_ns: Option<u64>,
    /// What all of them left behind.
    pub net_bytes: i64,
}

/// One phase of one thread.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemorySpan {
    pub session: String,
    pub rank: i64,
    pub path: String,
    /// 1 for the outermost.
    pub depth: usize,
    #[serde(serialize_with = "as_text")]
    pub start_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub end_unix_ns: u64,
    /// Nobody said that it ended.
    pub open: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryIssue {
    /// `issue:` and 24 hex digits, as the Python package `stormlog` numbers them.
    pub fingerprint: String,
    pub kind: &'static str,
    pub severity: String,
    pub title: String,
    pub count: u64,
    #[serde(serialize_with = "as_text")]
    pub first_unix_ns: u64,
    #[serde(serialize_with = "as_text")]
    pub last_unix_ns: u64,
    pub sessions: Vec<String>,
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
fn as_text_or_null<S: serde::Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

/// A moment as it goes out; none is before 1970.
fn unix(at_ns: i64) -> u64 {
    u64::try_from(at_ns).unwrap_or(0)
}

/// The answer for `events`, read once and not kept.
pub fn memory(events: impl IntoIterator<Item = MemoryEvent>, question: MemoryQuestion) -> Memory {
    let mut analyzer = Analyzer::new(Rules::default());
    for event in events {
        analyzer.add(&event);
    }
    memory_answer(&analyzer.finish(), question)
}

/// The answer that a report makes. `sources` and what was skipped while reading are the caller's to add.
pub fn memory_answer(report: &MemoryReport, question: MemoryQuestion) -> Memory {
    let start = report.sessions.iter().map(|s| s.first_ns).min();
    let end = report.sessions.iter().map(|s| s.last_ns).max();
    Memory {
        schema: MEMORY_SCHEMA,
        sources: Vec::new(),
        window: start.zip(end).map(|(start, end)| WindowUnix {
            start_unix_ns: unix(start),
            end_unix_ns: unix(end),
        }),
        events: report.counts.events,
        measurements: report.counts.measurements,
        skipped: skipped(&report.counts),
        sessions: report.sessions.iter().map(session).collect(),
        series: report
            .series
            .iter()
            .enumerate()
            .map(|(at, one)| series(report, at, one, question))
            .collect(),
        findings: report.findings.iter().map(|f| finding(report, f)).collect(),
        checks: report
            .checks
            .iter()
            .map(|check| MemoryCheck {
                series: check.series,
                check: check.kind.name(),
                result: match (check.found, check.unknown) {
                    (true, _) => "found",
                    (false, None) => "nothing",
                    (false, Some(_)) => "cannot_tell",
                },
                why: check.unknown.map(|why| words::unknown(why, check.kind)),
            })
            .collect(),
        ranks: report.ranks.iter().map(ranks).collect(),
        markers: report
            .markers
            .iter()
            .filter_map(|m| {
                Some(MemoryMarker {
                    session: m.session_id.to_string(),
                    rank: m.rank.to_string(),
                    at_unix_ns: m.start_ns.to_u64()?,
                    kind: m.kind.name(),
                    severity: m.severity,
                    label: m.label.clone(),
                })
            })
            .collect(),
        phases: report
            .phases
            .iter()
            .map(|p| MemoryPhase {
                path: p.path.clone(),
                count: p.count,
                total_ns: p.total_ns,
                peak_bytes: p.peak.map(|peak| peak.bytes),
                peak_unix_ns: p.peak.map(|peak| unix(peak.at_ns)),
                net_bytes: p.net_bytes,
            })
            .collect(),
        spans: report
            .spans
            .iter()
            .filter(|_| question.points > 0)
            .filter_map(|s| {
                Some(MemorySpan {
                    session: s.session_id.to_string(),
                    rank: s.rank.to_i64()?,
                    path: s.path_text(),
                    depth: s.path.len(),
                    start_unix_ns: s.start_ns.to_u64()?,
                    end_unix_ns: s.end_ns.to_u64()?,
                    open: s.synthetic_end,
                })
            })
            .collect(),
        issues: report
            .issues
            .iter()
            .map(|i| MemoryIssue {
                fingerprint: i.fingerprint.id.clone(),
                kind: i.fingerprint.kind.name(),
                severity: i.severity.clone(),
                title: i.title.clone(),
                count: i.count,
                first_unix_ns: unix(i.first_ns),
                last_unix_ns: unix(i.last_ns),
                sessions: i.sessions.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    }
}

fn skipped(counts: &engine::Counts) -> Vec<Skip> {
    [
        ("out_of_range", counts.out_of_range),
        ("too_many_series", counts.series_dropped),
        ("too_many_sessions", counts.sessions_dropped),
        ("too_many_markers", counts.markers_dropped),
        ("too_many_phases", counts.boundaries_dropped),
        ("too_many_issues", counts.issues_dropped),
        ("too_many_ooms", counts.ooms_dropped),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(reason, count)| Skip {
        reason: reason.into(),
        count,
    })
    .collect()
}

fn session(session: &engine::SessionUse) -> MemorySession {
    MemorySession {
        session: session.session_id.to_string(),
        job: session.job_id.as_deref().map(Into::into),
        host: session.host.to_string(),
        world_size: session.world_size,
        events: session.events,
        samples: session.samples,
        alerts: session.alerts,
        ooms: session.ooms,
        start_unix_ns: unix(session.first_ns),
        end_unix_ns: unix(session.last_ns),
        interrupted: session.interrupted,
        status: None,
    }
}

fn series(
    report: &MemoryReport,
    at: usize,
    one: &engine::Series,
    question: MemoryQuestion,
) -> MemorySeries {
    let capabilities = &one.metadata.capabilities;
    let peak = one.peak(Level::Used).or(one.peak(Level::Allocated));
    let (point_ns, points) = points(one, question.points);
    MemorySeries {
        session: one.key.session_id.to_string(),
        job: one.job_id.as_deref().map(Into::into),
        host: one.key.host.to_string(),
        pid: one.key.pid,
        rank: one.key.rank,
        local_rank: one.local_rank,
        world_size: one.world_size,
        device: one.key.device,
        collector: one.collector.to_string(),
        backend: capabilities.backend.to_string(),
        sampling_source: capabilities.sampling_source.to_string(),
        start_unix_ns: unix(one.first_ns),
        end_unix_ns: unix(one.last_ns),
        measurements: one.measurements,
        interval_ns: one.interval_ns(),
        longest_silence_ns: one.longest_silence_ns,
        total_bytes: one.total_bytes,
        peak_utilization: one
            .total_bytes
            .filter(|total| *total > 0)
            .zip(peak)
            .map(|(total, peak)| peak.bytes as f64 / total as f64),
        device_used_is_allocator: one.used_is_allocator(),
        levels: Level::ALL
            .into_iter()
            .filter_map(|level| {
                let peak = one.peak(level)?;
                Some(MemoryLevel {
                    level: level.name(),
                    last_bytes: one.last(level)?,
                    mean_bytes: one.mean(level)? as i64,
                    peak_bytes: peak.bytes,
                    peak_unix_ns: unix(peak.at_ns),
                    peak_phase: report.peak_phases[at][level as usize].clone(),
                    absent: one.absent[level as usize],
                })
            })
            .collect(),
        point_ns,
        points,
    }
}

/// The points of a series, joined to at most `most`, and their length.
fn points(one: &engine::Series, most: usize) -> (i64, Vec<MemoryPoint>) {
    if most == 0 {
        return (0, Vec::new());
    }
    let joined = one.joined(most);
    let level = |range: Option<&Range>| {
        range.map(|r| LevelRange {
            min_bytes: r.min,
            mean_bytes: r.mean() as i64,
            max_bytes: r.max,
            last_bytes: r.last,
        })
    };
    let points = joined
        .points()
        .iter()
        .map(|p| MemoryPoint {
            start_unix_ns: unix(p.first_ns),
            end_unix_ns: unix(p.last_ns),
            count: p.count,
            allocated: level(p.get(Level::Allocated)),
            reserved: level(p.get(Level::Reserved)),
            device_used: level(p.get(Level::Used)),
            hidden: level(p.get(Level::Hidden)),
            inactive: level(p.get(Level::Inactive)),
        })
        .collect();
    (joined.point_ns(), points)
}

fn finding(report: &MemoryReport, finding: &engine::MemoryFinding) -> MemoryFinding {
    let one = &report.series[finding.series];
    let words = words::of(report, finding);
    MemoryFinding {
        id: id(finding, one),
        kind: finding.what.kind(),
        severity: finding.severity.name(),
        title: words.title,
        summary: words.summary,
        recommendation: words.recommendation,
        session: one.key.session_id.to_string(),
        host: one.key.host.to_string(),
        rank: one.key.rank,
        device: one.key.device,
        series: finding.series,
        start_unix_ns: unix(finding.start_ns),
        end_unix_ns: unix(finding.end_ns),
        confidence: finding.confidence,
        phase: finding.phase.clone(),
        evidence: words.evidence,
    }
}

/// FNV-1a over what the finding is about: nothing else about it may move its id.
fn id(finding: &engine::MemoryFinding, one: &engine::Series) -> String {
    let key = &one.key;
    let text = format!(
        "{}\0{}\0{}\0{}\0{}\0{}\0{}",
        finding.what.kind(),
        key.session_id,
        key.host,
        key.pid,
        key.rank,
        key.device,
        finding.start_ns
    );
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn ranks(report: &engine::RankReport) -> MemoryRanks {
    let (first, first_ranks, confidence, lead_ns, lead_steps) = match &report.first {
        FirstCause::None => ("none", Vec::new(), None, None, None),
        FirstCause::Rank {
            rank,
            lead_ns,
            lead_steps,
            confidence,
        } => (
            "rank",
            vec![*rank],
            Some(confidence.name()),
            *lead_ns,
            *lead_steps,
        ),
        FirstCause::Several(ranks) => {
            ("several", ranks.iter().copied().collect(), None, None, None)
        }
        FirstCause::All => ("all", report.ranks.clone(), None, None, None),
        FirstCause::CannotTell => ("cannot_tell", Vec::new(), None, None, None),
    };
    MemoryRanks {
        job: report.job.to_string(),
        level: report.level.name(),
        world_size: report.world_size,
        ranks: report.ranks.clone(),
        missing: report.missing.clone(),
        hosts: report.hosts,
        compared_by: if report.by_steps { "steps" } else { "clock" },
        rises: report
            .rises
            .iter()
            .map(|rise| MemoryRise {
                rank: rise.rank,
                device: rise.device,
                at_unix_ns: unix(rise.at_ns),
                step: rise.step,
                level_bytes: rise.level_bytes,
                rise_bytes: rise.rise_bytes,
            })
            .collect(),
        first,
        first_ranks,
        confidence,
        lead_ns,
        lead_steps,
        summary: words::ranks(report),
        unsettled: report.unsettled.clone(),
        outliers: report
            .outliers
            .iter()
            .map(|o| MemoryOutlier {
                rank: o.rank,
                device: o.device,
                bytes: o.bytes,
                peers_bytes: o.peers_bytes,
            })
            .collect(),
    }
}

/// How many series of an answer a check could say nothing about, and one reason.
pub fn untold(answer: &Memory) -> BTreeMap<&'static str, (usize, String)> {
    let mut untold = BTreeMap::new();
    for check in &answer.checks {
        if let Some(why) = &check.why {
            untold.entry(check.check).or_insert((0, why.clone())).0 += 1;
        }
    }
    untold
}

/// Names in evidence, in the order given.
fn evidence<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// A number that JSON can hold.
fn real(value: f64) -> Value {
    json!(value)
}

/// For a check that could not be made.
fn check_words(kind: CheckKind) -> &'static str {
    match kind {
        CheckKind::Leak => "whether memory leaks",
        CheckKind::Hidden => "memory outside the allocator",
        CheckKind::Fragmentation => "fragmentation",
    }
}
