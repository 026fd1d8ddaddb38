//! Writing a session: what goes to which table, and when it reaches the disk.
//!
//! The writer decides nothing about what is worth keeping. It takes no clock: time comes with [`SessionWriter::tick`].
//! Calls take as long as the disk does, so a recorder keeps the writer on a thread behind a bounded queue; sealing is
//! spread over the ticks, a batch at a time. When the disk refuses, rows are held up to 64 Ki a table, later ones are
//! dropped and counted, and the disk is asked again every second.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warptrace_model::inference::Outlier;
use warptrace_model::serving::{Engine, ServingReading};
use warptrace_model::{
    BootNanos, ClockAnchor, Event, Finding, Gap, Incarnation, Loss, LossReason, MemoryEvent, Pid,
    Request, Unit, UnixNanos, Window,
};
use warptrace_record::Kind;

use crate::dirs::DataDir;
use crate::error::StoreError;
use crate::fs::{Create, Fs, Lock, Share};
use crate::memory::MetadataText;
use crate::meta::{self, SessionMeta};
use crate::rows::{
    AnnotationRow, DropRow, EventRow, FileRow, FindingRow, Frame, GapRow, MemoryRow, OffCpuRow,
    OpsRow, OutlierRow, ProcessRow, RequestRow, ServingRow, Stack, StackRow, SystemRow, Table,
    ThreadRow, UnitRow,
};
use crate::session::Session;
use crate::table::{Dropped, Kept, Shared, TableWriter, dir_mode, union};

/// The name of the file in a session's directory that its writer holds locked.
pub(crate) const LOCK_FILE: &str = "lock";

const SECOND: u64 = 1_000_000_000;
/// What was given is in the file so long after, ns.
const FLUSH_EVERY: u64 = SECOND;
/// And on the disk so long after, ns.
const SYNC_EVERY: u64 = 5 * SECOND;
/// A disk that refused is asked again so long after, ns.
const RETRY_AFTER: u64 = SECOND;
/// A seal that failed is tried again so long after, ns.
const SEAL_RETRY_AFTER: u64 = 10 * SECOND;
/// What is given is not later than so long after the last tick, ns.
const PLAUSIBLE: u64 = 3600 * SECOND;
/// Losses that differ in who, why and whose, between two flushes; more are counted as nobody's.
const MAX_LOSS_KEYS: usize = 4096;

/// When streams are sealed, and how much of the past is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A stream of so many bytes is sealed.
    pub seal_bytes: u64,
    /// A stream so old is sealed, ns.
    pub seal_age: u64,
    /// Bytes that the sealed segments of `events` and `offcpu` may have together. Beyond that the oldest go, as a counted
    /// drop; what is concluded from them (units, findings, counts) stays. `None`: no limit.
    pub event_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            seal_bytes: 64 << 20,
            seal_age: 600 * SECOND,
            event_bytes: None,
        }
    }
}

/// A session being written. Dropping it without [`SessionWriter::seal`] leaves it as a crash would.
pub struct SessionWriter {
    shared: Shared,
    path: PathBuf,
    meta: SessionMeta,
    /// `session.json` is older than `meta`.
    meta_changed: bool,
    tables: Tables,
    /// Losses since the last flush, by who, why, whose, and whether it is known when.
    losses: BTreeMap<LossKey, (u64, Option<Window>)>,
    metadata: MetadataText,
    /// The latest moment that was told by a tick or an anchor; all that is due goes by it.
    now: BootNanos,
    /// The latest end of anything given, at least `now`.
    latest: BootNanos,
    flushed: BootNanos,
    synced: BootNanos,
    /// The disk refused; not to be asked before then.
    failing: Option<BootNanos>,
    event_bytes: Option<u64>,
    /// Rows of old segments that were removed, and not yet told to the caller.
    evicted: Dropped,
    /// No sealing before then.
    seal_after: BootNanos,
    last_error: Option<StoreError>,
    _lock: Box<dyn Lock>,
}

