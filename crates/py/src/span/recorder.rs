//! Recorders, the process's own among them.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use warptrace_model::SpanContext;
use warptrace_sdk::span::{
    self as sdk, End, Exception, FailureLimit, Filter, Parent, Start, Strategy,
};

use super::{
    ContextVariable, Event, Pending, Span, attributes_for, begin, error, exporter, lock, timestamp,
};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Recorder>()?;
    module.add_class::<ExporterCounts>()?;
    module.add_class::<SpanCounts>()?;
    module.add_function(wrap_pyfunction!(span, module)?)?;
    module.add_function(wrap_pyfunction!(event, module)?)?;
    module.add_function(wrap_pyfunction!(close_recorders, module)?)?;
    module.add_function(wrap_pyfunction!(set_global_recorder, module)?)?;
    module.add_function(wrap_pyfunction!(global_recorder, module)?)
}

/// What became of a recorder's records at one exporter.
#[pyclass(module = "warptrace", frozen, get_all)]
struct ExporterCounts {
    name: String,
    /// Records that found the queue full.
    dropped: u64,
    /// Records that the exporter refused, or was not given because it is left out.
    refused: u64,
    /// Records that the exporter took and did not bring out.
    lost: u64,
    /// It failed too often, and is left out.
    disabled: bool,
}

/// What became of what was recorded.
#[pyclass(module = "warptrace", frozen, get_all)]
struct SpanCounts {
    /// Calls that failed.
    failed_calls: u64,
    /// Calls from within an exporter, which are not exported.
    from_exporters: u64,
    exporters: Vec<Py<ExporterCounts>>,
}

/// Makes spans and gives them to exporters.
#[pyclass(module = "warptrace", subclass, frozen, weakref)]
pub(crate) struct Recorder(pub(crate) sdk::Recorder);

/// The settings that a recorder of Python's has, for whoever builds one.
#[expect(clippy::too_many_arguments, reason = "they are a Python signature's")]
pub(crate) fn builder(
    py: Python<'_>,
    exporters: Vec<Bound<'_, PyAny>>,
    direct: bool,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    on_error: &str,
    enabled: bool,
    queue_items: Option<usize>,
    failures_in_a_row: bool,
) -> PyResult<sdk::Builder> {
    let filter = match (include, exclude) {
        (None, None) => Filter::All,
        (Some(only), None) => Filter::Only(only.into_iter().map(Into::into).collect()),
        (None, Some(but)) => Filter::AllBut(but.into_iter().map(Into::into).collect()),
        (Some(_), Some(_)) => {
            return Err(PyValueError::new_err(
                "include and exclude exclude each other",
            ));
        }
    };
    let strategy = match on_error {
        "continue" => Strategy::Continue,
        "disable" => Strategy::Disable,
        "raise" => Strategy::Propagate,
        other => {
            return Err(PyValueError::new_err(format!(
                "on_error={other:?}: one of \"continue\", \"disable\", \"raise\""
            )));
        }
    };
    let mut builder = sdk::Recorder::builder()
        .filter(filter)
        .strategy(strategy)
        .on(enabled)
        .failure_limit(FailureLimit {
            in_a_row: failures_in_a_row,
            ..FailureLimit::default()
        })
        .current(Box::new(ContextVariable::new(py)?));
    if let Some(items) = queue_items {
        builder = builder.queue_items(items);
    }
    for object in exporters {
        let (name, exporter) = exporter::take(object)?;
        builder = match direct {
            true => builder.direct_exporter(&name, exporter),
            false => builder.exporter(&name, exporter),
        };
    }
    Ok(builder)
}

/// Moments as a Python function gives them: s since the epoch, and s of a clock that only goes forward.
#[derive(Debug)]
struct PythonClock(Py<PyAny>);

impl sdk::Clock for PythonClock {
    /// What the system's clocks say where the function fails.
    fn now(&self) -> sdk::Timestamp {
        let read = |py: Python<'_>| self.0.bind(py).call0()?.extract::<(f64, f64)>();
        match Python::try_attach(read) {
            Some(Ok((unix_secs, perf_secs))) => sdk::Timestamp::from_secs(unix_secs, perf_secs),
            _ => sdk::SystemClock.now(),
        }
    }
}

