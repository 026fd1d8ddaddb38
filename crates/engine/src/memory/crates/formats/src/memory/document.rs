//! One JSON document with events: an array of records, an object with such an array, or one record.
//!
//! A document is read as it comes, one record at a time, so that its size does not matter; only a document that is one
//! record, and each record of an array, must fit in [`MAX_RECORD_BYTES`]. Which array of an object holds the events is known
//! only at its end: such a document is read twice.

use std::io::{self, Read};
use std::sync::Arc;

use warptrace_model::{MemoryEvent, SessionSummary, Value};

use super::error::RecordError;
use super::open_json;
use super::record::Upgrade;
use super::session::{SummaryError, parse_summary};
use crate::json::{self, ErrorKind};

/// A longer record, or value beside the events, is not read.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// Why a document, or a record of it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("cannot read")]
    Io(#[from] io::Error),
    #[error("no JSON: {0}")]
    Malformed(json::Error),
    #[error("Telemetry payload must be a JSON object or array")]
    NotAContainer,
    #[error("Top-level key '{0}' must contain a list of events")]
    NotAList(String),
    #[error("JSON payload does not contain telemetry events")]
    NoEvents,
    #[error("Event at index {0} must be an object")]
    NotAnObject(u64),
    #[error(transparent)]
    Summary(SummaryError),
    #[error("Tracker session summary does not match telemetry event identity")]
    SummaryMismatch,
    #[error("a value of more than {MAX_RECORD_BYTES} bytes at byte {0}")]
    TooLong(u64),
}

/// A record of a document.
pub type Item = (u64, Result<MemoryEvent, RecordError>);

/// Gives every record of a document to `each`, with its index from 0, and returns the summary that the document has for its
/// session.
///
/// `open` opens the document from its beginning, up to three times. `events_key` names the array of an object to read;
/// without it that is `events`, then `telemetry_events`.
///
/// # Errors
/// What makes the whole document unusable. Records that are no events go to `each`; after an error, what `each` was given
/// counts for nothing.
pub fn read_document<R: Read>(
    open: &mut dyn FnMut() -> io::Result<R>,
    events_key: Option<&str>,
    upgrade: &Upgrade,
    each: &mut dyn FnMut(Item),
) -> Result<Option<SessionSummary>, DocumentError> {
    let mut source = Source::new(open()?);
    match source.after_blanks()? {
        Some(b'[') => {
            let mut records = Records::new(upgrade, None);
            source.elements(&mut |index, raw, at| records.take(index, raw, at, each))?;
            source.end()?;
            records.finish()
        }
        Some(b'{') => object(open, source, events_key, upgrade, each),
        _ => {
            let mut raw = Vec::new();
            source.value(&mut Capture::Keep(&mut raw))?;
            parse_at(&raw, 0)?;
            source.end()?;
            Err(DocumentError::NotAContainer)
        }
    }
}

/// What an object has, found by going through it once.
#[derive(Default)]
struct Survey {
    /// Which occurrence of a key (from 0, over all keys) holds the value that counts, and whether that is a list.
    wanted: Option<(usize, bool)>,
    events: Option<(usize, bool)>,
    telemetry_events: Option<(usize, bool)>,
    summary: Option<Value>,
    is_record: bool,
}

