//! The ledger of a sink's folder: `manifest.json`, with its sessions and segments.

use std::sync::Arc;

use warptrace_model::{Int, Object, SessionSummary, Value};

use super::open_json::{self, Style};
use super::session::{lenient_int, parse_summary, summary_object};

/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";
/// What stands before a manifest's number and after it in a segment's name.
pub const SEGMENT_PREFIX: &str = "segment-";
pub const SEGMENT_SUFFIX: &str = ".jsonl";
/// What a manifest says of itself.
pub const FORMAT: &str = "stormlog.append_only_telemetry_sink";
/// The version that is written; older ones are read.
pub const SCHEMA_VERSION: i64 = 2;
/// A larger manifest is not read.
pub(super) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// At least 1.
    pub schema_version: Int,
    pub format: Arc<str>,
    pub sessions: Vec<SessionSummary>,
    pub segments: Vec<SegmentEntry>,
}

/// What a manifest says of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEntry {
    /// As it stands there: it may be anything. See [`is_segment_file`].
    pub filename: Arc<str>,
    pub event_count: u64,
    pub size_bytes: u64,
    pub closed: bool,
    pub session_id: Option<Arc<str>>,
}

impl Default for Manifest {
    fn default() -> Manifest {
        Manifest {
            schema_version: Int::new(SCHEMA_VERSION),
            format: FORMAT.into(),
            sessions: Vec::new(),
            segments: Vec::new(),
        }
    }
}

impl Manifest {
    /// What a manifest's bytes say; `None` if they are no JSON object. Entries that are none are left out.
    pub fn parse(bytes: &[u8]) -> Option<Manifest> {
        let Ok(Value::Object(object)) = open_json::parse(bytes) else {
            return None;
        };
        let list = |key: &str| {
            let items = object.get(key).and_then(Value::as_array);
            items.unwrap_or_default()
        };
        let schema_version = object
            .get("schema_version")
            .and_then(lenient_int)
            .filter(|version| *version >= 1)
            .unwrap_or(Int::ONE);
        let format = object.get("format").and_then(Value::as_str);
        let sessions = match schema_version >= 2 {
            true => list("sessions")
                .iter()
                .filter_map(|session| parse_summary(session).ok())
                .collect(),
            false => Vec::new(),
        };
        Some(Manifest {
            schema_version,
            format: format
                .filter(|text| !text.is_empty())
                .unwrap_or(FORMAT)
                .into(),
            sessions,
            segments: list("segments").iter().filter_map(segment).collect(),
        })
    }

    /// The manifest's text, in the version of now: sessions by start and id, segments as they are.
    pub fn to_text(&self) -> String {
        let mut sessions: Vec<&SessionSummary> = self.sessions.iter().collect();
        sessions.sort_by(|a, b| {
            let key = |s: &SessionSummary| (s.started_at_ns.clone(), s.session_id.clone());
            key(a).cmp(&key(b))
        });
        let sessions = sessions
            .into_iter()
            .map(|session| Value::Object(summary_object(session)));
        let segments = self.segments.iter().map(|segment| {
            let mut object = Object::new();
            object.insert("filename", &*segment.filename);
            object.insert("event_count", Int::from(segment.event_count));
            object.insert("size_bytes", Int::from(segment.size_bytes));
            object.insert("closed", segment.closed);
            let session = segment.session_id.as_deref();
            object.insert("session_id", session.map_or(Value::Null, Value::from));
            Value::Object(object)
        });
        let mut object = Object::new();
        object.insert("schema_version", SCHEMA_VERSION);
        object.insert("format", FORMAT);
        object.insert("sessions", Value::Array(sessions.collect()));
        object.insert("segments", Value::Array(segments.collect()));
        open_json::to_string(&Value::Object(object), Style::MANIFEST) + "\n"
    }
}

fn segment(value: &Value) -> Option<SegmentEntry> {
    let object = value.as_object()?;
    let count = |key: &str| {
        let value = object.get(key).and_then(lenient_int);
        value.and_then(|value| value.to_u64()).unwrap_or(0)
    };
    Some(SegmentEntry {
        filename: object.get("filename")?.as_str()?.into(),
        event_count: count("event_count"),
        size_bytes: count("size_bytes"),
        closed: object.get("closed").is_some_and(is_true),
        session_id: object
            .get("session_id")
            .and_then(Value::as_str)
            .map(Arc::from),
    })
}

/// Python's truth of a value.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Int(value) => *value != 0,
        Value::Float(value) => *value != 0.0,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

/// Whether a name in a manifest is a file's in the manifest's own folder: one plain component, no way out of the folder.
///
/// The Python package joins whatever the manifest says, `../` and absolute paths included; here such an entry is as good as
/// absent, so that a folder from elsewhere makes nobody read, or a sink delete, other files.
pub fn is_segment_file(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// The name of segment `index`.
pub fn segment_name(index: u64) -> String {
    format!("{SEGMENT_PREFIX}{index:06}{SEGMENT_SUFFIX}")
}

/// Whether a file of this name in a folder is taken for a segment.
pub fn looks_like_segment(name: &str) -> bool {
    name.len() >= SEGMENT_PREFIX.len() + SEGMENT_SUFFIX.len()
        && name.starts_with(SEGMENT_PREFIX)
        && name.ends_with(SEGMENT_SUFFIX)
}
