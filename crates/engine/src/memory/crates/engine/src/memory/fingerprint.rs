//! Fingerprints of issues: one id for what is the same issue, seen again by another process on another day.
//!
//! The ids are those of the Python package `stormlog` 0.4.3.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use warptrace_model::{Object, Value, surrogate_half};

use super::math::round;
use super::text::{float_text, normalized};

/// What an issue is about, with the dimensions by which two are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IssueKind {
    /// `backend`, `reason`.
    Oom,
    /// `collector`, `backend`, `health_status`, `partial_fields`, `error_stem`.
    CollectorDegradation,
    /// `event_type`, `severity`, `collector`, `backend`, `category`.
    Alert,
    /// `classification`, `severity`, `phase`, `collector`, `backend`.
    HiddenMemoryAnomaly,
}

impl IssueKind {
    pub const fn name(self) -> &'static str {
        match self {
            IssueKind::Oom => "oom",
            IssueKind::CollectorDegradation => "collector_degradation",
            IssueKind::Alert => "alert",
            IssueKind::HiddenMemoryAnomaly => "hidden_memory_anomaly",
        }
    }

    /// # Errors
    /// [`FingerprintError::Kind`].
    pub fn by_name(name: &str) -> Result<IssueKind, FingerprintError> {
        [
            IssueKind::Oom,
            IssueKind::CollectorDegradation,
            IssueKind::Alert,
            IssueKind::HiddenMemoryAnomaly,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| FingerprintError::Kind(name.into()))
    }
}

/// Why there is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FingerprintError {
    Kind(Box<str>),
    BlankKey,
}

impl std::fmt::Display for FingerprintError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FingerprintError::Kind(name) => write!(f, "unsupported issue kind: {name}"),
            FingerprintError::BlankKey => {
                f.write_str("fingerprint dimension keys must be non-empty strings")
            }
        }
    }
}

impl std::error::Error for FingerprintError {}

#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// `issue:` and 24 hex digits.
    pub id: String,
    pub kind: IssueKind,
    /// As they are compared: texts normalised, floats with 6 decimals, lists sorted, keys in order.
    pub dimensions: Object,
}

/// # Errors
/// [`FingerprintError::BlankKey`].
pub fn fingerprint(kind: IssueKind, dimensions: &Object) -> Result<Fingerprint, FingerprintError> {
    let dimensions = comparable(dimensions)?;
    let mut text = String::from(r#"{"dimensions":"#);
    write_object(&mut text, &dimensions);
    let _ = write!(text, r#","kind":"{}","schema_version":1}}"#, kind.name());
    let hash = Sha256::digest(text.as_bytes());
    let mut id = String::from("issue:");
    for byte in &hash[..12] {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(Fingerprint {
        id,
        kind,
        dimensions,
    })
}

fn comparable(object: &Object) -> Result<Object, FingerprintError> {
    let mut pairs: Vec<(Box<str>, Value)> = Vec::with_capacity(object.len());
    for (key, value) in object.iter() {
        if key.trim().is_empty() {
            return Err(FingerprintError::BlankKey);
        }
        pairs.push((Box::from(key), comparable_value(value)?));
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Object::from_pairs(pairs))
}

fn comparable_value(value: &Value) -> Result<Value, FingerprintError> {
    Ok(match value {
        Value::String(text) => Value::from(normalized(text).as_str()),
        Value::Float(x) => Value::Float(round(*x, 6)),
        Value::Object(object) => Value::Object(comparable(object)?),
        Value::Array(items) => {
            let mut items = items
                .iter()
                .map(|item| {
                    let value = comparable_value(item)?;
                    let mut text = String::new();
                    write_value(&mut text, &value);
                    Ok((text, value))
                })
                .collect::<Result<Vec<_>, _>>()?;
            items.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Array(items.into_iter().map(|(_, value)| value).collect())
        }
        other => other.clone(),
    })
}

/// JSON without blanks, in ASCII; keys are in order already.
fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(x) => out.push_str(&float_text(*x)),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(object) => write_object(out, object),
    }
}

fn write_object(out: &mut String, object: &Object) {
    out.push('{');
    for (i, (key, value)) in object.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(out, key);
        out.push(':');
        write_value(out, value);
    }
    out.push('}');
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                let half = surrogate_half(c);
                let units = match &half {
                    Some(half) => std::slice::from_ref(half),
                    None => c.encode_utf16(&mut units),
                };
                for unit in units {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}
