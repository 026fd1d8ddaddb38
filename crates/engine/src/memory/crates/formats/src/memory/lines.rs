//! Records as lines, one JSON object each: the segments of a sink, and plain `.jsonl` files.
//!
//! Lines end at LF. [`Chunks`] cuts what is read into pieces of whole lines of bounded size, [`ChunkDecoder`] makes events of
//! a piece: so that several decoders can work on pieces of one file, whatever its size.

use std::io::{self, Read};

use warptrace_model::{MemoryEvent, Value};

use super::error::RecordError;
use super::open_json;
use super::record::Upgrade;
use super::shape::Known;
use crate::json;
use warptrace_model::number_text::is_blank;

/// Why a line is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("no JSON: {0}")]
    Malformed(json::Error),
    #[error("not an object")]
    NotAnObject,
    #[error(transparent)]
    Record(RecordError),
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

impl LineError {
    /// A short snake_case word, to count by.
    pub fn reason(&self) -> &'static str {
        match self {
            LineError::Malformed(_) => "malformed",
            LineError::NotAnObject => "not_an_object",
            LineError::Record(error) => error.reason(),
            LineError::TooLong(_) => "line_too_long",
        }
    }
}

/// A line that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    pub error: LineError,
}

/// What a piece of a file says.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of their lines.
    pub events: Vec<MemoryEvent>,
    pub bad: Vec<BadLine>,
    /// The last line has no LF and is no JSON: its writer was cut off. It is no error.
    pub torn: bool,
}

impl Batch {
    pub fn clear(&mut self) {
        self.events.clear();
        self.bad.clear();
        self.torn = false;
    }
}

/// Makes events of lines. What records have in common is remembered and not read again, so one decoder should see as much
/// of a file as there is; what it remembers is bounded.
#[derive(Debug)]
pub struct ChunkDecoder {
    upgrade: Upgrade,
    known: Known,
}

impl ChunkDecoder {
    pub fn new(upgrade: Upgrade) -> ChunkDecoder {
        ChunkDecoder {
            upgrade,
            known: Known::default(),
        }
    }

    /// Upgrades the records to come by `upgrade`, as those of another file. What is remembered stays: it is of records that
    /// leave nothing to an upgrade.
    pub fn set_upgrade(&mut self, upgrade: Upgrade) {
        self.upgrade = upgrade;
    }

    /// Adds what the lines of `chunk` say to `batch`.
    ///
    /// Cost: a comparison with the line before where they agree, about 0.5 µs of a record of 1.5 kB; 5 to 10 times as much
    /// for a record that is laid out in a new way.
    pub fn decode(&mut self, chunk: &Chunk, batch: &mut Batch) {
        let mut rest = &chunk.bytes[..];
        let mut line = chunk.first_line;
        while !rest.is_empty() {
            let (text, ended) = match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    let text = &rest[..end];
                    rest = &rest[end + 1..];
                    (text, true)
                }
                None => (std::mem::take(&mut rest), false),
            };
            self.line(text, line, ended, batch);
            line += 1;
        }
        if let Some(bytes) = chunk.too_long {
            let error = LineError::TooLong(bytes);
            batch.bad.push(BadLine { line, error });
        }
    }

    fn line(&mut self, text: &[u8], line: u64, ended: bool, batch: &mut Batch) {
        if let Some(event) = self.known.read(text) {
            batch.events.push(event);
            return;
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match self.record(text) {
            Ok(event) => {
                self.known.learn(text, &event);
                batch.events.push(event);
            }
            Err(LineError::Malformed(_)) if !ended => batch.torn = true,
            Err(LineError::Malformed(error)) => self.pieces(text, line, error, batch),
            Err(error) => batch.bad.push(BadLine { line, error }),
        }
    }

    fn record(&self, text: &[u8]) -> Result<MemoryEvent, LineError> {
        match open_json::parse(text).map_err(LineError::Malformed)? {
            record @ Value::Object(_) => self.upgrade.event(record).map_err(LineError::Record),
            _ => Err(LineError::NotAnObject),
        }
    }

    /// A line that is no JSON may be several to a reader who ends lines at other characters, too, as Python's does.
    fn pieces(&self, text: &[u8], line: u64, error: json::Error, batch: &mut Batch) {
        let bad = |error| BadLine { line, error };
        let Ok(characters) = std::str::from_utf8(text) else {
            batch.bad.push(bad(LineError::Malformed(error)));
            return;
        };
        if is_blank(characters) {
            return;
        }
        let is_end = |c| {
            matches!(
                c,
                '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
            )
        };
        let pieces = characters.split(is_end).filter(|piece| !is_blank(piece));
        let records: Result<Vec<_>, _> =
            pieces.map(|piece| self.record(piece.as_bytes())).collect();
        match records {
            Ok(events) => batch.events.extend(events),
            Err(LineError::Malformed(_)) => batch.bad.push(bad(LineError::Malformed(error))),
            Err(error) => batch.bad.push(bad(error)),
        }
    }
}