/// The same settings, with that function for a clock.
pub(crate) fn clocked(builder: sdk::Builder, clock: Option<Py<PyAny>>) -> sdk::Builder {
    match clock {
        Some(clock) => builder.clock(Arc::new(PythonClock(clock))),
        None => builder,
    }
}

pub(crate) fn secs(timeout: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|_| PyValueError::new_err(format!("timeout_secs={timeout}: not a time")))
}

#[pymethods]
impl Recorder {
    #[new]
    #[pyo3(signature = (exporters=Vec::new(), *, direct=false, include=None, exclude=None, on_error="continue", enabled=true, queue_items=None, failures_in_a_row=true, clock=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of a constructor"
    )]
    fn new(
        py: Python<'_>,
        exporters: Vec<Bound<'_, PyAny>>,
        direct: bool,
        include: Option<Vec<String>>,
        exclude: Option<Vec<String>>,
        on_error: &str,
        enabled: bool,
        queue_items: Option<usize>,
        failures_in_a_row: bool,
        clock: Option<Py<PyAny>>,
    ) -> PyResult<Recorder> {
        let builder = builder(
            py,
            exporters,
            direct,
            include,
            exclude,
            on_error,
            enabled,
            queue_items,
            failures_in_a_row,
        )?;
        let recorder = clocked(builder, clock).build();
        Ok(Recorder::known(recorder.map_err(|e| error(py, &e))?))
    }

    /// A span that starts when its block is entered.
    #[pyo3(signature = (name, attributes=None, *, parent=None))]
    fn span(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        attributes: Option<&Bound<'_, PyAny>>,
        parent: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Span> {
        scope(py, &self.0, name, attributes, parent)
    }

    /// Starts a span by hand; `stop` ends it. None when nothing is recorded.
    #[pyo3(signature = (name, *, attributes=None, event_attributes=None, parent=None, start_time=None))]
    fn start<'py>(
        &self,
        py: Python<'py>,
        name: String,
        attributes: Option<&Bound<'_, PyAny>>,
        event_attributes: Option<&Bound<'_, PyAny>>,
        parent: Option<&Bound<'_, PyAny>>,
        start_time: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        if !self.0.is_on() {
            return Ok(None);
        }
        let start = Start::named(name)
            .attributes(attributes_for(py, &self.0, attributes)?)
            .event_attributes(attributes_for(py, &self.0, event_attributes)?)
            .parent(parent_of(parent)?)
            .at(timestamp(start_time, &self.0)?);
        let object = Bound::new(py, Span::pending(Some(self.0.clone()), Pending::Nothing))?;
        let Some(span) = begin(py, &self.0, start, Some(&object))? else {
            return Ok(None);
        };
        let _ = object.get().span.set(span);
        Ok(Some(object))
    }

    /// Stops a span.
    #[pyo3(signature = (span, *, event_attributes=None, stop_time=None))]
    fn stop(
        &self,
        py: Python<'_>,
        span: &Bound<'_, Span>,
        event_attributes: Option<&Bound<'_, PyAny>>,
        stop_time: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let Some(span) = span.get().inner() else {
            return Ok(());
        };
        let end = End {
            event_attributes: attributes_for(py, &self.0, event_attributes)?,
            at: timestamp(stop_time, &self.0)?,
        };
        let stopped = self.0.stop(span, end);
        stopped.map(|_| ()).map_err(|e| error(py, &e))
    }

    /// Records an event in a span; None when nothing is recorded.
    #[pyo3(signature = (span, name, attributes=None, *, time=None))]
    fn event(
        &self,
        py: Python<'_>,
        span: &Bound<'_, Span>,
        name: String,
        attributes: Option<&Bound<'_, PyAny>>,
        time: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Event>> {
        let Some(span) = span.get().inner().filter(|_| self.0.is_on()) else {
            return Ok(None);
        };
        let at = timestamp(time, &self.0)?.unwrap_or_else(|| self.0.now());
        let event = sdk::Event::new(name, at, attributes_for(py, &self.0, attributes)?);
        let recorded = self.0.event(span, event);
        recorded.map(|e| e.map(Event)).map_err(|e| error(py, &e))
    }

    /// Records an error of the program in a span. `traceback` is the text of the one that is being handled.
    #[pyo3(signature = (span, message, exception=None, *, traceback=None))]
    fn error(
        &self,
        py: Python<'_>,
        span: &Bound<'_, Span>,
        message: &str,
        exception: Option<&Bound<'_, PyAny>>,
        traceback: Option<String>,
    ) -> PyResult<Option<Event>> {
        let Some(span) = span.get().inner().filter(|_| self.0.is_on()) else {
            return Ok(None);
        };
        let exception = exception.map(|e| Exception {
            traceback: traceback.map(Into::into),
            ..super::exception(py, e, false)
        });
        let recorded = self.0.error(span, message, exception.as_ref());
        recorded.map(|e| e.map(Event)).map_err(|e| error(py, &e))
    }

    /// Records that what was exported is not all, or not to be relied on: to each exporter once in its life.
    #[pyo3(signature = (message, attributes=None))]
    fn data_error(
        &self,
        py: Python<'_>,
        message: &str,
        attributes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let said = self
            .0
            .data_error(message, attributes_for(py, &self.0, attributes)?);
        said.map(|_| ()).map_err(|e| error(py, &e))
    }

    /// The latest span of this context that is active.
    fn current_span(&self) -> Option<Span> {
        let span = self.0.current_span()?;
        Some(Span::started(span, Some(self.0.clone())))
    }

    /// Spans of that name that are open, in the order in which they were started.
    fn open_spans(&self, name: &str) -> Vec<Span> {
        let open = self.0.open_spans(name);
        let object = |span| Span::started(span, Some(self.0.clone()));
        open.into_iter().map(object).collect()
    }

    /// Waits until what was recorded before has been brought out; False when that took longer.
    #[pyo3(signature = (*, timeout_secs=5.0))]
    fn flush(&self, py: Python<'_>, timeout_secs: f64) -> PyResult<bool> {
        let patience = secs(timeout_secs)?;
        Ok(py.detach(|| self.0.flush(patience)))
    }

    /// Stops what is open, brings everything out, and closes the exporters.
    #[pyo3(signature = (*, timeout_secs=5.0))]
    fn close(&self, py: Python<'_>, timeout_secs: f64) -> PyResult<()> {
        let patience = secs(timeout_secs)?;
        let closed = py.detach(|| self.0.close(patience));
        closed.map(|_| ()).map_err(|e| error(py, &e))
    }

    /// Records nothing from now on.
    fn disable(&self) {
        self.0.disable();
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.0.is_on()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.0.is_closed()
    }

    fn counts(&self, py: Python<'_>) -> PyResult<SpanCounts> {
        let counts = self.0.counts();
        let exporter = |e: sdk::ExporterCounts| {
            Py::new(
                py,
                ExporterCounts {
                    name: e.name.into(),
                    dropped: e.dropped,
                    refused: e.refused,
                    lost: e.lost,
                    disabled: e.disabled,
                },
            )
        };
        Ok(SpanCounts {
            failed_calls: counts.failed_calls,
            from_exporters: counts.from_exporters,
            exporters: counts
                .exporters
                .into_iter()
                .map(exporter)
                .collect::<PyResult<_>>()?,
        })
    }

    #[classmethod]
    fn off(_: &Bound<'_, PyType>) -> Recorder {
        Recorder(sdk::Recorder::off())
    }
}

