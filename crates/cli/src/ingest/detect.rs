//! What a file is, by its first bytes; its name says nothing.
//!
//! Knows the marks of each format and no more: whether a file is well-formed is for its reader to say.

use warptrace_formats::json::{Invalid, Options, Reader, Token};

/// Bytes that are looked at.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// Lines of them that are looked at, before it is given up to find one that says something.
const LINES: usize = 32;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// The SQLite database of another tracer, or any other one: SQLite says which.
    TraceDb,
    /// Labels, a JSON object a line.
    Annotations,
    /// The run log of an inference server, a JSON object a line.
    RunLog,
    /// GPU memory telemetry: a record a line, one JSON document, a table, the folder of a sink.
    MemoryLines,
    MemoryDocument,
    MemoryTable,
    MemorySink,
}

impl Format {
    /// As in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Format::TraceDb => "ingero_db",
            Format::Annotations => "annotations",
            Format::RunLog => "run_log",
            Format::MemoryLines => "memory_jsonl",
            Format::MemoryDocument => "memory_json",
            Format::MemoryTable => "memory_csv",
            Format::MemorySink => "memory_sink",
        }
    }

    /// For people.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Format::TraceDb => "SQLite trace",
            Format::Annotations => "annotations",
            Format::RunLog => "run log",
            Format::MemoryLines => "memory telemetry, lines",
            Format::MemoryDocument => "memory telemetry, a document",
            Format::MemoryTable => "memory telemetry, a table",
            Format::MemorySink => "memory telemetry, a sink's folder",
        }
    }
}

/// Why a file is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Empty,
    /// The log or the lock of a database beside it.
    Companion,
    Compressed,
    Binary,
    Text,
}

impl Unknown {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Unknown::Empty => "it is empty",
            Unknown::Companion => "it belongs to the database beside it, and is read with that",
            Unknown::Compressed => "it is compressed: unpack it first",
            Unknown::Binary => "it is of no format that is known",
            Unknown::Text => {
                "it is of no format that is known (annotations, run logs, memory telemetry, SQLite traces are)"
            }
        }
    }
}

/// The format of a file that begins with `head`: all of it, or its first [`HEAD_BYTES`].
pub(crate) fn detect(head: &[u8]) -> Result<Format, Unknown> {
    const WAL: [&[u8]; 2] = [&[0x37, 0x7f, 0x06, 0x82], &[0x37, 0x7f, 0x06, 0x83]];
    const PACKED: [&[u8]; 5] = [
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"BZh",
        b"\xfd7zXZ",
        b"PK\x03\x04",
    ];
    if warptrace_store::sqlite::is_sqlite(head) {
        return Ok(Format::TraceDb);
    }
    if WAL.iter().any(|magic| head.starts_with(magic)) {
        return Err(Unknown::Companion);
    }
    if PACKED.iter().any(|magic| head.starts_with(magic)) {
        return Err(Unknown::Compressed);
    }
    let text = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .trim_ascii_start();
    match text.first() {
        None if head.is_empty() => Err(Unknown::Empty),
        None => Err(Unknown::Text),
        Some(b'[') => array(text),
        _ => lines(text).ok_or(match text.iter().take(512).any(|b| *b == 0) {
            true => Unknown::Binary,
            false => Unknown::Text,
        }),
    }
}

