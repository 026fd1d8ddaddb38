//! `rollups.json`: what a sink's folder says in all, by session, rank and window of time, so that a reader need not go
//! through the segments.
//!
//! Sums are made as events come, without holding them. What depends on their order takes them for ordered by time, as the
//! events of a loaded session are and a sink's nearly are; first and last values go by the times themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warptrace_model::number_text::{is_blank, is_blank_char, trim};
use warptrace_model::{Int, MemoryEvent, Object, SessionSummary, Value};

use super::manifest::{MANIFEST, Manifest};
use super::open_json::{self, Layout, Style};
use super::session::summary_object;

/// The file's name.
pub const ROLLUPS: &str = "rollups.json";
/// What the file says of itself.
pub(super) const FORMAT: &str = "stormlog.telemetry_rollups";
pub(super) const SCHEMA_VERSION: i64 = 1;

/// What of a folder the sums cover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    pub segments: Vec<Arc<str>>,
    pub events: u64,
    pub bytes: u64,
    /// Segments and bytes that retention took away, and are in no sum; unknown when the folder was not written by us.
    pub pruned: Option<(u64, u64)>,
}

impl Coverage {
    /// What a manifest lists.
    pub fn of(manifest: &Manifest, pruned: Option<(u64, u64)>) -> Coverage {
        Coverage {
            segments: manifest
                .segments
                .iter()
                .map(|s| s.filename.clone())
                .collect(),
            events: manifest.segments.iter().map(|s| s.event_count).sum(),
            bytes: manifest.segments.iter().map(|s| s.size_bytes).sum(),
            pruned,
        }
    }
}

/// Sums over one session.
#[derive(Debug)]
pub struct SessionRollup {
    window_ns: Int,
    started_at_ns: Int,
    total: Sums,
    alerts: u64,
    severities: BTreeMap<String, u64>,
    alert_types: BTreeMap<Arc<str>, u64>,
    health: Health,
    oom_events: u64,
    oom_dumps: BTreeSet<Box<str>>,
    ranks: BTreeMap<Int, Rank>,
    windows: BTreeMap<Int, Window>,
}

/// What is summed over a session, a rank and a window alike.
#[derive(Debug, Default)]
struct Sums {
    events: u64,
    samples: u64,
    span: Option<(Int, Int)>,
    allocated: Peak,
    reserved: Peak,
    used: Peak,
}

/// The largest value; of equal ones the first.
#[derive(Debug, Default)]
struct Peak(Option<(Int, Int, Int, Int)>);

#[derive(Debug, Default)]
struct Health {
    degraded: u64,
    recovered: u64,
    degraded_ns: Int,
    since: Option<Int>,
    last: Option<String>,
}

#[derive(Debug)]
struct Rank {
    local_rank: Int,
    world_size: Int,
    sums: Sums,
    /// Device memory in use beyond what the allocator holds, with its time: first, latest; and the largest.
    first_gap: Option<(Int, Int)>,
    latest_gap: Option<(Int, Int)>,
    peak_gap: Option<Int>,
}

#[derive(Debug, Default)]
struct Window {
    sums: Sums,
    ranks: BTreeSet<Int>,
    alerts: u64,
    transitions: u64,
    ooms: u64,
}

impl Sums {
    fn add(&mut self, event: &MemoryEvent) {
        self.events += 1;
        self.samples += u64::from(event.is_sample());
        let time = &event.timestamp_ns;
        match &mut self.span {
            None => self.span = Some((time.clone(), time.clone())),
            Some((first, last)) => {
                if time < first {
                    first.clone_from(time);
                }
                if time > last {
                    last.clone_from(time);
                }
            }
        }
        self.allocated.add(&event.allocator_allocated_bytes, event);
        self.reserved.add(&event.allocator_reserved_bytes, event);
        self.used.add(&event.device_used_bytes, event);
    }

    fn counters(&self) -> Object {
        object([
            ("allocator_allocated_bytes", self.allocated.value()),
            ("allocator_reserved_bytes", self.reserved.value()),
            ("device_used_bytes", self.used.value()),
        ])
    }
}

impl Peak {
    fn add(&mut self, value: &Option<Int>, event: &MemoryEvent) {
        let Some(value) = value else { return };
        if self.0.as_ref().is_none_or(|(peak, ..)| value > peak) {
            let rank = event.identity.rank.clone();
            let device = event.device_id.clone();
            self.0 = Some((value.clone(), event.timestamp_ns.clone(), rank, device));
        }
    }