/// A span of ours, or a (trace id, span id) of another library's.
fn parent_of(parent: Option<&Bound<'_, PyAny>>) -> PyResult<Parent> {
    let Some(parent) = parent.filter(|p| !p.is_none()) else {
        return Ok(Parent::None);
    };
    if let Ok(span) = parent.cast::<Span>() {
        return Ok(span.get().inner().map_or(Parent::None, Parent::from));
    }
    match parent.extract::<(u128, u64)>() {
        Ok((trace, span)) if trace != 0 && span != 0 => Ok(SpanContext { trace, span }.into()),
        Ok(_) => Ok(Parent::None),
        Err(_) => Err(PyTypeError::new_err(
            "parent: a Span, or (trace_id, span_id)",
        )),
    }
}

/// The recorders that there are, for the end of the program.
static RECORDERS: Mutex<Vec<sdk::WeakRecorder>> = Mutex::new(Vec::new());

impl Recorder {
    /// A recorder that is closed at the end of the program.
    pub(crate) fn known(recorder: sdk::Recorder) -> Recorder {
        let mut all = lock(&RECORDERS);
        all.retain(|r| r.upgrade().is_some());
        all.push(recorder.downgrade());
        Recorder(recorder)
    }
}

/// Closes every recorder that is still open, all of them within the time.
#[pyfunction]
fn close_recorders(py: Python<'_>, timeout_secs: f64) -> PyResult<()> {
    let patience = secs(timeout_secs)?;
    let all: Vec<_> = lock(&RECORDERS)
        .iter()
        .filter_map(sdk::WeakRecorder::upgrade)
        .collect();
    py.detach(|| {
        let began = std::time::Instant::now();
        for recorder in all.iter().filter(|r| !r.is_closed()) {
            let _ = recorder.close(patience.saturating_sub(began.elapsed()));
        }
    });
    Ok(())
}

