//! Run logs of inference servers.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyAny, PyString, PyTuple};
use warptrace_formats::open_json::{Layout, Style, to_string};
use warptrace_model::Value;
use warptrace_sdk::run_log::{Failed, InFlight, RunLog as Log, RunStart, Served};

use crate::said::swallow;
use crate::value;

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<RunLog>()?;
    module.add_class::<RunLogRequest>()?;
    module.add_class::<RunLogCounters>()
}

/// The run log of an inference server: one JSON line for each request that it served or failed.
///
/// Nothing here raises or waits for a reader: what cannot be written is dropped and counted, and said once on stderr. Lines of
/// any number of threads and processes never interleave. Without a path the log is off: counters move, nothing is written.
///
/// `with RunLog(path) as log:` ends the run at the end of the block, `errored` when an exception leaves it.
#[pyclass(module = "warptrace", frozen)]
struct RunLog {
    log: Log,
}

/// What this process has counted since its run began.
#[pyclass(module = "warptrace", frozen, get_all, eq)]
#[derive(PartialEq, Eq)]
struct RunLogCounters {
    requests: u64,
    errors: u64,
    tokens_out: u64,
}

#[pymethods]
impl RunLogCounters {
    fn __repr__(&self) -> String {
        let (requests, errors, tokens) = (self.requests, self.errors, self.tokens_out);
        format!("RunLogCounters(requests={requests}, errors={errors}, tokens_out={tokens})")
    }
}

#[pymethods]
impl RunLog {
    #[new]
    #[pyo3(signature = (path=None))]
    fn new(py: Python<'_>, path: Option<PathBuf>) -> RunLog {
        let log = py.detach(|| Log::open(path.unwrap_or_default()));
        RunLog { log }
    }

    /// The log of a worker that was started and not forked: its times count from `origin_micros` of the process that began
    /// the run.
    #[staticmethod]
    #[pyo3(signature = (path, *, origin_micros))]
    fn join(py: Python<'_>, path: PathBuf, origin_micros: u64) -> RunLog {
        let log = py.detach(|| Log::join(path, origin_micros));
        RunLog { log }
    }

    /// Begins a run: counters and times go to 0. To be called before workers are forked.
    ///
    /// backend: `cpu`, `cuda`, … config: a mapping, or a JSON object as text; keep credentials out of it. host: this machine's
    /// name when it is not given.
    #[pyo3(signature = (*, backend=None, model=None, model_path=None, config=None, host=None))]
    fn run_start(
        &self,
        py: Python<'_>,
        backend: Option<&Bound<'_, PyAny>>,
        model: Option<&Bound<'_, PyAny>>,
        model_path: Option<&Bound<'_, PyAny>>,
        config: Option<&Bound<'_, PyAny>>,
        host: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (backend, model) = (text(py, backend)?, text(py, model)?);
        let (model_path, config) = (text(py, model_path)?, json(py, config)?);
        let host = host.map(|host| text(py, Some(host))).transpose()?;
        py.detach(|| {
            self.log.run_start(&RunStart {
                host: host.as_deref().unwrap_or(RunStart::here().host),
                backend: &backend,
                model: &model,
                model_path: &model_path,
                config: &config,
            });
        });
        Ok(())
    }

    /// Begins a request: its latency is measured from here, and `shutdown` waits for it.
    #[pyo3(signature = (model=None))]
    fn begin(&self, py: Python<'_>, model: Option<&Bound<'_, PyAny>>) -> PyResult<RunLogRequest> {
        let request = self.log.begin(text(py, model)?);
        Ok(RunLogRequest {
            request: Mutex::new(Some(request)),
        })
    }