    fn value(&self) -> Value {
        let of = |part: fn(&(Int, Int, Int, Int)) -> &Int| {
            self.0
                .as_ref()
                .map_or(Value::Null, |peak| Value::Int(part(peak).clone()))
        };
        Value::Object(object([
            ("value", of(|p| &p.0)),
            ("timestamp_ns", of(|p| &p.1)),
            ("rank", of(|p| &p.2)),
            ("device_id", of(|p| &p.3)),
        ]))
    }
}

impl Health {
    fn add(&mut self, event: &MemoryEvent) {
        let time = &event.timestamp_ns;
        match &*event.event_type {
            "collector_degraded" => {
                self.degraded += 1;
                self.since = Some(time.clone());
                self.last = Some("degraded".into());
            }
            "collector_recovered" => {
                self.recovered += 1;
                if let Some(since) = self.since.take() {
                    self.lasted(&since, time);
                }
                self.last = Some("healthy".into());
            }
            _ => {
                let said = event.metadata.values.get("collector_health_status");
                if let Some(Value::String(text)) = said
                    && !is_blank(text)
                {
                    self.last = Some(trim(text).to_lowercase());
                }
            }
        }
    }

    fn lasted(&mut self, since: &Int, until: &Int) {
        let lasted = until.minus(since).max(Int::ZERO);
        self.degraded_ns = self.degraded_ns.plus(&lasted);
    }
}

