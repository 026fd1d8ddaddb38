//! Reading a session: its tables as the words of `model`, and its events in order for a replay.
//!
//! Opens read-only, changes and migrates nothing, and takes sessions that are being written, were left by a crash, or
//! were copied. What cannot be read costs itself: a damaged segment and a row that only a later version understands are
//! left out and said in [`Session::gaps`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use warptrace_formats::memory::Upgrade;
use warptrace_model::inference::Outlier;
use warptrace_model::{
    Annotation, BootNanos, ClockAnchor, Event, FilePath, Finding, Gap, GapCode, Histogram, Loss,
    LossReason, MemoryEvent, OpKey, ProcessInfo, ThreadName, Unit, Window,
};

use crate::device::StoredDevice;
use crate::error::{SegmentError, StoreError};
use crate::fs::{Fs, ReadAt, Share};
use crate::memory::MemoryLevel;
use crate::meta::{self, SessionMeta};
use crate::request::StoredRequest;
use crate::rows::{
    AnnotationRow, DropRow, EventRow, FileRow, FindingRow, GapRow, MemoryRow, OffCpuRow, OpsRow,
    Order, OutlierRow, ProcessRow, RequestRow, ServingRow, Stack, StackRow, StoredLoss, SystemRow,
    Table, ThreadRow, UnitRow,
};
use crate::segment::{self, Extent, FileKind, Sealed, StreamIndex};
use crate::serving::StoredReading;
use crate::table::union;
use crate::writer::LOCK_FILE;

/// Whether a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was ended in good order.
    Ended,
    /// Somebody is writing it now.
    Live,
    /// Its writer is gone without having ended it.
    Torn,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            State::Ended => "ended",
            State::Live => "live",
            State::Torn => "torn",
        }
    }
}

/// Calls of one op, counted exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpStats {
    pub key: OpKey,
    pub count: u64,
    /// Sum of their durations, ns.
    pub total: u64,
    pub durations: Histogram,
}

/// The files of a table, in order of their numbers, as they were at one moment. Together they are all of its rows.
#[derive(Default)]
pub struct TableFiles {
    /// Parquet.
    pub sealed: Vec<PathBuf>,
    /// Opened, so that a writer which seals them meanwhile takes nothing away.
    pub streams: Vec<UnsealedStream>,
}

/// A session opened for reading.
pub struct Session {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    meta: SessionMeta,
    state: State,
    /// What could not be read, by what is wrong, and how often.
    problems: Mutex<BTreeMap<String, u64>>,
}

