//! From events, one after another, to a report: sessions, series, marks, phases, issues.
//!
//! Memory is bounded by [`Caps`], whatever the number of events; what does not fit is counted. Events come in any order, best
//! in order of time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use warptrace_model::{Int, MemoryEvent};

use super::classify::{is_oom, issue, severity};
use super::findings::{Check, MemoryFinding, conclude};
use super::fingerprint::{Fingerprint, fingerprint};
use super::markers::Marker;
use super::phases::{PhaseLog, PhaseOrigin, PhaseSpan, Phases};
use super::ranks::{RankReport, Steps, compare};
use super::rules::{Caps, Rules};
use super::series::{Level, Peak, Points, Series, SeriesKey, Values};

/// What the events said, and what follows.
#[derive(Debug, Clone)]
pub struct MemoryReport {
    /// By start.
    pub sessions: Vec<SessionUse>,
    /// By session, rank, device, host, process.
    pub series: Vec<Series>,
    /// The phase of each series' peaks, by [`Level`], where the job names its phases.
    pub peak_phases: Vec<[Option<String>; 5]>,
    /// The worst first.
    pub findings: Vec<MemoryFinding>,
    /// What was looked for in each series, and what came out.
    pub checks: Vec<Check>,
    pub ranks: Vec<RankReport>,
    /// By start; without phases.
    pub markers: Vec<Marker>,
    /// By time in all, most first.
    pub phases: Vec<PhaseUse>,
    /// The longest of the phases, by start.
    pub spans: Vec<PhaseSpan>,
    /// By times seen, most first.
    pub issues: Vec<Issue>,
    pub ooms: Vec<OomMoment>,
    pub counts: Counts,
}

/// What was taken, and what was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub events: u64,
    /// With counters.
    pub measurements: u64,
    /// Times or numbers that no machine has (beyond 63 bits): passed over.
    pub out_of_range: u64,
    /// Measurements of series that did not fit.
    pub series_dropped: u64,
    pub sessions_dropped: u64,
    pub markers_dropped: u64,
    pub boundaries_dropped: u64,
    pub issues_dropped: u64,
    pub ooms_dropped: u64,
}

/// One run of a collector.
#[derive(Debug, Clone)]
pub struct SessionUse {
    pub session_id: Arc<str>,
    pub job_id: Option<Arc<str>>,
    pub host: Arc<str>,
    pub world_size: i64,
    pub events: u64,
    pub samples: u64,
    pub alerts: u64,
    pub ooms: u64,
    /// Nanoseconds since the Unix epoch.
    pub first_ns: i64,
    pub last_ns: i64,
    /// Whether its last event is no `stop`.
    pub interrupted: bool,
}

/// A moment when memory ran out.
#[derive(Debug, Clone)]
pub struct OomMoment {
    pub key: SeriesKey,
    pub at_ns: i64,
    /// Why its writer took it for one.
    pub reason: String,
    /// Only the words of a message said so.
    pub by_words: bool,
    pub dump_path: Option<String>,
    /// By [`Level`], as the event says.
    pub levels: Values,
    pub total_bytes: Option<i64>,
}

/// The same trouble, seen again and again.
#[derive(Debug, Clone)]
pub struct Issue {
    pub fingerprint: Fingerprint,
    pub severity: String,
    /// The text of the first one.
    pub title: String,
    pub count: u64,
    pub first_ns: i64,
    pub last_ns: i64,
    /// At most 100 of them.
    pub sessions: Vec<Arc<str>>,
}

/// All phases of one path, in all sessions and ranks.
#[derive(Debug, Clone)]
pub struct PhaseUse {
    pub path: String,
    pub count: u64,
    pub total_ns: i64,
    /// Highest allocated (device-used where there is none) within one.
    pub peak: Option<Peak>,
    /// Sum of what each left behind: allocated at its end minus at its start, bytes.
    pub net_bytes: i64,
}

