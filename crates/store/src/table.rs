//! One table being written: rows in memory, the stream they go to, the segments being sealed.
//!
//! Knows when a batch is full and what to do when the disk refuses; when to flush, sync and roll is the session's word.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use warptrace_model::{BootNanos, Window};

use crate::error::{SegmentError, StoreError};
use crate::fs::{Create, Fs};
use crate::rows::{Order, Table};
use crate::segment::{self, Extent, Seal, Stream};

/// Rows that are held until they are flushed; more are dropped while the disk refuses.
pub(crate) const MAX_ROWS: usize = 64 * 1024;

/// Rows that were dropped, and when they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Dropped {
    pub(crate) count: u64,
    pub(crate) window: Option<Window>,
}

impl Dropped {
    fn add(&mut self, row: Option<Window>) {
        self.count += 1;
        self.window = union(self.window, row);
    }
}

/// The smallest window around both.
pub(crate) fn union(a: Option<Window>, b: Option<Window>) -> Option<Window> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Window {
            start: a.start.min(b.start),
            end: a.end.max(b.end),
        }),
        (a, b) => a.or(b),
    }
}

/// What all tables of a session share.
pub(crate) struct Shared {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) how: Create,
    /// A stream of so many bytes is sealed.
    pub(crate) seal_bytes: u64,
    /// A stream so old is sealed, ns.
    pub(crate) seal_age: u64,
}

pub(crate) struct TableWriter<T: Table> {
    columns: T::Columns,
    rows: usize,
    /// A batch that the disk did not take; it goes before all that came later.
    refused: Option<RecordBatch>,
    schema: SchemaRef,
    segments: Segments,
    /// Not yet told to the caller, and not yet in the table `drops`.
    pub(crate) untold: Dropped,
    pub(crate) unstored: Dropped,
}

impl<T: Table> TableWriter<T> {
    pub(crate) fn new(session: &std::path::Path) -> TableWriter<T> {
        TableWriter {
            columns: T::Columns::default(),
            rows: 0,
            refused: None,
            schema: T::schema(),
            segments: Segments::new(session.join(T::NAME), T::ORDER),
            untold: Dropped::default(),
            unstored: Dropped::default(),
        }
    }

    /// Rows that were taken and are not in a file yet.
    pub(crate) fn held(&self) -> usize {
        self.rows + self.refused.as_ref().map_or(0, RecordBatch::num_rows)
    }

    /// Whether the next row would be dropped.
    pub(crate) fn is_full(&self) -> bool {
        self.held() >= MAX_ROWS
    }

    /// Takes a row, or counts it as dropped when the table is full.
    pub(crate) fn push(&mut self, row: T, window: Option<Window>) {
        if self.is_full() {
            self.untold.add(window);
            self.unstored.add(window);
        } else {
            row.push(&mut self.columns);
            self.rows += 1;
        }
    }

    /// Writes what is held. On failure it is still held.
    pub(crate) fn flush(&mut self, shared: &Shared, now: BootNanos) -> Result<(), StoreError> {
        while self.rows > 0 || self.refused.is_some() {
            let batch = match self.refused.take() {
                Some(batch) => batch,
                None => self.take_batch()?,
            };
            let written = self
                .segments
                .open(shared, &self.schema, now)
                .and_then(|()| self.segments.append(&batch));
            if let Err(e) = written {
                self.refused = Some(batch);
                return Err(e);
            }
        }
        Ok(())
    }

    fn take_batch(&mut self) -> Result<RecordBatch, StoreError> {
        let columns = std::mem::take(&mut self.columns);
        self.rows = 0;
        let batch = RecordBatch::try_new(self.schema.clone(), T::finish(columns))
            .expect("columns and fields come from one declaration");
        match T::ORDER {
            Order::Time => segment::sort_by_time(batch).map_err(|e| self.segments.error(e)),
            Order::Arrival => Ok(batch),
        }
    }

    pub(crate) fn segments(&mut self) -> &mut Segments {
        &mut self.segments
    }
}

/// The files of one table.
pub(crate) struct Segments {
    dir: PathBuf,
    order: Order,
    made_dir: bool,
    next: u32,
    stream: Option<Stream>,
    opened: BootNanos,
    /// Streams that take no more, and that the disk does not have yet.
    ended: Vec<Stream>,
    /// Streams that the disk has and that are to be sealed: their numbers and batches.
    closed: VecDeque<Closed>,
    seal: Option<(Seal, Closed)>,
    /// Sealed ones, oldest first.
    kept: VecDeque<Kept>,
}

/// A stream that takes no more: its number and batches.
struct Closed {
    number: u32,
    extents: Vec<Extent>,
    rows: u64,
    bytes: u64,
}

/// A sealed segment.
pub(crate) struct Kept {
    number: u32,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) window: Window,
}

impl Segments {
    fn new(dir: PathBuf, order: Order) -> Segments {
        Segments {
            dir,
            order,
            made_dir: false,
            next: 0,
            stream: None,
            opened: BootNanos(0),
            ended: Vec::new(),
            closed: VecDeque::new(),
            seal: None,
            kept: VecDeque::new(),
        }
    }

    fn error(&self, source: SegmentError) -> StoreError {
        StoreError::Segment {
            path: self.dir.clone(),
            source,
        }
    }

