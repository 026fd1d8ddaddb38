//! Segments: a table's rows in one file, first an Arrow IPC stream that grows, then Parquet.
//!
//! | file | state |
//! |---|---|
//! | `000042.arrows` | being written, or left so by a crash: readable up to its last whole batch |
//! | `000042.parquet.tmp` | being sealed: nobody reads it |
//! | `000042.parquet` | sealed: it replaces the stream of the same number, should that still be there |
//!
//! A batch goes into the stream by one write at its end, so a crash leaves a prefix of what was written. Batches carry
//! no checksum: a file system that shows bytes which were never written (as none of ext4, XFS and btrfs does with
//! appended data) is not guarded against. Knows batches and their times, not what the columns mean.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch, UInt32Array, UInt64Array};
use arrow::buffer::Buffer;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{StreamDecoder, StreamReader};
use arrow::ipc::writer::StreamWriter;
use arrow::ipc::{MessageHeader, root_as_message};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use warptrace_model::{BootNanos, Window};

use crate::error::SegmentError;
use crate::fs::{Append, Create, Fs, ReadAt};
use crate::rows::Order;

/// Rows of a Parquet row group: what a reader must hold at once.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// The key in a Parquet file's metadata under which the end of its last-ending row is kept, boot ns in decimal.
const MAX_END_KEY: &str = "warptrace.max_end_ns";

/// The two files that a segment may have.
pub(crate) fn stream_path(table: &Path, number: u32) -> PathBuf {
    table.join(format!("{number:06}.arrows"))
}

pub(crate) fn sealed_path(table: &Path, number: u32) -> PathBuf {
    table.join(format!("{number:06}.parquet"))
}

fn sealing_path(table: &Path, number: u32) -> PathBuf {
    table.join(format!("{number:06}.parquet.tmp"))
}

/// What a file in a table's directory is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Stream(u32),
    Sealed(u32),
}

impl FileKind {
    pub(crate) fn of(name: &str) -> Option<FileKind> {
        let (stem, kind) = name.split_once('.')?;
        if stem.len() < 6 || !stem.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = stem.parse().ok()?;
        match kind {
            "arrows" => Some(FileKind::Stream(number)),
            "parquet" => Some(FileKind::Sealed(number)),
            _ => None,
        }
    }
}

/// First begin and last end of some rows, boot ns; both 0 for rows without times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) min_start: u64,
    pub(crate) max_end: u64,
}

impl Extent {
    /// Of rows without times: at any time.
    pub(crate) const ALWAYS: Extent = Extent {
        min_start: 0,
        max_end: u64::MAX,
    };

    /// From the first begin to the last end of all.
    pub(crate) fn around(extents: &[Extent]) -> Window {
        let start = extents.iter().map(|e| e.min_start).min().unwrap_or(0);
        let end = extents.iter().map(|e| e.max_end).max().unwrap_or(0);
        Window {
            start: BootNanos(start),
            end: BootNanos(end.max(start)),
        }
    }

    pub(crate) fn of(batch: &RecordBatch) -> Extent {
        let column =
            |name| -> Option<&UInt64Array> { batch.column_by_name(name)?.as_any().downcast_ref() };
        let Some(starts) = column("boot_ns").filter(|c| c.null_count() == 0) else {
            return Extent::ALWAYS;
        };
        let starts = starts.values();
        let min_start = starts.iter().copied().min().unwrap_or(0);
        let max_end = match column("dur_ns").filter(|c| c.null_count() == 0) {
            Some(durs) => {
                let ends = starts
                    .iter()
                    .zip(durs.values())
                    .map(|(s, d)| s.saturating_add(*d));
                ends.max()
            }
            None => starts.iter().copied().max(),
        };
        Extent {
            min_start,
            max_end: max_end.unwrap_or(0),
        }
    }
}

