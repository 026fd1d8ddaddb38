//! GPU memory telemetry as a table: a row an event, a column a field of the format.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, StringBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use pyo3::prelude::*;
use warptrace_formats::memory::{LoadOptions, Read, read_events};
use warptrace_formats::open_json::{Style, write_object};
use warptrace_model::{Int, MemoryEvent, Metadata};

use super::{ArrowTable, Columns, Rows, arrow_error, load_error, with_place};

const TEXTS: [&str; 6] = [
    "session_id",
    "event_type",
    "collector",
    "host",
    "job_id",
    "context",
];

const INTEGERS: [&str; 15] = [
    "timestamp_ns",
    "sampling_interval_ms",
    "pid",
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
];

#[derive(Default)]
struct Memory {
    texts: [StringBuilder; TEXTS.len()],
    integers: [Int64Builder; INTEGERS.len()],
    metadata: StringBuilder,
    /// Events that say the same share their metadata, and its text.
    last: Option<(Arc<Metadata>, String)>,
    too_large: u64,
}

impl Columns for Memory {
    fn fields() -> Vec<FieldRef> {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let mut fields: Vec<Field> = INTEGERS
            .iter()
            .map(|name| Field::new(*name, DataType::Int64, true))
            .collect();
        fields.extend(TEXTS.iter().map(|name| text(name)));
        fields.push(text("metadata"));
        fields.into_iter().map(Arc::new).collect()
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for integers in &mut self.integers {
            columns.push(Arc::new(integers.finish()));
        }
        for texts in &mut self.texts {
            columns.push(Arc::new(texts.finish()));
        }
        columns.push(Arc::new(self.metadata.finish()));
        columns
    }
}

impl Memory {
    fn append(&mut self, event: &MemoryEvent) {
        let integers: [Option<&Int>; INTEGERS.len()] = [
            Some(&event.timestamp_ns),
            Some(&event.sampling_interval_ms),
            Some(&event.pid),
            Some(&event.identity.rank),
            Some(&event.identity.local_rank),
            Some(&event.identity.world_size),
            Some(&event.device_id),
            event.allocator_allocated_bytes.as_ref(),
            event.allocator_reserved_bytes.as_ref(),
            event.allocator_active_bytes.as_ref(),
            event.allocator_inactive_bytes.as_ref(),
            event.allocator_change_bytes.as_ref(),
            event.device_used_bytes.as_ref(),
            event.device_free_bytes.as_ref(),
            event.device_total_bytes.as_ref(),
        ];
        for (column, value) in self.integers.iter_mut().zip(integers) {
            let fits = value.and_then(Int::to_i64);
            self.too_large += u64::from(value.is_some() && fits.is_none());
            column.append_option(fits);
        }
        let texts: [Option<&str>; TEXTS.len()] = [
            Some(&event.session_id),
            Some(&event.event_type),
            Some(&event.collector),
            Some(&event.host),
            event.identity.job_id.as_deref(),
            event.context.as_deref(),
        ];
        for (column, value) in self.texts.iter_mut().zip(texts) {
            column.append_option(value);
        }
        let known = |last: &(Arc<Metadata>, String)| Arc::ptr_eq(&last.0, &event.metadata);
        if !self.last.as_ref().is_some_and(known) {
            let mut text = String::new();
            write_object(&mut text, &event.metadata.values, Style::LINE);
            self.last = Some((Arc::clone(&event.metadata), text));
        }
        self.metadata
            .append_option(self.last.as_ref().map(|(_, text)| text));
    }
}

/// GPU memory telemetry of a file (`.jsonl`, `.json`) or a sink's folder: a row an event, in the order of the files.
///
/// Any version of the format is read. Records that are none are left out and counted in `ArrowTable.skipped`. `metadata` is
/// JSON text; integers beyond 64 bits are null, and counted.
#[pyfunction]
#[pyo3(signature = (path, *, session_id=None))]
pub(super) fn load_memory(
    py: Python<'_>,
    path: PathBuf,
    session_id: Option<&str>,
) -> PyResult<ArrowTable> {
    let mut rows = Rows::<Memory>::new();
    let mut failed = Ok(());
    let read = py.detach(|| {
        with_place(&path, |place| {
            read_events(place, &LoadOptions::default(), &mut |_, event| {
                if session_id.is_none_or(|wanted| *event.session_id == *wanted) && failed.is_ok() {
                    failed = rows.push(|memory| memory.append(&event));
                }
            })
        })
    });
    let Read { skipped, .. } = read.map_err(|e| load_error(&e))?;
    failed.map_err(arrow_error)?;
    let counted = skipped.by_reason.into_iter();
    let mut skipped: BTreeMap<String, u64> = counted.map(|(why, n)| (why.to_owned(), n)).collect();
    if rows.columns.too_large > 0 {
        skipped.insert("integer_too_large".to_owned(), rows.columns.too_large);
    }
    rows.table(skipped).map_err(arrow_error)
}
