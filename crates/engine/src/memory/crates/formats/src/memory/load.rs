//! Loading: the events of a file or of a sink's folder, and the sessions that they belong to.
//!
//! [`read_events`] hands over one event after the other in constant memory; [`load_sessions`] holds them all, sorted, as the
//! Python package `stormlog` does; [`load_events`] holds one session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use warptrace_model::{Int, LoadedSession, MemoryEvent, SessionStatus, SessionSummary, Value};

use super::document::{DocumentError, read_document};
use super::error::RecordError;
use super::folder::{Place, Plan, PlanError, Segment, plan};
use super::lines::{BadLine, Batch, Chunk, ChunkDecoder, Chunks, LineError};
use super::record::Upgrade;
use super::session::id_of_source;

/// What a bad record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// It fails the load, with the text that the Python package has for it.
    Strict,
    /// It is left out and counted.
    #[default]
    Lenient,
}

#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub strictness: Strictness,
    /// Whether records of before version 2 are taken.
    pub permissive_legacy: bool,
    /// The key of a document's array of events, if it is not one of the usual two.
    pub events_key: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            strictness: Strictness::default(),
            permissive_legacy: true,
            events_key: None,
        }
    }
}

/// Why a load failed. Displayed it is the text that the Python package has; [`LoadError::place`] says where.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot read {path:?}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{}", line_text(path, *line, error))]
    Line {
        path: String,
        line: u64,
        error: LineError,
    },
    #[error("{error}")]
    Document { path: String, error: DocumentError },
    #[error("{error}")]
    Record {
        path: String,
        /// In its array, from 0.
        index: u64,
        error: RecordError,
    },
    #[error("Requested session_id not found: {0}")]
    NoSession(String),
}

fn line_text(path: &str, line: u64, error: &LineError) -> String {
    match error {
        LineError::Malformed(_) => {
            format!("Malformed telemetry JSONL record in {path} at line {line}")
        }
        LineError::NotAnObject => {
            format!("Telemetry record in {path} at line {line} must be an object")
        }
        LineError::Record(error) => error.to_string(),
        LineError::TooLong(_) => format!("{path}:{line}: {error}"),
    }
}

impl LoadError {
    /// The file that failed, and the place in it: `path:line` or `path[index]`; empty where there is none.
    pub fn place(&self) -> String {
        match self {
            LoadError::Plan(PlanError::NoSegments { path } | PlanError::NotASink { path })
            | LoadError::Plan(PlanError::Io { path, .. })
            | LoadError::Io { path, .. }
            | LoadError::Document { path, .. } => path.clone(),
            LoadError::Line { path, line, .. } => format!("{path}:{line}"),
            LoadError::Record { path, index, .. } => format!("{path}[{index}]"),
            LoadError::NoSession(_) => String::new(),
        }
    }
}

/// What a lenient load left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Records by the reason's word.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// The first few, each with its place.
    pub examples: Vec<String>,
    /// Files whose last line was cut off. That is no error: their writer was interrupted.
    pub torn: u64,
    /// Names in the manifest that lead out of its folder.
    pub refused: Vec<String>,
}

impl Skipped {
    /// Examples that are kept.
    pub const EXAMPLES: usize = 20;

    /// Counts a record that was left out; its text is made only while examples are wanted.
    pub fn add(&mut self, reason: &'static str, text: impl FnOnce() -> String) {
        *self.by_reason.entry(reason).or_default() += 1;
        if self.examples.len() < Self::EXAMPLES {
            self.examples.push(text());
        }
    }

    /// Records in all.
    pub fn total(&self) -> u64 {
        self.by_reason.values().sum()
    }
}

/// What is known of the sessions of events gone by, without the events. Memory: a few hundred bytes a session.
#[derive(Debug, Default)]
pub struct Tally {
    sessions: HashMap<Arc<str>, SessionTally>,
}

#[derive(Debug)]
struct SessionTally {
    events: u64,
    /// The earliest event; of equal times the first.
    first: MemoryEvent,
    /// Time of the last event of type `stop`.
    stop: Option<Int>,
    sources: BTreeSet<Arc<str>>,
}