fn scope(
    py: Python<'_>,
    recorder: &sdk::Recorder,
    name: &Bound<'_, PyString>,
    attributes: Option<&Bound<'_, PyAny>>,
    parent: Option<&Bound<'_, PyAny>>,
) -> PyResult<Span> {
    if !recorder.is_on() {
        return Ok(off(name, attributes));
    }
    let mut start = Start::named(name.to_string_lossy().into_owned());
    if attributes.is_some() {
        start = start.attributes(attributes_for(py, recorder, attributes)?);
    }
    if parent.is_some() {
        start = start.parent(parent_of(parent)?);
    }
    let pending = Pending::Start(Box::new(start));
    Ok(Span::pending(Some(recorder.clone()), pending))
}

fn off(name: &Bound<'_, PyString>, attributes: Option<&Bound<'_, PyAny>>) -> Span {
    let attributes = attributes.map(|a| a.clone().unbind());
    Span::pending(None, Pending::Off(name.clone().unbind(), attributes))
}

/// The process's own recorder.
static GLOBAL: RwLock<Option<sdk::Recorder>> = RwLock::new(None);

fn global() -> Option<sdk::Recorder> {
    GLOBAL
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Makes `recorder` the process's own; None for none.
#[pyfunction]
fn set_global_recorder(recorder: Option<&Bound<'_, Recorder>>) {
    let recorder = recorder.map(|r| r.get().0.clone());
    let before = std::mem::replace(
        &mut *GLOBAL.write().unwrap_or_else(PoisonError::into_inner),
        recorder,
    );
    drop(before);
}

/// The process's own recorder.
#[pyfunction]
fn global_recorder() -> Option<Recorder> {
    global().map(Recorder)
}

/// A span of the process's own recorder.
#[pyfunction]
#[pyo3(signature = (name, attributes=None))]
fn span<'py>(
    py: Python<'py>,
    name: &Bound<'py, PyString>,
    attributes: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, Span>> {
    let span = match global().filter(sdk::Recorder::is_on) {
        Some(recorder) => scope(py, &recorder, name, attributes, None)?,
        None if attributes.is_none() => return off_again(py, name),
        None => off(name, attributes),
    };
    let of_global = true;
    Bound::new(py, Span { of_global, ..span })
}

/// Where nothing is recorded a span is its name, so one object serves as long as the name is the same object, as a literal in a loop is.
fn off_again<'py>(py: Python<'py>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, Span>> {
    static LAST: Mutex<Option<(Py<PyString>, Py<Span>)>> = Mutex::new(None);
    if let Some((last, span)) = &*lock(&LAST)
        && last.is(name)
    {
        return Ok(span.bind(py).clone());
    }
    let of_global = true;
    let span = Bound::new(
        py,
        Span {
            of_global,
            ..off(name, None)
        },
    )?;
    // Let go of outside of the lock.
    let before = lock(&LAST).replace((name.clone().unbind(), span.clone().unbind()));
    drop(before);
    Ok(span)
}

/// An event in the latest span of this context, of the process's own recorder; nothing without one.
#[pyfunction]
#[pyo3(signature = (name, attributes=None))]
fn event(py: Python<'_>, name: String, attributes: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let Some(recorder) = global().filter(sdk::Recorder::is_on) else {
        return Ok(());
    };
    if let Some(span) = recorder.current_span() {
        let attributes = attributes_for(py, &recorder, attributes)?;
        let event = sdk::Event::new(name, recorder.now(), attributes);
        recorder.event(&span, event).map_err(|e| error(py, &e))?;
    }
    Ok(())
}
