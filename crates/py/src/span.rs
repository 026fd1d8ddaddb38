//! Spans and events.
//!
//! The latest span of a context is in a `contextvars.ContextVar`, as Python's other tracers do it: tasks copy it when they are
//! made, threads begin without.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType, PyWeakrefReference};
use warptrace_model::SpanContext;
use warptrace_sdk::span::{
    self as sdk, Attributes, Current, End, Exception, ExportError, FailureLimit, Filter, Parent,
    Start, Strategy, Timestamp,
};

use crate::value;

pyo3::create_exception!(
    warptrace,
    SpanError,
    PyException,
    "A call that a recorder refused; `code` is a word for programs."
);

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Span>()?;
    module.add_class::<Event>()?;
    module.add_class::<Recorder>()?;
    module.add_class::<Exporter>()?;
    module.add_class::<NativeExporter>()?;
    module.add_class::<MemoryExporter>()?;
    module.add_class::<ExporterCounts>()?;
    module.add_class::<SpanCounts>()?;
    module.add("SpanError", module.py().get_type::<SpanError>())?;
    module.add_function(wrap_pyfunction!(span, module)?)?;
    module.add_function(wrap_pyfunction!(event, module)?)?;
    module.add_function(wrap_pyfunction!(close_recorders, module)?)?;
    module.add_function(wrap_pyfunction!(set_global_recorder, module)?)?;
    module.add_function(wrap_pyfunction!(global_recorder, module)?)
}

/// The SDK's error as Python's, with its code.
pub(crate) fn error(py: Python<'_>, e: &sdk::Error) -> PyErr {
    let mut message = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    let error = SpanError::new_err(message);
    let _ = error.value(py).setattr("code", e.code());
    error
}

/// A moment: Unix nanoseconds; or two numbers of seconds, by the wall clock and by `time.perf_counter()`.
pub(crate) fn timestamp(
    at: Option<&Bound<'_, PyAny>>,
    recorder: &sdk::Recorder,
) -> PyResult<Option<Timestamp>> {
    let Some(at) = at else { return Ok(None) };
    if let Ok((unix_secs, perf_secs)) = at.extract::<(f64, f64)>() {
        return Ok(Some(Timestamp::from_secs(unix_secs, perf_secs)));
    }
    let unix_nanos = at.extract::<i64>()?;
    let now = recorder.now();
    let ago_secs = (now.unix_nanos().saturating_sub(unix_nanos)) as f64 / 1e9;
    Ok(Some(Timestamp::new(unix_nanos, now.perf_secs() - ago_secs)))
}

pub(crate) fn attributes(py: Python<'_>, any: Option<&Bound<'_, PyAny>>) -> PyResult<Attributes> {
    match any {
        Some(any) if !any.is_none() => {
            Attributes::from_object(value::object(any)?).map_err(|e| error(py, &e))
        }
        _ => Ok(Attributes::new()),
    }
}

/// Attributes for a call on `recorder`, which says what becomes of the call when they cannot be had: by the recorder's strategy they are
/// left out, or the call raises.
fn attributes_for(
    py: Python<'_>,
    recorder: &sdk::Recorder,
    any: Option<&Bound<'_, PyAny>>,
) -> PyResult<Attributes> {
    quiet(py, recorder, "attributes", attributes(py, any))
}

/// What is wrong with a value, by the recorder's strategy.
fn quiet<T: Default>(
    py: Python<'_>,
    recorder: &sdk::Recorder,
    function: &str,
    result: PyResult<T>,
) -> PyResult<T> {
    match result {
        Err(e)
            if recorder.strategy() != Strategy::Propagate
                && e.is_instance_of::<PyException>(py) =>
        {
            let refused = sdk::Error::rule("value_refused", e.to_string());
            let _ = recorder.guarded(function, || Err::<(), _>(refused));
            Ok(T::default())
        }
        result => result,
    }
}