impl SessionTally {
    fn look_at(&mut self, event: &MemoryEvent) {
        if event.timestamp_ns < self.first.timestamp_ns {
            self.first = event.clone();
        }
        if &*event.event_type == "stop"
            && self
                .stop
                .as_ref()
                .is_none_or(|stop| *stop <= event.timestamp_ns)
        {
            self.stop = Some(event.timestamp_ns.clone());
        }
    }
}

/// A session without its events.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionInfo {
    pub summary: SessionSummary,
    pub events: u64,
    /// Paths that contributed, sorted.
    pub sources: Vec<String>,
}

impl Tally {
    /// Counts an event that was read from `source`.
    pub fn add(&mut self, source: &Arc<str>, event: &MemoryEvent) {
        self.add_all(source, std::slice::from_ref(event));
    }

    /// Counts events that were read from `source`, one after the other. Cost: a look-up for each run of one session.
    pub fn add_all(&mut self, source: &Arc<str>, events: &[MemoryEvent]) {
        let same = |a: &MemoryEvent, b: &MemoryEvent| Arc::ptr_eq(&a.session_id, &b.session_id);
        for run in events.chunk_by(same) {
            let first = &run[0];
            let session = match self.sessions.get_mut(&first.session_id) {
                Some(session) => session,
                None => {
                    let id = first.session_id.clone();
                    self.sessions.entry(id).or_insert(SessionTally {
                        events: 0,
                        first: first.clone(),
                        stop: None,
                        sources: BTreeSet::new(),
                    })
                }
            };
            if !session.sources.contains(source) {
                session.sources.insert(source.clone());
            }
            session.events += run.len() as u64;
            for event in run {
                session.look_at(event);
            }
        }
    }

    /// The sessions, the one to look at first in front: those with events, and those of `read` that have none.
    pub fn finish(self, place: &Place<'_>, read: &Read) -> Vec<SessionInfo> {
        let mut stored: HashMap<&str, &SessionSummary> = HashMap::new();
        for summary in &read.summaries {
            stored.insert(&summary.session_id, summary);
        }
        let source: Arc<str> = format!("artifact:{}", place.name()).into();
        let empty_sources = |id: &str| match read.empty.get(id) {
            Some(sources) => sources.iter().map(|s| s.to_string()).collect(),
            None => vec![place.resolved.to_owned()],
        };
        let mut sessions: Vec<SessionInfo> = stored
            .values()
            .filter(|summary| !self.sessions.contains_key(&summary.session_id))
            .map(|summary| SessionInfo {
                summary: (*summary).clone(),
                events: 0,
                sources: empty_sources(&summary.session_id),
            })
            .collect();
        for (id, session) in self.sessions {
            let stored = stored.get(&*id).map(|summary| (*summary).clone());
            let mut sources = session.sources;
            sources.extend(read.empty.get(&*id).into_iter().flatten().cloned());
            sessions.push(SessionInfo {
                events: session.events,
                sources: sources.iter().map(|s| s.to_string()).collect(),
                summary: stored
                    .unwrap_or_else(|| inferred(session.first, session.stop, source.clone())),
            });
        }
        sessions.sort_by(|a, b| a.summary.order(&b.summary));
        sessions
    }
}

/// The summary of a session that nobody wrote one of: completed if it stopped.
fn inferred(first: MemoryEvent, stop: Option<Int>, source: Arc<str>) -> SessionSummary {
    let job = first.identity.job_id.as_deref();
    SessionSummary {
        session_id: first.session_id,
        status: match stop {
            Some(_) => SessionStatus::Completed,
            None => SessionStatus::Incomplete,
        },
        started_at_ns: first.timestamp_ns,
        ended_at_ns: stop,
        host: first.host,
        pid: first.pid,
        job_id: job.map_or(Value::Null, Value::from),
        rank: first.identity.rank,
        local_rank: first.identity.local_rank,
        world_size: first.identity.world_size,
        source,
    }
}

/// What was read beside the events.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Summaries that the manifest or the document has; of equal ids the last one holds.
    pub summaries: Vec<SessionSummary>,
    /// Segments without events, by the session that they would be of.
    pub empty: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    pub events: u64,
    pub skipped: Skipped,
}

