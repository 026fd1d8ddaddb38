//! Projected records: one event in a form that does not depend on what measured it, with an id made of its content.

use sha2::{Digest as _, Sha256};
use warptrace_model::number_text::{is_blank, trim};
use warptrace_model::{Int, MemoryEvent, Object, Value};

use super::encode::{Version, record};
use super::open_json::{self, Style, python_text};

const SCHEMA_VERSION: i64 = 1;

/// The projected record of an event, seen at `observed_ns` or at its own time.
///
/// `source_kind`, `stage` and `severity` are concluded where the event does not say them.
pub fn projected(event: &MemoryEvent, observed_ns: Option<Int>) -> Object {
    let metadata = &event.metadata.values;
    let source_kind = source_kind(event);
    let optional = |text: Option<&str>| text.map_or(Value::Null, Value::from);
    let severity_text = match metadata.get("severity_text") {
        None | Some(Value::Null) => None,
        Some(value) => Some(python_text(value)),
    };
    let mut object = Object::new();
    object.insert("schema_version", SCHEMA_VERSION);
    object.insert("record_id", &*record_id(event));
    object.insert("timestamp_ns", event.timestamp_ns.clone());
    object.insert(
        "observed_timestamp_ns",
        observed_ns.unwrap_or_else(|| event.timestamp_ns.clone()),
    );
    object.insert("session_id", &*event.session_id);
    object.insert("source_kind", &*source_kind);
    object.insert("event_type", &*event.event_type);
    object.insert("stage", optional(stage(metadata)));
    object.insert("severity", optional(severity(event).as_deref()));
    object.insert("severity_text", optional(severity_text.as_deref()));
    object.insert("body", optional(event.context.as_deref()));
    object.insert("resource", resource(event, &source_kind));
    object.insert("attributes", attributes(event));
    object.insert("correlation", correlation(event));
    object
}

/// `telemetry-` and half of the SHA-256 of the event's record as JSON.
pub fn record_id(event: &MemoryEvent) -> String {
    let record = record(event, Version::V4).unwrap_or_default();
    let json = open_json::to_string(&Value::Object(record), Style::LINE);
    let hash = Sha256::digest(json.as_bytes());
    let hex: String = hash[..16].iter().map(|b| format!("{b:02x}")).collect();
    format!("telemetry-{hex}")
}

fn source_kind(event: &MemoryEvent) -> String {
    const KINDS: [&str; 5] = ["cuda", "rocm", "mps", "cpu", "tensorflow"];
    if let Some(Value::String(text)) = event.metadata.values.get("backend")
        && !is_blank(text)
    {
        return trim(text).to_lowercase();
    }
    let collector = event.collector.to_lowercase();
    let kind = KINDS.into_iter().find(|kind| collector.contains(kind));
    let device = if event.device_id.is_negative() {
        "other"
    } else {
        "gpu"
    };
    kind.unwrap_or(device).to_owned()
}

fn stage(metadata: &Object) -> Option<&str> {
    let phase = metadata.get("phase_scope")?.as_object()?;
    let text = |value: Option<&'_ Value>| -> bool {
        value
            .and_then(Value::as_str)
            .is_some_and(|text| !is_blank(text))
    };
    let name = phase.get("name");
    let last = phase
        .get("path")
        .and_then(Value::as_array)
        .and_then(<[Value]>::last);
    [name, last]
        .into_iter()
        .find(|value| text(*value))??
        .as_str()
}

fn severity(event: &MemoryEvent) -> Option<String> {
    if let Some(Value::String(text)) = event.metadata.values.get("severity")
        && !is_blank(text)
    {
        return Some(trim(text).to_lowercase());
    }
    let severity = match &*trim(&event.event_type).to_lowercase() {
        "critical" => "critical",
        "error" => "error",
        "warning" | "collector_degraded" => "warning",
        "collector_recovered" | "start" | "stop" | "phase_enter" | "phase_exit" | "sample" => {
            "info"
        }
        _ => return None,
    };
    Some(severity.into())
}

/// Where an event comes from.
fn resource(event: &MemoryEvent, source_kind: &str) -> Object {
    let mut object = Object::new();
    object.insert("source_kind", source_kind);
    object.insert("collector", &*event.collector);
    object.insert("host", &*event.host);
    object.insert("pid", event.pid.clone());
    object.insert("device_id", event.device_id.clone());
    identity(&mut object, event);
    object
}

/// What an event belongs to.
fn correlation(event: &MemoryEvent) -> Object {
    let mut object = Object::new();
    object.insert("session_id", &*event.session_id);
    identity(&mut object, event);
    if let Some(Value::Object(phase)) = event.metadata.values.get("phase_scope") {
        for key in ["scope_id", "parent_scope_id", "sequence"] {
            match phase.get(key) {
                None | Some(Value::Null) => {}
                Some(value) => object.insert(&format!("phase.{key}"), value.clone()),
            }
        }
    }
    object
}

fn identity(object: &mut Object, event: &MemoryEvent) {
    let job = event.identity.job_id.as_deref();
    object.insert("job_id", job.map_or(Value::Null, Value::from));
    object.insert("rank", event.identity.rank.clone());
    object.insert("local_rank", event.identity.local_rank.clone());
    object.insert("world_size", event.identity.world_size.clone());
}

/// The metadata, and the levels under neutral names on top of it.
fn attributes(event: &MemoryEvent) -> Object {
    let counters = [
        (
            "memory.allocator.allocated_bytes",
            &event.allocator_allocated_bytes,
        ),
        (
            "memory.allocator.reserved_bytes",
            &event.allocator_reserved_bytes,
        ),
        (
            "memory.allocator.active_bytes",
            &event.allocator_active_bytes,
        ),
        (
            "memory.allocator.inactive_bytes",
            &event.allocator_inactive_bytes,
        ),
        (
            "memory.allocator.change_bytes",
            &event.allocator_change_bytes,
        ),
        ("memory.device.used_bytes", &event.device_used_bytes),
        ("memory.device.free_bytes", &event.device_free_bytes),
        ("memory.device.total_bytes", &event.device_total_bytes),
    ];
    let mut object = event.metadata.values.clone();
    object.insert("sampling.interval_ms", event.sampling_interval_ms.clone());
    for (name, value) in counters {
        object.insert(name, value.clone().map_or(Value::Null, Value::Int));
    }
    object
}