/// A Python exception as the SDK records it. What fails while it is described is left out.
fn exception(py: Python<'_>, raised: &Bound<'_, PyAny>, with_traceback: bool) -> Exception {
    let kind = raised.get_type();
    let kind = kind
        .name()
        .map_or_else(|_| "Exception".into(), |n| n.to_string());
    let message = raised.str().map(|s| s.to_string_lossy().into_owned());
    let formatted = || -> PyResult<String> {
        let lines = py
            .import("traceback")?
            .call_method1("format_exception", (raised,))?;
        PyString::new(py, "")
            .call_method1("join", (lines,))?
            .extract()
    };
    Exception {
        kind: kind.into(),
        message: message.unwrap_or_default().into(),
        traceback: with_traceback
            .then(|| formatted().ok())
            .flatten()
            .map(Into::into),
    }
}

thread_local! {
    /// The Python object of the span that is being started or gone back to, so that none has to be made for it.
    static AT_HAND: RefCell<Option<Py<Span>>> = const { RefCell::new(None) };
}

/// The latest span, in a context variable.
struct ContextVariable {
    get: Py<PyAny>,
    set: Py<PyAny>,
}

impl ContextVariable {
    fn new(py: Python<'_>) -> PyResult<ContextVariable> {
        let options = PyDict::new(py);
        options.set_item("default", py.None())?;
        let variable = py
            .import("contextvars")?
            .getattr("ContextVar")?
            .call(("warptrace_span",), Some(&options))?;
        Ok(ContextVariable {
            get: variable.getattr("get")?.unbind(),
            set: variable.getattr("set")?.unbind(),
        })
    }
}

impl Current for ContextVariable {
    fn latest(&self) -> Option<sdk::Span> {
        // Not while the interpreter ends.
        Python::try_attach(|py| {
            let latest = self.get.bind(py).call0().ok()?;
            latest.cast::<Span>().ok()?.get().span.get().cloned()
        })
        .flatten()
    }

    fn set(&self, span: Option<&sdk::Span>) {
        let at_hand = AT_HAND.take();
        Python::try_attach(|py| {
            let object = span.and_then(|span| {
                // One that is just being started has no span yet.
                let fits = |o: &Py<Span>| o.get().span.get().is_none_or(|own| own == span);
                at_hand
                    .filter(fits)
                    .or_else(|| Py::new(py, Span::started(span.clone(), None)).ok())
            });
            let _ = match object {
                Some(object) => self.set.bind(py).call1((object,)),
                None => self.set.bind(py).call1((py.None(),)),
            };
        });
    }
}

/// A named unit of work, from its start until it is stopped.
///
/// As a context manager it starts and stops with the block; as a decorator, with each call. Where nothing is recorded, all of it does
/// nothing.
#[pyclass(module = "warptrace", frozen, weakref)]
pub(crate) struct Span {
    recorder: Option<sdk::Recorder>,
    pending: Mutex<Pending>,
    span: OnceLock<sdk::Span>,
    /// It is of the process's own recorder, whichever that is when a function that it decorates is called.
    of_global: bool,
}

/// What a span will be started with.
enum Pending {
    /// It was started already.
    Nothing,
    Start(Box<Start>),
    /// Nothing is recorded now; a function that it decorates may be called when something is.
    Off(Py<PyString>, Option<Py<PyAny>>),
}

impl Span {
    pub(crate) fn started(span: sdk::Span, recorder: Option<sdk::Recorder>) -> Span {
        Span {
            recorder,
            pending: Mutex::new(Pending::Nothing),
            span: OnceLock::from(span),
            of_global: false,
        }
    }

    fn pending(recorder: Option<sdk::Recorder>, pending: Pending) -> Span {
        Span {
            recorder,
            pending: Mutex::new(pending),
            span: OnceLock::new(),
            of_global: false,
        }
    }

    pub(crate) fn inner(&self) -> Option<&sdk::Span> {
        self.span.get()
    }

    fn known(&self) -> PyResult<&sdk::Span> {
        let none = || PyRuntimeError::new_err("the span has not been started");
        self.span.get().ok_or_else(none)
    }
}