    /// Makes sure that there is a stream to append to.
    fn open(
        &mut self,
        shared: &Shared,
        schema: &SchemaRef,
        now: BootNanos,
    ) -> Result<(), StoreError> {
        if self.stream.is_some() {
            return Ok(());
        }
        if !self.made_dir {
            let made = shared.fs.create_dir(&self.dir, dir_mode(shared.how));
            match made {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("create", &self.dir)(e));
                }
                _ => {}
            }
            if let Some(session) = self.dir.parent() {
                shared
                    .fs
                    .sync_dir(session)
                    .map_err(StoreError::io("write", session))?;
            }
            self.made_dir = true;
        }
        // A number that failed is not tried again: its file may be there, and impossible to remove.
        let number = self.next;
        self.next += 1;
        let stream = Stream::create(&*shared.fs, &self.dir, number, schema, shared.how)
            .map_err(|e| self.error(e))?;
        self.opened = now;
        self.stream = Some(stream);
        Ok(())
    }

    /// Adds a batch to the stream that [`Segments::open`] made sure of.
    fn append(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        stream.append(batch).map_err(|e| {
            if e.torn {
                // Its whole batches stay readable; nothing more can go in. The disk's first complaint is the one to tell.
                let _ = self.close();
            }
            self.error(e.source)
        })
    }

    /// Waits until what was flushed is on the disk.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        let sync = |stream: &mut Stream| {
            let synced = stream.sync();
            synced.map_err(StoreError::io("write", &stream.path))
        };
        while let Some(stream) = self.ended.last_mut() {
            sync(stream)?;
            if let Some(stream) = self.ended.pop()
                && !stream.extents.is_empty()
            {
                self.closed.push_back(Closed {
                    number: stream.number,
                    extents: stream.extents,
                    rows: stream.rows,
                    bytes: stream.len,
                });
            }
        }
        self.stream.as_mut().map_or(Ok(()), sync)
    }

    /// Ends the stream when it is big or old enough.
    pub(crate) fn roll(&mut self, shared: &Shared, now: BootNanos) -> Result<(), StoreError> {
        match &self.stream {
            Some(stream)
                if stream.len >= shared.seal_bytes || now.since(self.opened) >= shared.seal_age =>
            {
                self.close()
            }
            _ => Ok(()),
        }
    }

    /// Ends the stream: as soon as it is on the disk, it is to be sealed.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        self.ended.extend(self.stream.take());
        self.sync()
    }

    /// Goes on sealing, by a batch. False when there is nothing left to seal.
    ///
    /// # Errors
    /// When the disk refuses; the stream stays as it was, and is tried again.
    pub(crate) fn seal_step(&mut self, shared: &Shared) -> Result<bool, StoreError> {
        let fs = &*shared.fs;
        if self.seal.is_none() {
            let Some(closed) = self.closed.pop_front() else {
                return Ok(false);
            };
            let (number, extents) = (closed.number, &closed.extents);
            match Seal::begin(fs, &self.dir, number, extents, self.order, shared.how) {
                Ok(seal) => self.seal = Some((seal, closed)),
                Err(e) => return Err(self.seal_failed(fs, closed, e)),
            }
        }
        let Some((mut seal, closed)) = self.seal.take() else {
            return Ok(false);
        };
        match seal.step() {
            Ok(false) => self.seal = Some((seal, closed)),
            Ok(true) => match seal.finish(fs) {
                Ok(bytes) => self.kept.push_back(Kept {
                    number: closed.number,
                    bytes,
                    rows: closed.rows,
                    window: Extent::around(&closed.extents),
                }),
                Err(e) => return Err(self.seal_failed(fs, closed, e)),
            },
            Err(e) => {
                drop(seal);
                return Err(self.seal_failed(fs, closed, e));
            }
        }
        Ok(true)
    }

    fn seal_failed(&mut self, fs: &dyn Fs, closed: Closed, e: SegmentError) -> StoreError {
        segment::abandon(fs, &self.dir, closed.number);
        self.closed.push_back(closed);
        self.error(e)
    }

    /// Bytes of all files, but for one that is being sealed.
    pub(crate) fn bytes(&self) -> u64 {
        let streams = self.stream.iter().chain(&self.ended).map(|s| s.len);
        let sealing = self.seal.iter().map(|(_, closed)| closed.bytes);
        let closed = self.closed.iter().map(|closed| closed.bytes);
        self.kept_bytes() + streams.chain(sealing).chain(closed).sum::<u64>()
    }

    /// Bytes of the sealed segments.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept.iter().map(|k| k.bytes).sum()
    }

    /// The sealed segment that was written first.
    pub(crate) fn oldest(&self) -> Option<&Kept> {
        self.kept.front()
    }

    /// Removes that segment.
    pub(crate) fn remove_oldest(&mut self, shared: &Shared) -> Result<Option<Kept>, StoreError> {
        let Some(kept) = self.kept.front() else {
            return Ok(None);
        };
        let path = segment::sealed_path(&self.dir, kept.number);
        shared
            .fs
            .remove_file(&path)
            .map_err(StoreError::io("remove", path))?;
        Ok(self.kept.pop_front())
    }
}

/// A directory as private as the files in it.
pub(crate) fn dir_mode(how: Create) -> Create {
    Create { mode: 0o700, ..how }
}
