//! A run log as a table: a row a record.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, StringBuilder, UInt32Builder, UInt64Builder};
use arrow::datatypes::{DataType, Field, FieldRef};
use pyo3::prelude::*;
use warptrace_formats::json::{Invalid, Str};
use warptrace_formats::run_log::{DEFAULT_LINE_LIMIT, Line, Lines, Record, Runs, is_blank};

use super::place::{io_error, open_file};
use super::{ArrowTable, Columns, Rows, arrow_error};

const TEXTS: [&str; 9] = [
    "kind",
    "phase",
    "name",
    "model",
    "request_id",
    "principal_id",
    "code",
    "message",
    "reason",
];
const COUNTS: [&str; 4] = [
    "prompt_tokens",
    "completion_tokens",
    "latency_micros",
    "status",
];

#[derive(Default)]
struct Records {
    run: UInt32Builder,
    t: Float64Builder,
    texts: [StringBuilder; TEXTS.len()],
    counts: [UInt64Builder; COUNTS.len()],
    record: StringBuilder,
}

impl Columns for Records {
    fn fields() -> Vec<FieldRef> {
        let mut fields = vec![
            Field::new("run", DataType::UInt32, false),
            Field::new("t_secs", DataType::Float64, true),
        ];
        fields.extend(TEXTS.iter().map(|n| Field::new(*n, DataType::Utf8, true)));
        fields.extend(
            COUNTS
                .iter()
                .map(|n| Field::new(*n, DataType::UInt64, true)),
        );
        fields.push(Field::new("record", DataType::Utf8, false));
        fields.into_iter().map(Arc::new).collect()
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(self.run.finish()), Arc::new(self.t.finish())];
        for texts in &mut self.texts {
            columns.push(Arc::new(texts.finish()));
        }
        for counts in &mut self.counts {
            columns.push(Arc::new(counts.finish()));
        }
        columns.push(Arc::new(self.record.finish()));
        columns
    }
}

impl Records {
    fn append(&mut self, run: u32, record: &Record<'_>) {
        self.run.append_value(run);
        self.t.append_option(record.t_secs);
        let texts: [Option<Str<'_>>; TEXTS.len()] = [
            record.kind_name,
            record.phase,
            record.name,
            record.model,
            record.request_id,
            record.principal,
            record.code,
            record.message,
            record.reason,
        ];
        for (column, text) in self.texts.iter_mut().zip(texts) {
            column.append_option(text.and_then(|text| text.decode(Invalid::Replace)));
        }
        let counts = [
            record.prompt_tokens,
            record.completion_tokens,
            record.latency_micros,
            record.status,
        ];
        for (column, count) in self.counts.iter_mut().zip(counts) {
            column.append_option(count);
        }
        self.record
            .append_value(String::from_utf8_lossy(record.text));
    }
}

/// The run log of an inference server: a row a record, in the order of the file.
///
/// `run` counts the runs of the file from 1 (0: before the first `run_start`), `t_secs` is since the run's start, `record` is
/// the whole record as JSON. Lines that are no record are left out and counted in `ArrowTable.skipped`.
#[pyfunction]
pub(super) fn load_run_log(py: Python<'_>, path: PathBuf) -> PyResult<ArrowTable> {
    py.detach(|| {
        let shown = path.to_string_lossy();
        let mut file = open_file(&path).map_err(|e| io_error(&e, &shown))?;
        let mut rows = Rows::<Records>::new();
        let mut runs = Runs::default();
        let (mut corrupt, mut too_long) = (0, 0);
        let mut failed = Ok(());
        let mut take = |line: Line<'_>| match line.bytes {
            None => too_long += 1,
            Some(bytes) if is_blank(bytes) => {}
            Some(bytes) => match Record::parse(bytes) {
                Ok(record) if failed.is_ok() => {
                    runs.observe(&record);
                    failed = rows.push(|columns| columns.append(runs.number(), &record));
                }
                Ok(_) => {}
                Err(_) => corrupt += 1,
            },
        };
        let mut lines = Lines::new(DEFAULT_LINE_LIMIT);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let n = file.read(&mut chunk).map_err(|e| io_error(&e, &shown))?;
            if n == 0 {
                break;
            }
            lines.feed(&chunk[..n], &mut take);
        }
        lines.finish(&mut take);
        failed.map_err(arrow_error)?;
        let skipped = [("corrupt", corrupt), ("line_too_long", too_long)];
        let skipped = skipped.into_iter().filter(|(_, n)| *n > 0);
        let skipped: BTreeMap<String, u64> = skipped.map(|(why, n)| (why.to_owned(), n)).collect();
        rows.table(skipped).map_err(arrow_error)
    })
}