impl Session {
    /// Opens the session in the directory `path`.
    ///
    /// # Errors
    /// [`StoreError::NotASession`], [`StoreError::Foreign`] and [`StoreError::Newer`] for directories that are not ours or
    /// not yet; [`StoreError::Io`] when it may not be read.
    pub fn open(fs: Arc<dyn Fs>, path: &Path) -> Result<Session, StoreError> {
        let file = path.join(meta::FILE);
        let json = fs
            .read(&file, meta::MAX_BYTES)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    StoreError::NotASession(path.to_owned())
                }
                _ => StoreError::io("read", &file)(e),
            })?;
        let meta = SessionMeta::decode(&json, &file)?;
        let state = match meta.ended {
            Some(_) => State::Ended,
            None if is_live(&*fs, path) => State::Live,
            None => State::Torn,
        };
        Ok(Session {
            fs,
            path: path.to_owned(),
            meta,
            state,
            problems: Mutex::default(),
        })
    }

    pub fn meta(&self) -> &SessionMeta {
        &self.meta
    }

    /// As it was when the session was opened.
    pub fn state(&self) -> State {
        self.state
    }

    /// The session's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last measurement of both clocks; [`SessionMeta::unix`] uses the one that is nearest.
    pub fn anchor(&self) -> ClockAnchor {
        self.meta.anchor_at(BootNanos(u64::MAX))
    }

    /// From the begin of the session to its end, or to the last that is known of it. Cost: for a session that was not
    /// ended, a look at every segment.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn window(&self) -> Result<Window, StoreError> {
        let start = self.meta.anchor_at(BootNanos(0)).boot(self.meta.created);
        let anchor = self.anchor();
        let mut end = anchor.boot.max(start);
        match self.meta.ended {
            Some(ended) => end = end.max(anchor.boot(ended)),
            None => {
                for table in ["events", "offcpu", "units", "ops", "system"] {
                    for segment in self.segments(table)? {
                        end = end.max(BootNanos(self.max_end(&segment)));
                    }
                }
            }
        }
        Ok(Window { start, end })
    }

    /// The last end in a segment, 0 when it says nothing of that.
    fn max_end(&self, segment: &Segment) -> u64 {
        let end = match &segment.body {
            Body::Sealed(sealed) => sealed.max_end(),
            Body::Stream(file, index) => {
                let extents = (0..index.batches.len()).filter_map(|i| index.read(&**file, i).ok());
                extents.map(|b| Extent::of(&b).max_end).max().unwrap_or(0)
            }
        };
        if end == u64::MAX { 0 } else { end }
    }

    /// Units that have time in `window`, or all, each table segment's in order of time.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn units(&self, window: Option<Window>) -> Result<Vec<Unit>, StoreError> {
        let mut units = self.rows(window, UnitRow::unit)?;
        if let Some(window) = window {
            units.retain(|u| touches(u.window(), window));
        }
        units.sort_by_key(|u: &Unit| u.start);
        Ok(units)
    }

    /// Findings as they stood last, in the order in which they were first said.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(latest(self.rows(None, FindingRow::finding)?, |f| f.id))
    }

    /// The devices that were sampled, by their indices. Cost: a pass over the table `system`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn devices(&self) -> Result<Vec<StoredDevice>, StoreError> {
        let mut devices = BTreeMap::new();
        self.for_each_row(None, |row: SystemRow| {
            StoredDevice::see(&mut devices, row);
            Some(())
        })?;
        Ok(devices.into_values().collect())
    }

    /// What inference servers said of themselves, by when they said it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn serving(&self) -> Result<Vec<StoredReading>, StoreError> {
        let mut readings = self.rows(None, ServingRow::reading)?;
        readings.sort_by_key(|reading| reading.at);
        Ok(readings)
    }

    /// What was counted in windows that have time in `window`, or in all, summed by key.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn ops(&self, window: Option<Window>) -> Result<Vec<OpStats>, StoreError> {
        let mut stats: BTreeMap<OpKey, OpStats> = BTreeMap::new();
        self.for_each_row(window, |row: OpsRow| {
            let count = row.count()?;
            if window.is_none_or(|w| touches(count.window, w)) {
                let sum = stats.entry(count.key).or_insert_with(|| OpStats {
                    key: count.key,
                    count: 0,
                    total: 0,
                    durations: Histogram::default(),
                });
                sum.count = sum.count.saturating_add(count.durations.count());
                sum.total = sum.total.saturating_add(count.total);
                sum.durations.merge(&count.durations);
            }
            Some(())
        })?;
        Ok(stats.into_values().collect())
    }

    /// What the job said of itself, by when it said it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn annotations(&self) -> Result<Vec<Annotation>, StoreError> {
        let mut annotations = self.rows(None, AnnotationRow::annotation)?;
        annotations.sort_by_key(|a: &Annotation| a.at);
        Ok(annotations)
    }

    /// Levels of devices and allocators, by time.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn memory_levels(&self) -> Result<Vec<MemoryLevel>, StoreError> {
        let mut levels = self.rows(None, MemoryRow::level)?;
        levels.sort_by_key(|l: &MemoryLevel| l.at);
        Ok(levels)
    }

    /// The events of memory collectors, segment by segment, exactly as they were said but for whether their capabilities were
    /// inferred. `take` says whether to go on.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn memory_events(
        &self,
        mut take: impl FnMut(MemoryEvent) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let upgrade = Upgrade::default();
        let mut over = false;
        self.for_each_row(None, |row: MemoryRow| {
            if !over {
                over = take(row.event(&upgrade)?).is_break();
            }
            Some(())
        })
    }

    /// Requests of run logs, by when they were logged.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn requests(&self) -> Result<Vec<StoredRequest>, StoreError> {
        let mut requests = self.rows(None, RequestRow::request)?;
        requests.sort_by_key(|r: &StoredRequest| r.end);
        Ok(requests)
    }

    /// Slow steps of inference servers, as they were found while it was recorded, by their ends.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn outliers(&self) -> Result<Vec<Outlier>, StoreError> {
        let mut outliers = self.rows(None, OutlierRow::outlier)?;
        outliers.sort_by_key(|o: &Outlier| (o.at, o.id));
        Ok(outliers)
    }

    /// What is known of each process, by its last word.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, StoreError> {
        let rows = self.rows(None, |r: ProcessRow| Some(r.info()))?;
        Ok(latest(rows, |p| p.incarnation))
    }

    /// The last name of each thread.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn threads(&self) -> Result<Vec<ThreadName>, StoreError> {
        let rows = self.rows(None, |r: ThreadRow| Some(r.name()))?;
        Ok(latest(rows, |t| t.thread))
    }

    /// What the open files of each process are called, by its last word.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn file_paths(&self) -> Result<Vec<FilePath>, StoreError> {
        let rows = self.rows(None, |r: FileRow| Some(r.path()))?;
        Ok(latest(rows, |f| (f.pid, f.fd)))
    }

    /// User stacks, the last word of each id.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn stacks(&self) -> Result<Vec<Stack>, StoreError> {
        let rows = self.rows(None, |r: StackRow| Some(r.stack()))?;
        Ok(latest(rows, |s| s.id))
    }

    /// What was lost, summed by who lost it, why, and whose it was.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn drops(&self) -> Result<Vec<StoredLoss>, StoreError> {
        let mut sums: BTreeMap<_, StoredLoss> = BTreeMap::new();
        self.for_each_row(None, |row: DropRow| {
            let loss = row.loss();
            let key = (loss.source.clone(), loss.reason.clone(), loss.pid);
            match sums.get_mut(&key) {
                Some(sum) => {
                    sum.count = sum.count.saturating_add(loss.count);
                    sum.window = union(sum.window, loss.window);
                }
                None => drop(sums.insert(key, loss)),
            }
            Some(())
        })?;
        Ok(sums.into_values().collect())
    }

    /// What could not be known when it was recorded, and what of the session cannot be read now (of the tables that were
    /// read until now).
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn gaps(&self) -> Result<Vec<Gap>, StoreError> {
        let mut sums: Vec<Gap> = Vec::new();
        for gap in self.rows(None, GapRow::gap)? {
            match sums
                .iter_mut()
                .find(|g| g.code == gap.code && g.detail == gap.detail)
            {
                Some(sum) => sum.count = sum.count.saturating_add(gap.count),
                None => sums.push(gap),
            }
        }
        if self.state == State::Torn {
            sums.push(Gap {
                code: GapCode::TornSession,
                detail:
                    "the recorder ended without ending the session: its last second may be missing"
                        .to_owned(),
                count: 1,
            });
        }
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        sums.extend(problems.iter().map(|(detail, count)| Gap {
            code: GapCode::TornSession,
            detail: detail.clone(),
            count: *count,
        }));
        Ok(sums)
    }

    /// The files of one of [`crate::TABLES`], for an engine of its own; a table that is not there has none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn table(&self, name: &str) -> Result<TableFiles, StoreError> {
        let mut files = TableFiles::default();
        for segment in self.segments(name)? {
            match segment.body {
                Body::Sealed(_) => files.sealed.push(segment.path),
                Body::Stream(file, index) => files.streams.push(UnsealedStream { file, index }),
            }
        }
        Ok(files)
    }

    /// The events in `window`, or all, for a replay: first what has no moment (names, processes, paths), then in the order
    /// in which things ended, counts and losses among them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn events(&self, window: Option<Window>) -> Result<EventStream<'_>, StoreError> {
        let mut timeless: Vec<Event> = Vec::new();
        timeless.extend(
            self.processes()?
                .into_iter()
                .map(|p| Event::ProcessInfo(Box::new(p))),
        );
        timeless.extend(self.threads()?.into_iter().map(Event::ThreadName));
        let paths = self.rows(None, |r: FileRow| Some(r.path()))?;
        timeless.extend(paths.into_iter().map(|p| Event::FilePath(Box::new(p))));
        let mut ready = Vec::new();
        for loss in self.rows(None, |r: DropRow| Some(r.loss()))? {
            let Some(reason) = LossReason::by_name(&loss.reason) else {
                continue;
            };
            let lost = Event::Lost(Loss {
                source: source_name(&loss.source),
                reason,
                count: loss.count,
                window: loss.window,
                pid: loss.pid,
            });
            match lost.end() {
                Some(end) => ready.push(Timed { end, event: lost }),
                None => timeless.push(lost),
            }
        }
        let mut chunks = Vec::new();
        self.chunks::<EventRow>(window, EventRow::event, &mut chunks)?;
        self.chunks::<OffCpuRow>(window, OffCpuRow::event, &mut chunks)?;
        self.chunks::<SystemRow>(window, |r| Some(r.event()), &mut chunks)?;
        let said = |r: AnnotationRow| Some(Event::Annotation(Box::new(r.annotation()?)));
        self.chunks::<AnnotationRow>(window, said, &mut chunks)?;
        let counted = |r: OpsRow| Some(Event::Counts(Box::new(r.count()?)));
        self.chunks::<OpsRow>(window, counted, &mut chunks)?;
        // The one that begins first is taken from the end.
        chunks.sort_by_key(|c| std::cmp::Reverse(c.min_start));
        Ok(EventStream {
            session: self,
            window,
            timeless,
            chunks,
            ready: ready.into(),
        })
    }

    fn chunks<T: Table>(
        &self,
        window: Option<Window>,
        event: fn(T) -> Option<Event>,
        chunks: &mut Vec<Chunk>,
    ) -> Result<(), StoreError> {
        for segment in self.segments(T::NAME)? {
            let segment = Arc::new(segment);
            let (parts, max_end) = match &segment.body {
                Body::Sealed(sealed) => (sealed.row_groups(), sealed.max_end()),
                Body::Stream(_, index) => (index.batches.len(), u64::MAX),
            };
            if window.is_some_and(|w| max_end < w.start.0) {
                continue;
            }
            for part in 0..parts {
                let min_start = match &segment.body {
                    Body::Sealed(sealed) => sealed.min_start(part),
                    Body::Stream(file, index) => match index.read(&**file, part) {
                        Ok(batch) => Extent::of(&batch).min_start,
                        Err(_) => 0,
                    },
                };
                if window.is_none_or(|w| min_start < w.end.0) {
                    chunks.push(Chunk {
                        min_start,
                        segment: segment.clone(),
                        part,
                        decode: decode_events::<T>(event),
                    });
                }
            }
        }
        Ok(())
    }

    /// Every row of a table that `make` makes something of, segment by segment.
    fn rows<T: Table, V>(
        &self,
        window: Option<Window>,
        make: impl Fn(T) -> Option<V>,
    ) -> Result<Vec<V>, StoreError> {
        let mut values = Vec::new();
        self.for_each_row(window, |row| {
            values.push(make(row)?);
            Some(())
        })?;
        Ok(values)
    }

    /// Gives each row to `take`, which says `None` of one that it does not understand.
    fn for_each_row<T: Table>(
        &self,
        window: Option<Window>,
        mut take: impl FnMut(T) -> Option<()>,
    ) -> Result<(), StoreError> {
        for segment in self.segments(T::NAME)? {
            if let (Body::Sealed(sealed), Some(window), Order::Time) =
                (&segment.body, window, T::ORDER)
                && sealed.max_end() < window.start.0
            {
                continue;
            }
            for part in 0..segment.parts() {
                let result = segment.read(part).and_then(|batches| {
                    let mut unknown = 0;
                    for batch in batches {
                        for row in T::read(&batch)? {
                            unknown += u64::from(take(row).is_none());
                        }
                    }
                    Ok(unknown)
                });
                self.note(&segment, result);
            }
        }
        Ok(())
    }

    /// Remembers what could not be read.
    fn note(&self, segment: &Segment, result: Result<u64, SegmentError>) {
        let (problem, count) = match result {
            Ok(0) => return,
            Ok(unknown) => (
                format!(
                    "{} has rows that only a later warptrace understands",
                    segment.name
                ),
                unknown,
            ),
            Err(e) => (
                format!("{} is damaged ({e}): its rows are missing", segment.name),
                1,
            ),
        };
        self.problem(problem, count);
    }

    fn problem(&self, problem: String, count: u64) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        // Reading a table again finds the same.
        problems.insert(problem, count);
    }

    /// A table's files by number, sealed ones in place of their streams.
    fn files(&self, table: &str) -> Result<Vec<(PathBuf, FileKind)>, StoreError> {
        let dir = self.path.join(table);
        let entries = match self.fs.list(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StoreError::io("read", dir)(e)),
        };
        let mut files: BTreeMap<u32, (PathBuf, FileKind)> = BTreeMap::new();
        for entry in entries.iter().filter(|e| !e.is_dir) {
            let Some(kind) = FileKind::of(&entry.name) else {
                continue;
            };
            let (FileKind::Stream(number) | FileKind::Sealed(number)) = kind;
            let file = (dir.join(&entry.name), kind);
            match kind {
                FileKind::Sealed(_) => drop(files.insert(number, file)),
                FileKind::Stream(_) => drop(files.entry(number).or_insert(file)),
            }
        }
        Ok(files.into_values().collect())
    }

    /// A table's segments, opened, so that a writer that seals them meanwhile takes nothing away.
    fn segments(&self, table: &str) -> Result<Vec<Segment>, StoreError> {
        // A stream that is gone when it is opened was sealed: its other form is there.
        const TRIES: u32 = 20;
        let mut tries = 0;
        'listing: loop {
            tries += 1;
            let mut segments = Vec::new();
            for (path, kind) in self.files(table)? {
                let file = match self.fs.open(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                        continue 'listing;
                    }
                    Err(e) => return Err(StoreError::io("read", path)(e)),
                };
                let file_name = path.file_name().unwrap_or_default().to_string_lossy();
                let name = format!("{table}/{file_name}");
                match Body::open(file, kind) {
                    Ok(body) => {
                        if let Body::Stream(_, index) = &body
                            && index.torn_bytes > 0
                            && self.state != State::Live
                        {
                            let cut = format!("{name} ends in part of a batch, which is left out");
                            self.problem(cut, 1);
                        }
                        segments.push(Segment { name, path, body });
                    }
                    Err(e) => {
                        self.problem(format!("{name} is damaged ({e}): its rows are missing"), 1)
                    }
                }
            }
            return Ok(segments);
        }
    }
}