/// How the records of a segment are upgraded: one that names no session belongs to the manifest's for that segment, else to
/// one made of the place.
pub fn upgrade_of(place: &Place<'_>, segment: &Segment, options: &LoadOptions) -> Upgrade {
    let hinted = segment.session_id.clone().filter(|id| !id.is_empty());
    Upgrade {
        permissive_legacy: options.permissive_legacy,
        default_session_id: hinted.or_else(|| Some(id_of_source(place.resolved, "sink"))),
        ..Upgrade::default()
    }
}

/// Gives every event of `place` to `each`, with the path of its file, in the order of files and lines.
///
/// Memory: a piece of a file, and what [`Read`] holds.
///
/// # Errors
/// The place cannot be read; or, strictly, a record is bad. What `each` was given by then counts for nothing.
pub fn read_events(
    place: &Place<'_>,
    options: &LoadOptions,
    each: &mut dyn FnMut(&Arc<str>, MemoryEvent),
) -> Result<Read, LoadError> {
    let mut read = Read::default();
    match plan(place)? {
        Plan::Lines {
            segments,
            manifest,
            refused,
        } => {
            read.skipped.refused = refused;
            read.summaries = manifest.map(|m| m.sessions).unwrap_or_default();
            for segment in &segments {
                read_segment(place, segment, options, &mut read, each)?;
            }
        }
        Plan::Document { file } => read_file(place, &file, options, &mut read, each)?,
    }
    Ok(read)
}

/// Notes the bad lines of a batch, or fails with the first of them.
///
/// # Errors
/// Strictly, the first bad line.
pub fn note_bad_lines(
    bad: Vec<BadLine>,
    path: &str,
    strictness: Strictness,
    skipped: &mut Skipped,
) -> Result<(), LoadError> {
    for BadLine { line, error } in bad {
        if strictness == Strictness::Strict {
            let path = path.to_owned();
            return Err(LoadError::Line { path, line, error });
        }
        skipped.add(error.reason(), || format!("{path}:{line}: {error}"));
    }
    Ok(())
}

fn read_segment(
    place: &Place<'_>,
    segment: &Segment,
    options: &LoadOptions,
    read: &mut Read,
    each: &mut dyn FnMut(&Arc<str>, MemoryEvent),
) -> Result<(), LoadError> {
    let io = |source| LoadError::Io {
        path: segment.path.clone(),
        source,
    };
    let upgrade = upgrade_of(place, segment, options);
    let default_session = upgrade.default_session_id.clone();
    let path: Arc<str> = segment.path.as_str().into();
    let reader = match place.folder.open(&segment.name) {
        Ok(reader) => reader,
        Err(source) if options.strictness == Strictness::Strict => return Err(io(source)),
        Err(source) => {
            let text = || format!("{}: {source}", segment.path);
            read.skipped.add("unreadable_file", text);
            return Ok(());
        }
    };
    let mut chunks = Chunks::new(reader);
    let mut decoder = ChunkDecoder::new(upgrade);
    let (mut chunk, mut batch) = (Chunk::default(), Batch::default());
    let before = read.events;
    while chunks.read(&mut chunk).map_err(io)? {
        decoder.decode(&chunk, &mut batch);
        read.skipped.torn += u64::from(batch.torn);
        let bad = std::mem::take(&mut batch.bad);
        note_bad_lines(bad, &path, options.strictness, &mut read.skipped)?;
        read.events += batch.events.len() as u64;
        for event in batch.events.drain(..) {
            each(&path, event);
        }
        batch.clear();
    }
    if read.events == before
        && let Some(session) = default_session
    {
        read.empty.entry(session).or_default().insert(path);
    }
    Ok(())
}