/// Starts `start`, with `object` as its Python object if given.
fn begin(
    py: Python<'_>,
    recorder: &sdk::Recorder,
    start: Start,
    object: Option<&Bound<'_, Span>>,
) -> PyResult<Option<sdk::Span>> {
    AT_HAND.set(object.map(|o| o.clone().unbind()));
    let started = recorder.start(start);
    drop(AT_HAND.take());
    started.map_err(|e| error(py, &e))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Span {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let this = slf.get();
        let Some(recorder) = &this.recorder else {
            return Ok(slf);
        };
        let pending = std::mem::replace(&mut *lock(&this.pending), Pending::Nothing);
        if let Pending::Start(start) = pending
            && let Some(span) = begin(slf.py(), recorder, *start, Some(&slf))?
        {
            let _ = this.span.set(span);
        }
        Ok(slf)
    }

    #[pyo3(signature = (kind=None, raised=None, traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyAny>>,
        raised: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let _ = (kind, traceback);
        let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) else {
            return Ok(false);
        };
        // Not what only ends the program (KeyboardInterrupt, SystemExit).
        if let Some(raised) = raised
            && raised.is_instance_of::<PyException>()
        {
            let what = exception(py, raised, true);
            let message = format!("Error in {}: ", span.name());
            // The user's exception goes on as it is, whatever becomes of its record.
            let _ = recorder.error(span, &message, Some(&what));
        }
        let stopped = recorder.stop(span, End::default());
        match raised {
            None => stopped.map(|_| false).map_err(|e| error(py, &e)),
            Some(_) => Ok(false),
        }
    }

    /// Decorates a function: a span around each call.
    fn __call__<'py>(&self, function: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        let (name, attributes) = match &*lock(&self.pending) {
            Pending::Start(start) => {
                let attributes = value::dict(py, start.initial_attributes().as_object())?;
                (start.name().to_owned(), Some(attributes.into_any()))
            }
            Pending::Off(name, attributes) => {
                let attributes = attributes.as_ref().map(|a| a.bind(py).clone());
                (name.bind(py).to_string_lossy().into_owned(), attributes)
            }
            Pending::Nothing => (self.known()?.name().to_owned(), None),
        };
        let recorder = self
            .recorder
            .clone()
            .filter(|_| !self.of_global)
            .map(Recorder);
        py.import("warptrace.spans")?
            .call_method1("_decorate", (function, name, attributes, recorder))
    }

    /// Adds an attribute, or replaces the one of that name.
    fn set(&self, py: Python<'_>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) else {
            return Ok(());
        };
        let set = value::from_python(value)
            .and_then(|value| span.set(name, value).map_err(|e| error(py, &e)));
        quiet(py, recorder, "set", set)
    }

    fn __setitem__(&self, py: Python<'_>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set(py, name, value)
    }

    /// Adds many attributes.
    fn update(&self, py: Python<'_>, attributes: &Bound<'_, PyAny>) -> PyResult<()> {
        if let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) {
            span.set_all(&attributes_for(py, recorder, Some(attributes))?);
        }
        Ok(())
    }

    /// Records that something happened.
    #[pyo3(signature = (name, attributes=None))]
    fn event(
        &self,
        py: Python<'_>,
        name: String,
        attributes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        if let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) {
            let attributes = attributes_for(py, recorder, attributes)?;
            let event = sdk::Event::new(name, recorder.now(), attributes);
            recorder.event(span, event).map_err(|e| error(py, &e))?;
        }
        Ok(())
    }

    /// Records that something went wrong.
    #[pyo3(signature = (message, exception=None))]
    fn error(
        &self,
        py: Python<'_>,
        message: &str,
        exception: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        if let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) {
            let exception = exception.map(|e| self::exception(py, e, true));
            let recorded = recorder.error(span, message, exception.as_ref());
            recorded.map_err(|e| error(py, &e))?;
        }
        Ok(())
    }

    /// Stops it, where it was started by hand.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        if let (Some(recorder), Some(span)) = (&self.recorder, self.span.get()) {
            let stopped = recorder.stop(span, End::default());
            stopped.map_err(|e| error(py, &e))?;
        }
        Ok(())
    }

    #[getter]
    fn name(&self) -> PyResult<&str> {
        Ok(self.known()?.name())
    }

    /// Its identity, as a UUID's text.
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.known()?.id().to_string())
    }

    /// Its trace's identity in OpenTelemetry: a number of 128 bits.
    #[getter]
    fn trace_id(&self) -> PyResult<u128> {
        Ok(self.known()?.context().trace)
    }

    /// Its identity in OpenTelemetry: a number of 64 bits.
    #[getter]
    fn span_id(&self) -> PyResult<u64> {
        Ok(self.known()?.context().span)
    }

    /// Whether it was started, and is recorded.
    #[getter]
    fn recorded(&self) -> bool {
        self.span.get().is_some()
    }

    #[getter]
    fn active(&self) -> bool {
        self.span.get().is_some_and(sdk::Span::is_active)
    }

    #[getter]
    fn parent(&self) -> PyResult<Option<Span>> {
        let parent = self.known()?.parent().cloned();
        Ok(parent.map(|parent| Span::started(parent, self.recorder.clone())))
    }

    /// All attributes as they are now.
    #[getter]
    fn attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        value::dict(py, self.known()?.attributes().as_object())
    }

    /// What it was started with.
    #[getter]
    fn initial_attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        value::dict(py, self.known()?.initial_attributes().as_object())
    }

    /// What was said of it later.
    #[getter]
    fn updated_attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        value::dict(py, self.known()?.updated_attributes().as_object())
    }

    #[getter]
    fn start_event(&self) -> PyResult<Event> {
        Ok(Event(Arc::new(self.known()?.start_event().clone())))
    }

    /// None while it is active.
    #[getter]
    fn stop_event(&self) -> PyResult<Option<Event>> {
        Ok(self.known()?.stop_event().map(Event))
    }

    /// The events between its start and its stop: the first 128.
    #[getter]
    fn events(&self) -> PyResult<Vec<Event>> {
        Ok(self.known()?.events().into_iter().map(Event).collect())
    }

    #[getter]
    fn dropped_events(&self) -> PyResult<u32> {
        Ok(self.known()?.dropped_events())
    }

    /// Unix nanoseconds.
    #[getter]
    fn start_unix_ns(&self) -> PyResult<i64> {
        Ok(self.known()?.start_event().at().unix_nanos())
    }

    /// ms from start to stop, by the monotonic clock.
    #[getter]
    fn duration_msec(&self, py: Python<'_>) -> PyResult<i64> {
        let duration = self.known()?.duration_millis();
        duration.map_err(|e| error(py, &e))
    }

    /// What `set_wrapper` was given, while it lives.
    fn wrapper<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let span = self.span.get()?;
        let slot = span.attached::<Mutex<Option<Py<PyWeakrefReference>>>>()?;
        lock(slot)
            .as_ref()?
            .bind(py)
            .call0()
            .ok()
            .filter(|o| !o.is_none())
    }

    /// Remembers an object of another library's for this span, weakly; all Python objects of this span know it.
    fn set_wrapper(&self, wrapper: &Bound<'_, PyAny>) -> PyResult<()> {
        let reference = PyWeakrefReference::new(wrapper)?.unbind();
        if let Some(slot) = self
            .span
            .get()
            .and_then(|s| s.attach::<Mutex<Option<Py<PyWeakrefReference>>>>(Mutex::default))
        {
            *lock(slot) = Some(reference);
        }
        Ok(())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let other = other.cast::<Span>();
        let other = other.as_ref().ok().and_then(|o| o.get().span.get());
        other.is_some() && other == self.span.get()
    }

    fn __hash__(&self) -> u64 {
        self.span.get().map_or(0, |span| span.id().otlp())
    }

    fn __repr__(&self) -> String {
        match self.span.get() {
            Some(span) => format!(
                "<Span {:?} {}{}>",
                span.name(),
                span.id(),
                if span.is_active() { "" } else { " stopped" }
            ),
            None => "<Span, not recorded>".to_owned(),
        }
    }
}

