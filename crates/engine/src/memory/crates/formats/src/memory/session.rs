//! Sessions: their ids, and the summaries that manifests and documents hold of them.

use std::sync::Arc;

use sha1::{Digest as _, Sha1};
use warptrace_model::number_text::{is_blank, parse_int, trim};
use warptrace_model::{Int, Object, SessionStatus, SessionSummary, Value, surrogate_half};

use super::error::{RecordError, Rule, bad};
use super::open_json::python_text;
use super::record::Upgrade;

/// The id of what has none, always the same for the same parts; nulls are left out.
///
/// `legacy-` and the name-based UUID (RFC 9562, version 5, namespace URL) of the parts' texts joined by `::`. `None` if a
/// part has half of a surrogate pair, which has no bytes to hash.
pub fn stable_legacy_id(parts: &[Value]) -> Option<String> {
    const NAMESPACE_URL: [u8; 16] = [
        0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30,
        0xc8,
    ];
    let texts: Vec<String> = parts
        .iter()
        .filter(|part| !part.is_null())
        .map(python_text)
        .collect();
    let name = texts.join("::");
    if name.chars().any(|c| surrogate_half(c).is_some()) {
        return None;
    }
    let mut hash = Sha1::new();
    hash.update(NAMESPACE_URL);
    hash.update(&name);
    let hash = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0F | 0x50;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    Some(format!("legacy-{}", uuid_text(bytes)))
}

/// The id of the records without one in a source: a file's or folder's absolute, resolved path, and `json` (or the key of its
/// events) for a document, `sink` for lines, `csv` for a table.
pub fn id_of_source(resolved_path: &str, kind: &str) -> Arc<str> {
    let id = stable_legacy_id(&[resolved_path.into(), kind.into()]);
    // A path with such characters is no text for the package that defines these ids.
    id.unwrap_or_else(|| format!("legacy-{resolved_path}::{kind}"))
        .into()
}

/// A UUID as 8-4-4-4-12 lower-case hexadecimal digits.
pub fn uuid_text(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// The session that a record belongs to.
pub(crate) fn id_of_record(
    record: &Object,
    metadata: &Object,
    options: &Upgrade,
) -> Result<Arc<str>, RecordError> {
    let said = match record.get("session_id") {
        None | Some(Value::Null) => metadata.get("session_id"),
        said => said,
    };
    if let Some(Value::String(id)) = said
        && !is_blank(id)
    {
        return Ok(Arc::from(&**id));
    }
    if let Some(id) = &options.default_session_id {
        return Ok(id.clone());
    }
    let get = |field, default: Value| record.get(field).cloned().unwrap_or(default);
    let time = get("timestamp_ns", get("timestamp", "unknown".into()));
    let parts = [time, get("host", "unknown".into()), get("pid", (-1).into())];
    stable_legacy_id(&parts)
        .map(Arc::from)
        .ok_or_else(|| bad("session_id", Rule::Unicode))
}

/// Why an object is no session summary. The texts are those of the Python package `stormlog` 0.4.3, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    #[error("session summary payload must be an object")]
    NotAnObject,
    #[error("{0} must be a non-empty string")]
    NotText(&'static str),
    #[error("session status must be a non-empty string")]
    NoStatus,
    #[error("Unsupported session status: {0}")]
    UnsupportedStatus(String),
    #[error("started_at_ns must be present")]
    NoStart,
    #[error("{0} must be an integer")]
    NotAnInteger(&'static str),
}

/// A status's name, trimmed and in any case.
///
/// # Errors
/// No string, a blank one, or none of the four.
pub fn parse_status(value: &Value) -> Result<SessionStatus, SummaryError> {
    match value {
        Value::String(text) if !is_blank(text) => {
            SessionStatus::from_name(&trim(text).to_lowercase())
                .ok_or_else(|| SummaryError::UnsupportedStatus(text.to_string()))
        }
        _ => Err(SummaryError::NoStatus),
    }
}

/// The summary that `value` says.
///
/// # Errors
/// The first rule that it breaks. Integers may also be floats, which are truncated, booleans, or texts of integers.
pub fn parse_summary(value: &Value) -> Result<SessionSummary, SummaryError> {
    let object = value.as_object().ok_or(SummaryError::NotAnObject)?;
    let text = |field: &'static str| match object.get(field) {
        Some(Value::String(text)) if !is_blank(text) => Ok(Arc::from(&**text)),
        _ => Err(SummaryError::NotText(field)),
    };
    let int = |field: &'static str, default: i64| match object.get(field) {
        None => Ok(Int::new(default)),
        Some(value) => lenient_int(value).ok_or(SummaryError::NotAnInteger(field)),
    };
    let session_id = text("session_id")?;
    let source = text("source")?;
    let status = parse_status(object.get("status").unwrap_or(&Value::Null))?;
    let started_at_ns = match object.get("started_at_ns") {
        None | Some(Value::Null) => return Err(SummaryError::NoStart),
        Some(_) => int("started_at_ns", 0)?,
    };
    let ended_at_ns = match object.get("ended_at_ns") {
        None | Some(Value::Null) => None,
        Some(_) => Some(int("ended_at_ns", 0)?),
    };
    Ok(SessionSummary {
        session_id,
        status,
        started_at_ns,
        ended_at_ns,
        host: text("host")?,
        pid: int("pid", -1)?,
        job_id: object.get("job_id").cloned().unwrap_or_default(),
        rank: int("rank", 0)?,
        local_rank: int("local_rank", 0)?,
        world_size: int("world_size", 1)?.max(Int::ONE),
        source,
    })
}

/// An integer as Python's `int` makes one of a JSON value.
pub(crate) fn lenient_int(value: &Value) -> Option<Int> {
    match value {
        Value::Int(value) => Some(value.clone()),
        Value::Float(value) => Int::truncate(*value),
        Value::Bool(value) => Some(Int::new(i64::from(*value))),
        Value::String(text) => parse_int(text),
        _ => None,
    }
}

/// The summary as an object, its keys in the format's order.
pub fn summary_object(summary: &SessionSummary) -> Object {
    let mut object = Object::new();
    object.insert("session_id", &*summary.session_id);
    object.insert("status", summary.status.name());
    object.insert("started_at_ns", summary.started_at_ns.clone());
    let ended = summary.ended_at_ns.clone();
    object.insert("ended_at_ns", ended.map_or(Value::Null, Value::Int));
    object.insert("host", &*summary.host);
    object.insert("pid", summary.pid.clone());
    object.insert("job_id", summary.job_id.clone());
    object.insert("rank", summary.rank.clone());
    object.insert("local_rank", summary.local_rank.clone());
    object.insert("world_size", summary.world_size.clone());
    object.insert("source", &*summary.source);
    object
}
