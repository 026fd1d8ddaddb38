//! Tables of telemetry, given to Python as Arrow streams (the PyCapsule protocol): pandas, Polars, PyArrow and DuckDB take
//! them without a copy.
//!
//! A loader reads in constant memory but for the table that it returns. What a file has that is no record is left out and
//! counted ([`ArrowTable::skipped`]).

mod annotation;
mod memory;
mod place;
mod run_log;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchIterator};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ffi::FFI_ArrowSchema;
use arrow::ffi_stream::FFI_ArrowArrayStream;
use pyo3::exceptions::{PyImportError, PyModuleNotFoundError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

pub(crate) use self::place::{io_error, load_error, with_place};

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ArrowTable>()?;
    module.add_function(wrap_pyfunction!(annotation::load_annotations, module)?)?;
    module.add_function(wrap_pyfunction!(memory::load_memory, module)?)?;
    module.add_function(wrap_pyfunction!(run_log::load_run_log, module)?)?;
    module.add_function(wrap_pyfunction!(session::load_session_table, module)?)?;
    module.add("SESSION_TABLES", warptrace_store::TABLES)
}

/// Rows in a batch of a table that a loader makes.
const BATCH_ROWS: usize = 65_536;

/// A table in Arrow's memory layout. Anything that speaks Arrow's PyCapsule protocol takes it as it is, without a copy:
/// `polars.DataFrame(table)`, `pyarrow.table(table)`, `duckdb.from_arrow(…)`.
#[pyclass(module = "warptrace", frozen)]
pub(crate) struct ArrowTable {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    skipped: BTreeMap<String, u64>,
    unix_offset_ns: Option<i64>,
}

#[pymethods]
impl ArrowTable {
    /// Arrow's PyCapsule protocol; a schema that is asked for is not cast to, which the protocol allows.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let batches = self.batches.clone().into_iter().map(Ok);
        let reader = RecordBatchIterator::new(batches, Arc::clone(&self.schema));
        let stream = FFI_ArrowArrayStream::new(Box::new(reader));
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(&*self.schema).map_err(arrow_error)?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    #[getter]
    fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    #[getter]
    fn column_names(&self) -> Vec<&str> {
        let fields = self.schema.fields().iter();
        fields.map(|field| field.name().as_str()).collect()
    }

    /// Records that were left out, by reason; empty when all is there.
    #[getter]
    fn skipped(&self) -> BTreeMap<String, u64> {
        self.skipped.clone()
    }

    /// Of a table of a recorded session: what to add to a time in it for Unix nanoseconds, as measured when it began.
    #[getter]
    fn unix_offset_ns(&self) -> Option<i64> {
        self.unix_offset_ns
    }

    fn __len__(&self) -> usize {
        self.num_rows()
    }

    fn __repr__(&self) -> String {
        let (rows, columns) = (self.num_rows(), self.schema.fields().len());
        let left_out: u64 = self.skipped.values().sum();
        match left_out {
            0 => format!("<warptrace.ArrowTable {rows} rows, {columns} columns>"),
            n => format!(
                "<warptrace.ArrowTable {rows} rows, {columns} columns, {n} records left out>"
            ),
        }
    }

    /// A `pyarrow.Table`, without a copy.
    fn to_arrow(this: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        needs(this.py(), "pyarrow")?.call_method1("table", (this,))
    }

    /// A `polars.DataFrame`, without a copy.
    fn to_polars(this: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        needs(this.py(), "polars")?.call_method1("DataFrame", (this,))
    }

    /// A `pandas.DataFrame`, by PyArrow; keyword arguments are those of `pyarrow.Table.to_pandas`.
    #[pyo3(signature = (**options))]
    fn to_pandas<'py>(
        this: Bound<'py, Self>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        needs(this.py(), "pandas")?;
        let table = ArrowTable::to_arrow(this)?;
        table.call_method("to_pandas", (), options)
    }
}

fn needs<'py>(py: Python<'py>, package: &str) -> PyResult<Bound<'py, PyModule>> {
    py.import(package).map_err(|e| {
        if e.is_instance_of::<PyModuleNotFoundError>(py) {
            let text = format!("this needs the package {package}, which is not installed");
            return PyImportError::new_err(text);
        }
        e
    })
}

fn arrow_error(error: ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A table in the making: columns of a subject, finished a batch at a time.
struct Rows<C> {
    columns: C,
    rows: usize,
    batches: Vec<RecordBatch>,
    schema: SchemaRef,
}

/// The columns of a subject. `finish` empties them.
trait Columns: Default {
    fn fields() -> Vec<FieldRef>;
    fn finish(&mut self) -> Vec<ArrayRef>;
}

impl<C: Columns> Rows<C> {
    fn new() -> Rows<C> {
        Rows {
            columns: C::default(),
            rows: 0,
            batches: Vec::new(),
            schema: Arc::new(Schema::new(C::fields())),
        }
    }

    fn push(&mut self, append: impl FnOnce(&mut C)) -> Result<(), ArrowError> {
        append(&mut self.columns);
        self.rows += 1;
        match self.rows {
            BATCH_ROWS => self.cut(),
            _ => Ok(()),
        }
    }

    fn cut(&mut self) -> Result<(), ArrowError> {
        let columns = self.columns.finish();
        self.batches
            .push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        self.rows = 0;
        Ok(())
    }

    fn table(mut self, skipped: BTreeMap<String, u64>) -> Result<ArrowTable, ArrowError> {
        if self.rows > 0 {
            self.cut()?;
        }
        Ok(ArrowTable {
            schema: self.schema,
            batches: self.batches,
            skipped,
            unix_offset_ns: None,
        })
    }
}
