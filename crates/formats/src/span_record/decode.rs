//! Lines to records. What is more in a record than is known here is left alone.

use warptrace_model::{Object, SpanId, Value};

use super::{MAX_RECORD_BYTES, ParentId, start_of};
use crate::{json, open_json};

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("longer than {MAX_RECORD_BYTES} bytes")]
    TooLong,
    #[error("not JSON")]
    Json(#[source] json::Error),
    #[error("not an object")]
    NotAnObject,
    #[error("unknown type {0:?}")]
    UnknownType(Box<str>),
    #[error("{0:?} is missing")]
    Missing(&'static str),
    #[error("{0:?} is not what it must be")]
    Wrong(&'static str),
}

/// Which part of a span's life a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Start,
    Stop,
    /// Both.
    Complete,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Span(Stage, Box<SpanPart>),
    Event {
        span: SpanId,
        event: EventPart,
        /// An error of the program.
        is_error: bool,
    },
    /// What this writer has written is not all.
    DataError(EventPart),
}

/// A span as one record tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanPart {
    pub id: SpanId,
    pub name: Box<str>,
    /// All that it had then.
    pub attributes: Object,
    /// `None` in `stop`.
    pub start_event: Option<EventPart>,
    /// `None` in `start`.
    pub stop_event: Option<EventPart>,
    /// The rest is `None` or 0 where the writer knows less than ours.
    pub trace: Option<u128>,
    pub parent: Option<ParentId>,
    pub thread: Option<u32>,
    pub start_unix_nanos: Option<i64>,
    pub end_unix_nanos: Option<i64>,
    pub dropped_events: u32,
}

/// A named moment.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPart {
    pub name: Box<str>,
    /// With `timestamp_msec`.
    pub attributes: Object,
    /// As the record says exactly, else ms of `timestamp_msec`. `None` without either.
    pub unix_nanos: Option<i64>,
}

/// A line of the format.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub body: Body,
    /// Of this writer's records, from 1.
    pub count: Option<u64>,
    /// Of the process that wrote it; in files of the Python package of the one that made the writer.
    pub pid: Option<u32>,
    /// Attributes that its writer left out.
    pub dropped_attributes: u32,
}

impl Record {
    /// The record that a line is, with or without its line feed.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(line: &[u8]) -> Result<Record, DecodeError> {
        if line.len() > MAX_RECORD_BYTES {
            return Err(DecodeError::TooLong);
        }
        match open_json::parse(line).map_err(DecodeError::Json)? {
            Value::Object(object) => Record::from_object(object),
            _ => Err(DecodeError::NotAnObject),
        }
    }

    /// The record that an object is, such as [`super::log_line::parse`] gives.
    ///
    /// # Errors
    /// [`DecodeError`], but for those of lines.
    pub fn from_object(mut object: Object) -> Result<Record, DecodeError> {
        restore_non_finite(&mut object);
        let kind = text(&object, "type")?;
        let body = match kind {
            "start" => Body::Span(Stage::Start, Box::new(span(&mut object, Stage::Start)?)),
            "stop" => Body::Span(Stage::Stop, Box::new(span(&mut object, Stage::Stop)?)),
            "complete" => Body::Span(
                Stage::Complete,
                Box::new(span(&mut object, Stage::Complete)?),
            ),
            "event" | "application_error" => {
                let is_error = kind == "application_error";
                let time = int::<i64>(&object, "time_unix_ns")?;
                Body::Event {
                    span: uuid(&object, "span_id")?,
                    event: event(&mut object, "event", time)?,
                    is_error,
                }
            }
            "telemetry_data_error" => {
                let time = int::<i64>(&object, "time_unix_ns")?;
                Body::DataError(event(&mut object, "error", time)?)
            }
            other => return Err(DecodeError::UnknownType(shortened(other))),
        };
        Ok(Record {
            body,
            count: int(&object, "count")?,
            pid: int(&object, "pid")?,
            dropped_attributes: int(&object, "dropped_attributes")?.unwrap_or(0),
        })
    }
}

fn span(object: &mut Object, stage: Stage) -> Result<SpanPart, DecodeError> {
    let time: Option<i64> = int(object, "time_unix_ns")?;
    let duration: Option<i64> = int(object, "duration_ns")?;
    let (start_unix_nanos, end_unix_nanos) = match stage {
        Stage::Start => (time, None),
        _ => {
            let start = time.zip(duration).map(|(end, long)| end.checked_sub(long));
            (start.flatten(), time)
        }
    };
    Ok(SpanPart {
        id: uuid(object, "id")?,
        name: text(object, "name")?.into(),
        attributes: attributes(object, "attributes")?,
        start_event: match stage {
            Stage::Stop => None,
            _ => Some(event(object, "start_event", start_unix_nanos)?),
        },
        stop_event: match stage {
            Stage::Start => None,
            // Its own time may differ from the span's end, where the wall clock was set in between.
            _ => Some(event(object, "stop_event", None)?),
        },
        trace: match object.get("trace_id") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_str()
                    .and_then(|text| hex(text, 32))
                    .ok_or(DecodeError::Wrong("trace_id"))?,
            ),
        },
        parent: match object.get("parent_id") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_str()
                    .and_then(parent)
                    .ok_or(DecodeError::Wrong("parent_id"))?,
            ),
        },
        thread: int(object, "thread_id")?,
        start_unix_nanos,
        end_unix_nanos,
        dropped_events: int(object, "dropped_events")?.unwrap_or(0),
    })
}