/// Takes events, and concludes at the end.
#[derive(Debug)]
pub struct Analyzer {
    rules: Rules,
    series: Vec<Series>,
    by_key: HashMap<SeriesKey, usize>,
    points: usize,
    sessions: Vec<SessionUse>,
    session_by_id: HashMap<Arc<str>, usize>,
    log: PhaseLog,
    markers: Vec<Marker>,
    issues: BTreeMap<String, Issue>,
    ooms: Vec<OomMoment>,
    counts: Counts,
}

impl Analyzer {
    pub fn new(rules: Rules) -> Analyzer {
        Analyzer {
            log: PhaseLog::new(rules.caps.boundaries),
            rules,
            series: Vec::new(),
            by_key: HashMap::new(),
            points: 0,
            sessions: Vec::new(),
            session_by_id: HashMap::new(),
            markers: Vec::new(),
            issues: BTreeMap::new(),
            ooms: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Takes the next event.
    pub fn add(&mut self, event: &MemoryEvent) {
        self.counts.events += 1;
        let Some(at) = event.timestamp_ns.to_i64().filter(|at| *at >= 0) else {
            self.counts.out_of_range += 1;
            return;
        };
        self.log.add(event);
        let oom = is_oom(event);
        let said = issue(event);
        self.session(event, at, oom, said.is_some());
        if let Some(marker) = Marker::of(event) {
            if self.markers.len() < self.rules.caps.markers {
                self.markers.push(marker);
            } else {
                self.counts.markers_dropped += 1;
            }
        }
        if let Some((kind, dimensions)) = said
            && let Ok(fingerprint) = fingerprint(kind, &dimensions)
        {
            self.issue(event, at, fingerprint);
        }
        let key = SeriesKey {
            session_id: event.session_id.clone(),
            host: event.host.clone(),
            pid: event.pid.to_i64().unwrap_or(-1),
            rank: event.identity.rank.to_i64().unwrap_or(i64::MAX),
            device: event.device_id.to_i64().unwrap_or(-1),
        };
        let (values, total) = self.values(event);
        if oom {
            if self.ooms.len() < self.rules.caps.ooms {
                self.ooms
                    .push(oom_moment(event, key.clone(), at, values, total));
            } else {
                self.counts.ooms_dropped += 1;
            }
        }
        if values.iter().any(Option::is_some) && measures(event, oom) {
            self.measure(event, key, at, &values, total);
        }
    }

    /// The counters by level. What 63 bits cannot hold is absent, and counted.
    fn values(&mut self, event: &MemoryEvent) -> (Values, Option<i64>) {
        let mut number = |value: &Option<Int>| {
            let value = value.as_ref()?;
            let fits = value.to_i64();
            self.counts.out_of_range += u64::from(fits.is_none());
            fits
        };
        let reserved = number(&event.allocator_reserved_bytes);
        let used = number(&event.device_used_bytes);
        let values = [
            number(&event.allocator_allocated_bytes),
            reserved,
            used,
            used.zip(reserved).map(|(used, reserved)| used - reserved),
            number(&event.allocator_inactive_bytes),
        ];
        (values, number(&event.device_total_bytes))
    }

    fn measure(
        &mut self,
        event: &MemoryEvent,
        key: SeriesKey,
        at: i64,
        values: &Values,
        total: Option<i64>,
    ) {
        let Caps {
            series: max_series,
            points: max_points,
            points_in_all,
            ..
        } = self.rules.caps;
        let index = match self.by_key.get(&key) {
            Some(index) => *index,
            None if self.series.len() >= max_series => {
                self.counts.series_dropped += 1;
                return;
            }
            None => {
                self.by_key.insert(key.clone(), self.series.len());
                self.series.push(new_series(event, key, at));
                self.series.len() - 1
            }
        };
        self.counts.measurements += 1;
        let series = &mut self.series[index];
        let before = series.points.len();
        series.points.add(at, values, max_points);
        self.points = (self.points + series.points.len()).saturating_sub(before);
        series.measurements += 1;
        series.samples += u64::from(event.event_type.trim().eq_ignore_ascii_case("sample"));
        if at > series.last_ns {
            series.longest_silence_ns = series.longest_silence_ns.max(at - series.last_ns);
        }
        series.first_ns = series.first_ns.min(at);
        series.last_ns = series.last_ns.max(at);
        series.total_bytes = total.or(series.total_bytes);
        series.world_size = series
            .world_size
            .max(event.identity.world_size.to_i64().unwrap_or(1));
        for level in Level::ALL {
            match values[level as usize] {
                None => series.absent[level as usize] += 1,
                Some(bytes) => {
                    let peak = &mut series.peaks[level as usize];
                    if peak.is_none_or(|p| bytes > p.bytes || (bytes == p.bytes && at < p.at_ns)) {
                        *peak = Some(Peak { bytes, at_ns: at });
                    }
                }
            }
        }
        let [allocated, reserved, used, ..] = *values;
        if let Some(used) = used {
            series.used_differs += u64::from(Some(used) != allocated.max(reserved));
        }
        let full = self.rules.full;
        if let Some((part, total)) = used.or(allocated).zip(series.total_bytes)
            && total > 0
        {
            let ratio = part as f64 / total as f64;
            if !series.is_full && ratio >= full.enter_ratio {
                series.is_full = true;
                series.full_episodes += 1;
                series.full_since_ns = series.full_since_ns.or(Some(at));
            } else if series.is_full && ratio < full.leave_ratio {
                series.is_full = false;
            }
        }
        if self.points > points_in_all {
            // All give up half, so that none is finer than another for having come later.
            for series in &mut self.series {
                let half = series.points.len() / 2;
                series.points.coarsen(half.max(64));
            }
            self.points = self.series.iter().map(|s| s.points.len()).sum();
        }
    }

    fn session(&mut self, event: &MemoryEvent, at: i64, oom: bool, alert: bool) {
        let index = match self.session_by_id.get(&event.session_id) {
            Some(index) => *index,
            None if self.sessions.len() >= self.rules.caps.sessions => {
                self.counts.sessions_dropped += 1;
                return;
            }
            None => {
                self.session_by_id
                    .insert(event.session_id.clone(), self.sessions.len());
                self.sessions.push(SessionUse {
                    session_id: event.session_id.clone(),
                    job_id: event.identity.job_id.clone(),
                    host: event.host.clone(),
                    world_size: 1,
                    events: 0,
                    samples: 0,
                    alerts: 0,
                    ooms: 0,
                    first_ns: at,
                    last_ns: at,
                    interrupted: true,
                });
                self.sessions.len() - 1
            }
        };
        let session = &mut self.sessions[index];
        session.events += 1;
        session.samples += u64::from(event.is_sample());
        session.ooms += u64::from(oom);
        session.alerts += u64::from(alert);
        session.world_size = session
            .world_size
            .max(event.identity.world_size.to_i64().unwrap_or(1));
        session.first_ns = session.first_ns.min(at);
        if at >= session.last_ns {
            session.last_ns = at;
            session.interrupted = &*event.event_type != "stop";
        }
    }

    fn issue(&mut self, event: &MemoryEvent, at: i64, fingerprint: Fingerprint) {
        const MAX_SESSIONS: usize = 100;
        if let Some(issue) = self.issues.get_mut(&fingerprint.id) {
            issue.count += 1;
            issue.first_ns = issue.first_ns.min(at);
            issue.last_ns = issue.last_ns.max(at);
            if issue.sessions.len() < MAX_SESSIONS && !issue.sessions.contains(&event.session_id) {
                issue.sessions.push(event.session_id.clone());
            }
        } else if self.issues.len() < self.rules.caps.issues {
            let title = event.context.as_deref().map(str::trim).unwrap_or_default();
            let issue = Issue {
                severity: severity(event).into_owned(),
                title: if title.is_empty() {
                    &event.event_type
                } else {
                    title
                }
                .to_owned(),
                count: 1,
                first_ns: at,
                last_ns: at,
                sessions: vec![event.session_id.clone()],
                fingerprint,
            };
            self.issues.insert(issue.fingerprint.id.clone(), issue);
        } else {
            self.counts.issues_dropped += 1;
        }
    }

    /// Puts in order what came, and concludes. Cost: O(points + phases), some of it with a logarithm.
    pub fn finish(mut self) -> MemoryReport {
        self.counts.boundaries_dropped = self.log.dropped();
        let phases = self.log.replay();
        self.series.sort_by(|a, b| {
            (
                &a.key.session_id,
                a.key.rank,
                a.key.device,
                &a.key.host,
                a.key.pid,
            )
                .cmp(&(
                    &b.key.session_id,
                    b.key.rank,
                    b.key.device,
                    &b.key.host,
                    b.key.pid,
                ))
        });
        self.sessions
            .sort_by(|a, b| (a.first_ns, &a.session_id).cmp(&(b.first_ns, &b.session_id)));
        self.markers.sort_by(Marker::order);
        self.ooms
            .sort_by(|a, b| (a.at_ns, &a.key).cmp(&(b.at_ns, &b.key)));
        let mut issues: Vec<Issue> = self.issues.into_values().collect();
        issues.sort_by_key(|i| (std::cmp::Reverse(i.count), i.first_ns));
        let ranks = compare(&self.series, &steps(&phases), &self.rules.ranks);
        let (findings, checks) = conclude(&self.series, &ranks, &self.ooms, &phases, &self.rules);
        let peak_phases = self
            .series
            .iter()
            .map(|one| {
                let at = |level| phase_at(&phases, &one.key, one.peak(level)?.at_ns);
                Level::ALL.map(at)
            })
            .collect();
        MemoryReport {
            peak_phases,
            phases: phase_uses(&self.series, &phases),
            spans: longest(phases, self.rules.caps.spans),
            sessions: self.sessions,
            series: self.series,
            findings,
            checks,
            ranks,
            markers: self.markers,
            issues,
            ooms: self.ooms,
            counts: self.counts,
        }
    }
}

/// Whether an event's counters are of its moment: those of lifecycle events are repeated, or 0 where nothing was measured.
fn measures(event: &MemoryEvent, oom: bool) -> bool {
    let unavailable = event.metadata.values.get("device_memory_available");
    if unavailable.and_then(warptrace_model::Value::as_bool) == Some(false) {
        return false;
    }
    match event.event_type.trim() {
        "start"
        | "stop"
        | "phase_enter"
        | "phase_exit"
        | "collector_degraded"
        | "collector_recovered" => false,
        "error" => oom,
        _ => true,
    }
}

fn new_series(event: &MemoryEvent, key: SeriesKey, at: i64) -> Series {
    Series {
        key,
        job_id: event.identity.job_id.clone(),
        local_rank: event.identity.local_rank.to_i64().unwrap_or(0),
        world_size: 1,
        collector: event.collector.clone(),
        metadata: event.metadata.clone(),
        sampling_interval_ms: event.sampling_interval_ms.to_i64().unwrap_or(0),
        samples: 0,
        measurements: 0,
        first_ns: at,
        last_ns: at,
        longest_silence_ns: 0,
        total_bytes: None,
        absent: [0; 5],
        used_differs: 0,
        full_episodes: 0,
        full_since_ns: None,
        is_full: false,
        peaks: [None; 5],
        points: Points::default(),
    }
}

fn oom_moment(
    event: &MemoryEvent,
    key: SeriesKey,
    at_ns: i64,
    levels: Values,
    total_bytes: Option<i64>,
) -> OomMoment {
    let text = |key| {
        event
            .metadata
            .values
            .get(key)
            .and_then(warptrace_model::Value::as_str)
    };
    let reason = text("oom_reason").unwrap_or_default().trim().to_owned();
    OomMoment {
        key,
        at_ns,
        by_words: reason.starts_with("message_pattern:"),
        reason,
        dump_path: text("oom_dump_path").map(str::to_owned),
        levels,
        total_bytes,
    }
}

/// The numbered steps that phases name.
fn steps(phases: &Phases) -> Steps {
    let mut steps = Steps::new();
    for span in phases.unsorted_spans() {
        if let (Some(step), Some(rank), Some(start)) =
            (span.step, span.rank.to_i64(), span.start_ns.to_i64())
        {
            steps
                .entry((span.session_id.clone(), rank))
                .or_default()
                .push((start, step));
        }
    }
    for of_rank in steps.values_mut() {
        of_rank.sort_unstable();
    }
    steps
}

/// What each phase, by its path, reached and left behind. Paths beyond 1,000 are left out.
fn phase_uses(series: &[Series], phases: &Phases) -> Vec<PhaseUse> {
    const MAX_PATHS: usize = 1000;
    let mut of_rank: HashMap<(&str, i64), Vec<&Series>> = HashMap::new();
    for one in series {
        of_rank
            .entry((&one.key.session_id, one.key.rank))
            .or_default()
            .push(one);
    }
    let mut uses: BTreeMap<String, PhaseUse> = BTreeMap::new();
    for span in phases.unsorted_spans() {
        let (Some(rank), Some(start), Some(end)) = (
            span.rank.to_i64(),
            span.start_ns.to_i64(),
            span.end_ns.to_i64(),
        ) else {
            continue;
        };
        let path = span.path_text();
        if uses.len() >= MAX_PATHS && !uses.contains_key(&path) {
            continue;
        }
        let phase = uses.entry(path).or_insert_with_key(|path| PhaseUse {
            path: path.clone(),
            count: 0,
            total_ns: 0,
            peak: None,
            net_bytes: 0,
        });
        phase.count += 1;
        phase.total_ns = phase.total_ns.saturating_add((end - start).max(0));
        for one in of_rank
            .get(&(&*span.session_id, rank))
            .into_iter()
            .flatten()
        {
            let level = if one.has(Level::Allocated) {
                Level::Allocated
            } else {
                Level::Used
            };
            if let Some(peak) = one.max_between(level, start, end)
                && phase.peak.is_none_or(|p| peak.bytes > p.bytes)
            {
                phase.peak = Some(peak);
            }
            if let Some((before, after)) = one.at(level, start).zip(one.at(level, end)) {
                phase.net_bytes = phase.net_bytes.saturating_add(after - before);
            }
        }
    }
    let mut uses: Vec<PhaseUse> = uses.into_values().collect();
    uses.sort_by_key(|u| (std::cmp::Reverse(u.total_ns), u.path.clone()));
    uses
}

fn longest(phases: Phases, most: usize) -> Vec<PhaseSpan> {
    let mut spans = phases.into_spans();
    if spans.len() > most {
        spans.sort_by_cached_key(|s| (s.start_ns.minus(&s.end_ns), s.start_ns.clone()));
        spans.truncate(most);
    }
    spans.sort_by(|a, b| (&a.start_ns, &b.end_ns).cmp(&(&b.start_ns, &a.end_ns)));
    spans
}

/// The phase of a session's rank at a moment, for people.
pub(super) fn phase_at(phases: &Phases, key: &SeriesKey, at_ns: i64) -> Option<String> {
    if phases.is_empty() {
        return None;
    }
    phases
        .resolve(
            &key.session_id,
            &Int::new(key.rank),
            &Int::new(at_ns),
            PhaseOrigin::default(),
        )
        .map(|phase| phase.text())
}
