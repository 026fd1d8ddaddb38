//! One record of any version into an event of the newest.
//!
//! What a record's version asks for is checked in a fixed order, and the first failure is the error: its text is part of
//! the format's behaviour. Records without `schema_version` are `legacy.rs`'s.

use std::sync::Arc;

use warptrace_model::number_text::is_blank;
use warptrace_model::{
    Identity, Int, MemoryEvent, MemoryVersion, Metadata, Object, StatedIdentity, Value,
};

use super::capabilities::{self, Present};
use super::error::{RecordError, Rule, bad};
use super::{legacy, session};

/// Fields of a record in the order in which they are written and asked for; those after `host` are found by name, and four
/// of them may be left out.
pub(crate) const FIELDS: [&str; 23] = [
    "schema_version",
    "session_id",
    "timestamp_ns",
    "event_type",
    "collector",
    "sampling_interval_ms",
    "pid",
    "host",
    "job_id",
    "rank",
    "local_rank",
    "world_size",
    "device_id",
    "allocator_allocated_bytes",
    "allocator_reserved_bytes",
    "allocator_active_bytes",
    "allocator_inactive_bytes",
    "allocator_change_bytes",
    "device_used_bytes",
    "device_free_bytes",
    "device_total_bytes",
    "context",
    "metadata",
];

const OPTIONAL: [&str; 4] = ["job_id", "rank", "local_rank", "world_size"];

/// What an upgrade adds to a record that does not say it all itself.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// Whether records without `schema_version` are taken.
    pub permissive_legacy: bool,
    /// Collector of a legacy record that names none, nor lets one be guessed.
    pub default_collector: Arc<str>,
    pub default_sampling_interval_ms: Int,
    /// Session of a record that names none; `None` makes one of the record's time, host and process.
    pub default_session_id: Option<Arc<str>>,
}

impl Default for Upgrade {
    fn default() -> Upgrade {
        Upgrade {
            permissive_legacy: true,
            default_collector: "legacy.unknown".into(),
            default_sampling_interval_ms: Int::ZERO,
            default_session_id: None,
        }
    }
}

impl Upgrade {
    /// The event that `record` says, in the newest version's form.
    ///
    /// Capabilities that a record older than v4 does not say are inferred from its counters, and a session id that it does
    /// not say comes from its metadata, the default, or its time, host and process.
    ///
    /// # Errors
    /// The first rule of the record's version, and then of v4, that it breaks.
    pub fn event(&self, record: Value) -> Result<MemoryEvent, RecordError> {
        let Value::Object(record) = record else {
            return Err(RecordError::NotAnObject);
        };
        match record.get("schema_version") {
            None if self.permissive_legacy => legacy::convert(record, self),
            None => Err(RecordError::LegacyDisabled),
            Some(Value::Int(version)) => {
                let said = match version.to_i64() {
                    Some(2) => MemoryVersion::V2,
                    Some(3) => MemoryVersion::V3,
                    Some(4) => MemoryVersion::V4,
                    _ => return Err(RecordError::UnsupportedVersion(version.clone())),
                };
                self.versioned(record, said)
            }
            Some(_) => Err(bad("schema_version", Rule::Integer)),
        }
    }

    fn versioned(
        &self,
        mut record: Object,
        said: MemoryVersion,
    ) -> Result<MemoryEvent, RecordError> {
        let empty = Object::new();
        let metadata = match record.get("metadata") {
            None => &empty,
            Some(Value::Object(object)) => object,
            Some(_) => return Err(bad("metadata", Rule::Object)),
        };
        let identity = Identity::resolve(StatedIdentity::of(&record), None, None)?;
        let session_id = session::id_of_record(&record, metadata, self)?;
        check_keys(&record, said)?;
        let Some(Value::Object(mut metadata)) = record.remove("metadata") else {
            return Err(RecordError::Missing(vec!["metadata"]));
        };
        if is_blank(&session_id) {
            return Err(bad("session_id", Rule::NonEmpty));
        }

        let get = |field| record.get(field).unwrap_or(&Value::Null);
        let counter = |field, nullable| match get(field) {
            Value::Null if nullable => Ok(None),
            value => int(value, field).map(Some),
        };
        let core = said == MemoryVersion::V4;
        let timestamp_ns = at_least(int(get("timestamp_ns"), "timestamp_ns")?, 0, "timestamp_ns")?;
        let event_type = text(get("event_type"), "event_type")?;
        let collector = text(get("collector"), "collector")?;
        let interval = "sampling_interval_ms";
        let sampling_interval_ms = at_least(int(get(interval), interval)?, 0, interval)?;
        let pid = at_least(int(get("pid"), "pid")?, -1, "pid")?;
        let host = text(get("host"), "host")?;
        // A null was a default for the identity; here it is what it is.
        for field in ["rank", "local_rank", "world_size"] {
            if record.contains(field) {
                int(get(field), field)?;
            }
        }
        let device_id = int(get("device_id"), "device_id")?;
        let allocated = counter("allocator_allocated_bytes", core)?;
        let reserved = counter("allocator_reserved_bytes", core)?;
        let active = counter("allocator_active_bytes", true)?;
        let inactive = counter("allocator_inactive_bytes", true)?;
        let change = counter("allocator_change_bytes", core)?;
        check_allocator(&allocated, &reserved, &active, &inactive)?;
        let used = counter("device_used_bytes", core)?;
        let free = counter("device_free_bytes", true)?;
        let total = counter("device_total_bytes", true)?;
        check_device(&used, &free, &total)?;
        let context = match get("context") {
            Value::Null => None,
            Value::String(text) => Some(Arc::from(&**text)),
            _ => return Err(bad("context", Rule::String)),
        };
        let inferred = !metadata.contains(capabilities::KEY);
        if inferred {
            let present = Present {
                allocated: allocated.is_some(),
                reserved: reserved.is_some(),
                active: active.is_some(),
                inactive: inactive.is_some(),
                used: used.is_some(),
                free: free.is_some(),
                total: total.is_some(),
            };
            capabilities::infer(&mut metadata, &collector, present);
        }
        let metadata = Arc::new(Metadata {
            capabilities: capabilities::check(&metadata)?,
            values: metadata,
            inferred,
        });
        let event = MemoryEvent {
            said,
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
            allocator_change_bytes: change,
            device_used_bytes: used,
            device_free_bytes: free,
            device_total_bytes: total,
            context,
            metadata,
        };
        capabilities::check_counters(&event)?;
        Ok(event)
    }
}