/// The severity of an event that is an alert.
fn alert_severity(event: &MemoryEvent) -> Option<String> {
    let is_alert = |word: &str| matches!(word, "warning" | "critical" | "error");
    let said = match event.metadata.values.get("severity") {
        Some(Value::String(text)) if !is_blank(text) => {
            let lower = text.to_lowercase();
            let words = lower.split(is_blank_char).filter(|word| !word.is_empty());
            Some(words.collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    match (&*event.event_type, said) {
        (kind, Some(said)) => (is_alert(kind) || is_alert(&said)).then_some(said),
        ("critical" | "error", None) => Some("critical".into()),
        ("warning", None) => Some("warning".into()),
        _ => None,
    }
}

fn is_oom(event: &MemoryEvent) -> bool {
    let says = |key| event.metadata.values.contains(key);
    &*event.event_type == "error" && (says("oom_reason") || says("oom_dump_path"))
}

fn is_transition(event: &MemoryEvent) -> bool {
    matches!(
        &*event.event_type,
        "collector_degraded" | "collector_recovered"
    )
}

impl SessionRollup {
    /// No sums yet. Windows are `window_ns` long, at least 1, from the session's start on.
    pub fn new(started_at_ns: &Int, window_ns: u64) -> SessionRollup {
        SessionRollup {
            window_ns: Int::from(window_ns.max(1)),
            started_at_ns: started_at_ns.clone(),
            total: Sums::default(),
            alerts: 0,
            severities: BTreeMap::new(),
            alert_types: BTreeMap::new(),
            health: Health::default(),
            oom_events: 0,
            oom_dumps: BTreeSet::new(),
            ranks: BTreeMap::new(),
            windows: BTreeMap::new(),
        }
    }

    /// Counts an event.
    pub fn add(&mut self, event: &MemoryEvent) {
        let alert = alert_severity(event);
        let oom = is_oom(event);
        self.total.add(event);
        self.health.add(event);
        if oom {
            self.oom_events += 1;
            let dump = event.metadata.values.get("oom_dump_path");
            if let Some(Value::String(path)) = dump
                && !is_blank(path)
            {
                self.oom_dumps.insert(path.clone());
            }
        }
        self.rank(event);
        let window = self
            .windows
            .entry(self.window_of(&event.timestamp_ns))
            .or_default();
        window.sums.add(event);
        window.ranks.insert(event.identity.rank.clone());
        window.alerts += u64::from(alert.is_some());
        window.transitions += u64::from(is_transition(event));
        window.ooms += u64::from(oom);
        if let Some(severity) = alert {
            self.alerts += 1;
            *self.severities.entry(severity).or_default() += 1;
            *self
                .alert_types
                .entry(event.event_type.clone())
                .or_default() += 1;
        }
    }

    fn rank(&mut self, event: &MemoryEvent) {
        let identity = &event.identity;
        let rank = self
            .ranks
            .entry(identity.rank.clone())
            .or_insert_with(|| Rank {
                local_rank: identity.local_rank.clone(),
                world_size: identity.world_size.clone(),
                sums: Sums::default(),
                first_gap: None,
                latest_gap: None,
                peak_gap: None,
            });
        rank.sums.add(event);
        if let (true, Some(used), Some(reserved)) = (
            event.is_sample(),
            &event.device_used_bytes,
            &event.allocator_reserved_bytes,
        ) {
            let (time, gap) = (&event.timestamp_ns, used.minus(reserved));
            if rank
                .first_gap
                .as_ref()
                .is_none_or(|(first, _)| time < first)
            {
                rank.first_gap = Some((time.clone(), gap.clone()));
            }
            if rank
                .latest_gap
                .as_ref()
                .is_none_or(|(latest, _)| time >= latest)
            {
                rank.latest_gap = Some((time.clone(), gap.clone()));
            }
            if rank.peak_gap.as_ref().is_none_or(|peak| gap > *peak) {
                rank.peak_gap = Some(gap);
            }
        }
    }

    /// The window's index: what is before the session's start is in the first.
    fn window_of(&self, time: &Int) -> Int {
        let since = time.minus(&self.started_at_ns).max(Int::ZERO);
        match (since.to_i128(), self.window_ns.to_i128()) {
            (Some(since), Some(window)) => Int::from(since / window),
            _ => Int::truncate(since.to_f64() / self.window_ns.to_f64()).unwrap_or(Int::ZERO),
        }
    }

    /// The sums as the file has them. `sources` are the paths that were read.
    pub fn finish(
        mut self,
        summary: &SessionSummary,
        sources: &[String],
        warnings: &[String],
    ) -> Object {
        let ended = summary.ended_at_ns.clone().filter(|end| *end != 0);
        let last = self.total.span.as_ref().map(|(_, last)| last.clone());
        if let (Some(since), Some(end)) = (self.health.since.take(), ended.or(last)) {
            self.health.lasted(&since, &end);
        }
        let mut sources = sources.to_vec();
        sources.sort();
        let texts =
            |texts: &[String]| Value::Array(texts.iter().map(|t| Value::from(&**t)).collect());
        let severities = self.severities.iter().map(|(k, n)| (&**k, count(*n)));
        let types = self.alert_types.iter().map(|(k, n)| (&**k, count(*n)));
        let health = self.health.last.as_deref();
        let (first_ns, last_ns) = ends(&self.total.span);
        object([
            ("session", Value::Object(summary_object(summary))),
            ("event_count", count(self.total.events)),
            ("sample_count", count(self.total.samples)),
            ("first_timestamp_ns", first_ns),
            ("last_timestamp_ns", last_ns),
            ("source_count", count(sources.len() as u64)),
            ("sources_loaded", texts(&sources)),
            ("warnings", texts(warnings)),
            ("counters", self.total.counters().into()),
            (
                "alerts",
                Value::Object(object([
                    ("total_count", count(self.alerts)),
                    ("severity_counts", Value::Object(object(severities))),
                    ("event_type_counts", Value::Object(object(types))),
                ])),
            ),
            (
                "collector_health",
                Value::Object(object([
                    (
                        "transition_count",
                        count(self.health.degraded + self.health.recovered),
                    ),
                    ("degraded_count", count(self.health.degraded)),
                    ("recovered_count", count(self.health.recovered)),
                    (
                        "degraded_time_ns",
                        Value::Int(self.health.degraded_ns.clone()),
                    ),
                    ("last_status", health.map_or(Value::Null, Value::from)),
                ])),
            ),
            (
                "oom",
                Value::Object(object([
                    ("marker_count", count(self.oom_events)),
                    ("event_count", count(self.oom_events)),
                    ("bundle_path_count", count(self.oom_dumps.len() as u64)),
                ])),
            ),
            (
                "ranks",
                Value::Array(
                    self.ranks
                        .iter()
                        .map(|(rank, sums)| sums.value(rank))
                        .collect(),
                ),
            ),
            (
                "windows",
                Value::Array(
                    self.windows
                        .iter()
                        .map(|(at, sums)| self.window(at, sums))
                        .collect(),
                ),
            ),
        ])
    }

    fn window(&self, index: &Int, window: &Window) -> Value {
        let start = match (index.to_i128(), self.window_ns.to_i128()) {
            (Some(index), Some(length)) => index.checked_mul(length),
            _ => None,
        };
        let start = self
            .started_at_ns
            .plus(&Int::from(start.unwrap_or(i128::MAX)));
        Value::Object(object([
            ("index", Value::Int(index.clone())),
            ("end_ns", Value::Int(start.plus(&self.window_ns))),
            ("start_ns", Value::Int(start)),
            ("event_count", count(window.sums.events)),
            ("sample_count", count(window.sums.samples)),
            ("rank_count", count(window.ranks.len() as u64)),
            ("counters", window.sums.counters().into()),
            ("alert_count", count(window.alerts)),
            ("collector_transition_count", count(window.transitions)),
            ("oom_count", count(window.ooms)),
        ]))
    }
}

impl Rank {
    fn value(&self, rank: &Int) -> Value {
        let bytes = |gap: &Option<(Int, Int)>| {
            gap.as_ref()
                .map_or(Value::Null, |(_, gap)| Value::Int(gap.clone()))
        };
        let (delta, drift) = match (&self.first_gap, &self.latest_gap) {
            (Some((from, first)), Some((to, latest))) => {
                let delta = latest.minus(first);
                let nanos = to.minus(from).to_f64();
                let drift = (nanos > 0.0).then(|| delta.to_f64() / (nanos / 1e9));
                (Value::Int(delta), drift.map_or(Value::Null, six_decimals))
            }
            _ => (Value::Null, Value::Null),
        };
        let (first_ns, last_ns) = ends(&self.sums.span);
        Value::Object(object([
            ("rank", Value::Int(rank.clone())),
            ("local_rank", Value::Int(self.local_rank.clone())),
            ("world_size", Value::Int(self.world_size.clone())),
            ("event_count", count(self.sums.events)),
            ("sample_count", count(self.sums.samples)),
            ("first_timestamp_ns", first_ns),
            ("last_timestamp_ns", last_ns),
            ("counters", self.sums.counters().into()),
            ("hidden_gap_first_bytes", bytes(&self.first_gap)),
            ("hidden_gap_latest_bytes", bytes(&self.latest_gap)),
            (
                "hidden_gap_peak_bytes",
                self.peak_gap.clone().map_or(Value::Null, Value::Int),
            ),
            ("hidden_gap_delta_bytes", delta),
            ("hidden_gap_drift_bytes_per_second", drift),
        ]))
    }
}

fn six_decimals(value: f64) -> Value {
    Value::Float(format!("{value:.6}").parse().unwrap_or(value))
}

fn ends(span: &Option<(Int, Int)>) -> (Value, Value) {
    match span {
        Some((first, last)) => (Value::Int(first.clone()), Value::Int(last.clone())),
        None => (Value::Null, Value::Null),
    }
}

fn count(n: u64) -> Value {
    Value::Int(Int::from(n))
}

fn object<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Object {
    let pairs = pairs.into_iter();
    Object::from_pairs(pairs.map(|(key, value)| (key.into(), value)).collect())
}

/// The file's object: `sessions` are those of [`SessionRollup::finish`], by start and id. `manifest` is the one that
/// `coverage` was taken of.
pub fn rollups_object(
    sessions: Vec<Object>,
    manifest: Option<&Manifest>,
    coverage: &Coverage,
    window_ns: u64,
    generated_at_ns: u64,
) -> Object {
    let names = coverage.segments.iter().map(|name| Value::from(&**name));
    let pruned = |part: fn((u64, u64)) -> u64| {
        coverage
            .pruned
            .map_or(Value::Null, |pruned| count(part(pruned)))
    };
    let coverage = object([
        ("retained_segment_filenames", Value::Array(names.collect())),
        (
            "retained_segment_count",
            count(coverage.segments.len() as u64),
        ),
        ("retained_event_count", count(coverage.events)),
        ("retained_bytes", count(coverage.bytes)),
        ("pruned_segment_count", pruned(|p| p.0)),
        ("pruned_bytes", pruned(|p| p.1)),
    ]);
    object([
        ("schema_version", Value::from(SCHEMA_VERSION)),
        ("format", Value::from(FORMAT)),
        ("generated_at_ns", count(generated_at_ns)),
        (
            "source_manifest",
            manifest.map_or(Value::Null, |_| Value::from(MANIFEST)),
        ),
        (
            "source_manifest_schema_version",
            manifest.map_or(Value::Null, |m| Value::Int(m.schema_version.clone())),
        ),
        ("window_duration_ns", count(window_ns)),
        ("coverage", Value::Object(coverage)),
        (
            "sessions",
            Value::Array(sessions.into_iter().map(Value::Object).collect()),
        ),
    ])
}

/// The file's text.
pub fn rollups_text(rollups: Object) -> String {
    let style = Style {
        sorted: true,
        layout: Layout::Indented,
    };
    open_json::to_string(&Value::Object(rollups), style) + "\n"
}