/// Whether a writer holds the session's lock.
pub(crate) fn is_live(fs: &dyn Fs, session: &Path) -> bool {
    match fs.try_lock(&session.join(LOCK_FILE), Share::OtherReaders) {
        Ok(_) => false,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Whether both have time in common; an instant has it with a window that it lies in or at the end of.
fn touches(a: Window, window: Window) -> bool {
    a.end >= window.start && a.start < window.end
}

/// The last of each key, in the order in which the keys came first.
fn latest<V, K: Ord>(values: Vec<V>, key: impl Fn(&V) -> K) -> Vec<V> {
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    let mut kept: Vec<V> = Vec::new();
    for value in values {
        match places.entry(key(&value)) {
            std::collections::btree_map::Entry::Occupied(place) => kept[*place.get()] = value,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push(value);
            }
        }
    }
    kept
}

/// Who lost records, as a name that lives as long as the program.
fn source_name(name: &str) -> &'static str {
    [
        "ebpf", "preload", "agent", "annotate", "json", "store", "engine",
    ]
    .into_iter()
    .find(|known| *known == name)
    .unwrap_or("other")
}

/// A table's stream that was not sealed.
pub struct UnsealedStream {
    file: Box<dyn ReadAt>,
    index: StreamIndex,
}

impl UnsealedStream {
    /// Number of its whole batches.
    pub fn batches(&self) -> usize {
        self.index.batches.len()
    }