/// The rows of `batch` by `boot_ns`, equal ones as they were.
pub(crate) fn sort_by_time(batch: RecordBatch) -> Result<RecordBatch, SegmentError> {
    let starts = starts(&batch);
    if starts.is_sorted() {
        return Ok(batch);
    }
    let mut order: Vec<u32> = (0..batch.num_rows() as u32).collect();
    order.sort_by_key(|i| starts[*i as usize]);
    Ok(take_record_batch(&batch, &UInt32Array::from(order))?)
}

fn starts(batch: &RecordBatch) -> &[u64] {
    let column = batch.column_by_name("boot_ns");
    let column: Option<&UInt64Array> = column.and_then(|c| c.as_any().downcast_ref());
    column.map_or(&[], |c| c.values())
}

/// The segment that is being written.
pub(crate) struct Stream {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    file: Box<dyn Append>,
    encoder: StreamWriter<Vec<u8>>,
    /// The encoded schema, until it is in the file.
    header: Vec<u8>,
    /// Bytes of whole messages in the file.
    pub(crate) len: u64,
    pub(crate) unsynced: bool,
    /// Of each batch in it.
    pub(crate) extents: Vec<Extent>,
    pub(crate) rows: u64,
}

/// Why a batch did not get into a stream.
pub(crate) struct AppendError {
    pub(crate) source: SegmentError,
    /// The file may end in part of a batch: nothing may be appended to it any more.
    pub(crate) torn: bool,
}

impl Stream {
    /// Makes the file and its name durable.
    pub(crate) fn create(
        fs: &dyn Fs,
        table: &Path,
        number: u32,
        schema: &SchemaRef,
        how: Create,
    ) -> Result<Stream, SegmentError> {
        let path = stream_path(table, number);
        let mut encoder = StreamWriter::try_new(Vec::new(), schema)?;
        let header = std::mem::take(encoder.get_mut());
        let file = fs.create(&path, how)?;
        if let Err(e) = fs.sync_dir(table) {
            // It is empty; a disk that is full must not fill with such files.
            let _ = fs.remove_file(&path);
            return Err(e.into());
        }
        Ok(Stream {
            number,
            path,
            file,
            encoder,
            header,
            len: 0,
            unsynced: false,
            extents: Vec::new(),
            rows: 0,
        })
    }

