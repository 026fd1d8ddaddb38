//! The vectors' notation of values, times, spans and errors.

use serde_json::{Map, Value as Json, json};
use warptrace_model::{Int, Object, Value};
use warptrace_sdk::span::{Attributes, Error, Event, Span, Timestamp};

use crate::scenario::NoMeaning;
use crate::world::Contexts;

/// A value of ours; names of enumerations and the like have no meaning here.
pub(crate) fn value(json: &Json) -> Result<Value, NoMeaning> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::Int(Int::from(n)),
            _ => Value::from(n.as_f64().unwrap()),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::Array(items.iter().map(value).collect::<Result<_, _>>()?),
        Json::Object(entries) => match entries.get("$float").and_then(Json::as_str) {
            Some("nan") => Value::from(f64::NAN),
            Some("inf") => Value::from(f64::INFINITY),
            Some("-inf") => Value::from(f64::NEG_INFINITY),
            _ if entries.keys().any(|k| k.starts_with('$')) => {
                return Err(NoMeaning(format!("the value {json}")));
            }
            _ => Value::Object(object(json)?),
        },
    })
}

/// An object of ours; nothing for null.
pub(crate) fn object(json: &Json) -> Result<Object, NoMeaning> {
    let mut object = Object::new();
    for (key, item) in json.as_object().into_iter().flatten() {
        object.insert(key, value(item)?);
    }
    Ok(object)
}

pub(crate) fn of_value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(b) => json!(b),
        Value::Int(n) => serde_json::from_str(&n.to_string()).unwrap(),
        Value::Float(x) if x.is_nan() => json!({"$float": "nan"}),
        Value::Float(x) if *x == f64::INFINITY => json!({"$float": "inf"}),
        Value::Float(x) if *x == f64::NEG_INFINITY => json!({"$float": "-inf"}),
        Value::Float(x) => json!(x),
        Value::String(s) => json!(s),
        Value::Array(items) => items.iter().map(of_value).collect(),
        Value::Object(object) => of_object(object),
    }
}

pub(crate) fn of_object(object: &Object) -> Json {
    let entries = object.iter().map(|(k, v)| (k.to_owned(), of_value(v)));
    Json::Object(entries.collect())
}

pub(crate) fn of_attributes(attributes: &Attributes) -> Json {
    of_object(attributes.as_object())
}

/// What a library's error is in the vectors.
pub(crate) fn of_error(error: &Error) -> Json {
    match error {
        // By a test's exporter.
        Error::Initialize { source, .. } if source.code() == "export_failed" => {
            json!({"raises": "ExportError", "message": source.to_string()})
        }
        Error::Initialize { source, .. } => {
            json!({"raises": "ExportError", "code": source.code()})
        }
        error => json!({"raises": "OneLoggerError", "code": error.code()}),
    }
}

pub(crate) fn of_timestamp(at: Timestamp) -> Json {
    json!({"seconds_since_epoch": at.unix_secs(), "perf_counter_seconds": at.perf_secs()})
}

pub(crate) fn timestamp(json: &Json) -> Option<Timestamp> {
    let unix_secs = json["seconds_since_epoch"].as_f64()?;
    let perf_secs = json["perf_counter_seconds"].as_f64()?;
    Some(Timestamp::from_secs(unix_secs, perf_secs))
}

/// An event; sentences of the library are replaced by codes, since wording is free.
pub(crate) fn of_event(event: &Event, exporter_class: &str) -> Json {
    let mut attributes = of_attributes(&event.attributes());
    if let Some(Json::String(message)) = attributes.get_mut("error_message") {
        *message = placeholder(message, exporter_class);
    }
    json!({
        "name": event.name(),
        "timestamp": of_timestamp(event.at()),
        "attributes": attributes,
    })
}

/// The code for a sentence of the library's, or a program's own text as it is.
pub(crate) fn placeholder(message: &str, exporter_class: &str) -> String {
    if let Some(rest) = message.strip_prefix("error in ")
        && let [function, code, _] = rest.splitn(3, ": ").collect::<Vec<_>>()[..]
    {
        return format!("<guard:{function}:{code}>");
    }
    if let Some((_, text)) = message.split_once(" failed: ") {
        return format!("<export_failure:{exporter_class}:{text}>");
    }
    if message.contains("was stopped while it was being timed") {
        return "<timer_auto_stopped>".into();
    }
    message.into()
}

pub(crate) fn of_span(span: &Span, contexts: &Contexts) -> Map<String, Json> {
    let parent = span.parent().map(|parent| contexts.label(parent.id()));
    let entries = json!({
        "id": contexts.label(span.id()),
        "name": span.name(),
        "parent_id": parent,
        "attributes": of_attributes(&span.attributes()),
        "updated_attributes": of_attributes(&span.updated_attributes()),
    });
    match entries {
        Json::Object(entries) => entries,
        _ => unreachable!("it is an object"),
    }
}
