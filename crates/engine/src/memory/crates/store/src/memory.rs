//! The table `memory`: levels of devices and allocators, one row an event of a collector, kept as the collector said them.

use std::sync::Arc;

use warptrace_formats::memory::{Upgrade, open_json};
use warptrace_model::{
    BootNanos, ClockAnchor, Int, MemoryEvent, MemoryVersion, Metadata, Object, Value,
};

use crate::rows::MemoryRow;

/// A sample of the table `memory`, without what its collector says beside the numbers. Absent is `None`, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLevel {
    pub at: BootNanos,
    /// `None` when the collector did not know it.
    pub pid: Option<u32>,
    /// `None` for the CPU, or none.
    pub device: Option<u16>,
    /// What the allocator's users hold.
    pub allocated_bytes: Option<u64>,
    /// What the allocator holds from the device.
    pub reserved_bytes: Option<u64>,
    /// In use on the device, by all processes.
    pub device_used_bytes: Option<u64>,
    pub device_total_bytes: Option<u64>,
}

/// Keys keep their order.
const AS_SAID: open_json::Style = open_json::Style {
    sorted: false,
    layout: open_json::Layout::Compact,
};

/// Metadata as text; that of one collector is the same in most of its events.
#[derive(Default)]
pub(crate) struct MetadataText(Option<(Arc<Metadata>, String)>);

impl MetadataText {
    fn of(&mut self, metadata: &Arc<Metadata>) -> String {
        match &self.0 {
            Some((known, text)) if Arc::ptr_eq(known, metadata) => text.clone(),
            _ => {
                let values = Value::Object(metadata.values.clone());
                let text = open_json::to_string(&values, AS_SAID);
                self.0 = Some((metadata.clone(), text.clone()));
                text
            }
        }
    }
}

impl MemoryRow {
    /// `None` when a number of it is beyond 64 bits: the format has no limit, columns have.
    pub(crate) fn new(
        e: &MemoryEvent,
        anchor: &ClockAnchor,
        metadata: &mut MetadataText,
    ) -> Option<MemoryRow> {
        let bytes = |n: &Option<Int>| match n {
            None => Some(None),
            Some(n) => n.to_i64().map(Some),
        };
        let identity = &e.identity;
        Some(MemoryRow {
            boot_ns: anchor.boot(e.time()?).0,
            unix_ns: e.time()?.0,
            version: match e.said {
                MemoryVersion::Legacy => 0,
                MemoryVersion::V2 => 2,
                MemoryVersion::V3 => 3,
                MemoryVersion::V4 => 4,
            },
            session_id: e.session_id.to_string(),
            event_type: e.event_type.to_string(),
            collector: e.collector.to_string(),
            sampling_interval_ms: e.sampling_interval_ms.to_i64()?,
            pid: e.pid.to_i64()?,
            host: e.host.to_string(),
            job_id: identity.job_id.as_deref().map(str::to_owned),
            rank: identity.rank.to_i64()?,
            local_rank: identity.local_rank.to_i64()?,
            world_size: identity.world_size.to_i64()?,
            device_id: e.device_id.to_i64()?,
            allocator_allocated_bytes: bytes(&e.allocator_allocated_bytes)?,
            allocator_reserved_bytes: bytes(&e.allocator_reserved_bytes)?,
            allocator_active_bytes: bytes(&e.allocator_active_bytes)?,
            allocator_inactive_bytes: bytes(&e.allocator_inactive_bytes)?,
            allocator_change_bytes: bytes(&e.allocator_change_bytes)?,
            device_used_bytes: bytes(&e.device_used_bytes)?,
            device_free_bytes: bytes(&e.device_free_bytes)?,
            device_total_bytes: bytes(&e.device_total_bytes)?,
            context: e.context.as_deref().map(str::to_owned),
            metadata: metadata.of(&e.metadata),
        })
    }

    /// The event again; `None` when a row breaks the format's rules, which none does that was made of an event.
    pub(crate) fn event(self, upgrade: &Upgrade) -> Option<MemoryEvent> {
        let int = |n: i64| Value::Int(Int::new(n));
        let bytes = |n: Option<i64>| n.map_or(Value::Null, int);
        let text = |t: Option<String>| t.map_or(Value::Null, |t| Value::from(t.as_str()));
        let mut r = Object::new();
        r.insert("schema_version", int(4));
        r.insert("session_id", Value::from(self.session_id.as_str()));
        r.insert("timestamp_ns", Value::Int(Int::from(self.unix_ns)));
        r.insert("event_type", Value::from(self.event_type.as_str()));
        r.insert("collector", Value::from(self.collector.as_str()));
        r.insert("sampling_interval_ms", int(self.sampling_interval_ms));
        r.insert("pid", int(self.pid));
        r.insert("host", Value::from(self.host.as_str()));
        r.insert("job_id", text(self.job_id));
        r.insert("rank", int(self.rank));
        r.insert("local_rank", int(self.local_rank));
        r.insert("world_size", int(self.world_size));
        r.insert("device_id", int(self.device_id));
        for (name, value) in [
            ("allocator_allocated_bytes", self.allocator_allocated_bytes),
            ("allocator_reserved_bytes", self.allocator_reserved_bytes),
            ("allocator_active_bytes", self.allocator_active_bytes),
            ("allocator_inactive_bytes", self.allocator_inactive_bytes),
            ("allocator_change_bytes", self.allocator_change_bytes),
            ("device_used_bytes", self.device_used_bytes),
            ("device_free_bytes", self.device_free_bytes),
            ("device_total_bytes", self.device_total_bytes),
        ] {
            r.insert(name, bytes(value));
        }
        r.insert("context", text(self.context));
        r.insert("metadata", open_json::parse(self.metadata.as_bytes()).ok()?);
        let mut event = upgrade.event(Value::Object(r)).ok()?;
        event.said = match self.version {
            0 => MemoryVersion::Legacy,
            2 => MemoryVersion::V2,
            3 => MemoryVersion::V3,
            _ => MemoryVersion::V4,
        };
        Some(event)
    }

    pub(crate) fn level(self) -> Option<MemoryLevel> {
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        Some(MemoryLevel {
            at: BootNanos(self.boot_ns),
            pid: u32::try_from(self.pid).ok(),
            device: u16::try_from(self.device_id).ok(),
            allocated_bytes: bytes(self.allocator_allocated_bytes),
            reserved_bytes: bytes(self.allocator_reserved_bytes),
            device_used_bytes: bytes(self.device_used_bytes),
            device_total_bytes: bytes(self.device_total_bytes),
        })
    }
}
