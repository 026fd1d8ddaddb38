//! Spans and events.
//!
//! The latest span of a context is in a `contextvars.ContextVar`, as Python's other tracers do it: tasks copy it when they are
//! made, threads begin without.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyWeakrefReference};
use warptrace_sdk::span::{
    self as sdk, Attributes, Current, End, Exception, Start, Strategy, Timestamp,
};

use crate::value;

mod exporter;
mod recorder;

pub(crate) use exporter::NativeExporter;
pub(crate) use recorder::{Recorder, builder, clocked};

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
    module.add("SpanError", module.py().get_type::<SpanError>())?;
    exporter::register(module)?;
    recorder::register(module)
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
                    // Now it has: the call that starts it may fail afterwards, and the span is the latest nevertheless.
                    .inspect(|o| drop(o.get().span.set(span.clone())))
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

/// The Python object of a span that `start` starts; `raised` makes an exception of its error.
pub(crate) fn started_by<'py>(
    py: Python<'py>,
    recorder: &sdk::Recorder,
    start: impl FnOnce() -> Result<Option<sdk::Span>, sdk::Error>,
    raised: fn(Python<'_>, &sdk::Error) -> PyErr,
) -> PyResult<Option<Bound<'py, Span>>> {
    let object = Bound::new(py, Span::pending(Some(recorder.clone()), Pending::Nothing))?;
    AT_HAND.set(Some(object.clone().unbind()));
    let started = start();
    drop(AT_HAND.take());
    Ok(started.map_err(|e| raised(py, &e))?.map(|span| {
        let _ = object.get().span.set(span);
        object
    }))
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