fn read_file(
    place: &Place<'_>,
    file: &str,
    options: &LoadOptions,
    read: &mut Read,
    each: &mut dyn FnMut(&Arc<str>, MemoryEvent),
) -> Result<(), LoadError> {
    let key = options.events_key.as_deref();
    let upgrade = Upgrade {
        permissive_legacy: options.permissive_legacy,
        default_session_id: Some(id_of_source(place.resolved, key.unwrap_or("json"))),
        ..Upgrade::default()
    };
    let path = || place.path.to_owned();
    let source: Arc<str> = place.resolved.into();
    let mut first_error = None;
    let Read {
        events, skipped, ..
    } = read;
    let result = read_document(&mut || place.folder.open(file), key, &upgrade, &mut |(
        index,
        event,
    )| {
        match event {
            Ok(event) => {
                *events += 1;
                each(&source, event);
            }
            Err(error) if options.strictness == Strictness::Strict => {
                first_error.get_or_insert((index, error));
            }
            Err(error) => {
                skipped.add(error.reason(), || format!("{}[{index}]: {error}", path()));
            }
        }
    });
    match (result, first_error) {
        (Err(DocumentError::Io(source)), _) => Err(LoadError::Io {
            path: path(),
            source,
        }),
        (Err(error), _) => Err(LoadError::Document {
            path: path(),
            error,
        }),
        (Ok(_), Some((index, error))) => Err(LoadError::Record {
            path: path(),
            index,
            error,
        }),
        (Ok(summary), None) => {
            read.summaries.extend(summary);
            Ok(())
        }
    }
}

/// All sessions of `place` with their events, the one to look at first in front.
///
/// Memory: all events. For more than that see [`read_events`] and [`load_events`].
///
/// # Errors
/// As [`read_events`].
pub fn load_sessions(
    place: &Place<'_>,
    options: &LoadOptions,
) -> Result<(Vec<LoadedSession>, Skipped), LoadError> {
    let mut tally = Tally::default();
    let mut events: HashMap<Arc<str>, Vec<MemoryEvent>> = HashMap::new();
    let read = read_events(place, options, &mut |source, event| {
        tally.add(source, &event);
        match events.get_mut(&event.session_id) {
            Some(session) => session.push(event),
            None => drop(events.insert(event.session_id.clone(), vec![event])),
        }
    })?;
    let sessions = tally.finish(place, &read).into_iter().map(|info| {
        let mut events = events.remove(&info.summary.session_id).unwrap_or_default();
        events.sort_by(|a, b| a.timestamp_ns.cmp(&b.timestamp_ns));
        LoadedSession {
            summary: info.summary,
            events,
            sources_loaded: info.sources,
            warnings: Vec::new(),
        }
    });
    Ok((sessions.collect(), read.skipped))
}

/// The sessions of `place` without their events. Memory: none that grows with the files.
///
/// # Errors
/// As [`read_events`].
pub fn list_sessions(
    place: &Place<'_>,
    options: &LoadOptions,
) -> Result<(Vec<SessionInfo>, Skipped), LoadError> {
    let mut tally = Tally::default();
    let read = read_events(place, options, &mut |source, event| {
        tally.add(source, &event)
    })?;
    Ok((tally.finish(place, &read), read.skipped))
}

/// The events of one session in order of time: of `session_id`, or of the one to look at when nobody names one.
///
/// The place is read twice, so that memory holds the events of that session only.
///
/// # Errors
/// As [`read_events`]; or there is no such session.
pub fn load_events(
    place: &Place<'_>,
    options: &LoadOptions,
    session_id: Option<&str>,
) -> Result<(Vec<MemoryEvent>, Skipped), LoadError> {
    let (sessions, skipped) = list_sessions(place, options)?;
    let chosen = match session_id {
        _ if sessions.is_empty() => return Ok((Vec::new(), skipped)),
        Some(id) => sessions.iter().find(|info| *info.summary.session_id == *id),
        None => sessions
            .iter()
            .find(|info| info.events > 0)
            .or(sessions.first()),
    };
    let Some(chosen) = chosen else {
        return Err(LoadError::NoSession(session_id.unwrap_or_default().into()));
    };
    let mut events = Vec::new();
    if chosen.events > 0 {
        read_events(place, options, &mut |_, event| {
            if event.session_id == chosen.summary.session_id {
                events.push(event);
            }
        })?;
    }
    events.sort_by(|a, b| a.timestamp_ns.cmp(&b.timestamp_ns));
    Ok((events, skipped))
}
