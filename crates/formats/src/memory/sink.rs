//! The writer of a sink's folder, without the disk: when lines are flushed, when a segment is full, what retention takes
//! away, what a crash left, and what a failed write means.
//!
//! The folder is behind [`SinkFolder`] and times are arguments, so that a disk that fails and a clock that runs can be
//! played. Records are whatever object a producer gives; their `session_id` alone is looked at.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use warptrace_model::{Int, MemoryEvent, Object, SessionStatus, SessionSummary, Value};

use super::encode::{self, NeedsV4, Version};
use super::folder::{Folder, Place, read_manifest};
use super::load::{LoadError, LoadOptions, Strictness, Tally, read_events};
use super::manifest::{
    MANIFEST, Manifest, SCHEMA_VERSION, SEGMENT_PREFIX, SEGMENT_SUFFIX, SegmentEntry,
    is_segment_file, looks_like_segment, segment_name,
};
use super::open_json::{self, Style};
use super::rollup::{Coverage, ROLLUPS, SessionRollup, rollups_object, rollups_text};

/// The sink of summaries that were made by nobody else.
pub const SOURCE: &str = "stormlog.telemetry_sink";

/// A folder that can be written. Names are single components.
pub trait SinkFolder: Folder {
    /// Size of a file in bytes; [`io::ErrorKind::NotFound`] if there is none.
    fn size(&self, name: &str) -> io::Result<u64>;

    /// Makes an empty file; [`io::ErrorKind::AlreadyExists`] if there is one.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Writes all of `bytes` at the end of a file, which is made if need be, and makes them durable. After an error a part
    /// may have been written.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    fn truncate(&mut self, name: &str, size: u64) -> io::Result<()>;

    /// Removes a file; none is no error.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Puts `text` in the place of a file, in one step and durably: a reader, or a power cut, finds the old one or the new.
    fn replace(&mut self, name: &str, text: &str) -> io::Result<()>;
}

/// How a sink keeps its folder. The defaults are those of the Python package `stormlog` 0.4.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Records that wait for a flush at most, at least 1.
    pub flush_every_events: u64,
    /// How long a record waits for a flush, at most and about; above 0.
    pub flush_every: Duration,
    /// A segment of this many bytes is full; at least 1.
    pub rollover_max_bytes: u64,
    /// A segment of this many records is full; at least 1.
    pub rollover_max_events: u64,
    /// Segments that are kept; at least 1.
    pub retention_max_files: u64,
    /// Bytes of segments that are kept; at least `rollover_max_bytes`.
    pub retention_max_total_bytes: u64,
    /// Whether closing writes sums over the folder beside the manifest.
    pub write_rollups: bool,
    /// Length of their windows; at least 1.
    pub rollup_window_secs: u64,
    /// Bytes that wait for a flush at most, at least 1; a record for which there is no room is dropped and counted, and a
    /// failed write is counted and tried again later. `None`: no bound, and a failed write is the caller's error.
    pub max_buffer_bytes: Option<u64>,
    /// Pause after the first failed write, above 0; it doubles with each failure.
    pub failure_backoff: Duration,
    /// The longest pause; at least `failure_backoff`.
    pub failure_backoff_max: Duration,
}