fn object<R: Read>(
    open: &mut dyn FnMut() -> io::Result<R>,
    mut source: Source<R>,
    events_key: Option<&str>,
    upgrade: &Upgrade,
    each: &mut dyn FnMut(Item),
) -> Result<Option<SessionSummary>, DocumentError> {
    const OF_A_RECORD: [&str; 7] = [
        "schema_version",
        "event_type",
        "type",
        "memory_allocated",
        "memory_mb",
        "timestamp",
        "timestamp_ns",
    ];
    let mut survey = Survey::default();
    source.members(&mut |source, nth, key| {
        survey.is_record |= OF_A_RECORD.contains(&key);
        let is_events = matches!(key, "events" | "telemetry_events") || events_key == Some(key);
        let is_list = source.after_blanks()? == Some(b'[');
        if is_events && is_list {
            source.elements(&mut |_, raw, at| parse_at(raw, at).map(drop))?;
        } else {
            let (mut raw, at) = (Vec::new(), source.offset);
            source.value(&mut Capture::KeepShort(&mut raw))?;
            // What is too long to be held is no summary, and not looked into.
            if !raw.is_empty() {
                let value = parse_at(&raw, at)?;
                if key == "session_summary" {
                    survey.summary = Some(value);
                }
            }
        }
        let found = Some((nth, is_list));
        match key {
            "events" => survey.events = found,
            "telemetry_events" => survey.telemetry_events = found,
            _ => {}
        }
        if events_key == Some(key) {
            survey.wanted = found;
        }
        Ok(())
    })?;
    source.end()?;

    let list = |found: Option<(usize, bool)>| found.filter(|(_, list)| *list).map(|(nth, _)| nth);
    let telemetry_events = list(survey.telemetry_events);
    let nth = match events_key {
        Some(key) => list(survey.wanted).ok_or_else(|| DocumentError::NotAList(key.to_owned()))?,
        None => match list(survey.events).or(telemetry_events) {
            Some(nth) => nth,
            None if survey.is_record => return one_record(open()?, upgrade, each),
            None => return Err(DocumentError::NoEvents),
        },
    };
    let summary = match survey.summary {
        Some(value @ Value::Object(_)) if Some(nth) == telemetry_events => Some(value),
        _ => None,
    };
    let mut records = Records::new(upgrade, summary);
    let mut source = Source::new(open()?);
    source.after_blanks()?;
    source.members(&mut |source, at, _| {
        source.after_blanks()?;
        match at == nth {
            true => source.elements(&mut |index, raw, at| records.take(index, raw, at, each)),
            false => source.value(&mut Capture::Skip),
        }
    })?;
    records.finish()
}

fn one_record<R: Read>(
    reader: R,
    upgrade: &Upgrade,
    each: &mut dyn FnMut(Item),
) -> Result<Option<SessionSummary>, DocumentError> {
    let mut bytes = Vec::new();
    let limit = MAX_RECORD_BYTES as u64;
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(DocumentError::TooLong(limit));
    }
    let value = open_json::parse(&bytes).map_err(DocumentError::Malformed)?;
    each((0, upgrade.event(value)));
    Ok(None)
}

/// The records of the array that counts, with what the document says of their session.
struct Records<'a> {
    upgrade: &'a Upgrade,
    summary: Option<Value>,
    /// What the summary says the session of every record is.
    session: Option<Arc<str>>,
    not_an_object: Option<u64>,
    mismatch: bool,
}