/// Something at one moment: a name and attributes. It does not change.
#[pyclass(module = "warptrace", frozen)]
pub(crate) struct Event(pub(crate) Arc<sdk::Event>);

#[pymethods]
impl Event {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// With `timestamp_msec`.
    #[getter]
    fn attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        value::dict(py, self.0.attributes().as_object())
    }

    /// Without `timestamp_msec`.
    #[getter]
    fn own_attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        value::dict(py, self.0.own_attributes().as_object())
    }

    #[getter]
    fn unix_ns(&self) -> i64 {
        self.0.at().unix_nanos()
    }

    /// s since the epoch, and s of `time.perf_counter()`.
    #[getter]
    fn timestamp(&self) -> (f64, f64) {
        (self.0.at().unix_secs(), self.0.at().perf_secs())
    }

    fn __repr__(&self) -> String {
        format!("<Event {:?}>", self.0.name())
    }
}

/// Where spans go. Subclasses override what they want to hear of; an exception in one of these methods is a failed export: it is
/// counted, reported to this exporter once, and after five in a row the exporter is left out.
///
/// Its methods are called in a thread of the recorder, or, where the exporter is given as direct, in the thread that records.
#[pyclass(module = "warptrace", subclass, frozen)]
struct Exporter;

#[pymethods]
impl Exporter {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> Exporter {
        let _ = (args, kwargs);
        Exporter
    }