/// By the first line that says something. Others may be torn, or something else.
fn lines(text: &[u8]) -> Option<Format> {
    let mut from = 0;
    for line in text.split(|b| *b == b'\n').take(LINES) {
        let rest = &text[from..];
        from += line.len() + 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if line[0] != b'{' {
            if from == line.len() + 1 && is_table(line) {
                return Some(Format::MemoryTable);
            }
            continue;
        }
        // An object may go on over lines: then the file is one document.
        let (marks, whole) = match marks(line) {
            (marks, true) => (marks, true),
            _ => (marks(rest).0, false),
        };
        let found = match marks {
            Marks { events: true, .. } => Some(Format::MemoryDocument),
            Marks {
                labels: true,
                kind: false,
                ..
            } => Some(Format::Annotations),
            Marks { kind: true, .. } => Some(Format::RunLog),
            Marks { memory: true, .. } if whole => Some(Format::MemoryLines),
            Marks { memory: true, .. } => Some(Format::MemoryDocument),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// An array of memory records.
fn array(text: &[u8]) -> Result<Format, Unknown> {
    let inside = text[1..].trim_ascii_start();
    match inside.first() {
        Some(b'{') if marks(inside).0.memory => Ok(Format::MemoryDocument),
        _ => Err(Unknown::Text),
    }
}

/// Names of members by which a record is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Marks {
    /// `labels`, in any case: an annotation.
    labels: bool,
    /// `kind`, a text: a run log's record.
    kind: bool,
    /// What records of memory telemetry have, of every version.
    memory: bool,
    /// `events` or `telemetry_events`, a list: a document of them.
    events: bool,
}

/// What the object at the begin of `text` has, and whether it is all of `text`.
fn marks(text: &[u8]) -> (Marks, bool) {
    const MEMORY: [&str; 9] = [
        "event_type",
        "timestamp_ns",
        "memory_allocated",
        "memory_mb",
        "allocator_allocated_bytes",
        "device_used_bytes",
        "session_summary",
        "sampling_interval_ms",
        "memory_reserved",
    ];
    let options = Options {
        non_finite: true,
        check_utf8: false,
        ..Options::default()
    };
    let mut marks = Marks::default();
    let mut reader = Reader::with_options(text, options);
    let mut name = String::new();
    loop {
        // What is cut off, and what stands behind the object, is an error of the text and none of what came before.
        let token = match reader.next() {
            Ok(Some(token)) => token,
            Ok(None) => return (marks, true),
            Err(_) => return (marks, false),
        };
        match (token, reader.depth()) {
            (Token::Key(key), 1) => {
                name = key
                    .decode(Invalid::Replace)
                    .map(|key| key.into_owned())
                    .unwrap_or_default();
                marks.memory |= MEMORY.contains(&&*name);
            }
            (Token::ArrayStart, 2) => {
                marks.events |= matches!(&*name, "events" | "telemetry_events");
            }
            (Token::ObjectStart, 2) => marks.labels |= name.eq_ignore_ascii_case("labels"),
            (Token::String(_), 1) => marks.kind |= name == "kind",
            _ => {}
        }
    }
}

/// The names of a table of memory telemetry.
fn is_table(line: &[u8]) -> bool {
    let names: Vec<&[u8]> = line.split(|b| *b == b',').map(<[u8]>::trim_ascii).collect();
    let has = |name: &[u8]| {
        names
            .iter()
            .any(|n| *n == name || *n == [b"\"", name, b"\""].concat())
    };
    names.len() > 1
        && [
            &b"timestamp_ns"[..],
            b"timestamp",
            b"memory_allocated",
            b"allocator_allocated_bytes",
            b"event_type",
        ]
        .iter()
        .filter(|name| has(name))
        .count()
            >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &str, want: Result<Format, Unknown>) {
        assert_eq!(detect(head.as_bytes()), want, "{head}");
    }

    #[test]
    fn what_a_file_is_is_told_by_its_records() {
        for (head, want) in [
            ("SQLite format 3\0and so on", Format::TraceDb),
            (
                "{\"labels\":{\"step\":\"41\"},\"ts\":5}\n",
                Format::Annotations,
            ),
            ("\n\n{\"Labels\":{\"kind\":\"eval\"}}", Format::Annotations),
            (
                "{\"schema\":\"toy/v1\",\"t\":0.0,\"kind\":\"run_start\",\"host\":{\"name\":\"a\"}}\n{\"ki",
                Format::RunLog,
            ),
            (
                "{\"kind\":\"eval\",\"labels\":{\"a\":\"b\"}}\n",
                Format::RunLog,
            ),
            (
                "{\"schema_version\":3,\"event_type\":\"sample\"}\n{\"schema_version\":3,\"event_type\":\"sample\"}\n",
                Format::MemoryLines,
            ),
            (
                "{\n  \"event_type\": \"sample\",\n  \"device_used_bytes\": NaN\n}\n",
                Format::MemoryDocument,
            ),
            (
                "{\"tool\":1,\"events\":[{\"x\":1}]}",
                Format::MemoryDocument,
            ),
            ("[{\"event_type\":\"sample\"},", Format::MemoryDocument),
            (
                "\u{feff}timestamp_ns,event_type,device_id\n1,sample,0\n",
                Format::MemoryTable,
            ),
            // The first line was torn by a crash, or is a note.
            (
                "ent_type\":\"sample\"}\n{\"event_type\":\"sample\"}\n",
                Format::MemoryLines,
            ),
        ] {
            check(head, Ok(want));
        }
        for (head, want) in [
            ("", Unknown::Empty),
            ("  \n", Unknown::Text),
            ("a,b,c\n1,2,3\n", Unknown::Text),
            ("{\"hello\":\"world\"}\n", Unknown::Text),
            ("{\"hello\":{\"labels\":{}}}", Unknown::Text),
            ("[1,2,3]", Unknown::Text),
            (
                "# a README that speaks of \"kind\" and \"labels\"\n",
                Unknown::Text,
            ),
            ("\u{1}\0\0\0", Unknown::Binary),
            ("PK\u{3}\u{4}", Unknown::Compressed),
        ] {
            check(head, Err(want));
        }
        assert_eq!(detect(&[0x37, 0x7f, 6, 0x82, 0]), Err(Unknown::Companion));
        // Deeper than any record, and longer than what is looked at.
        check(&"[".repeat(HEAD_BYTES), Err(Unknown::Text));
        check(
            &format!("{{\"kind\":\"eval\",\"x\":\"{}", "y".repeat(HEAD_BYTES)),
            Ok(Format::RunLog),
        );
    }
}