    /// Batch `i`, which is below [`UnsealedStream::batches`].
    ///
    /// # Errors
    /// [`SegmentError`] when it cannot be read.
    pub fn read(&self, i: usize) -> Result<RecordBatch, SegmentError> {
        self.index.read(&*self.file, i)
    }
}

struct Segment {
    /// `events/000041.parquet`, for messages.
    name: String,
    path: PathBuf,
    body: Body,
}

enum Body {
    Sealed(Sealed),
    Stream(Box<dyn ReadAt>, StreamIndex),
}

impl Body {
    fn open(file: Box<dyn ReadAt>, kind: FileKind) -> Result<Body, SegmentError> {
        match kind {
            FileKind::Sealed(_) => Ok(Body::Sealed(Sealed::open(file.into())?)),
            FileKind::Stream(_) => {
                let index = segment::index_stream(&*file)?;
                Ok(Body::Stream(file, index))
            }
        }
    }
}

impl Segment {
    /// Row groups, or batches.
    fn parts(&self) -> usize {
        match &self.body {
            Body::Sealed(sealed) => sealed.row_groups(),
            Body::Stream(_, index) => index.batches.len(),
        }
    }

    fn read(&self, part: usize) -> Result<Vec<RecordBatch>, SegmentError> {
        match &self.body {
            Body::Sealed(sealed) => sealed.read(part),
            Body::Stream(file, index) => Ok(vec![index.read(&**file, part)?]),
        }
    }
}