impl<'a> Records<'a> {
    fn new(upgrade: &'a Upgrade, summary: Option<Value>) -> Records<'a> {
        let session = summary.as_ref().and_then(|s| parse_summary(s).ok());
        Records {
            upgrade,
            session: session.map(|s| s.session_id),
            summary,
            not_an_object: None,
            mismatch: false,
        }
    }

    fn take(
        &mut self,
        index: u64,
        raw: &[u8],
        at: u64,
        each: &mut dyn FnMut(Item),
    ) -> Result<(), DocumentError> {
        let value = parse_at(raw, at)?;
        let Value::Object(object) = &value else {
            self.not_an_object.get_or_insert(index);
            return Ok(());
        };
        if let Some(session) = &self.session {
            let said = object.get("session_id").and_then(Value::as_str);
            self.mismatch |= said != Some(session);
        }
        each((index, self.upgrade.event(value)));
        Ok(())
    }

    /// What was wrong with the array as a whole, in the order in which it is looked for.
    fn finish(self) -> Result<Option<SessionSummary>, DocumentError> {
        if let Some(index) = self.not_an_object {
            return Err(DocumentError::NotAnObject(index));
        }
        let summary = self.summary.as_ref().map(parse_summary).transpose();
        let summary = summary.map_err(DocumentError::Summary)?;
        match self.mismatch {
            true => Err(DocumentError::SummaryMismatch),
            false => Ok(summary),
        }
    }
}

/// The value of a stretch of the document that begins at byte `at`.
fn parse_at(raw: &[u8], at: u64) -> Result<Value, DocumentError> {
    open_json::parse(raw).map_err(|error| {
        DocumentError::Malformed(json::Error {
            at: error.at + at as usize,
            ..error
        })
    })
}

/// Where a value's bytes go while it is gone through.
enum Capture<'a> {
    /// All of it, or an error.
    Keep(&'a mut Vec<u8>),
    /// All of it, or nothing if it is too long.
    KeepShort(&'a mut Vec<u8>),
    Skip,
}

/// The outer structure of a document, read as it comes. It finds where values end; what they say is checked by whoever
/// takes their bytes.
struct Source<R> {
    reader: R,
    buffer: Vec<u8>,
    at: usize,
    /// Of the next byte.
    offset: u64,
}

type Visit<'a, R> = &'a mut dyn FnMut(&mut Source<R>, usize, &str) -> Result<(), DocumentError>;
type VisitElement<'a> = &'a mut dyn FnMut(u64, &[u8], u64) -> Result<(), DocumentError>;

impl<R: Read> Source<R> {
    const BUFFER_BYTES: usize = 64 << 10;

    fn new(reader: R) -> Source<R> {
        Source {
            reader,
            buffer: Vec::new(),
            at: 0,
            offset: 0,
        }
    }

    fn error(&self, kind: ErrorKind) -> DocumentError {
        DocumentError::Malformed(json::Error {
            kind,
            at: self.offset as usize,
        })
    }

    /// What has been read and not taken; empty at the end.
    fn rest(&mut self) -> Result<&[u8], DocumentError> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            let mut limited = self.reader.by_ref().take(Self::BUFFER_BYTES as u64);
            limited.read_to_end(&mut self.buffer)?;
        }
        Ok(&self.buffer[self.at..])
    }

    fn take(&mut self, bytes: usize, capture: &mut Capture<'_>) -> Result<(), DocumentError> {
        let taken = &self.buffer[self.at..self.at + bytes];
        match capture {
            Capture::Keep(out) | Capture::KeepShort(out)
                if out.len() + bytes <= MAX_RECORD_BYTES =>
            {
                out.extend_from_slice(taken);
            }
            Capture::Keep(_) => return Err(DocumentError::TooLong(self.offset)),
            Capture::KeepShort(out) => {
                **out = Vec::new();
                *capture = Capture::Skip;
            }
            Capture::Skip => {}
        }
        self.at += bytes;
        self.offset += bytes as u64;
        Ok(())
    }

    /// The next byte that is no blank, not taken; `None` at the end.
    fn after_blanks(&mut self) -> Result<Option<u8>, DocumentError> {
        loop {
            let rest = self.rest()?;
            let blanks = rest
                .iter()
                .take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'))
                .count();
            let next = rest.get(blanks).copied();
            let ended = rest.is_empty();
            self.take(blanks, &mut Capture::Skip)?;
            if next.is_some() || ended {
                return Ok(next);
            }
        }
    }

    fn expect(&mut self, byte: u8, kind: ErrorKind) -> Result<(), DocumentError> {
        match self.after_blanks()? {
            Some(next) if next == byte => self.take(1, &mut Capture::Skip),
            None => Err(self.error(ErrorKind::UnexpectedEnd)),
            Some(_) => Err(self.error(kind)),
        }
    }

    fn end(&mut self) -> Result<(), DocumentError> {
        match self.after_blanks()? {
            None => Ok(()),
            Some(_) => Err(self.error(ErrorKind::TrailingData)),
        }
    }

