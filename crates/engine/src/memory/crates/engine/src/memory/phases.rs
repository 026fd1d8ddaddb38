//! Phases: the named parts of its own work that the job said it entered and left, and which of them a moment lies in.
//!
//! A boundary is an event of type `phase_enter` or `phase_exit` with a well-formed `phase_scope` in its metadata; others are
//! passed over. Phases nest by thread, last in first out. An exit that does not end the innermost open phase of its thread is
//! passed over, too; what is still open ends with the last event of its session and rank.
//!
//! It does not know what a phase means, nor how much of a moment's memory is a phase's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use warptrace_model::{Int, MemoryEvent, Value};

/// One phase of one thread, from its entry to its exit, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseSpan {
    pub session_id: Arc<str>,
    pub rank: Int,
    pub thread_id: Int,
    pub thread_name: Box<str>,
    pub scope_id: Box<str>,
    /// From the outermost phase to this one; not empty.
    pub path: Vec<Box<str>>,
    /// Nanoseconds since the Unix epoch.
    pub start_ns: Int,
    pub end_ns: Int,
    /// Counts the boundaries of one writer.
    pub sequence: Int,
    /// Nobody said that it ended.
    pub synthetic_end: bool,
    /// Which step of the job it is: `step`, `global_step` or `iteration` of its attributes, or the number in a name like
    /// `step 12`.
    pub step: Option<i64>,
}

impl PhaseSpan {
    /// `outer / inner`.
    pub fn path_text(&self) -> String {
        self.path.join(" / ")
    }
}

/// How it is known which phase a moment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PhaseSource {
    /// The event says the phase itself.
    Exact,
    /// The event says its thread, and this is that thread's innermost phase.
    ThreadLocal,
    /// It is the only one that was open.
    Heuristic,
}

impl PhaseSource {
    pub const fn name(self) -> &'static str {
        match self {
            PhaseSource::Exact => "exact",
            PhaseSource::ThreadLocal => "thread_local",
            PhaseSource::Heuristic => "heuristic",
        }
    }
}

/// The phase, or phases, that a moment lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhaseAttribution {
    Unique {
        source: PhaseSource,
        path: String,
        scope_id: Box<str>,
        thread_id: Int,
        thread_name: Box<str>,
    },
    /// Several threads were in phases.
    Ambiguous {
        /// Sorted, each once.
        paths: Vec<String>,
        /// The one that was entered last, unless all are called the same.
        likely: Option<String>,
    },
}

impl PhaseAttribution {
    /// For people: `step / forward`, or `(ambiguous) a | b`.
    pub fn text(&self) -> String {
        match self {
            PhaseAttribution::Unique { path, .. } => path.clone(),
            PhaseAttribution::Ambiguous { paths, .. } => {
                format!("(ambiguous) {}", paths.join(" | "))
            }
        }
    }

    /// The best single guess.
    pub fn likely(&self) -> Option<&str> {
        match self {
            PhaseAttribution::Unique { path, .. } => Some(path),
            PhaseAttribution::Ambiguous { paths, likely } => {
                likely.as_deref().or(paths.first().map(String::as_str))
            }
        }
    }
}

/// Where an event that is to be attributed came from, as far as it says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct PhaseOrigin<'a> {
    pub thread_id: Option<&'a Int>,
    pub scope_id: Option<&'a str>,
}

/// The phases of sessions and ranks, to be asked for moments.
#[derive(Debug, Clone, Default)]
pub struct Phases {
    /// By start, end and sequence.
    spans: HashMap<(Arc<str>, Int), Vec<PhaseSpan>>,
}

/// A well-formed boundary.
#[derive(Debug, Clone, Copy)]
struct Boundary<'a> {
    enter: bool,
    path: &'a [Value],
    scope_id: &'a str,
    thread_id: &'a Int,
    thread_name: &'a str,
    sequence: &'a Int,
    step: Option<i64>,
}

