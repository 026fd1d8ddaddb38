//! Exporters: Python's own, by subclassing, and those of the SDK.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use warptrace_sdk::span::{self as sdk, ExportError};
use warptrace_sdk::training::derived::{Derived, Running};

use super::{Event, Span};
use crate::value;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Exporter>()?;
    module.add_class::<NativeExporter>()?;
    module.add_class::<MemoryExporter>()?;
    module.add_function(wrap_pyfunction!(derive_exporter, module)?)
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
pub(crate) struct NativeExporter(pub(super) Mutex<Option<Box<dyn sdk::Exporter>>>);

impl NativeExporter {
    pub(crate) fn new(exporter: Box<dyn sdk::Exporter>) -> NativeExporter {
        NativeExporter(Mutex::new(Some(exporter)))
    }
}

/// The SDK's exporter for one of Python's or of its own, and the name of its class; an own one can be taken once.
pub(super) fn take(object: Bound<'_, PyAny>) -> PyResult<(String, Box<dyn sdk::Exporter>)> {
    let name = object.get_type().name()?.to_string();
    let Ok(native) = object.cast::<NativeExporter>() else {
        let object = object.unbind();
        return Ok((name, Box::new(PythonExporter { object })));
    };
    let taken = super::lock(&native.get().0).take();
    let exporter = taken.ok_or_else(|| {
        PyValueError::new_err(format!(
            "this {name} has a recorder, or another exporter, already"
        ))
    })?;
    Ok((name, exporter))
}

/// `exporter`, with events that are made of other events.
///
/// `running`: of each the event's name, its attribute, how many events make one, and the name of that. `only`: a function of an event
/// and its span, which says whether the event passes; where it raises, it does.
#[pyfunction]
#[pyo3(signature = (exporter, running, only))]
fn derive_exporter(
    exporter: Bound<'_, PyAny>,
    running: Vec<(String, String, u64, Option<String>)>,
    only: Option<Py<PyAny>>,
) -> PyResult<NativeExporter> {
    let (_, exporter) = take(exporter)?;
    let mut derived = Derived::new(exporter);
    for (event, attribute, every, name) in running {
        let running = Running::of(event, attribute).every(every);
        derived = derived.running(match name {
            Some(name) => running.as_event(name),
            None => running,
        });
    }
    if let Some(only) = only {
        derived = derived.only(move |event, span| {
            let passes = Python::try_attach(|py| {
                let event = Event(Arc::new(event.clone()));
                let span = Span::started(span.clone(), None);
                only.bind(py).call1((event, span))?.is_truthy()
            });
            passes.is_none_or(|passes| passes.unwrap_or(true))
        });
    }
    Ok(NativeExporter::new(Box::new(derived)))
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