/// Rows that are read at once.
struct Chunk {
    min_start: u64,
    segment: Arc<Segment>,
    part: usize,
    decode: Decode,
}

/// Gives the events of a batch, and says how many rows were not understood.
type Decode = Box<dyn Fn(&RecordBatch, &mut dyn FnMut(Event)) -> Result<u64, SegmentError>>;

fn decode_events<T: Table>(event: fn(T) -> Option<Event>) -> Decode {
    Box::new(move |batch, take| {
        let mut unknown = 0;
        for row in T::read(batch)? {
            match event(row) {
                Some(event) => take(event),
                None => unknown += 1,
            }
        }
        Ok(unknown)
    })
}

/// An event with its moment; the one that ends first is the greatest, as a heap wants it.
struct Timed {
    end: BootNanos,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        self.end == other.end
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Timed) -> Ordering {
        other.end.cmp(&self.end)
    }
}

/// A session's events in the order in which they ended.
///
/// Segments are ordered by begin. Whatever ended before the first begin of all that was not read yet can be given; what
/// lasts longer waits. So memory holds a row group of each table and what overlaps it.
pub struct EventStream<'a> {
    session: &'a Session,
    window: Option<Window>,
    timeless: Vec<Event>,
    /// By begin, the first at the end.
    chunks: Vec<Chunk>,
    ready: BinaryHeap<Timed>,
}