impl<'a> Boundary<'a> {
    fn of(event: &'a MemoryEvent) -> Option<Boundary<'a>> {
        let (enter, action) = match &*event.event_type {
            "phase_enter" => (true, "enter"),
            "phase_exit" => (false, "exit"),
            _ => return None,
        };
        let scope = event.metadata.values.get("phase_scope")?.as_object()?;
        let text = |key| scope.get(key).and_then(Value::as_str);
        if text("action") != Some(action) || text("name")?.is_empty() {
            return None;
        }
        let parent = scope.get("parent_scope_id").unwrap_or(&Value::Null);
        if !parent.is_null() && parent.as_str().is_none() {
            return None;
        }
        let path = scope.get("path")?.as_array()?;
        path.iter().any(is_name).then_some(())?;
        Some(Boundary {
            enter,
            path,
            scope_id: text("scope_id")?,
            thread_id: scope.get("thread_id")?.as_int()?,
            thread_name: text("thread_name")?,
            sequence: scope.get("sequence")?.as_int()?,
            step: scope
                .get("attributes")
                .and_then(Value::as_object)
                .and_then(|said| {
                    ["step", "global_step", "iteration"]
                        .into_iter()
                        .find_map(|key| said.get(key)?.as_int()?.to_i64())
                })
                .or_else(|| step_in_name(text("name")?)),
        })
    }

    fn names(&self) -> Vec<Box<str>> {
        self.path
            .iter()
            .filter(|name| is_name(name))
            .filter_map(|name| name.as_str().map(Box::from))
            .collect()
    }
}

/// The number in `step 12`, `train_step_12`, `iteration: 12`, `batch12`.
fn step_in_name(name: &str) -> Option<i64> {
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[word.len()..].parse().ok()?;
    let word = word
        .trim_end_matches([' ', '_', '-', ':', '#', '='])
        .to_ascii_lowercase();
    ["step", "iteration", "iter", "batch"]
        .iter()
        .any(|kind| word.ends_with(kind))
        .then_some(number)
}

fn is_name(value: &Value) -> bool {
    value.as_str().is_some_and(|name| !name.is_empty())
}

/// Boundaries as they come, to be replayed when all are there. Memory is bounded by the number of boundaries given.
#[derive(Debug, Clone)]
pub struct PhaseLog {
    boundaries: Vec<Said>,
    max_boundaries: usize,
    dropped: u64,
    /// Last event of a session and rank.
    last: HashMap<(Arc<str>, Int), Int>,
    max_ranks: usize,
}

/// A boundary that is kept.
#[derive(Debug, Clone)]
struct Said {
    session_id: Arc<str>,
    rank: Int,
    at_ns: Int,
    enter: bool,
    path: Vec<Box<str>>,
    scope_id: Box<str>,
    thread_id: Int,
    thread_name: Box<str>,
    sequence: Int,
    step: Option<i64>,
}

impl PhaseLog {
    /// Keeps at most `max_boundaries`; those that come after are counted and passed over.
    pub fn new(max_boundaries: usize) -> PhaseLog {
        PhaseLog {
            boundaries: Vec::new(),
            max_boundaries,
            dropped: 0,
            last: HashMap::new(),
            max_ranks: 65_536,
        }
    }

    /// Takes an event, a boundary or not.
    pub fn add(&mut self, event: &MemoryEvent) {
        let key = (event.session_id.clone(), event.identity.rank.clone());
        if let Some(end) = self.last.get_mut(&key) {
            if event.timestamp_ns > *end {
                *end = event.timestamp_ns.clone();
            }
        } else if self.last.len() < self.max_ranks {
            self.last.insert(key, event.timestamp_ns.clone());
        }
        let Some(boundary) = Boundary::of(event) else {
            return;
        };
        if self.boundaries.len() >= self.max_boundaries {
            self.dropped += 1;
            return;
        }
        self.boundaries.push(Said {
            session_id: event.session_id.clone(),
            rank: event.identity.rank.clone(),
            at_ns: event.timestamp_ns.clone(),
            enter: boundary.enter,
            path: boundary.names(),
            scope_id: boundary.scope_id.into(),
            thread_id: boundary.thread_id.clone(),
            thread_name: boundary.thread_name.into(),
            sequence: boundary.sequence.clone(),
            step: boundary.step,
        });
    }

    /// Boundaries that did not fit.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Puts the boundaries in order and pairs them. Cost: O(n log n).
    pub fn replay(mut self) -> Phases {
        let key = |b: &Said| {
            (
                b.session_id.clone(),
                b.rank.clone(),
                b.at_ns.clone(),
                b.sequence.clone(),
                b.scope_id.clone(),
            )
        };
        self.boundaries.sort_by_cached_key(key);
        let mut phases = Phases::default();
        let mut open: BTreeMap<(Arc<str>, Int, Int), Vec<PhaseSpan>> = BTreeMap::new();
        for said in self.boundaries {
            let thread = (
                said.session_id.clone(),
                said.rank.clone(),
                said.thread_id.clone(),
            );
            let stack = open.entry(thread).or_default();
            if said.enter {
                stack.push(PhaseSpan {
                    session_id: said.session_id,
                    rank: said.rank,
                    thread_id: said.thread_id,
                    thread_name: said.thread_name,
                    scope_id: said.scope_id,
                    path: said.path,
                    start_ns: said.at_ns.clone(),
                    end_ns: said.at_ns,
                    sequence: said.sequence,
                    synthetic_end: false,
                    step: said.step,
                });
            } else if let Some(mut span) = stack.pop_if(|top| top.scope_id == said.scope_id) {
                span.end_ns = said.at_ns;
                phases.add(span);
            }
        }
        for mut span in open.into_values().flatten() {
            if let Some(end) = self.last.get(&(span.session_id.clone(), span.rank.clone())) {
                span.end_ns = end.clone();
            }
            span.synthetic_end = true;
            phases.add(span);
        }
        for spans in phases.spans.values_mut() {
            spans.sort_by(|a, b| {
                (&a.start_ns, &a.end_ns, &a.sequence).cmp(&(&b.start_ns, &b.end_ns, &b.sequence))
            });
        }
        phases
    }
}

impl Phases {
    /// Replays the boundaries among `events`, which may come in any order. Cost: O(n log n).
    pub fn of<'a>(events: impl IntoIterator<Item = &'a MemoryEvent>) -> Phases {
        let mut log = PhaseLog::new(usize::MAX);
        for event in events {
            log.add(event);
        }
        log.replay()
    }