impl Default for SinkConfig {
    fn default() -> SinkConfig {
        SinkConfig {
            flush_every_events: 50,
            flush_every: Duration::from_secs(2),
            rollover_max_bytes: 64 << 20,
            rollover_max_events: 10_000,
            retention_max_files: 8,
            retention_max_total_bytes: 512 << 20,
            write_rollups: true,
            rollup_window_secs: 60,
            max_buffer_bytes: None,
            failure_backoff: Duration::from_secs(1),
            failure_backoff_max: Duration::from_secs(60),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{setting} must be {rule}")]
pub struct SinkConfigError {
    pub setting: &'static str,
    pub rule: &'static str,
}

impl SinkConfig {
    /// # Errors
    /// The first setting that cannot be.
    pub fn check(&self) -> Result<(), SinkConfigError> {
        let least_1 = ">= 1";
        let above_0 = "> 0";
        let rules = [
            (self.flush_every_events >= 1, "flush_every_events", least_1),
            (!self.flush_every.is_zero(), "flush_every_seconds", above_0),
            (self.rollover_max_bytes >= 1, "rollover_max_bytes", least_1),
            (
                self.rollover_max_events >= 1,
                "rollover_max_events",
                least_1,
            ),
            (
                self.retention_max_files >= 1,
                "retention_max_files",
                least_1,
            ),
            (
                self.retention_max_total_bytes >= 1,
                "retention_max_total_bytes",
                least_1,
            ),
            (
                self.retention_max_total_bytes >= self.rollover_max_bytes,
                "retention_max_total_bytes",
                ">= rollover_max_bytes",
            ),
            (
                self.rollup_window_secs >= 1,
                "rollup_window_seconds",
                least_1,
            ),
            (
                self.max_buffer_bytes != Some(0),
                "max_buffer_bytes",
                least_1,
            ),
            (
                !self.failure_backoff.is_zero(),
                "failure_backoff_seconds",
                above_0,
            ),
            (
                self.failure_backoff_max >= self.failure_backoff,
                "failure_backoff_max_seconds",
                ">= failure_backoff_seconds",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, setting, rule)) => Err(SinkConfigError { setting, rule }),
            None => Ok(()),
        }
    }

    /// Pause after `failures` failed writes in a row.
    fn backoff(&self, failures: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let pause = self.failure_backoff.saturating_mul(factor);
        pause.min(self.failure_backoff_max)
    }
}

/// When something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// On a clock that only goes forward.
    pub monotonic: Duration,
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: u64,
}

/// Who writes: what goes into the summary of a session that the sink makes itself.
#[derive(Debug, Clone)]
pub struct SinkWriter {
    pub host: Arc<str>,
    pub pid: u32,
    /// Makes an id that no other session has.
    pub fresh_id: fn() -> String,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error(transparent)]
    Config(#[from] SinkConfigError),
    #[error("telemetry sink record session_id must be a string")]
    SessionNotAString,
    #[error("telemetry sink record session_id does not match the active session")]
    OtherSession,
    #[error(transparent)]
    NeedsV4(#[from] NeedsV4),
    #[error("cannot {operation} {name:?}")]
    Io {
        operation: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read what was written, to sum it up")]
    Rollups(#[source] Box<LoadError>),
    /// Somebody else writes this folder.
    #[error("another process writes this folder")]
    Locked,
    /// A fork of the process that opened the sink: the folder is its parent's.
    #[error("the sink was opened before a fork, by another process")]
    Forked,
}

/// What a sink did. Of this process, not of the folder's whole life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkCounts {
    pub rollovers: u64,
    pub pruned_segments: u64,
    pub pruned_bytes: u64,
    /// Of now.
    pub retained_segments: u64,
    pub retained_bytes: u64,
    /// Waiting for a flush.
    pub buffered_records: u64,
    pub buffered_bytes: u64,
    /// For which there was no room, or no disk in the end.
    pub dropped_records: u64,
    pub dropped_bytes: u64,
    pub flush_failures: u64,
    pub consecutive_flush_failures: u32,
    pub last_flush_error: Option<String>,
}

/// A sink: sessions of records, in segments, in a folder.
#[derive(Debug)]
pub struct Sink<F> {
    folder: F,
    config: SinkConfig,
    writer: SinkWriter,
    manifest: Manifest,
    active: Option<Arc<str>>,
    next_index: u64,
    buffer: Vec<u8>,
    /// The segment whose tail is known to be whole, because we wrote it.
    checked: Option<Arc<str>>,
    /// What a failed write left too long, when cutting it back failed as well.
    cut_back: Option<(Arc<str>, u64)>,
    last_flush: Duration,
    retry_at: Duration,
    counts: SinkCounts,
}

fn io_error(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> SinkError {
    let name = name.to_owned();
    move |source| SinkError::Io {
        operation,
        name,
        source,
    }
}

impl<F: SinkFolder> Sink<F> {
    /// Opens a folder, with what a process before may have left in it: segments that the manifest does not list are taken in,
    /// sessions that were running were interrupted.
    ///
    /// # Errors
    /// A bad configuration, or a folder that cannot be read or written.
    pub fn open(
        folder: F,
        config: SinkConfig,
        writer: SinkWriter,
        now: Now,
    ) -> Result<Sink<F>, SinkError> {
        config.check()?;
        let mut sink = Sink {
            folder,
            config,
            writer,
            manifest: Manifest::default(),
            active: None,
            next_index: 1,
            buffer: Vec::new(),
            checked: None,
            cut_back: None,
            last_flush: now.monotonic,
            retry_at: Duration::ZERO,
            counts: SinkCounts::default(),
        };
        sink.take_over(now)?;
        Ok(sink)
    }

    fn take_over(&mut self, now: Now) -> Result<(), SinkError> {
        let names = self.folder.names().map_err(io_error("read", "."))?;
        let found = read_manifest(&self.folder);
        let mut changed = match &found {
            Some(manifest) => manifest.schema_version != SCHEMA_VERSION,
            None => names.iter().any(|name| looks_like_segment(name)),
        };
        let mut manifest = found.unwrap_or_default();
        manifest.schema_version = Int::new(SCHEMA_VERSION);
        // An entry that leads out of the folder is forgotten: retention would delete what it names.
        manifest
            .segments
            .retain(|segment| is_segment_file(&segment.filename));
        for name in names.iter().filter(|name| looks_like_segment(name)) {
            if manifest.segments.iter().all(|s| *s.filename != **name) {
                let (sizes, events) = self.survey(name).map_err(io_error("read", name))?;
                manifest.segments.push(SegmentEntry {
                    filename: name.as_str().into(),
                    event_count: events + u64::from(sizes.cut_off),
                    size_bytes: sizes.all,
                    closed: true,
                    session_id: None,
                });
            }
        }
        manifest
            .segments
            .sort_by(|a, b| a.filename.cmp(&b.filename));
        // Of equal names and ids the last entry holds.
        manifest.segments.reverse();
        manifest.segments.dedup_by(|a, b| a.filename == b.filename);
        manifest.segments.reverse();
        let mut sessions: Vec<SessionSummary> = Vec::new();
        for summary in manifest.sessions.drain(..) {
            match sessions
                .iter_mut()
                .find(|s| s.session_id == summary.session_id)
            {
                Some(before) => *before = summary,
                None => sessions.push(summary),
            }
        }
        for session in &mut sessions {
            if session.status == SessionStatus::Running {
                session.status = SessionStatus::Interrupted;
                session.ended_at_ns = Some(Int::from(now.unix_ns));
                changed = true;
            }
        }
        for segment in &mut manifest.segments {
            let of = |s: &&SessionSummary| Some(&s.session_id) == segment.session_id.as_ref();
            let session = sessions.iter().find(of);
            segment.closed |= session.is_some_and(|s| s.status == SessionStatus::Interrupted);
        }
        manifest.sessions = sessions;
        self.next_index = 1 + manifest
            .segments
            .iter()
            .filter_map(index_of)
            .max()
            .unwrap_or(0);
        self.manifest = manifest;
        match changed {
            true => self.write_manifest(),
            false => Ok(()),
        }
    }

    /// The active session, if there is one.
    pub fn session(&self) -> Option<&SessionSummary> {
        let active = self.active.as_ref()?;
        self.manifest
            .sessions
            .iter()
            .find(|s| s.session_id == *active)
    }

    /// Begins a session, that of `summary` or a new one, and returns it; an active one goes on and is returned instead.
    ///
    /// # Errors
    /// The manifest cannot be written (not in bounded mode, where that is counted). The session is active all the same.
    pub fn start_session(
        &mut self,
        summary: Option<SessionSummary>,
        now: Now,
    ) -> Result<SessionSummary, SinkError> {
        if let Some(active) = self.session() {
            return Ok(active.clone());
        }
        let mut summary = summary.unwrap_or_else(|| self.new_summary(None, now));
        summary.status = SessionStatus::Running;
        summary.ended_at_ns = None;
        self.activate(summary.clone(), now)?;
        Ok(summary)
    }

    fn new_summary(&self, session_id: Option<&str>, now: Now) -> SessionSummary {
        let id = session_id.filter(|id| !id.is_empty()).map(Arc::from);
        SessionSummary {
            session_id: id.unwrap_or_else(|| (self.writer.fresh_id)().into()),
            status: SessionStatus::Running,
            started_at_ns: Int::from(now.unix_ns),
            ended_at_ns: None,
            host: self.writer.host.clone(),
            pid: Int::from(u64::from(self.writer.pid)),
            job_id: Value::Null,
            rank: Int::ZERO,
            local_rank: Int::ZERO,
            world_size: Int::ONE,
            source: SOURCE.into(),
        }
    }

    fn activate(&mut self, summary: SessionSummary, now: Now) -> Result<(), SinkError> {
        self.active = Some(summary.session_id.clone());
        let sessions = &mut self.manifest.sessions;
        match sessions
            .iter_mut()
            .find(|s| s.session_id == summary.session_id)
        {
            Some(before) => *before = summary,
            None => sessions.push(summary),
        }
        self.write_manifest_checked(now)
    }

    /// Appends a record of any kind.
    ///
    /// # Errors
    /// Its `session_id` is no string or not the active session's; or, without a bound, the disk failed: the record is kept,
    /// and tried again with the next.
    pub fn append(&mut self, record: &Object, now: Now) -> Result<(), SinkError> {
        let session = match record.get("session_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(&**id),
            Some(_) => return Err(SinkError::SessionNotAString),
        };
        let mut line = String::new();
        open_json::write_object(&mut line, record, Style::LINE);
        line.push('\n');
        self.append_line(line.as_bytes(), session, now)
    }

    /// Appends an event as a record of `version`.
    ///
    /// # Errors
    /// As [`Sink::append`]; or the version cannot say the event.
    pub fn append_event(
        &mut self,
        event: &MemoryEvent,
        version: Version,
        now: Now,
    ) -> Result<(), SinkError> {
        self.append(&encode::record(event, version)?, now)
    }

    fn append_line(
        &mut self,
        line: &[u8],
        session: Option<&str>,
        now: Now,
    ) -> Result<(), SinkError> {
        // A manifest that cannot be written just now is no reason to lose the record: it waits with the others.
        let begun = match &self.active {
            None => self.activate(self.new_summary(session, now), now),
            Some(active) if session.is_some_and(|id| *id != **active) => {
                return Err(SinkError::OtherSession);
            }
            Some(_) => Ok(()),
        };
        let bytes = line.len() as u64;
        let has_room = |sink: &Sink<F>| match sink.config.max_buffer_bytes {
            Some(limit) => sink.buffer.len() as u64 + bytes <= limit,
            None => true,
        };
        if !has_room(self) {
            if now.monotonic >= self.retry_at {
                self.flush(true, now)?;
            }
            if !has_room(self) {
                self.counts.dropped_records += 1;
                self.counts.dropped_bytes += bytes;
                return Ok(());
            }
        }
        self.buffer.extend_from_slice(line);
        self.counts.buffered_records += 1;
        self.flush(false, now).and(begun)
    }

    /// Writes what waits: always when forced, else if it is much or has waited long, and no failed write is being waited out.
    ///
    /// # Errors
    /// The disk failed (not in bounded mode, where that is counted). What waited goes on waiting.
    pub fn flush(&mut self, force: bool, now: Now) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let waited = now.monotonic.saturating_sub(self.last_flush);
        let due = self.counts.buffered_records >= self.config.flush_every_events
            || waited >= self.config.flush_every;
        let backing_off = self.is_bounded() && now.monotonic < self.retry_at;
        if !force && (!due || backing_off) {
            return Ok(());
        }
        if let Err(error) = self.write_buffer() {
            return self.failed(error, now);
        }
        self.last_flush = now.monotonic;
        self.counts.consecutive_flush_failures = 0;
        self.roll_over();
        self.prune(now)?;
        // The records are safe by now: a manifest that fails is written again with the next flush.
        self.write_manifest_checked(now)
    }

    fn is_bounded(&self) -> bool {
        self.config.max_buffer_bytes.is_some()
    }

    /// Counts a failure; it is the caller's error unless the sink is bounded.
    fn failed(&mut self, error: SinkError, now: Now) -> Result<(), SinkError> {
        self.counts.flush_failures += 1;
        self.counts.consecutive_flush_failures += 1;
        let pause = self.config.backoff(self.counts.consecutive_flush_failures);
        self.retry_at = now.monotonic + pause;
        self.counts.last_flush_error = Some(match &error {
            SinkError::Io { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        });
        match self.is_bounded() {
            true => Ok(()),
            false => Err(error),
        }
    }

    fn write_buffer(&mut self) -> Result<(), SinkError> {
        let name = self.current_segment()?;
        self.make_whole(&name)?;
        let before = match self.folder.size(&name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            size => size,
        }
        .map_err(io_error("read", &name))?;
        if let Err(error) = self.folder.append(&name, &self.buffer) {
            // A part of a line must not be what the next write goes on from.
            if self.folder.truncate(&name, before).is_err() {
                self.cut_back = Some((name.clone(), before));
                self.checked = None;
            }
            return Err(io_error("write", &name)(error));
        }
        if let Some(segment) = self.manifest.segments.last_mut() {
            segment.event_count += self.counts.buffered_records;
            segment.size_bytes += self.buffer.len() as u64;
        }
        self.buffer.clear();
        self.counts.buffered_records = 0;
        Ok(())
    }

    /// The segment to write to: the last if it is open and the active session's, else a new one.
    fn current_segment(&mut self) -> Result<Arc<str>, SinkError> {
        if let Some(last) = self.manifest.segments.last()
            && !last.closed
            && (self.active.is_none() || last.session_id == self.active)
        {
            return Ok(last.filename.clone());
        }
        // Somebody else's file of that name is his: the next number is ours.
        let name: Arc<str> = loop {
            let name = segment_name(self.next_index);
            match self.folder.create(&name) {
                Ok(()) => break name.into(),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.next_index += 1,
                Err(e) => return Err(io_error("create", &name)(e)),
            }
        };
        self.next_index += 1;
        self.checked = Some(name.clone());
        self.manifest.segments.push(SegmentEntry {
            filename: name.clone(),
            event_count: 0,
            size_bytes: 0,
            closed: false,
            session_id: self.active.clone(),
        });
        Ok(name)
    }

    /// Sees to it that the segment ends with a whole line, whatever a write or a process before left there.
    fn make_whole(&mut self, name: &Arc<str>) -> Result<(), SinkError> {
        if let Some((cut, size)) = &self.cut_back {
            // Never made longer: what is missing cannot be brought back by zeros.
            match self.folder.size(cut) {
                Ok(now) if now >= *size => {
                    let cut = cut.clone();
                    let size = *size;
                    self.folder
                        .truncate(&cut, size)
                        .map_err(io_error("truncate", &cut))?;
                    self.checked = (cut == *name).then(|| cut.clone());
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("read", cut)(e)),
            }
            self.cut_back = None;
        }
        if self.checked.as_ref() == Some(name) {
            return Ok(());
        }
        let (size, events) = match self.survey(name) {
            Ok((size, events)) => {
                if size.whole_lines < size.all {
                    let cut = self.folder.truncate(name, size.whole_lines);
                    cut.map_err(io_error("truncate", name))?;
                }
                (size.whole_lines, events)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(e) => return Err(io_error("read", name)(e)),
        };
        if let Some(segment) = self.manifest.segments.last_mut() {
            segment.size_bytes = size;
            segment.event_count = events;
        }
        self.checked = Some(name.clone());
        Ok(())
    }

    /// Sizes of a segment, and its lines that are not blank (of whole lines, when the last is cut off).
    fn survey(&self, name: &str) -> io::Result<(Sizes, u64)> {
        let mut file = self.folder.open(name)?;
        let mut sizes = Sizes::default();
        let (mut events, mut blank) = (0, true);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            for byte in &buffer[..length] {
                sizes.all += 1;
                match byte {
                    b'\n' => {
                        events += u64::from(!blank);
                        blank = true;
                        sizes.whole_lines = sizes.all;
                    }
                    byte => blank &= byte.is_ascii_whitespace(),
                }
            }
        }
        sizes.cut_off = !blank;
        Ok((sizes, events))
    }

    fn roll_over(&mut self) {
        let Some(segment) = self.manifest.segments.last_mut() else {
            return;
        };
        if segment.event_count >= self.config.rollover_max_events
            || segment.size_bytes >= self.config.rollover_max_bytes
        {
            segment.closed = true;
            self.checked = None;
            self.counts.rollovers += 1;
        }
    }

    fn prune(&mut self, now: Now) -> Result<(), SinkError> {
        loop {
            let segments = &self.manifest.segments;
            let bytes: u64 = segments.iter().map(|s| s.size_bytes).sum();
            if segments.len() as u64 <= self.config.retention_max_files
                && bytes <= self.config.retention_max_total_bytes
            {
                return Ok(());
            }
            let Some(at) = segments.iter().position(|s| s.closed) else {
                return Ok(());
            };
            let name = segments[at].filename.clone();
            if let Err(error) = self.folder.remove(&name) {
                return self.failed(io_error("remove", &name)(error), now);
            }
            let gone = self.manifest.segments.remove(at);
            self.counts.pruned_segments += 1;
            self.counts.pruned_bytes += gone.size_bytes;
        }
    }

    fn write_manifest(&mut self) -> Result<(), SinkError> {
        let text = self.manifest.to_text();
        self.folder
            .replace(MANIFEST, &text)
            .map_err(io_error("write", MANIFEST))
    }

    fn write_manifest_checked(&mut self, now: Now) -> Result<(), SinkError> {
        match self.write_manifest() {
            Ok(()) => Ok(()),
            Err(error) => self.failed(error, now),
        }
    }

    /// Ends the active session with `status`: all that waits is written, its segment closed. In bounded mode what cannot be
    /// written is dropped and counted. The next record begins a new session.
    ///
    /// # Errors
    /// The disk failed (not in bounded mode).
    pub fn close(&mut self, status: SessionStatus, now: Now) -> Result<(), SinkError> {
        self.flush(true, now)?;
        if !self.buffer.is_empty() {
            self.counts.dropped_records += std::mem::take(&mut self.counts.buffered_records);
            self.counts.dropped_bytes += self.buffer.len() as u64;
            self.buffer.clear();
        }
        self.checked = None;
        let active = self.active.take();
        if let Some(last) = self.manifest.segments.last_mut()
            && (active.is_none() || last.session_id == active)
        {
            last.closed = true;
        }
        let sessions = &mut self.manifest.sessions;
        if let Some(session) = sessions
            .iter_mut()
            .find(|s| Some(&s.session_id) == active.as_ref())
        {
            session.status = status;
            session.ended_at_ns = Some(Int::from(now.unix_ns));
        }
        self.write_manifest_checked(now)
    }

    /// Writes the sums over the whole folder, if they are wanted. `path` is the folder's path for what they name as their
    /// sources, `resolved` the same without symbolic links.
    ///
    /// Cost: the folder is read twice, in constant memory.
    ///
    /// # Errors
    /// The folder cannot be read or written. The records are safe all the same.
    pub fn write_rollups(&mut self, path: &str, resolved: &str, now: Now) -> Result<(), SinkError> {
        if !self.config.write_rollups || self.manifest.segments.is_empty() {
            return Ok(());
        }
        let window_ns = self.config.rollup_window_secs.saturating_mul(1_000_000_000);
        let place = Place {
            path,
            resolved,
            folder: &self.folder,
            file: None,
        };
        let options = LoadOptions {
            strictness: Strictness::Lenient,
            ..LoadOptions::default()
        };
        let unreadable = |error| SinkError::Rollups(Box::new(error));
        let mut tally = Tally::default();
        let read = read_events(&place, &options, &mut |source, event| {
            tally.add(source, &event)
        })
        .map_err(unreadable)?;
        let mut sessions = tally.finish(&place, &read);
        sessions.sort_by(|a, b| {
            let key = |s: &SessionSummary| (s.started_at_ns.clone(), s.session_id.clone());
            key(&a.summary).cmp(&key(&b.summary))
        });
        let mut sums: Vec<SessionRollup> = sessions
            .iter()
            .map(|info| SessionRollup::new(&info.summary.started_at_ns, window_ns))
            .collect();
        let places: std::collections::HashMap<Arc<str>, usize> = sessions
            .iter()
            .enumerate()
            .map(|(at, info)| (info.summary.session_id.clone(), at))
            .collect();
        read_events(&place, &options, &mut |_, event| {
            if let Some(at) = places.get(&event.session_id) {
                sums[*at].add(&event);
            }
        })
        .map_err(unreadable)?;
        let finished = sums
            .into_iter()
            .zip(&sessions)
            .map(|(sums, info)| sums.finish(&info.summary, &info.sources, &[]))
            .collect();
        let pruned = (self.counts.pruned_segments, self.counts.pruned_bytes);
        let coverage = Coverage::of(&self.manifest, Some(pruned));
        let rollups = rollups_object(
            finished,
            Some(&self.manifest),
            &coverage,
            window_ns,
            now.unix_ns,
        );
        self.folder
            .replace(ROLLUPS, &rollups_text(rollups))
            .map_err(io_error("write", ROLLUPS))
    }

    pub fn counts(&self) -> SinkCounts {
        let segments = &self.manifest.segments;
        SinkCounts {
            retained_segments: segments.len() as u64,
            retained_bytes: segments.iter().map(|s| s.size_bytes).sum(),
            buffered_bytes: self.buffer.len() as u64,
            ..self.counts.clone()
        }
    }

    pub fn folder_mut(&mut self) -> &mut F {
        &mut self.folder
    }

    /// The folder, as it stands: what waits for a flush is lost.
    pub fn into_folder(self) -> F {
        self.folder
    }

    pub fn config(&self) -> &SinkConfig {
        &self.config
    }
}

#[derive(Debug, Default)]
struct Sizes {
    all: u64,
    /// Up to the last LF.
    whole_lines: u64,
    /// Whether what follows is more than blanks.
    cut_off: bool,
}

/// The number in a segment's name.
fn index_of(segment: &SegmentEntry) -> Option<u64> {
    let number = segment.filename.strip_prefix(SEGMENT_PREFIX)?;
    let number = number.strip_suffix(SEGMENT_SUFFIX)?;
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| number.parse().ok())?
}