/// Missing and unknown keys. The session id is never missing: it was resolved.
fn check_keys(record: &Object, said: MemoryVersion) -> Result<(), RecordError> {
    let missing: Vec<_> = FIELDS
        .into_iter()
        .filter(|field| *field != "session_id" && !OPTIONAL.contains(field))
        .filter(|field| !record.contains(field))
        .collect();
    if !missing.is_empty() {
        return Err(RecordError::Missing(missing));
    }
    let known =
        |key: &str| FIELDS.contains(&key) && (said != MemoryVersion::V2 || key != "session_id");
    let mut unknown: Vec<String> = record
        .iter()
        .filter(|(key, _)| !known(key))
        .map(|(key, _)| key.to_owned())
        .collect();
    if !unknown.is_empty() {
        unknown.sort();
        return Err(RecordError::Unknown(unknown));
    }
    Ok(())
}

pub(crate) fn check_allocator(
    allocated: &Option<Int>,
    reserved: &Option<Int>,
    active: &Option<Int>,
    inactive: &Option<Int>,
) -> Result<(), RecordError> {
    let zero = Rule::AtLeast(0);
    not_negative(allocated, "allocator_allocated_bytes", zero)?;
    not_negative(reserved, "allocator_reserved_bytes", zero)?;
    let provided = Rule::NotNegativeWhenProvided;
    not_negative(active, "allocator_active_bytes", provided)?;
    not_negative(inactive, "allocator_inactive_bytes", provided)
}

pub(crate) fn check_device(
    used: &Option<Int>,
    free: &Option<Int>,
    total: &Option<Int>,
) -> Result<(), RecordError> {
    not_negative(used, "device_used_bytes", Rule::AtLeast(0))?;
    let provided = Rule::NotNegativeWhenProvided;
    not_negative(free, "device_free_bytes", provided)?;
    not_negative(total, "device_total_bytes", provided)?;
    let Some(total) = total else { return Ok(()) };
    for (value, field) in [(used, "device_used_bytes"), (free, "device_free_bytes")] {
        if value.as_ref().is_some_and(|value| value > total) {
            return Err(RecordError::AboveTotal { field });
        }
    }
    Ok(())
}

fn not_negative(value: &Option<Int>, field: &'static str, rule: Rule) -> Result<(), RecordError> {
    match value {
        Some(value) if value.is_negative() => Err(bad(field, rule)),
        _ => Ok(()),
    }
}

pub(crate) fn int(value: &Value, field: &'static str) -> Result<Int, RecordError> {
    value
        .as_int()
        .cloned()
        .ok_or_else(|| bad(field, Rule::Integer))
}

fn at_least(value: Int, least: i64, field: &'static str) -> Result<Int, RecordError> {
    match value >= least {
        true => Ok(value),
        false => Err(bad(field, Rule::AtLeast(least))),
    }
}

/// A string that is not blank.
pub(crate) fn text(value: &Value, field: &'static str) -> Result<Arc<str>, RecordError> {
    match value {
        Value::String(text) if !is_blank(text) => Ok(Arc::from(&**text)),
        Value::String(_) | Value::Null => Err(bad(field, Rule::NonEmpty)),
        _ => Err(bad(field, Rule::String)),
    }
}