    fn initialize(&self) {}

    fn start(&self, span: &Bound<'_, PyAny>) {
        let _ = span;
    }

    fn stop(&self, span: &Bound<'_, PyAny>) {
        let _ = span;
    }

    fn event(&self, event: &Bound<'_, PyAny>, span: &Bound<'_, PyAny>) {
        let _ = (event, span);
    }

    fn error(&self, event: &Bound<'_, PyAny>, span: &Bound<'_, PyAny>) {
        let _ = (event, span);
    }

    fn data_error(&self, event: &Bound<'_, PyAny>) {
        let _ = event;
    }

    fn flush(&self) {}

    fn close(&self) {}
}

/// A Python exporter, as the SDK calls it.
struct PythonExporter {
    object: Py<PyAny>,
}

impl PythonExporter {
    fn call<'py, A>(&self, py: Python<'py>, method: &str, args: A) -> Result<(), ExportError>
    where
        A: pyo3::call::PyCallArgs<'py>,
    {
        match self.object.bind(py).call_method1(method, args) {
            Ok(_) => Ok(()),
            Err(e) => {
                let text = e.value(py).str();
                let text =
                    text.map_or_else(|_| e.to_string(), |s| s.to_string_lossy().into_owned());
                Err(ExportError::new(text).with_code("raised"))
            }
        }
    }

    fn attached<T>(
        call: impl FnOnce(Python<'_>) -> Result<T, ExportError>,
    ) -> Result<T, ExportError> {
        let ends = || Err(ExportError::new("the interpreter ends").with_code("interpreter_ends"));
        Python::try_attach(call).unwrap_or_else(ends)
    }
}

impl sdk::Exporter for PythonExporter {
    fn initialize(&self) -> Result<(), ExportError> {
        PythonExporter::attached(|py| self.call(py, "initialize", ()))
    }

    fn start(&self, span: &sdk::Span) -> Result<(), ExportError> {
        PythonExporter::attached(|py| self.call(py, "start", (Span::started(span.clone(), None),)))
    }

    fn stop(&self, span: &sdk::Span) -> Result<(), ExportError> {
        PythonExporter::attached(|py| self.call(py, "stop", (Span::started(span.clone(), None),)))
    }

    fn event(&self, event: &sdk::Event, span: &sdk::Span) -> Result<(), ExportError> {
        PythonExporter::attached(|py| {
            let event = Event(Arc::new(event.clone()));
            self.call(py, "event", (event, Span::started(span.clone(), None)))
        })
    }

    fn error(&self, event: &sdk::Event, span: &sdk::Span) -> Result<(), ExportError> {
        PythonExporter::attached(|py| {
            let event = Event(Arc::new(event.clone()));
            self.call(py, "error", (event, Span::started(span.clone(), None)))
        })
    }

    fn data_error(&self, event: &sdk::Event) -> Result<(), ExportError> {
        PythonExporter::attached(|py| {
            self.call(py, "data_error", (Event(Arc::new(event.clone())),))
        })
    }

    fn flush(&self, _: Duration) -> Result<(), ExportError> {
        PythonExporter::attached(|py| self.call(py, "flush", ()))
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        PythonExporter::attached(|py| self.call(py, "close", ()))
    }
}

/// An exporter of the SDK's own, until a recorder takes it.
#[pyclass(module = "warptrace", subclass, frozen)]
pub(crate) struct NativeExporter(Mutex<Option<Box<dyn sdk::Exporter>>>);