/// Whole lines of a file; the last may be without its LF.
#[derive(Debug, Default)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    /// Number of the first line, from 1.
    pub first_line: u64,
    /// After these lines comes one that is longer than may be, with the limit in bytes. It was gone past.
    pub too_long: Option<usize>,
}

/// Cuts what a reader gives into pieces of whole lines.
///
/// Memory: one piece, and one line of at most [`Chunks::MAX_LINE_BYTES`].
#[derive(Debug)]
pub struct Chunks<R> {
    reader: R,
    /// The beginning of a line whose end has not been read.
    begun: Vec<u8>,
    next_line: u64,
    ended: bool,
}

impl<R: Read> Chunks<R> {
    /// A longer line is gone past and reported: a record that a collector writes takes kilobytes.
    pub const MAX_LINE_BYTES: usize = 8 << 20;
    /// A piece: large beside a line, small beside a cache.
    pub const BYTES: usize = 256 << 10;

    pub fn new(reader: R) -> Chunks<R> {
        Chunks {
            reader,
            begun: Vec::new(),
            next_line: 1,
            ended: false,
        }
    }

    /// Puts the next piece into `chunk`; `false` at the end.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(&mut self, chunk: &mut Chunk) -> io::Result<bool> {
        chunk.bytes.clear();
        chunk.bytes.append(&mut self.begun);
        chunk.first_line = self.next_line;
        chunk.too_long = None;
        // Looked for only in what is new: a long line is not searched again with every piece of it.
        let mut searched = 0;
        while !self.ended {
            self.fill(&mut chunk.bytes)?;
            match memchr::memrchr(b'\n', &chunk.bytes[searched..]) {
                Some(last) => {
                    self.begun
                        .extend_from_slice(&chunk.bytes[searched + last + 1..]);
                    chunk.bytes.truncate(searched + last + 1);
                    break;
                }
                None => searched = chunk.bytes.len(),
            }
            if chunk.bytes.len() > Self::MAX_LINE_BYTES {
                chunk.bytes.clear();
                chunk.too_long = Some(Self::MAX_LINE_BYTES);
                self.skip_line()?;
                break;
            }
        }
        let lines = memchr::memchr_iter(b'\n', &chunk.bytes).count() as u64;
        self.next_line += lines + u64::from(chunk.too_long.is_some());
        Ok(!chunk.bytes.is_empty() || chunk.too_long.is_some())
    }

    /// Reads about one piece more.
    fn fill(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let wanted = Self::BYTES.saturating_sub(bytes.len()).max(Self::BYTES / 2);
        bytes.reserve(wanted);
        let mut limited = self.reader.by_ref().take(wanted as u64);
        self.ended = limited.read_to_end(bytes)? < wanted;
        Ok(())
    }

    /// Goes past the line whose beginning was given up.
    fn skip_line(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        while !self.ended {
            bytes.clear();
            self.fill(&mut bytes)?;
            if let Some(end) = memchr::memchr(b'\n', &bytes) {
                self.begun.extend_from_slice(&bytes[end + 1..]);
                break;
            }
        }
        Ok(())
    }
}