    /// Adds a batch by one write; on failure the file is as it was, if at all possible.
    pub(crate) fn append(&mut self, batch: &RecordBatch) -> Result<(), AppendError> {
        let encoded = self.encoder.write(batch);
        let message = std::mem::take(self.encoder.get_mut());
        if let Err(e) = encoded {
            return Err(AppendError {
                source: e.into(),
                torn: false,
            });
        }
        let written = if self.header.is_empty() {
            self.file.write_all(&message)
        } else {
            self.header.extend_from_slice(&message);
            self.file.write_all(&self.header)
        };
        if let Err(e) = written {
            if !self.header.is_empty() {
                self.header.truncate(self.header.len() - message.len());
            }
            return Err(AppendError {
                source: e.into(),
                torn: self.file.truncate(self.len).is_err(),
            });
        }
        self.len += (self.header.len().max(message.len())) as u64;
        self.header = Vec::new();
        self.unsynced = true;
        self.extents.push(Extent::of(batch));
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.file.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// Where the messages of a stream are.
pub(crate) struct StreamIndex {
    schema: Vec<u8>,
    /// One a batch.
    pub(crate) batches: Vec<Range<u64>>,
    /// Bytes after the last whole message.
    pub(crate) torn_bytes: u64,
}

/// Metadata of a message is a few hundred bytes a column; more than this is not ours.
const MAX_METADATA: u64 = 16 << 20;

/// Finds the whole messages of a stream. Cost: one small read a message.
///
/// # Errors
/// When the file cannot be read. What is no message ends the search, and is no error.
pub(crate) fn index_stream(file: &dyn ReadAt) -> Result<StreamIndex, SegmentError> {
    let len = file.size()?;
    let mut index = StreamIndex {
        schema: Vec::new(),
        batches: Vec::new(),
        torn_bytes: 0,
    };
    let mut at = 0;
    while let Some((end, header, metadata)) = read_message(file, at, len)? {
        match header {
            MessageHeader::Schema if index.schema.is_empty() => index.schema = metadata,
            MessageHeader::RecordBatch if !index.schema.is_empty() => index.batches.push(at..end),
            _ => break,
        }
        at = end;
    }
    index.torn_bytes = len - at;
    Ok(index)
}

/// End, type and metadata (with its prefix) of the message at `at`; `None` when there is no whole one.
fn read_message(
    file: &dyn ReadAt,
    at: u64,
    len: u64,
) -> io::Result<Option<(u64, MessageHeader, Vec<u8>)>> {
    const PREFIX: u64 = 8;
    if len - at < PREFIX {
        return Ok(None);
    }
    let mut prefix = [0; PREFIX as usize];
    file.read_exact_at(&mut prefix, at)?;
    let [a, b, c, d, size @ ..] = prefix;
    let size = u64::from(u32::from_le_bytes(size));
    if [a, b, c, d] != [0xff; 4] || size == 0 || size > MAX_METADATA || size > len - at - PREFIX {
        return Ok(None);
    }
    let mut metadata = vec![0; (PREFIX + size) as usize];
    file.read_exact_at(&mut metadata, at)?;
    let Ok(message) = root_as_message(&metadata[PREFIX as usize..]) else {
        return Ok(None);
    };
    let (header, body) = (message.header_type(), message.bodyLength());
    let left = len - at - PREFIX - size;
    match u64::try_from(body) {
        Ok(body) if body <= left => Ok(Some((at + PREFIX + size + body, header, metadata))),
        _ => Ok(None),
    }
}

impl StreamIndex {
    pub(crate) fn schema(&self) -> Result<SchemaRef, SegmentError> {
        if self.schema.is_empty() {
            return Err(SegmentError::NoSchema);
        }
        Ok(StreamReader::try_new(self.schema.as_slice(), None)?.schema())
    }

    /// Batch `i`, whose number is below that of `batches`.
    pub(crate) fn read(&self, file: &dyn ReadAt, i: usize) -> Result<RecordBatch, SegmentError> {
        let range = &self.batches[i];
        let mut message = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut message, range.start)?;
        let mut decoder = StreamDecoder::new();
        decoder.decode(&mut Buffer::from_vec(self.schema.clone()))?;
        // The batch's columns lie in the message: nothing is copied again.
        match decoder.decode(&mut Buffer::from_vec(message))? {
            Some(batch) => Ok(batch),
            None => Err(SegmentError::NoSchema),
        }
    }
}

/// Puts batches, each in order of time, into one order of time, holding as few rows as their overlaps need.
#[derive(Default)]
struct Merge {
    pending: Option<RecordBatch>,
}

impl Merge {
    /// Takes the next batch and gives the rows that no later one can come before, in order. `floor`: the first begin in all
    /// later batches, `None` when there are none. Cost: rows are moved only where two batches overlap.
    fn push(
        &mut self,
        batch: RecordBatch,
        floor: Option<u64>,
    ) -> Result<Vec<RecordBatch>, SegmentError> {
        let batch = sort_by_time(batch)?;
        let mut runs = Vec::with_capacity(2);
        match self.pending.take() {
            Some(pending) => {
                let last = starts(&pending).last().copied().unwrap_or(0);
                let overlap = starts(&batch).partition_point(|s| *s < last);
                let (before, after) = split(&batch, overlap);
                runs.push(sort_by_time(concat_batches(
                    &batch.schema(),
                    [&pending, &before],
                )?)?);
                runs.push(after);
            }
            None => runs.push(batch),
        }
        let Some(floor) = floor else { return Ok(runs) };
        let mut ready = Vec::with_capacity(2);
        let mut waiting = Vec::with_capacity(2);
        for run in runs {
            let (before, after) = split(&run, starts(&run).partition_point(|s| *s < floor));
            ready.push(before);
            waiting.push(after);
        }
        // All of the first run come before all of the second.
        waiting.retain(|run| run.num_rows() > 0);
        self.pending = match waiting.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(concat_batches(&several[0].schema(), several)?),
        };
        Ok(ready)
    }
}