    /// Writes and counts a request that was served, of known latency. `extra`: more keys, as a mapping or a JSON object;
    /// `request_id` belongs there.
    #[pyo3(signature = (model=None, *, prompt_tokens=None, completion_tokens=None, latency_micros=None, extra=None))]
    fn request(
        &self,
        py: Python<'_>,
        model: Option<&Bound<'_, PyAny>>,
        prompt_tokens: Option<&Bound<'_, PyAny>>,
        completion_tokens: Option<&Bound<'_, PyAny>>,
        latency_micros: Option<&Bound<'_, PyAny>>,
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (model, extra) = (text(py, model)?, json(py, extra)?);
        let prompt_tokens = count(py, prompt_tokens)?;
        let completion_tokens = count(py, completion_tokens)?;
        let latency_micros = count(py, latency_micros)?;
        py.detach(|| {
            self.log.request(&Served {
                model: &model,
                prompt_tokens,
                completion_tokens,
                latency_micros,
                extra: &extra,
            });
        });
        Ok(())
    }

    /// Writes and counts a request that failed. status: HTTP's. code: a short word. Keep prompts out of the message.
    #[pyo3(signature = (model=None, *, status=None, code=None, message=None, latency_micros=None, extra=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword-only, one for each key of the record"
    )]
    fn error(
        &self,
        py: Python<'_>,
        model: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        code: Option<&Bound<'_, PyAny>>,
        message: Option<&Bound<'_, PyAny>>,
        latency_micros: Option<&Bound<'_, PyAny>>,
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (model, code) = (text(py, model)?, text(py, code)?);
        let (message, extra) = (text(py, message)?, json(py, extra)?);
        let status = status.map_or(Ok(500), |status| count(py, Some(status)))?;
        let latency_micros = count(py, latency_micros)?;
        py.detach(|| {
            self.log.error(&Failed {
                model: &model,
                status,
                code: &code,
                message: &message,
                latency_micros,
                extra: &extra,
            });
        });
        Ok(())
    }

    /// Writes and counts a failure without details.
    fn record_error(&self, py: Python<'_>) {
        py.detach(|| self.log.record_error());
    }

    /// Ends the run with what this process has counted. Only the first end of a run is written.
    #[pyo3(signature = (reason="completed"))]
    fn run_end(&self, py: Python<'_>, reason: &str) {
        py.detach(|| self.log.run_end(reason));
    }

    /// Ends the run with what all processes have written of it, read back from the file.
    #[pyo3(signature = (reason="completed"))]
    fn run_end_aggregated(&self, py: Python<'_>, reason: &str) {
        py.detach(|| self.log.run_end_aggregated(reason));
    }

    /// Waits until no request of this process is in flight, at most `deadline_secs`, and ends the run: returns `completed` or
    /// `interrupted`. The server must have stopped accepting.
    #[pyo3(signature = (*, deadline_secs=30.0))]
    fn shutdown(&self, py: Python<'_>, deadline_secs: f64) -> &'static str {
        let deadline = Duration::try_from_secs_f64(deadline_secs.max(0.0));
        let deadline = deadline.unwrap_or(Duration::MAX / 4);
        py.detach(|| self.log.shutdown(deadline)).reason()
    }

    /// Whether there is a path to write to.
    #[getter]
    fn is_enabled(&self) -> bool {
        self.log.is_enabled()
    }

    /// Records of this process that could not be written.
    #[getter]
    fn dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Requests of this process that have begun and not ended.
    #[getter]
    fn in_flight(&self) -> usize {
        self.log.in_flight()
    }

    #[getter]
    fn counters(&self) -> RunLogCounters {
        let counters = self.log.counters();
        RunLogCounters {
            requests: counters.requests,
            errors: counters.errors,
            tokens_out: counters.tokens_out,
        }
    }

    /// When the run began, µs of CLOCK_MONOTONIC, for `join`; None before `run_start`.
    #[getter]
    fn origin_micros(&self) -> Option<u64> {
        self.log.origin_micros()
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (exception_type, *_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exception_type: &Bound<'_, PyAny>,
        _exception: &Bound<'_, PyTuple>,
    ) {
        match exception_type.is_none() {
            true => drop(self.shutdown(py, 30.0)),
            false => self.run_end_aggregated(py, "errored"),
        }
    }
}

/// A request that has begun: `served` or `failed` ends it, once. As a context manager, an exception that leaves the block makes
/// it failed, with the exception's name as its code; a block that ends without a word makes it `abandoned`.
#[pyclass(module = "warptrace", frozen)]
struct RunLogRequest {
    request: Mutex<Option<InFlight>>,
}

#[pymethods]
impl RunLogRequest {
    /// To be called when the answer is complete; for a stream, after its end has been sent. `extra` as in `RunLog.request`.
    #[pyo3(signature = (*, prompt_tokens=None, completion_tokens=None, extra=None))]
    fn served(
        &self,
        py: Python<'_>,
        prompt_tokens: Option<&Bound<'_, PyAny>>,
        completion_tokens: Option<&Bound<'_, PyAny>>,
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (prompt, completion) = (count(py, prompt_tokens)?, count(py, completion_tokens)?);
        let extra = json(py, extra)?;
        let request = self.take();
        py.detach(|| request.map(|request| request.served(prompt, completion, &extra)));
        Ok(())
    }

    /// status: HTTP's. code: a short word. Keep prompts out of the message.
    #[pyo3(signature = (*, status=None, code=None, message=None, extra=None))]
    fn failed(
        &self,
        py: Python<'_>,
        status: Option<&Bound<'_, PyAny>>,
        code: Option<&Bound<'_, PyAny>>,
        message: Option<&Bound<'_, PyAny>>,
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let status = status.map_or(Ok(500), |status| count(py, Some(status)))?;
        let (code, message) = (text(py, code)?, text(py, message)?);
        let extra = json(py, extra)?;
        let request = self.take();
        py.detach(|| request.map(|request| request.failed(status, &code, &message, &extra)));
        Ok(())
    }

    /// Time since it began; None once it has ended.
    #[getter]
    fn elapsed_secs(&self) -> Option<f64> {
        let request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        request.as_ref().map(|r| r.elapsed().as_secs_f64())
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (exception_type, *_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exception_type: &Bound<'_, PyAny>,
        _exception: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        if exception_type.is_none() {
            let request = self.take();
            py.detach(|| drop(request));
            return Ok(());
        }
        let name = exception_type.getattr(pyo3::intern!(py, "__name__")).ok();
        self.failed(py, None, name.as_ref(), None, None)
    }
}

impl RunLogRequest {
    fn take(&self) -> Option<InFlight> {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        request.take()
    }
}

/// The text of what should be one; empty for what has none.
fn text(py: Python<'_>, value: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(String::new());
    };
    let text = swallow(py, value.str())?;
    Ok(text.map_or_else(String::new, |text: Bound<'_, PyString>| {
        text.to_string_lossy().into_owned()
    }))
}

/// A number as an integer; 0 for what is none.
fn count(py: Python<'_>, value: Option<&Bound<'_, PyAny>>) -> PyResult<i64> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(0);
    };
    if let Ok(n) = value.extract::<i64>() {
        return Ok(n);
    }
    let float = swallow(py, value.extract::<f64>())?;
    // Saturates; NaN is 0.
    Ok(float.unwrap_or(0.0) as i64)
}

/// A mapping as JSON; text is taken for JSON, and judged by the log. Floats that JSON does not have are null.
fn json(py: Python<'_>, value: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(String::new());
    };
    if value.is_instance_of::<PyString>() {
        return text(py, Some(value));
    }
    let object = swallow(py, value::object(value))?.unwrap_or_default();
    let mut object = Value::Object(object);
    without_nan(&mut object);
    let style = Style {
        sorted: false,
        layout: Layout::Compact,
    };
    Ok(to_string(&object, style))
}

fn without_nan(value: &mut Value) {
    match value {
        Value::Float(x) if !x.is_finite() => *value = Value::Null,
        Value::Array(items) => items.iter_mut().for_each(without_nan),
        Value::Object(object) => object.iter_mut().for_each(|(_, value)| without_nan(value)),
        _ => {}
    }
}