    /// Goes past one value.
    fn value(&mut self, capture: &mut Capture<'_>) -> Result<(), DocumentError> {
        self.after_blanks()?;
        let mut depth = 0_u64;
        loop {
            let rest = self.rest()?;
            let Some(&byte) = rest.first() else {
                return Err(self.error(ErrorKind::UnexpectedEnd));
            };
            match byte {
                b'"' => self.string(capture)?,
                b'{' | b'[' => {
                    depth += 1;
                    self.take(1, capture)?;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.take(1, capture)?;
                }
                b',' | b'}' | b']' | b':' if depth == 0 => {
                    return Err(self.error(ErrorKind::ExpectedValue));
                }
                b',' | b':' => self.take(1, capture)?,
                _ => {
                    let is_end =
                        |b: &u8| matches!(b, b'"' | b'{' | b'}' | b'[' | b']' | b',' | b':');
                    let length = rest.iter().position(is_end).unwrap_or(rest.len());
                    let more = length == rest.len();
                    self.take(length, capture)?;
                    // A bare word may go on in what is read next.
                    if more && !self.rest()?.is_empty() {
                        continue;
                    }
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Goes past a string.
    fn string(&mut self, capture: &mut Capture<'_>) -> Result<(), DocumentError> {
        self.take(1, capture)?;
        loop {
            let rest = self.rest()?;
            if rest.is_empty() {
                return Err(self.error(ErrorKind::UnterminatedString));
            }
            match memchr::memchr2(b'"', b'\\', rest) {
                None => {
                    let length = rest.len();
                    self.take(length, capture)?;
                }
                Some(at) if rest[at] == b'"' => return self.take(at + 1, capture),
                Some(at) => {
                    self.take(at + 1, capture)?;
                    if self.rest()?.is_empty() {
                        return Err(self.error(ErrorKind::UnterminatedString));
                    }
                    self.take(1, capture)?;
                }
            }
        }
    }

    /// Gives the elements of the array that comes next, with their index and offset.
    fn elements(&mut self, each: VisitElement<'_>) -> Result<(), DocumentError> {
        self.expect(b'[', ErrorKind::ExpectedValue)?;
        if self.after_blanks()? == Some(b']') {
            return self.take(1, &mut Capture::Skip);
        }
        let mut raw = Vec::new();
        for index in 0.. {
            raw.clear();
            self.after_blanks()?;
            let at = self.offset;
            self.value(&mut Capture::Keep(&mut raw))?;
            each(index, &raw, at)?;
            match self.after_blanks()? {
                Some(b',') => self.take(1, &mut Capture::Skip)?,
                _ => return self.expect(b']', ErrorKind::ExpectedCommaOrArrayEnd),
            }
        }
        Ok(())
    }

    /// Gives the members of the object that comes next: `each` goes past the value.
    fn members(&mut self, each: Visit<'_, R>) -> Result<(), DocumentError> {
        self.expect(b'{', ErrorKind::ExpectedValue)?;
        if self.after_blanks()? == Some(b'}') {
            return self.take(1, &mut Capture::Skip);
        }
        for nth in 0.. {
            if self.after_blanks()? != Some(b'"') {
                return Err(self.error(ErrorKind::ExpectedKey));
            }
            let (mut raw, at) = (Vec::new(), self.offset);
            self.string(&mut Capture::Keep(&mut raw))?;
            let key = parse_at(&raw, at)?;
            self.expect(b':', ErrorKind::ExpectedColon)?;
            each(self, nth, key.as_str().unwrap_or_default())?;
            match self.after_blanks()? {
                Some(b',') => self.take(1, &mut Capture::Skip)?,
                _ => return self.expect(b'}', ErrorKind::ExpectedCommaOrObjectEnd),
            }
        }
        Ok(())
    }
}