type LossKey = (&'static str, LossReason, Option<Pid>, bool);

struct Tables {
    events: TableWriter<EventRow>,
    offcpu: TableWriter<OffCpuRow>,
    units: TableWriter<UnitRow>,
    annotations: TableWriter<AnnotationRow>,
    memory: TableWriter<MemoryRow>,
    requests: TableWriter<RequestRow>,
    serving: TableWriter<ServingRow>,
    ops: TableWriter<OpsRow>,
    system: TableWriter<SystemRow>,
    outliers: TableWriter<OutlierRow>,
    findings: TableWriter<FindingRow>,
    processes: TableWriter<ProcessRow>,
    threads: TableWriter<ThreadRow>,
    files: TableWriter<FileRow>,
    stacks: TableWriter<StackRow>,
    drops: TableWriter<DropRow>,
    gaps: TableWriter<GapRow>,
}

/// Does the same to every table. Those that are small and matter most come first.
macro_rules! for_each_table {
    ($tables:expr, |$table:ident| $body:expr) => {{
        let Tables {
            events,
            offcpu,
            units,
            annotations,
            memory,
            requests,
            serving,
            ops,
            system,
            outliers,
            findings,
            processes,
            threads,
            files,
            stacks,
            drops,
            gaps,
        } = &mut $tables;
        for_each_table!(@ $table, $body, findings drops gaps outliers units annotations memory requests serving ops processes threads files stacks system offcpu events);
    }};
    (@ $table:ident, $body:expr, $($name:ident)*) => { $({ let $table = $name; $body; })* };
}

impl SessionWriter {
    /// Begins the session that `meta` describes, in `dir`'s folder for writing.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one of that id, [`StoreError::Io`] when the folder cannot be written.
    pub fn create(
        fs: Arc<dyn Fs>,
        dir: &DataDir,
        meta: SessionMeta,
    ) -> Result<SessionWriter, StoreError> {
        SessionWriter::with_limits(fs, dir, meta, Limits::default())
    }

    /// As [`SessionWriter::create`], with other limits.
    ///
    /// # Errors
    /// As there.
    pub fn with_limits(
        fs: Arc<dyn Fs>,
        dir: &DataDir,
        meta: SessionMeta,
        limits: Limits,
    ) -> Result<SessionWriter, StoreError> {
        let how = Create {
            mode: 0o600,
            owner: dir.owner,
        };
        let sessions = dir.sessions();
        // Ids tell no secret: other users may see that there are sessions, and not what is in them.
        let open_dir = Create { mode: 0o755, ..how };
        fs.create_dir_all(&sessions, open_dir)
            .map_err(StoreError::io("create", &sessions))?;
        let path = sessions.join(&meta.id);
        fs.create_dir(&path, dir_mode(how))
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => StoreError::Exists(meta.id.clone()),
                _ => StoreError::io("create", &path)(e),
            })?;
        let begin = || -> Result<Box<dyn Lock>, StoreError> {
            let lock = path.join(LOCK_FILE);
            fs.create(&lock, how)
                .map_err(StoreError::io("create", &lock))?;
            let held = take_lock(&*fs, &lock).map_err(StoreError::io("lock", &lock))?;
            write_meta(&*fs, &path, &meta, how)?;
            fs.sync_dir(&sessions)
                .map_err(StoreError::io("write", &sessions))?;
            Ok(held)
        };
        let lock = begin().inspect_err(|_| {
            // Nothing of it is worth keeping.
            let _ = fs.remove_dir_all(&path);
        })?;
        let latest = meta.clock.last().map_or(BootNanos(0), |a| a.boot);
        Ok(SessionWriter {
            tables: Tables {
                events: TableWriter::new(&path),
                offcpu: TableWriter::new(&path),
                units: TableWriter::new(&path),
                annotations: TableWriter::new(&path),
                memory: TableWriter::new(&path),
                requests: TableWriter::new(&path),
                serving: TableWriter::new(&path),
                ops: TableWriter::new(&path),
                system: TableWriter::new(&path),
                outliers: TableWriter::new(&path),
                findings: TableWriter::new(&path),
                processes: TableWriter::new(&path),
                threads: TableWriter::new(&path),
                files: TableWriter::new(&path),
                stacks: TableWriter::new(&path),
                drops: TableWriter::new(&path),
                gaps: TableWriter::new(&path),
            },
            shared: Shared {
                fs,
                how,
                seal_bytes: limits.seal_bytes,
                seal_age: limits.seal_age,
            },
            path,
            meta,
            meta_changed: false,
            losses: BTreeMap::new(),
            metadata: MetadataText::default(),
            now: latest,
            latest,
            flushed: latest,
            synced: latest,
            failing: None,
            event_bytes: limits.event_bytes,
            evicted: Dropped::default(),
            seal_after: latest,
            last_error: None,
            _lock: lock,
        })
    }

    pub fn meta(&self) -> &SessionMeta {
        &self.meta
    }

    /// Changes what is said of the session as a whole, as it is learned: of an import, when it began and whose it is. Its
    /// id and its format stay.
    pub fn describe(&mut self, change: impl FnOnce(&mut SessionMeta)) {
        let mut meta = self.meta.clone();
        change(&mut meta);
        (meta.id, meta.format) = (self.meta.id.clone(), self.meta.format);
        self.meta_changed |= meta != self.meta;
        self.meta = meta;
    }

    /// The session's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the tables' files. What is not flushed yet is not in it, and while a segment is sealed the disk holds it twice.
    pub fn bytes(&mut self) -> u64 {
        let mut bytes = 0;
        for_each_table!(self.tables, |table| bytes += table.segments().bytes());
        bytes
    }

    /// Takes over what is told once and is so still: the names of processes, threads and files of `of`, as far as `is_alive`, and its
    /// stacks. For a session that goes on where another ended.
    ///
    /// # Errors
    /// [`StoreError::Io`], reading `of`.
    pub fn inherit(
        &mut self,
        of: &Session,
        mut is_alive: impl FnMut(Pid) -> bool,
    ) -> Result<(), StoreError> {
        let mut known = Vec::new();
        let processes = of.processes()?.into_iter();
        known.extend(processes.map(|p| (p.incarnation.pid, Event::ProcessInfo(Box::new(p)))));
        let threads = of.threads()?.into_iter();
        known.extend(threads.map(|t| (t.thread.pid, Event::ThreadName(t))));
        let files = of.file_paths()?.into_iter();
        known.extend(files.map(|f| (f.pid, Event::FilePath(Box::new(f)))));
        for (pid, event) in known {
            if is_alive(pid) {
                self.event(&event, 1);
            }
        }
        self.resolved_stacks(&of.stacks()?);
        Ok(())
    }

    /// Why the disk refused last, while it does.
    pub fn failing(&self) -> Option<&StoreError> {
        self.failing.and(self.last_error.as_ref())
    }

    /// Takes events of any kind, each to its table. Losses of the store itself are left out: it stores them anyway.
    pub fn events(&mut self, events: &[Event]) {
        for event in events {
            self.event(event, 1);
        }
    }

    /// Takes an event that stands for `weight` of its kind, since others were left out.
    pub fn event(&mut self, event: &Event, weight: u32) {
        let weight = (weight != 1).then_some(weight);
        if let Some(end) = event.end() {
            self.heard_of(end);
        }
        match event {
            Event::Call(e) => {
                let window = Some(e.window());
                let row = EventRow::call(Kind::Call, e).of(weight);
                self.push(|t| &mut t.events, row, window);
            }
            Event::InFlight(e) => {
                let window = Some(e.window());
                let row = EventRow::call(Kind::InFlight, e).of(weight);
                self.push(|t| &mut t.events, row, window);
            }
            Event::OffCpu(e) => {
                let window = Some(e.window());
                self.push(|t| &mut t.offcpu, OffCpuRow::off_cpu(e).of(weight), window);
            }
            Event::Slice(e) => {
                let window = Some(Window::at(e.start, e.dur));
                self.push(|t| &mut t.offcpu, OffCpuRow::slice(e).of(weight), window);
            }
            Event::Stretch(e) => {
                let window = Some(Window::at(e.start, e.dur));
                self.push(|t| &mut t.offcpu, OffCpuRow::stretch(e).of(weight), window);
            }
            Event::BlockIo(e) => {
                let window = Some(Window::at(e.start, e.dur));
                self.push(|t| &mut t.events, EventRow::block_io(e).of(weight), window);
            }
            Event::Reclaim(e) => {
                let window = Some(Window::at(e.start, e.dur));
                self.push(|t| &mut t.events, EventRow::reclaim(e).of(weight), window);
            }
            Event::Retransmit(e) => {
                let window = Some(Window::at(e.at, 0));
                self.push(
                    |t| &mut t.events,
                    EventRow::retransmit(e).of(weight),
                    window,
                );
            }
            Event::Process(e) => {
                let window = event.end().map(|at| Window::at(at, 0));
                self.push(|t| &mut t.events, EventRow::process(e).of(weight), window);
            }
            Event::ThreadName(e) => {
                let row = ThreadRow::new(e, self.latest);
                self.push(|t| &mut t.threads, row, None);
            }
            Event::ProcessInfo(e) => {
                let row = ProcessRow::from(&**e);
                self.push(|t| &mut t.processes, row, None);
            }
            Event::FilePath(e) => {
                let row = FileRow::new(e, self.latest);
                self.push(|t| &mut t.files, row, None);
            }
            Event::Counts(e) => {
                let row = OpsRow::from(&**e);
                self.push(|t| &mut t.ops, row, Some(e.window));
            }
            Event::System(e) => {
                let window = Some(Window::at(e.at, 0));
                self.push(|t| &mut t.system, SystemRow::machine(e), window);
            }
            Event::Gpu(e) => {
                let window = Some(Window::at(e.at, 0));
                self.push(|t| &mut t.system, SystemRow::gpu(e), window);
            }
            Event::Annotation(e) => {
                let window = Some(Window::at(e.at, 0));
                self.push(|t| &mut t.annotations, AnnotationRow::from(&**e), window);
            }
            // What it means for the answers is the engine's gap.
            Event::Capture(_) => {}
            Event::Lost(loss) if loss.source == STORE => {}
            Event::Lost(loss) => self.lost(loss),
        }
    }

    /// Takes an event of a memory collector; its time is put on the session's clock by the last anchor. `false`: it has a
    /// number beyond 64 bits, which no column holds, and was left out.
    pub fn memory(&mut self, event: &MemoryEvent) -> bool {
        let anchor = self.last_anchor();
        let Some(row) = MemoryRow::new(event, &anchor, &mut self.metadata) else {
            return false;
        };
        let window = Window::at(BootNanos(row.boot_ns), 0);
        self.heard_of(window.end);
        self.push(|t| &mut t.memory, row, Some(window));
        true
    }

    /// Takes a request of a run log; `log` says which log.
    pub fn request(&mut self, log: &str, request: &Request) {
        let row = RequestRow::new(log, request, &self.last_anchor());
        let window = Window::at(BootNanos(row.boot_ns), 0);
        self.heard_of(window.end);
        self.push(|t| &mut t.requests, row, Some(window));
    }

    /// Takes what the inference server `process` said of itself at `at`.
    pub fn serving(
        &mut self,
        at: BootNanos,
        process: Incarnation,
        engine: Engine,
        readings: &[ServingReading],
    ) {
        self.heard_of(at);
        for reading in readings {
            let row = ServingRow::new(at, process, engine, reading);
            self.push(|t| &mut t.serving, row, Some(Window::at(at, 0)));
        }
    }

    /// What converts Unix time; a session without a clock of its own has Unix time itself.
    fn last_anchor(&self) -> ClockAnchor {
        self.meta.clock.last().copied().unwrap_or(ClockAnchor {
            boot: BootNanos(0),
            unix: UnixNanos(0),
        })
    }

    /// A damaged time must not move the end of the session into the far future.
    fn heard_of(&mut self, end: BootNanos) {
        if end.since(self.now) < PLAUSIBLE {
            self.latest = self.latest.max(end);
        }
    }

    fn push<T: Table>(
        &mut self,
        table: impl Fn(&mut Tables) -> &mut TableWriter<T>,
        row: T,
        window: Option<Window>,
    ) {
        if self.failing.is_none() && table(&mut self.tables).is_full() {
            let writer = table(&mut self.tables);
            let flushed = writer.flush(&self.shared, self.now);
            // As many batches are sealed as are written, so that sealing never falls behind.
            let segments = writer.segments();
            let flushed = flushed.and_then(|()| segments.roll(&self.shared, self.now));
            let sealed = match self.seal_after <= self.now {
                true => segments.seal_step(&self.shared).map(drop),
                false => Ok(()),
            };
            self.note(flushed);
            self.note_seal(sealed);
        }
        table(&mut self.tables).push(row, window);
    }

    fn lost(&mut self, loss: &Loss) {
        let full = self.losses.len() >= MAX_LOSS_KEYS;
        let pid = loss.pid.filter(|_| !full);
        let key = (loss.source, loss.reason, pid, loss.window.is_some());
        let (count, window) = self.losses.entry(key).or_default();
        *count = count.saturating_add(loss.count);
        *window = union(*window, loss.window);
    }

    pub fn units(&mut self, units: &[Unit]) {
        for unit in units {
            let window = unit.window();
            self.heard_of(window.end);
            self.push(|t| &mut t.units, UnitRow::from(unit), Some(window));
        }
    }

    /// Takes outliers as they were found.
    pub fn outliers(&mut self, outliers: &[Outlier]) {
        for outlier in outliers {
            let window = outlier.window();
            self.heard_of(window.end);
            let row = OutlierRow::from(outlier);
            self.push(|t| &mut t.outliers, row, Some(window));
        }
    }

    /// Takes findings as they stand now; of one id, the last is what is read.
    pub fn findings(&mut self, findings: &[Finding]) {
        for finding in findings {
            let row = FindingRow::from(finding);
            self.push(|t| &mut t.findings, row, Some(finding.window));
        }
    }

    /// Takes user stacks as return addresses, innermost first, by the ids that events name.
    pub fn stacks(&mut self, stacks: &[(u32, Vec<u64>)]) {
        for (id, addresses) in stacks {
            let frame = |ip: &u64| Frame {
                ip: *ip,
                ..Frame::default()
            };
            let stack = Stack {
                id: *id,
                frames: addresses.iter().map(frame).collect(),
            };
            self.push(|t| &mut t.stacks, StackRow::from(&stack), None);
        }
    }

    /// Takes stacks whose frames were resolved; of one id, the last is what is read.
    pub fn resolved_stacks(&mut self, stacks: &[Stack]) {
        for stack in stacks {
            self.push(|t| &mut t.stacks, StackRow::from(stack), None);
        }
    }

    pub fn gaps(&mut self, gaps: &[Gap]) {
        for gap in gaps {
            self.push(|t| &mut t.gaps, GapRow::from(gap), None);
        }
    }

    /// Adds a measurement of both clocks; they come in order of time.
    pub fn anchor(&mut self, anchor: ClockAnchor) {
        if self.meta.clock.last() != Some(&anchor) {
            self.meta.clock.push(anchor);
            self.meta_changed = true;
        }
        self.now = self.now.max(anchor.boot);
        self.latest = self.latest.max(self.now);
    }

    /// Does what is due at `now`: flushes after a second, syncs after five, seals what is big or old enough. To be called
    /// a few times a second, or more often.
    pub fn tick(&mut self, now: BootNanos) {
        self.now = self.now.max(now);
        self.latest = self.latest.max(now);
        if self.failing.is_some_and(|until| now < until) {
            return;
        }
        if now.since(self.flushed) >= FLUSH_EVERY || self.failing.is_some() {
            self.flushed = now;
            let flushed = self.flush(now);
            self.note(flushed);
        }
        if self.failing.is_none() && now.since(self.synced) >= SYNC_EVERY {
            let synced = self.sync();
            if synced.is_ok() {
                self.synced = now;
            }
            self.note(synced);
        }
        if self.failing.is_none() && self.seal_after <= now {
            let sealed = self.seal_steps(now).and_then(|()| self.evict());
            self.note_seal(sealed);
        }
    }

    /// Removes the oldest segments of events that are beyond the limit.
    fn evict(&mut self) -> Result<(), StoreError> {
        let Some(limit) = self.event_bytes else {
            return Ok(());
        };
        loop {
            let events = self.tables.events.segments();
            let offcpu = self.tables.offcpu.segments();
            if events.kept_bytes() + offcpu.kept_bytes() <= limit {
                return Ok(());
            }
            let begin = |segment: Option<&Kept>| segment.map(|k| k.window.start);
            let older = match (begin(events.oldest()), begin(offcpu.oldest())) {
                (Some(a), Some(b)) if b < a => offcpu,
                (None, _) => offcpu,
                _ => events,
            };
            let Some(removed) = older.remove_oldest(&self.shared)? else {
                return Ok(());
            };
            self.evicted.count += removed.rows;
            self.evicted.window = union(self.evicted.window, Some(removed.window));
            self.lost(&store_loss(
                LossReason::Evicted,
                removed.rows,
                Some(removed.window),
            ));
        }
    }

    /// Rows dropped because the disk refused, or because they were old and there were too many, since this was last asked. The table `drops` gets them as well.
    pub fn losses(&mut self) -> Vec<Loss> {
        let mut losses = Vec::new();
        for_each_table!(self.tables, |table| {
            let dropped = std::mem::take(&mut table.untold);
            if dropped.count > 0 {
                let reason = LossReason::StoreFailed;
                losses.push(store_loss(reason, dropped.count, dropped.window));
            }
        });
        let evicted = std::mem::take(&mut self.evicted);
        if evicted.count > 0 {
            let reason = LossReason::Evicted;
            losses.push(store_loss(reason, evicted.count, evicted.window));
        }
        losses
    }

    /// Writes what is held, at once. Returns the rows that the disk did not take, which are lost unless it does so later.
    pub fn flush_now(&mut self) -> u64 {
        let flushed = self.flush(self.latest);
        self.note(flushed);
        let mut held = 0;
        for_each_table!(self.tables, |table| held += table.held() as u64);
        held
    }

    /// Ends the session: everything is sealed, and `session.json` says that it is whole.
    ///
    /// # Errors
    /// The first thing that the disk refused. All that could be written is, and opens.
    pub fn seal(mut self) -> Result<(), StoreError> {
        let now = self.latest;
        let mut result = self.flush(now).and_then(|()| self.sync());
        for_each_table!(self.tables, |table| {
            result = result.and(table.segments().close());
            loop {
                match table.segments().seal_step(&self.shared) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(e) => {
                        result = result.and(Err(e));
                        break;
                    }
                }
            }
        });
        self.meta.ended = Some(self.meta.unix(now));
        result.and(write_meta(
            &*self.shared.fs,
            &self.path,
            &self.meta,
            self.shared.how,
        ))
    }

    fn flush(&mut self, now: BootNanos) -> Result<(), StoreError> {
        let mut result = Ok(());
        if self.meta_changed {
            result = write_meta(&*self.shared.fs, &self.path, &self.meta, self.shared.how);
            self.meta_changed = result.is_err();
        }
        self.losses_to_rows();
        // One table's failure does not keep the others from trying.
        for_each_table!(self.tables, |table| {
            let flushed = table.flush(&self.shared, now);
            if result.is_ok() {
                result = flushed;
            }
        });
        result
    }

    /// Moves what was lost into the table `drops`.
    fn losses_to_rows(&mut self) {
        for_each_table!(self.tables, |table| {
            let dropped = std::mem::take(&mut table.unstored);
            if dropped.count > 0 {
                let key = (
                    STORE,
                    LossReason::StoreFailed,
                    None,
                    dropped.window.is_some(),
                );
                let (count, window) = self.losses.entry(key).or_default();
                *count += dropped.count;
                *window = union(*window, dropped.window);
            }
        });
        while !self.tables.drops.is_full()
            && let Some(((source, reason, pid, _), (count, window))) = self.losses.pop_first()
        {
            let loss = Loss {
                source,
                reason,
                count,
                window,
                pid,
            };
            self.tables.drops.push(DropRow::from(&loss), window);
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for_each_table!(self.tables, |table| {
            let synced = table.segments().sync();
            if result.is_ok() {
                result = synced;
            }
        });
        result
    }

    fn seal_steps(&mut self, now: BootNanos) -> Result<(), StoreError> {
        let mut result = Ok(());
        for_each_table!(self.tables, |table| {
            let rolled = table.segments().roll(&self.shared, now);
            let sealed = rolled.and_then(|()| table.segments().seal_step(&self.shared).map(drop));
            if result.is_ok() {
                result = sealed;
            }
        });
        result
    }

    /// A seal that failed loses nothing: its rows stay in the stream, and it is tried again.
    fn note_seal(&mut self, result: Result<(), StoreError>) {
        if let Err(e) = result {
            self.seal_after = self.now.plus(SEAL_RETRY_AFTER);
            self.last_error = Some(e);
        }
    }

    fn note(&mut self, result: Result<(), StoreError>) {
        match result {
            Ok(()) => self.failing = None,
            Err(e) => {
                self.failing = Some(self.now.plus(RETRY_AFTER));
                self.last_error = Some(e);
            }
        }
    }
}

/// `source` of the store's own losses.
const STORE: &str = "store";

fn store_loss(reason: LossReason, count: u64, window: Option<Window>) -> Loss {
    Loss {
        source: STORE,
        reason,
        count,
        window,
        pid: None,
    }
}

/// Locks a file that this process just made. A reader that looks whether it is locked holds it for an instant.
fn take_lock(fs: &dyn Fs, path: &Path) -> std::io::Result<Box<dyn Lock>> {
    const TRIES: u32 = 100;
    let mut tries = 0;
    loop {
        match fs.try_lock(path, Share::Nobody) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && tries < TRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

/// Puts `session.json` there whole, or leaves the old one.
fn write_meta(
    fs: &dyn Fs,
    session: &Path,
    meta: &SessionMeta,
    how: Create,
) -> Result<(), StoreError> {
    let path = session.join(meta::FILE);
    let tmp = session.join(format!("{}.tmp", meta::FILE));
    let write = || {
        match fs.remove_file(&tmp) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs.create(&tmp, how)?;
        file.write_all(&meta.encode())?;
        file.sync()?;
        drop(file);
        fs.rename(&tmp, &path)?;
        fs.sync_dir(session)
    };
    write().map_err(StoreError::io("write", &path))
}
