//! Records of before version 2: dumps of trackers, profilers and exporters, each with names of its own for the same things.

use std::sync::Arc;

use warptrace_model::number_text::{decimal_digit, is_blank, parse_int, trim};
use warptrace_model::{
    Identity, Int, MemoryEvent, MemoryVersion, Metadata, Object, StatedIdentity, Value,
};

use super::capabilities::{self, Present};
use super::error::{RecordError, Rule, bad};
use super::record::{Upgrade, check_allocator, check_device, int, text};
use super::session;

const TOTALS: [&str; 3] = ["total_memory", "device_total", "total_bytes"];

/// The event that a record without `schema_version` says. Keys that no rule names are ignored.
pub(crate) fn convert(record: Object, options: &Upgrade) -> Result<MemoryEvent, RecordError> {
    let mut metadata = metadata_of(&record)?;
    let timestamp_ns = timestamp_of(&record)?;
    let device_id = device_of(&record)?;
    let allocated = allocated_of(&record)?;
    let first_int = |names: &[&'static str]| -> Result<Option<Int>, RecordError> {
        let found = names.iter().find(|name| record.contains(name));
        found
            .map(|name| int(record.get(name).unwrap_or(&Value::Null), name))
            .transpose()
    };
    let reserved = first_int(&["allocator_reserved_bytes", "memory_reserved"])?
        .unwrap_or_else(|| allocated.clone());
    let change = first_int(&["allocator_change_bytes", "memory_change"])?.unwrap_or(Int::ZERO);
    let active = optional(
        record.get("allocator_active_bytes"),
        "allocator_active_bytes",
    )?;
    let inactive = optional(
        record.get("allocator_inactive_bytes"),
        "allocator_inactive_bytes",
    )?;
    let used = first_int(&["device_used_bytes"])?.unwrap_or_else(|| allocated.clone());
    let total = total_of(&record, &metadata)?;
    let free = match (record.get("device_free_bytes"), &total) {
        (Some(value), _) => optional(Some(value), "device_free_bytes")?,
        (None, Some(total)) => Some(total.minus(&used).max(Int::ZERO)),
        (None, None) => None,
    };
    let event_type = match record.get("event_type").or_else(|| record.get("type")) {
        Some(value) => text(value, "event_type")?,
        None => "sample".into(),
    };
    let sampling_interval_ms = first_int(&["sampling_interval_ms"])?
        .unwrap_or_else(|| options.default_sampling_interval_ms.clone());
    let pid = match record.get("pid").or_else(|| metadata.get("pid")) {
        Some(value) => int(value, "pid")?,
        None => Int::new(-1),
    };
    let host = match record.get("host").or_else(|| metadata.get("host")) {
        Some(value) => text(value, "host")?,
        None => "unknown".into(),
    };
    let collector = collector_of(&record, &metadata, &device_id, options);
    let identity = Identity::resolve(StatedIdentity::of(&record), Some(&metadata), None)?;
    for field in ["job_id", "rank", "local_rank", "world_size"] {
        metadata.remove(field);
    }
    let session_id = session::id_of_record(&record, &metadata, options)?;
    metadata.remove("session_id");
    let context = match record.get("context").or_else(|| record.get("message")) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(Arc::from(&**text)),
        Some(_) => return Err(bad("context", Rule::String)),
    };
    let inferred = !metadata.contains(capabilities::KEY);
    if inferred {
        let present = Present {
            allocated: true,
            reserved: true,
            active: active.is_some(),
            inactive: inactive.is_some(),
            used: true,
            free: free.is_some(),
            total: total.is_some(),
        };
        capabilities::infer(&mut metadata, &collector, present);
    }
    check_ranges(
        &session_id,
        &timestamp_ns,
        &collector,
        &sampling_interval_ms,
        &pid,
    )?;
    let (allocated, reserved, used) = (Some(allocated), Some(reserved), Some(used));
    check_allocator(&allocated, &reserved, &active, &inactive)?;
    check_device(&used, &free, &total)?;
    let event = MemoryEvent {
        said: MemoryVersion::Legacy,
        session_id,
        timestamp_ns,
        event_type,
        collector,
        sampling_interval_ms,
        pid,
        host,
        identity,
        device_id,
        allocator_allocated_bytes: allocated,
        allocator_reserved_bytes: reserved,
        allocator_active_bytes: active,
        allocator_inactive_bytes: inactive,
        allocator_change_bytes: Some(change),
        device_used_bytes: used,
        device_free_bytes: free,
        device_total_bytes: total,
        context,
        metadata: Arc::new(Metadata {
            capabilities: capabilities::check(&metadata)?,
            values: metadata,
            inferred,
        }),
    };
    capabilities::check_counters(&event)?;
    Ok(event)
}

