//! Tables of events, as exporters write them: a row of names, then a record a row.
//!
//! The dialect is that of Python's `csv` module: commas, double quotes doubled within quotes, rows that end at CR, LF or both.

use std::io::{self, Read};
use std::sync::Arc;

use warptrace_model::number_text::{parse_int, trim};
use warptrace_model::{Int, MemoryEvent, Object, Value};

use super::error::RecordError;
use super::open_json;
use super::record::Upgrade;
use super::session::id_of_source;

/// A longer row is left out.
pub const MAX_ROW_BYTES: usize = 16 << 20;

const INTEGERS: [&str; 20] = [
    "schema_version",
    "timestamp_ns",
    "sampling_interval_ms",
    "pid",
    "rank",
    "local_rank",
    "world_size",
    "device_id",
    "allocator_allocated_bytes",
    "allocator_reserved_bytes",
    "allocator_active_bytes",
    "allocator_inactive_bytes",
    "allocator_change_bytes",
    "device_used_bytes",
    "device_free_bytes",
    "device_total_bytes",
    "memory_allocated",
    "memory_reserved",
    "memory_change",
    "total_memory",
];

/// Why a row is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("{column} is no number: {text:?}")]
    NotANumber { column: String, text: String },
    #[error("no UTF-8")]
    NotUtf8,
    #[error("a row of more than {MAX_ROW_BYTES} bytes")]
    TooLong,
    #[error(transparent)]
    Record(RecordError),
}

impl RowError {
    /// A short snake_case word, to count by.
    pub fn reason(&self) -> &'static str {
        match self {
            RowError::NotANumber { .. } => "bad_field",
            RowError::NotUtf8 => "malformed",
            RowError::TooLong => "line_too_long",
            RowError::Record(error) => error.reason(),
        }
    }
}

/// Gives every row to `each`, with its number: 2 for the first after the names. Blank rows are not counted. Rows that name no
/// session belong to one made of `resolved_path`.
///
/// Memory: a row.
///
/// # Errors
/// Those of the reader.
pub fn read_csv(
    reader: impl Read,
    resolved_path: &str,
    each: &mut dyn FnMut(u64, Result<MemoryEvent, RowError>),
) -> io::Result<()> {
    let upgrade = Upgrade {
        default_collector: Arc::from("legacy.csv"),
        default_session_id: Some(id_of_source(resolved_path, "csv")),
        ..Upgrade::default()
    };
    let mut rows = Rows {
        bytes: io::BufReader::with_capacity(64 << 10, reader).bytes(),
        peeked: None,
    };
    let Some(names) = rows.next_row()? else {
        return Ok(());
    };
    let names = names.unwrap_or_default();
    let mut number = 2;
    while let Some(row) = rows.next_row()? {
        let event = match row {
            Ok(cells) if cells.is_empty() => continue,
            Ok(cells) => record(&names, cells)
                .and_then(|record| upgrade.event(record).map_err(RowError::Record)),
            Err(error) => Err(error),
        };
        each(number, event);
        number += 1;
    }
    Ok(())
}

/// The record of a row. Cells beyond the names make it a record with an unknown field, as they do in Python, where that
/// field's name is `None`.
fn record(names: &[String], cells: Vec<String>) -> Result<Value, RowError> {
    let extra = cells.len() > names.len();
    let mut cells = cells.into_iter();
    let mut pairs = Vec::with_capacity(names.len() + 1);
    for name in names {
        let cell = cells.next();
        let value = match cell.as_deref().map(trim) {
            Some("") => Value::Null,
            cell => value(name, cell)?,
        };
        pairs.push((name.as_str().into(), value));
    }
    if extra {
        pairs.push(("None".into(), Value::Null));
    }
    Ok(Value::Object(Object::from_pairs(pairs)))
}

/// A cell's value; `None` is a cell that its row is too short for.
fn value(name: &str, cell: Option<&str>) -> Result<Value, RowError> {
    let text = cell.unwrap_or("None");
    let bad = || RowError::NotANumber {
        column: name.to_owned(),
        text: text.to_owned(),
    };
    if INTEGERS.contains(&name) {
        let int = parse_int(text).or_else(|| parse_float(text).and_then(Int::truncate));
        return int.map(Value::Int).ok_or_else(bad);
    }
    match (name, cell) {
        ("timestamp", _) => parse_float(text).map(Value::Float).ok_or_else(bad),
        (_, None) => Ok(Value::Null),
        ("metadata", Some(text)) => Ok(match open_json::parse(text.as_bytes()) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => Value::Object(Object::new()),
        }),
        (_, Some(text)) => Ok(Value::from(text)),
    }
}

/// A float's text as Python's `float` reads it: single underscores between digits, names of what is not finite in any case.
fn parse_float(text: &str) -> Option<f64> {
    let text = trim(text);
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let separated = (0..bytes.len())
        .filter(|at| bytes[*at] == b'_')
        .all(|at| digit(at.checked_sub(1)) && digit(Some(at + 1)));
    separated.then(|| text.replace('_', "").parse().ok())?
}

struct Rows<R> {
    bytes: io::Bytes<io::BufReader<R>>,
    peeked: Option<u8>,
}

impl<R: Read> Rows<R> {
    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        match self.peeked.take() {
            Some(byte) => Ok(Some(byte)),
            None => self.bytes.next().transpose(),
        }
    }

    /// The cells of the next row; none for a blank one.
    fn next_row(&mut self) -> io::Result<Option<Result<Vec<String>, RowError>>> {
        let mut row: Vec<Vec<u8>> = Vec::new();
        let mut cell: Vec<u8> = Vec::new();
        // Whether the cell has begun; whether we are within quotes; the bytes of the row.
        let (mut begun, mut quoted, mut bytes) = (false, false, 0_usize);
        loop {
            let Some(byte) = self.next_byte()? else {
                if bytes == 0 {
                    return Ok(None);
                }
                break;
            };
            bytes += 1;
            let keep = bytes <= MAX_ROW_BYTES;
            match byte {
                b'"' if quoted => match self.next_byte()? {
                    Some(b'"') => cell.extend(keep.then_some(b'"')),
                    next => {
                        self.peeked = next;
                        quoted = false;
                    }
                },
                _ if quoted => cell.extend(keep.then_some(byte)),
                b'"' if !begun => quoted = true,
                b',' => {
                    if keep {
                        row.push(std::mem::take(&mut cell));
                    }
                    begun = false;
                    continue;
                }
                b'\r' | b'\n' => {
                    if byte == b'\r' {
                        self.peeked = self.next_byte()?.filter(|next| *next != b'\n');
                    }
                    if bytes == 1 {
                        return Ok(Some(Ok(Vec::new())));
                    }
                    break;
                }
                _ => cell.extend(keep.then_some(byte)),
            }
            begun = true;
        }
        if bytes > MAX_ROW_BYTES {
            return Ok(Some(Err(RowError::TooLong)));
        }
        row.push(cell);
        let cells: Result<Vec<String>, _> = row.into_iter().map(String::from_utf8).collect();
        Ok(Some(cells.map_err(|_| RowError::NotUtf8)))
    }
}