fn parent(text: &str) -> Option<ParentId> {
    match text.len() {
        16 => hex(text, 16).map(|id| ParentId::Remote(id as u64)),
        _ => SpanId::parse(text).map(ParentId::Span),
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

fn event(
    object: &mut Object,
    key: &'static str,
    unix_nanos: Option<i64>,
) -> Result<EventPart, DecodeError> {
    let mut event = match object.remove(key) {
        Some(Value::Object(event)) => event,
        Some(_) => return Err(DecodeError::Wrong(key)),
        None => return Err(DecodeError::Missing(key)),
    };
    let attributes = attributes(&mut event, "attributes")?;
    let millis = || {
        let millis = attributes.get("timestamp_msec")?.as_int()?.to_i64()?;
        millis.checked_mul(1_000_000)
    };
    Ok(EventPart {
        name: text(&event, "name")?.into(),
        unix_nanos: unix_nanos.or_else(millis),
        attributes,
    })
}

fn attributes(object: &mut Object, key: &'static str) -> Result<Object, DecodeError> {
    match object.remove(key) {
        Some(Value::Object(attributes)) => Ok(attributes),
        None => Ok(Object::new()),
        Some(_) => Err(DecodeError::Wrong(key)),
    }
}

fn text<'o>(object: &'o Object, key: &'static str) -> Result<&'o str, DecodeError> {
    let value = object.get(key).ok_or(DecodeError::Missing(key))?;
    value.as_str().ok_or(DecodeError::Wrong(key))
}

fn uuid(object: &Object, key: &'static str) -> Result<SpanId, DecodeError> {
    SpanId::parse(text(object, key)?).ok_or(DecodeError::Wrong(key))
}

/// An integer in range, where there is one. As a string of digits, too.
fn int<T: TryFrom<i128>>(object: &Object, key: &'static str) -> Result<Option<T>, DecodeError> {
    let value = match object.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Int(n)) => n.to_i128(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    let value = value.and_then(|value| T::try_from(value).ok());
    value.map(Some).ok_or(DecodeError::Wrong(key))
}

/// For messages: what a hostile line says can be long.
fn shortened(text: &str) -> Box<str> {
    start_of(text, 64).into()
}

/// Makes doubles of the words at the places that the record lists.
fn restore_non_finite(object: &mut Object) {
    let Some(Value::Array(places)) = object.remove("non_finite") else {
        return;
    };
    // Sorted, so that a long list costs no more than the record's length times a logarithm.
    let mut places: Vec<&str> = places.iter().filter_map(Value::as_str).collect();
    places.sort_unstable();
    let restore = |attributes: Option<&mut Value>, prefix: &str| {
        let Some(Value::Object(attributes)) = attributes else {
            return;
        };
        let mut place = String::from(prefix);
        for (name, value) in attributes.iter_mut() {
            place.truncate(prefix.len());
            place.push_str(name);
            if places.binary_search(&place.as_str()).is_ok() {
                words_to_doubles(value);
            }
        }
    };
    for (key, value) in object.iter_mut() {
        match key {
            "attributes" => restore(Some(value), "attributes."),
            "start_event" | "stop_event" | "event" | "error" => {
                let Value::Object(event) = value else {
                    continue;
                };
                let attributes = event.iter_mut().find(|(key, _)| *key == "attributes");
                restore(
                    attributes.map(|(_, value)| value),
                    &format!("{key}.attributes."),
                );
            }
            _ => {}
        }
    }
}

/// Values that were read nest a bounded number of levels.
fn words_to_doubles(value: &mut Value) {
    match value {
        Value::String(text) => match &**text {
            "NaN" => *value = Value::Float(f64::NAN),
            "Infinity" => *value = Value::Float(f64::INFINITY),
            "-Infinity" => *value = Value::Float(f64::NEG_INFINITY),
            _ => {}
        },
        Value::Array(items) => items.iter_mut().for_each(words_to_doubles),
        Value::Object(object) => object
            .iter_mut()
            .for_each(|(_, value)| words_to_doubles(value)),
        _ => {}
    }
}