/// The first `rows` rows, and the others.
fn split(batch: &RecordBatch, rows: usize) -> (RecordBatch, RecordBatch) {
    (
        batch.slice(0, rows),
        batch.slice(rows, batch.num_rows() - rows),
    )
}

/// A file that Parquet is written to.
struct Out(Box<dyn Append>);

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A segment being turned into Parquet, a batch a step, so that nobody waits long for it.
pub(crate) struct Seal {
    table: PathBuf,
    number: u32,
    order: Order,
    file: Box<dyn ReadAt>,
    index: StreamIndex,
    /// For each batch, the first begin in it and all after it.
    floors: Vec<u64>,
    max_end: u64,
    next: usize,
    merge: Merge,
    out: ArrowWriter<Out>,
}

impl Seal {
    /// Begins to seal the closed stream `number`, whose batches have `extents`.
    pub(crate) fn begin(
        fs: &dyn Fs,
        table: &Path,
        number: u32,
        extents: &[Extent],
        order: Order,
        how: Create,
    ) -> Result<Seal, SegmentError> {
        let file = fs.open(&stream_path(table, number))?;
        let index = index_stream(&*file)?;
        let schema = index.schema()?;
        let mut floors: Vec<u64> = extents.iter().map(|e| e.min_start).collect();
        for i in (1..floors.len()).rev() {
            floors[i - 1] = floors[i - 1].min(floors[i]);
        }
        let tmp = sealing_path(table, number);
        let _ = fs.remove_file(&tmp);
        let out = Out(fs.create(&tmp, how)?);
        let properties = properties(&schema, order);
        Ok(Seal {
            table: table.to_owned(),
            number,
            order,
            file,
            index,
            floors,
            max_end: extents.iter().map(|e| e.max_end).max().unwrap_or(0),
            next: 0,
            merge: Merge::default(),
            out: ArrowWriter::try_new(out, schema, Some(properties))?,
        })
    }

    /// Does the next batch. True when none is left and [`Seal::finish`] is due.
    pub(crate) fn step(&mut self) -> Result<bool, SegmentError> {
        if self.next == self.index.batches.len() {
            return Ok(true);
        }
        let batch = self.index.read(&*self.file, self.next)?;
        self.next += 1;
        let runs = match self.order {
            Order::Time => self
                .merge
                .push(batch, self.floors.get(self.next).copied())?,
            Order::Arrival => vec![batch],
        };
        for run in runs.iter().filter(|run| run.num_rows() > 0) {
            self.out.write(run)?;
        }
        Ok(false)
    }

    /// Puts the Parquet file in the stream's place. Gives its bytes, but for the footer.
    pub(crate) fn finish(mut self, fs: &dyn Fs) -> Result<u64, SegmentError> {
        self.out.flush()?;
        let bytes = self.out.bytes_written() as u64;
        self.out.append_key_value_metadata(KeyValue::new(
            MAX_END_KEY.to_owned(),
            self.max_end.to_string(),
        ));
        let mut file = self.out.into_inner()?;
        file.0.sync()?;
        drop(file);
        let tmp = sealing_path(&self.table, self.number);
        fs.rename(&tmp, &sealed_path(&self.table, self.number))?;
        fs.sync_dir(&self.table)?;
        // Should this fail, the stream stays beside its sealed form, which readers prefer.
        let _ = fs.remove_file(&stream_path(&self.table, self.number));
        Ok(bytes)
    }
}

/// Takes away what a failed seal may have left.
pub(crate) fn abandon(fs: &dyn Fs, table: &Path, number: u32) {
    let _ = fs.remove_file(&sealing_path(table, number));
}