    fn add(&mut self, span: PhaseSpan) {
        self.spans
            .entry((span.session_id.clone(), span.rank.clone()))
            .or_default()
            .push(span);
    }

    /// The phases of a session's rank, by start.
    pub fn spans(&self, session_id: &str, rank: &Int) -> &[PhaseSpan] {
        self.spans
            .get(&(session_id.into(), rank.clone()))
            .map_or(&[], Vec::as_slice)
    }

    /// All of them; the order of sessions and ranks is not defined.
    pub fn unsorted_spans(&self) -> impl Iterator<Item = &PhaseSpan> {
        self.spans.values().flatten()
    }

    /// All of them, in no defined order.
    pub fn into_spans(self) -> Vec<PhaseSpan> {
        self.spans.into_values().flatten().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The phase that an event of a session's rank at `at_ns` belongs to; `None` when no phase was open. Cost: O(phases).
    pub fn resolve(
        &self,
        session_id: &str,
        rank: &Int,
        at_ns: &Int,
        origin: PhaseOrigin<'_>,
    ) -> Option<PhaseAttribution> {
        let spans = self.spans(session_id, rank);
        let started = spans.partition_point(|s| s.start_ns <= *at_ns);
        let active: Vec<&PhaseSpan> = spans[..started]
            .iter()
            .filter(|s| s.end_ns >= *at_ns)
            .collect();
        attribute(&active, origin)
    }

    /// [`Phases::resolve`] of an event, by its own time and what it says of its origin.
    pub fn resolve_event(&self, event: &MemoryEvent) -> Option<PhaseAttribution> {
        let metadata = &event.metadata.values;
        self.resolve(
            &event.session_id,
            &event.identity.rank,
            &event.timestamp_ns,
            PhaseOrigin {
                thread_id: metadata.get("origin_thread_id").and_then(Value::as_int),
                scope_id: metadata
                    .get("origin_phase_scope_id")
                    .and_then(Value::as_str),
            },
        )
    }
}

/// Entered last, by the writer's own count.
fn latest<'a>(spans: impl Iterator<Item = &'a PhaseSpan>) -> Option<&'a PhaseSpan> {
    spans.max_by(|a, b| (&a.sequence, &a.start_ns).cmp(&(&b.sequence, &b.start_ns)))
}

fn attribute(active: &[&PhaseSpan], origin: PhaseOrigin<'_>) -> Option<PhaseAttribution> {
    let unique = |span: &PhaseSpan, source| PhaseAttribution::Unique {
        source,
        path: span.path_text(),
        scope_id: span.scope_id.clone(),
        thread_id: span.thread_id.clone(),
        thread_name: span.thread_name.clone(),
    };
    if let Some(scope) = origin.scope_id
        && let Some(span) = active.iter().find(|s| &*s.scope_id == scope)
    {
        return Some(unique(span, PhaseSource::Exact));
    }
    if let Some(thread) = origin.thread_id
        && let Some(span) = latest(active.iter().copied().filter(|s| s.thread_id == *thread))
    {
        return Some(unique(span, PhaseSource::ThreadLocal));
    }
    let mut depth: HashMap<&Int, usize> = HashMap::new();
    for span in active {
        let deepest = depth.entry(&span.thread_id).or_default();
        *deepest = (*deepest).max(span.path.len());
    }
    let deepest: Vec<&PhaseSpan> = active
        .iter()
        .copied()
        .filter(|s| depth.get(&s.thread_id) == Some(&s.path.len()))
        .collect();
    match deepest[..] {
        [] => None,
        [span] => Some(unique(span, PhaseSource::Heuristic)),
        _ => {
            let mut paths: Vec<String> = deepest.iter().map(|s| s.path_text()).collect();
            paths.sort();
            paths.dedup();
            let likely = (paths.len() > 1)
                .then(|| latest(deepest.iter().copied()).map(PhaseSpan::path_text))
                .flatten();
            Some(PhaseAttribution::Ambiguous { paths, likely })
        }
    }
}
