//! Events as records: v4, or v3 for readers of the Python package `stormlog` 0.3.

use warptrace_model::{Int, MemoryEvent, Object, Value};

use super::capabilities;

/// A version that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Without inferred capabilities, which v3 does not know; said ones stay.
    V3,
    #[default]
    V4,
}

/// A v3 record has all of its core counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is null, which schema_version 3 does not allow")]
pub struct NeedsV4 {
    pub field: &'static str,
}

/// The record of an event, its keys in the format's order.
///
/// # Errors
/// [`NeedsV4`], for v3 only.
pub fn record(event: &MemoryEvent, version: Version) -> Result<Object, NeedsV4> {
    let optional = |value: &Option<Int>| value.clone().map_or(Value::Null, Value::Int);
    let text = |value: Option<&str>| value.map_or(Value::Null, Value::from);
    let counters = [
        (
            "allocator_allocated_bytes",
            &event.allocator_allocated_bytes,
            true,
        ),
        (
            "allocator_reserved_bytes",
            &event.allocator_reserved_bytes,
            true,
        ),
        (
            "allocator_active_bytes",
            &event.allocator_active_bytes,
            false,
        ),
        (
            "allocator_inactive_bytes",
            &event.allocator_inactive_bytes,
            false,
        ),
        (
            "allocator_change_bytes",
            &event.allocator_change_bytes,
            true,
        ),
        ("device_used_bytes", &event.device_used_bytes, true),
        ("device_free_bytes", &event.device_free_bytes, false),
        ("device_total_bytes", &event.device_total_bytes, false),
    ];
    let mut metadata = event.metadata.values.clone();
    if version == Version::V3 {
        let missing = counters
            .iter()
            .find(|(_, value, core)| *core && value.is_none());
        if let Some((field, ..)) = missing {
            return Err(NeedsV4 { field });
        }
        if event.metadata.inferred {
            metadata.remove(capabilities::KEY);
        }
    }
    let mut object = Object::new();
    object.insert("schema_version", if version == Version::V3 { 3 } else { 4 });
    object.insert("session_id", &*event.session_id);
    object.insert("timestamp_ns", event.timestamp_ns.clone());
    object.insert("event_type", &*event.event_type);
    object.insert("collector", &*event.collector);
    object.insert("sampling_interval_ms", event.sampling_interval_ms.clone());
    object.insert("pid", event.pid.clone());
    object.insert("host", &*event.host);
    object.insert("job_id", text(event.identity.job_id.as_deref()));
    object.insert("rank", event.identity.rank.clone());
    object.insert("local_rank", event.identity.local_rank.clone());
    object.insert("world_size", event.identity.world_size.clone());
    object.insert("device_id", event.device_id.clone());
    for (field, value, _) in counters {
        object.insert(field, optional(value));
    }
    object.insert("context", text(event.context.as_deref()));
    object.insert("metadata", metadata);
    Ok(object)
}