impl EventStream<'_> {
    /// Adds the next events to `out`. False when there are none left.
    pub fn next_batch(&mut self, out: &mut Vec<Event>) -> bool {
        if !self.timeless.is_empty() {
            out.append(&mut self.timeless);
            return true;
        }
        loop {
            let before = out.len();
            let frontier = self.chunks.last().map(|c| c.min_start);
            while let Some(first) = self.ready.peek()
                && frontier.is_none_or(|f| first.end.0 <= f)
            {
                out.extend(self.ready.pop().map(|t| t.event));
            }
            if out.len() > before {
                return true;
            }
            let Some(chunk) = self.chunks.pop() else {
                return false;
            };
            self.load(&chunk);
        }
    }

    fn load(&mut self, chunk: &Chunk) {
        let (window, ready) = (self.window, &mut self.ready);
        let mut take = |event: Event| {
            let end = event.end().unwrap_or_default();
            if window.is_none_or(|w| end >= w.start && end <= w.end) {
                ready.push(Timed { end, event });
            }
        };
        let result = chunk.segment.read(chunk.part).and_then(|batches| {
            let mut unknown = 0;
            for batch in &batches {
                unknown += (chunk.decode)(batch, &mut take)?;
            }
            Ok(unknown)
        });
        self.session.note(&chunk.segment, result);
    }
}