/// Columns of integers whose values come again and again without order: a dictionary. All that are in neither list are
/// nearly sorted or spread wide: deltas.
const REPEATED: [&str; 4] = ["op", "stream", "arg0", "arg1"];

/// Columns that hold one value for thousands of rows: compression alone takes them, at the least cost.
const CONSTANT: [&str; 6] = ["kind", "source", "flags", "pid", "device", "ret"];

fn properties(schema: &SchemaRef, order: Order) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("warptrace ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS));
    for field in schema.fields() {
        let column = ColumnPath::new(vec![field.name().clone()]);
        if !field.data_type().is_integer() {
            continue;
        }
        let encoding = match field.name().as_str() {
            name if REPEATED.contains(&name) => None,
            name if CONSTANT.contains(&name) => Some(Encoding::PLAIN),
            _ => Some(Encoding::DELTA_BINARY_PACKED),
        };
        if let Some(encoding) = encoding {
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column.clone(), encoding);
        }
        if field.name() == "boot_ns" {
            properties = properties.set_column_statistics_enabled(column, EnabledStatistics::Page);
        }
    }
    if order == Order::Time
        && let Ok(column_idx) = schema.index_of("boot_ns")
    {
        properties = properties.set_sorting_columns(Some(vec![SortingColumn {
            column_idx: column_idx as i32,
            descending: false,
            nulls_first: false,
        }]));
    }
    properties.build()
}

/// A Parquet file behind the seam.
#[derive(Clone)]
pub(crate) struct ParquetFile {
    file: Arc<dyn ReadAt>,
    len: u64,
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for ParquetFile {
    type T = ReadFrom;

    fn get_read(&self, start: u64) -> parquet::errors::Result<ReadFrom> {
        Ok(ReadFrom {
            file: self.file.clone(),
            at: start,
            len: self.len,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start
            .checked_add(length as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(parquet::errors::ParquetError::EOF(format!(
                "{length} bytes at {start} of {}",
                self.len
            )));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// A file read from some place on.
pub(crate) struct ReadFrom {
    file: Arc<dyn ReadAt>,
    at: u64,
    len: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (self.len.saturating_sub(self.at)).min(buf.len() as u64) as usize;
        self.file.read_exact_at(&mut buf[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A sealed segment, opened.
pub(crate) struct Sealed {
    file: ParquetFile,
    metadata: ArrowReaderMetadata,
}

impl Sealed {
    pub(crate) fn open(file: Arc<dyn ReadAt>) -> Result<Sealed, SegmentError> {
        let file = ParquetFile {
            len: file.size()?,
            file,
        };
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
        Ok(Sealed { file, metadata })
    }

    pub(crate) fn row_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// The end of the row that ends last; far in the future when the file does not say.
    pub(crate) fn max_end(&self) -> u64 {
        let pairs = self
            .metadata
            .metadata()
            .file_metadata()
            .key_value_metadata();
        let pair = pairs.and_then(|p| p.iter().find(|p| p.key == MAX_END_KEY));
        pair.and_then(|p| p.value.as_ref()?.parse().ok())
            .unwrap_or(u64::MAX)
    }

    /// The first begin in a row group, 0 when the file does not say.
    pub(crate) fn min_start(&self, row_group: usize) -> u64 {
        let group = self.metadata.metadata().row_group(row_group);
        let columns = group.columns().iter();
        let column = columns
            .into_iter()
            .find(|c| c.column_descr().path().parts() == ["boot_ns"]);
        match column.and_then(|c| c.statistics()) {
            Some(Statistics::Int64(s)) => s.min_opt().map_or(0, |v| *v as u64),
            _ => 0,
        }
    }

    /// The rows of one row group.
    pub(crate) fn read(&self, row_group: usize) -> Result<Vec<RecordBatch>, SegmentError> {
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.metadata.clone(),
        )
        .with_row_groups(vec![row_group])
        .with_batch_size(16 * 1024)
        .build()?;
        Ok(reader.collect::<Result<_, _>>()?)
    }
}
