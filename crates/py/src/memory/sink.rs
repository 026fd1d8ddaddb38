//! Folders of GPU memory telemetry, written in the background.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use warptrace_formats::memory::{SinkError, Upgrade, parse_summary, summary_object};
use warptrace_model::{SessionStatus, Value};
use warptrace_sdk::memory_sink::{BackgroundCounts, BackgroundMemorySink, SinkConfig, new_session};

use super::exact::{dict, from_python};
use crate::said::{Once, swallow};
use crate::tables::io_error;

/// Writes GPU memory telemetry into a folder of segments, which stormlog and `warptrace memory` read. A thread of its own
/// waits for the disk; without room, records are dropped and counted.
#[pyclass(module = "warptrace", frozen)]
pub(super) struct MemorySink {
    sink: BackgroundMemorySink,
    /// The last counts that the thread gave.
    counts: Mutex<BackgroundCounts>,
    /// Records that are none.
    refused: AtomicU64,
    said: Once,
}

#[pymethods]
impl MemorySink {
    /// Opens `folder`, which is made if there is none. Raises OSError or RuntimeError when it cannot be written, ValueError for
    /// settings that cannot be.
    #[new]
    #[pyo3(signature = (
        folder, *, flush_every_secs=2.0, rollover_max_bytes=64 << 20, retention_max_files=8,
        retention_max_total_bytes=512 << 20
    ))]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        flush_every_secs: f64,
        rollover_max_bytes: u64,
        retention_max_files: u64,
        retention_max_total_bytes: u64,
    ) -> PyResult<MemorySink> {
        let flush_every = Duration::try_from_secs_f64(flush_every_secs)
            .map_err(|e| PyValueError::new_err(format!("flush_every_secs: {e}")))?;
        let config = SinkConfig {
            flush_every,
            rollover_max_bytes,
            retention_max_files,
            retention_max_total_bytes,
            ..SinkConfig::default()
        };
        let opened = py.detach(|| BackgroundMemorySink::open(&folder, config));
        let sink = opened.map_err(|e| match &e {
            SinkError::Config(e) => PyValueError::new_err(e.to_string()),
            SinkError::Io { source, .. } => io_error(source, &folder.to_string_lossy()),
            _ => PyRuntimeError::new_err(format!("{e}: {folder:?}")),
        })?;
        Ok(MemorySink {
            sink,
            counts: Mutex::default(),
            refused: AtomicU64::new(0),
            said: Once::new(),
        })
    }

    /// Begins a session of this process and returns its summary; `summary` has what is to be said otherwise.
    #[pyo3(signature = (source, summary=None))]
    fn start_session<'py>(
        &self,
        py: Python<'py>,
        source: &str,
        summary: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let mut object = summary_object(&new_session(source));
        if let Some(summary) = summary {
            let Value::Object(said) = from_python(summary)? else {
                return Err(PyValueError::new_err("summary must be a mapping"));
            };
            for (key, value) in said.iter() {
                object.insert(key, value.clone());
            }
        }
        let summary = parse_summary(&Value::Object(object))
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        let said = dict(py, &summary_object(&summary))?;
        self.sink.start_session(summary);
        Ok(said)
    }

    /// Appends a record of any version; never waits and never raises. What is no record is dropped and counted.
    fn append(&self, py: Python<'_>, record: &Bound<'_, PyAny>) -> PyResult<bool> {
        let why = match swallow(py, from_python(record))? {
            Some(value) => match Upgrade::default().event(value) {
                Ok(event) => {
                    self.sink.append(event);
                    return Ok(true);
                }
                Err(e) => e.to_string(),
            },
            None => "not a mapping of JSON's values".to_owned(),
        };
        self.refused.fetch_add(1, Ordering::Relaxed);
        let what = format!("a memory record was dropped: {why} (said once; counts has the number)");
        self.said.warn(py, what);
        Ok(false)
    }

    /// Waits until all before is on the disk; False when `timeout_secs` is over first.
    #[pyo3(signature = (*, timeout_secs=5.0))]
    fn flush(&self, py: Python<'_>, timeout_secs: f64) -> bool {
        let patience = Duration::try_from_secs_f64(timeout_secs).unwrap_or_default();
        let counts = py.detach(|| self.sink.flush(patience));
        self.keep(counts)
    }

    /// Ends the session (`completed`, `interrupted`, `incomplete`) and waits as `flush`.
    #[pyo3(signature = (status="completed", *, timeout_secs=5.0))]
    fn close(&self, py: Python<'_>, status: &str, timeout_secs: f64) -> PyResult<bool> {
        let status = SessionStatus::from_name(status)
            .ok_or_else(|| PyValueError::new_err(format!("no session status {status:?}")))?;
        let patience = Duration::try_from_secs_f64(timeout_secs).unwrap_or_default();
        let counts = py.detach(|| self.sink.close(status, patience));
        Ok(self.keep(counts))
    }

    /// What became of the records: as of now what never got to the thread, the rest as of the last `flush` or `close`.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let kept = self.counts.lock().map(|counts| counts.clone());
        let kept = kept.unwrap_or_default();
        let counts = PyDict::new(py);
        let dropped = self.sink.dropped() + kept.sink.dropped_records;
        counts.set_item("dropped", dropped)?;
        counts.set_item(
            "refused",
            kept.refused + self.refused.load(Ordering::Relaxed),
        )?;
        counts.set_item("flush_failures", kept.sink.flush_failures)?;
        counts.set_item("segments", kept.sink.retained_segments)?;
        counts.set_item("bytes", kept.sink.retained_bytes)?;
        counts.set_item("pruned_segments", kept.sink.pruned_segments)?;
        let last = kept.last_error.or(kept.sink.last_flush_error);
        counts.set_item("last_error", last)?;
        Ok(counts)
    }
}

impl MemorySink {
    fn keep(&self, counts: Option<BackgroundCounts>) -> bool {
        let Some(counts) = counts else {
            return false;
        };
        if let Ok(mut kept) = self.counts.lock() {
            *kept = counts;
        }
        true
    }
}
