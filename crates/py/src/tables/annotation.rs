//! Lines of the annotation protocol as a table.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Builder, MapBuilder, StringBuilder, UInt32Builder, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, FieldRef};
use pyo3::prelude::*;
use warptrace_formats::annotation::{Line, Lines};

use super::place::{io_error, open_file};
use super::{ArrowTable, Columns, Rows, arrow_error};

struct Annotations {
    ts: Int64Builder,
    pid: UInt32Builder,
    start_time: UInt64Builder,
    span_start: Int64Builder,
    span_end: Int64Builder,
    labels: MapBuilder<StringBuilder, StringBuilder>,
}

impl Default for Annotations {
    fn default() -> Annotations {
        Annotations {
            ts: Int64Builder::new(),
            pid: UInt32Builder::new(),
            start_time: UInt64Builder::new(),
            span_start: Int64Builder::new(),
            span_end: Int64Builder::new(),
            labels: MapBuilder::new(None, StringBuilder::new(), StringBuilder::new()),
        }
    }
}

impl Columns for Annotations {
    fn fields() -> Vec<FieldRef> {
        let entries = DataType::Struct(
            vec![
                Field::new("keys", DataType::Utf8, false),
                Field::new("values", DataType::Utf8, true),
            ]
            .into(),
        );
        let entries = Arc::new(Field::new("entries", entries, false));
        [
            ("ts_ns", DataType::Int64, true),
            ("pid", DataType::UInt32, true),
            ("start_time", DataType::UInt64, true),
            ("span_start_ns", DataType::Int64, true),
            ("span_end_ns", DataType::Int64, true),
            ("labels", DataType::Map(entries, false), false),
        ]
        .into_iter()
        .map(|(name, kind, nullable)| Arc::new(Field::new(name, kind, nullable)))
        .collect()
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.ts.finish()),
            Arc::new(self.pid.finish()),
            Arc::new(self.start_time.finish()),
            Arc::new(self.span_start.finish()),
            Arc::new(self.span_end.finish()),
            Arc::new(self.labels.finish()),
        ]
    }
}

impl Annotations {
    fn append(&mut self, line: &Line) {
        self.ts.append_option(line.ts);
        self.pid.append_option(line.pid);
        self.start_time.append_option(line.start_time);
        self.span_start.append_option(line.span.map(|span| span.0));
        self.span_end.append_option(line.span.map(|span| span.1));
        for (key, value) in line.labels.iter() {
            self.labels.keys().append_value(key);
            self.labels.values().append_value(value);
        }
        // As many keys as values: it cannot fail.
        let _ = self.labels.append(true);
    }
}

/// A file of annotation lines: a row a line, in the order of the file.
///
/// Times are Unix nanoseconds, null where the line names none (then it is of the moment when it was received); `labels` is a
/// map. Lines against the protocol are left out and counted in `ArrowTable.skipped`; an oversized one ends the table, as it
/// ends a connection.
#[pyfunction]
pub(super) fn load_annotations(py: Python<'_>, path: PathBuf) -> PyResult<ArrowTable> {
    py.detach(|| {
        let shown = path.to_string_lossy();
        let mut file = open_file(&path).map_err(|e| io_error(&e, &shown))?;
        let mut rows = Rows::<Annotations>::new();
        let mut skipped: BTreeMap<String, u64> = BTreeMap::new();
        let mut failed = Ok(());
        let mut lines = Lines::default();
        let mut chunk = vec![0; 1 << 16];
        let mut take = |line: &[u8]| match Line::decode(line) {
            Ok(line) if failed.is_ok() => failed = rows.push(|columns| columns.append(&line)),
            Ok(_) => {}
            Err(why) => *skipped.entry(why.name().to_owned()).or_default() += 1,
        };
        let oversized = loop {
            let n = file.read(&mut chunk).map_err(|e| io_error(&e, &shown))?;
            if n == 0 {
                lines.finish(&mut take);
                break false;
            }
            if lines.push(&chunk[..n], &mut take).is_err() {
                break true;
            }
        };
        failed.map_err(arrow_error)?;
        if oversized {
            *skipped.entry("line_too_long".to_owned()).or_default() += 1;
        }
        rows.table(skipped).map_err(arrow_error)
    })
}
