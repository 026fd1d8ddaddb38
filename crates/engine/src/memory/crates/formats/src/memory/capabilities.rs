//! `metadata.memory_capabilities`: what a collector says it can measure, checked, or concluded from what it did measure.

use warptrace_model::number_text::is_blank;
use warptrace_model::{Capabilities, Int, MemoryEvent, Object, Value};

use super::error::{RecordError, Rule};
use super::open_json::python_text;

pub(crate) const KEY: &str = "memory_capabilities";

const STRINGS: [&str; 3] = ["backend", "telemetry_collector", "sampling_source"];

const FLAGS: [&str; 11] = [
    "supports_allocator_allocated",
    "supports_allocator_reserved",
    "supports_allocator_active",
    "supports_allocator_inactive",
    "supports_device_used",
    "supports_device_free",
    "supports_device_total",
    "supports_native_allocator_history",
    "supports_fragmentation_analysis",
    "supports_allocator_attribution",
    "supports_bounded_profiling",
];

/// Which counters an event has: those of [`MemoryEvent`] in its order, the change left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) allocated: bool,
    pub(crate) reserved: bool,
    pub(crate) active: bool,
    pub(crate) inactive: bool,
    pub(crate) used: bool,
    pub(crate) free: bool,
    pub(crate) total: bool,
}

/// What `metadata` says.
///
/// # Errors
/// In this order: no object, missing keys, unknown keys, the strings, the flags.
pub(crate) fn check(metadata: &Object) -> Result<Capabilities, RecordError> {
    let object = metadata
        .get(KEY)
        .and_then(Value::as_object)
        .ok_or(RecordError::NoCapabilities)?;
    let known = || STRINGS.into_iter().chain(FLAGS);
    let missing: Vec<_> = known().filter(|name| !object.contains(name)).collect();
    if !missing.is_empty() {
        return Err(RecordError::MissingCapabilities(missing));
    }
    let mut unknown: Vec<String> = object
        .iter()
        .filter(|(key, _)| !known().any(|name| name == *key))
        .map(|(key, _)| key.to_owned())
        .collect();
    if !unknown.is_empty() {
        unknown.sort();
        return Err(RecordError::UnknownCapabilities(unknown));
    }
    let string = |field: &'static str| match object.get(field) {
        Some(Value::String(text)) if !is_blank(text) => Ok(text.clone()),
        Some(Value::String(_) | Value::Null) | None => Err(RecordError::Capability {
            field,
            rule: Rule::NonEmpty,
        }),
        Some(_) => Err(RecordError::Capability {
            field,
            rule: Rule::String,
        }),
    };
    let flag = |at: usize| {
        let field = FLAGS[at];
        object
            .get(field)
            .and_then(Value::as_bool)
            .ok_or(RecordError::Capability {
                field,
                rule: Rule::Boolean,
            })
    };
    Ok(Capabilities {
        backend: string(STRINGS[0])?,
        telemetry_collector: string(STRINGS[1])?,
        sampling_source: string(STRINGS[2])?,
        supports_allocator_allocated: flag(0)?,
        supports_allocator_reserved: flag(1)?,
        supports_allocator_active: flag(2)?,
        supports_allocator_inactive: flag(3)?,
        supports_device_used: flag(4)?,
        supports_device_free: flag(5)?,
        supports_device_total: flag(6)?,
        supports_native_allocator_history: flag(7)?,
        supports_fragmentation_analysis: flag(8)?,
        supports_allocator_attribution: flag(9)?,
        supports_bounded_profiling: flag(10)?,
    })
}

/// The capabilities of a collector that does not say them, put at the end of its `metadata`.
pub(crate) fn infer(metadata: &mut Object, collector: &str, present: Present) {
    const BACKENDS: [&str; 6] = ["cuda", "rocm", "mps", "cpu", "tensorflow", "jax"];
    let backend = match metadata.get("backend") {
        Some(Value::String(text)) if !is_blank(text) => text.to_string(),
        _ => {
            let collector = collector.to_lowercase();
            let found = BACKENDS.into_iter().find(|b| collector.contains(b));
            found.unwrap_or("unknown").to_owned()
        }
    };
    let source = metadata
        .get("sampling_source")
        .map_or_else(|| "legacy".to_owned(), python_text);
    let both = present.allocated && present.reserved;
    let mut object = Object::new();
    for (name, text) in STRINGS.into_iter().zip([&*backend, collector, &*source]) {
        object.insert(name, text);
    }
    let flags = [
        present.allocated,
        present.reserved,
        present.active,
        present.inactive,
        present.used,
        present.free,
        present.total,
        false,
        both,
        both,
        false,
    ];
    for (name, flag) in FLAGS.into_iter().zip(flags) {
        object.insert(name, flag);
    }
    metadata.insert(KEY, object);
}

/// # Errors
/// The first counter that is there though its flag says that it cannot be.
pub(crate) fn check_counters(event: &MemoryEvent) -> Result<(), RecordError> {
    let can = event.capabilities();
    let counters: [(&Option<Int>, bool, &'static str, &'static str); 7] = [
        (
            &event.allocator_allocated_bytes,
            can.supports_allocator_allocated,
            "allocator_allocated_bytes",
            FLAGS[0],
        ),
        (
            &event.allocator_reserved_bytes,
            can.supports_allocator_reserved,
            "allocator_reserved_bytes",
            FLAGS[1],
        ),
        (
            &event.allocator_active_bytes,
            can.supports_allocator_active,
            "allocator_active_bytes",
            FLAGS[2],
        ),
        (
            &event.allocator_inactive_bytes,
            can.supports_allocator_inactive,
            "allocator_inactive_bytes",
            FLAGS[3],
        ),
        (
            &event.device_used_bytes,
            can.supports_device_used,
            "device_used_bytes",
            FLAGS[4],
        ),
        (
            &event.device_free_bytes,
            can.supports_device_free,
            "device_free_bytes",
            FLAGS[5],
        ),
        (
            &event.device_total_bytes,
            can.supports_device_total,
            "device_total_bytes",
            FLAGS[6],
        ),
    ];
    for (value, can, counter, flag) in counters {
        if value.is_some() && !can {
            return Err(RecordError::Unsupported { counter, flag });
        }
    }
    if event.allocator_change_bytes.is_some() && !can.supports_allocator_allocated {
        return Err(RecordError::ChangeUnsupported);
    }
    Ok(())
}