/// What the conversion does not see to, in the order of a v4 record's checks.
fn check_ranges(
    session_id: &str,
    timestamp_ns: &Int,
    collector: &str,
    sampling_interval_ms: &Int,
    pid: &Int,
) -> Result<(), RecordError> {
    if is_blank(session_id) {
        return Err(bad("session_id", Rule::NonEmpty));
    }
    if timestamp_ns.is_negative() {
        return Err(bad("timestamp_ns", Rule::AtLeast(0)));
    }
    if is_blank(collector) {
        return Err(bad("collector", Rule::NonEmpty));
    }
    if sampling_interval_ms.is_negative() {
        return Err(bad("sampling_interval_ms", Rule::AtLeast(0)));
    }
    if *pid < -1 {
        return Err(bad("pid", Rule::AtLeast(-1)));
    }
    Ok(())
}

/// `metadata`, and on top of it every `metadata_<key>` as `<key>`.
fn metadata_of(record: &Object) -> Result<Object, RecordError> {
    let mut metadata = match record.get("metadata") {
        None | Some(Value::Null) => Object::new(),
        Some(Value::Object(object)) => object.clone(),
        Some(_) => return Err(bad("metadata", Rule::ObjectWhenProvided)),
    };
    for (key, value) in record.iter() {
        if let Some(key) = key.strip_prefix("metadata_") {
            metadata.insert(key, value.clone());
        }
    }
    Ok(metadata)
}

/// A number's nearest double; `None` for what is none.
fn float(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Int(value) => Some(value.to_f64()),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}

fn timestamp_of(record: &Object) -> Result<Int, RecordError> {
    if let Some(value) = record.get("timestamp_ns") {
        return int(value, "timestamp_ns");
    }
    let secs = float(record.get("timestamp")).ok_or(RecordError::NoTimestamp)?;
    Int::truncate(secs * 1e9).ok_or_else(|| bad("timestamp", Rule::Finite))
}

fn device_of(record: &Object) -> Result<Int, RecordError> {
    if let Some(value) = record.get("device_id") {
        return int(value, "device_id");
    }
    if let Some(Value::String(device)) = record.get("device") {
        let lower = device.to_lowercase();
        if lower.contains("cpu") {
            return Ok(Int::new(-1));
        }
        if let Some((_, tail)) = device.rsplit_once(':')
            && !tail.is_empty()
            && tail
                .chars()
                .all(|c| decimal_digit(c).is_some() || is_other_digit(c))
        {
            return parse_int(tail).ok_or_else(|| bad("device", Rule::Integer));
        }
        if lower.starts_with("/gpu") {
            return Ok(Int::ZERO);
        }
    }
    Ok(Int::new(if record.contains("memory_mb") { 0 } else { -1 }))
}

/// Digits that are no decimals, such as superscripts: a device name that ends in them looks numbered, and has no number.
fn is_other_digit(c: char) -> bool {
    matches!(u32::from(c),
        0xB2..=0xB3 | 0xB9 | 0x1369..=0x1371 | 0x19DA | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089
        | 0x2460..=0x2468 | 0x2474..=0x247C | 0x2488..=0x2490 | 0x24EA | 0x24F5..=0x24FD | 0x24FF
        | 0x2776..=0x277E | 0x2780..=0x2788 | 0x278A..=0x2792 | 0x10A40..=0x10A43
        | 0x10E60..=0x10E68 | 0x11052..=0x1105A | 0x1F100..=0x1F10A)
}

fn allocated_of(record: &Object) -> Result<Int, RecordError> {
    for name in ["allocator_allocated_bytes", "memory_allocated"] {
        if let Some(value) = record.get(name) {
            return int(value, name);
        }
    }
    if let Some(mebibytes) = float(record.get("memory_mb")) {
        return Int::truncate(mebibytes * 1_048_576.0)
            .ok_or_else(|| bad("memory_mb", Rule::Finite));
    }
    match record.get("device_used_bytes") {
        Some(value) => int(value, "device_used_bytes"),
        None => Ok(Int::ZERO),
    }
}

fn total_of(record: &Object, metadata: &Object) -> Result<Option<Int>, RecordError> {
    if let Some(value) = record.get("device_total_bytes") {
        return optional(Some(value), "device_total_bytes");
    }
    for object in [record, metadata] {
        for name in TOTALS {
            if let Some(value) = object.get(name) {
                return optional(Some(value), name);
            }
        }
    }
    Ok(None)
}

fn optional(value: Option<&Value>, field: &'static str) -> Result<Option<Int>, RecordError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => int(value, field).map(Some),
    }
}

fn collector_of(
    record: &Object,
    metadata: &Object,
    device_id: &Int,
    options: &Upgrade,
) -> Arc<str> {
    if let Some(Value::String(text)) = record.get("collector")
        && !is_blank(text)
    {
        return Arc::from(&**text);
    }
    if let Some(Value::String(text)) = record.get("backend").or_else(|| metadata.get("backend")) {
        let backend = trim(text).to_lowercase();
        if matches!(&*backend, "mps" | "rocm" | "cuda" | "cpu") {
            return format!("stormlog.{backend}_tracker").into();
        }
    }
    if record.contains("memory_mb") {
        return "stormlog.tensorflow.memory_tracker".into();
    }
    if record.contains("memory_allocated") {
        return match *device_id == -1 {
            true => "stormlog.cpu_tracker".into(),
            false => "stormlog.cuda_tracker".into(),
        };
    }
    options.default_collector.clone()
}
