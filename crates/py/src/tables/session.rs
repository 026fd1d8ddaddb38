//! The tables of a recorded session.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use warptrace_model::BootNanos;
use warptrace_store::fs::RealFs;
use warptrace_store::{Session, StoreError, TABLES, table_schema};

use super::place::{io_error, open_file};
use super::{ArrowTable, arrow_error};

/// A table of a recorded session (`SESSION_TABLES`), also of one that is being recorded, up to what was flushed last.
///
/// session_dir: the session's folder, as `warptrace sessions` shows it. Times are nanoseconds of CLOCK_BOOTTIME;
/// `ArrowTable.unix_offset_ns` makes them Unix times.
#[pyfunction]
pub(super) fn load_session_table(
    py: Python<'_>,
    session_dir: PathBuf,
    table: &str,
) -> PyResult<ArrowTable> {
    let Some(schema) = table_schema(table) else {
        let known = TABLES.join(", ");
        return Err(PyValueError::new_err(format!(
            "no table {table:?} (there are: {known})"
        )));
    };
    py.detach(|| {
        let session = Session::open(Arc::new(RealFs), &session_dir);
        let session = session.map_err(|e| store_error(&e, &session_dir))?;
        let files = session.table(table);
        let files = files.map_err(|e| store_error(&e, &session_dir))?;
        let mut batches = Vec::new();
        for path in files.sealed {
            let shown = path.to_string_lossy();
            let file = open_file(&path).map_err(|e| io_error(&e, &shown))?;
            let bad = |e: &dyn std::fmt::Display| PyValueError::new_err(format!("{e}: {path:?}"));
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(&e))?;
            for batch in reader.build().map_err(|e| bad(&e))? {
                let batch = batch.map_err(|e| bad(&e))?;
                batches.push(fit(&batch, &schema).map_err(arrow_error)?);
            }
        }
        for stream in files.streams {
            for i in 0..stream.batches() {
                let batch = stream.read(i);
                let batch = batch.map_err(|e| PyValueError::new_err(e.to_string()))?;
                batches.push(fit(&batch, &schema).map_err(arrow_error)?);
            }
        }
        let unix = session.anchor().unix(BootNanos(0)).0;
        Ok(ArrowTable {
            schema,
            batches,
            skipped: BTreeMap::new(),
            unix_offset_ns: i64::try_from(unix).ok(),
        })
    })
}

/// The batch with today's columns: what an older session does not have is null.
fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn store_error(error: &StoreError, path: &Path) -> PyErr {
    match error {
        StoreError::Io { source, path, .. } => io_error(source, &path.to_string_lossy()),
        other => PyValueError::new_err(format!("{other}: {path:?}")),
    }
}