impl NativeExporter {
    pub(crate) fn new(exporter: Box<dyn sdk::Exporter>) -> NativeExporter {
        NativeExporter(Mutex::new(Some(exporter)))
    }
}

/// Keeps finished spans, at most 100,000.
#[pyclass(module = "warptrace", frozen, extends = NativeExporter)]
struct MemoryExporter(sdk::MemoryExporter);

#[pymethods]
impl MemoryExporter {
    #[new]
    fn new() -> PyClassInitializer<MemoryExporter> {
        let kept = sdk::MemoryExporter::default();
        let native = NativeExporter::new(Box::new(kept.clone()));
        PyClassInitializer::from(native).add_subclass(MemoryExporter(kept))
    }

    /// The spans that were stopped, as dictionaries, in that order.
    fn finished<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for span in self.0.finished() {
            let dict = PyDict::new(py);
            dict.set_item("name", &*span.name)?;
            dict.set_item("id", span.id.to_string())?;
            dict.set_item("trace_id", span.trace)?;
            dict.set_item("span_id", span.id.otlp())?;
            dict.set_item("parent_span_id", span.parent)?;
            dict.set_item("start_unix_ns", span.start.0)?;
            dict.set_item("end_unix_ns", span.end.map(|end| end.0))?;
            dict.set_item("attributes", value::dict(py, &span.attributes)?)?;
            dict.set_item("error", span.error.as_deref())?;
            let events = PyList::empty(py);
            for event in &span.events {
                let attributes = value::dict(py, &event.attributes)?;
                events.append((&*event.name, event.at.0, attributes))?;
            }
            dict.set_item("events", events)?;
            list.append(dict)?;
        }
        Ok(list)
    }
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
        let name = object.get_type().name()?.to_string();
        if let Ok(native) = object.cast::<NativeExporter>() {
            let Some(exporter) = lock(&native.get().0).take() else {
                return Err(PyValueError::new_err(format!(
                    "this {name} has a recorder already"
                )));
            };
            builder = match direct {
                true => builder.direct_exporter(&name, exporter),
                false => builder.exporter(&name, exporter),
            };
            continue;
        }
        let exporter = Box::new(PythonExporter {
            object: object.unbind(),
        });
        builder = match direct {
            true => builder.direct_exporter(&name, exporter),
            false => builder.exporter(&name, exporter),
        };
    }
    Ok(builder)
}

pub(crate) fn secs(timeout: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|_| PyValueError::new_err(format!("timeout_secs={timeout}: not a time")))
}

#[pymethods]
impl Recorder {
    #[new]
    #[pyo3(signature = (exporters=Vec::new(), *, direct=false, include=None, exclude=None, on_error="continue", enabled=true, queue_items=None, failures_in_a_row=true))]
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
        let recorder = builder.build().map_err(|e| error(py, &e))?;
        Ok(Recorder::known(recorder))
    }

    /// A span that starts when its block is entered.
    #[pyo3(signature = (name, attributes=None))]
    fn span(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        attributes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Span> {
        scope(py, &self.0, name, attributes)
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
            ..self::exception(py, e, false)
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
            .data_error(message, self::attributes(py, attributes)?);
        said.map(|_| ()).map_err(|e| error(py, &e))
    }

    /// The latest span of this context that is active.
    fn current_span(&self) -> Option<Span> {
        let span = self.0.current_span()?;
        Some(Span::started(span, Some(self.0.clone())))
    }

    /// Spans of that name that are open, in the order in which they were started.
    fn open_spans(&self, py: Python<'_>, name: &str) -> PyResult<Vec<Span>> {
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
) -> PyResult<Span> {
    if !recorder.is_on() {
        return Ok(off(name, attributes));
    }
    let mut start = Start::named(name.to_string_lossy().into_owned());
    if attributes.is_some() {
        start = start.attributes(attributes_for(py, recorder, attributes)?);
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
        Some(recorder) => scope(py, &recorder, name, attributes)?,
        None => off(name, attributes),
    };
    let of_global = true;
    Bound::new(py, Span { of_global, ..span })
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
