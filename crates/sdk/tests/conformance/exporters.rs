//! The exporters of the scenarios.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use warptrace_sdk::exporter::{Existing, JsonlFile, Keys, LogLines};
use warptrace_sdk::span::{Event, ExportError, Exporter, Span};

use crate::json::{of_event, of_span, placeholder};
use crate::world::Contexts;

/// An exporter of a scenario, and where to see what it got.
pub(crate) enum Kind {
    Recording(Recording),
    File { path: PathBuf },
    Logger { lines: Arc<Mutex<Vec<String>>> },
}

impl Kind {
    /// `None` for one that there is no equivalent of in Rust.
    pub(crate) fn new(kind: &str, folder: &Path, name: &str, contexts: &Contexts) -> Option<Kind> {
        match kind {
            "recording" => Some(Kind::Recording(Recording::new(contexts))),
            "file" => Some(Kind::File {
                path: folder.join(format!("{name}.jsonl")),
            }),
            "logger" => Some(Kind::Logger {
                lines: Arc::default(),
            }),
            _ => None,
        }
    }

    pub(crate) fn exporter(&self) -> Box<dyn Exporter> {
        match self {
            Kind::Recording(recording) => Box::new(recording.clone()),
            Kind::File { path } => Box::new(
                JsonlFile::new(path)
                    .existing(Existing::Truncate)
                    .keys(Keys::OneLogger)
                    .merge_starts(true)
                    .each_record(),
            ),
            Kind::Logger { lines } => {
                let lines = Arc::clone(lines);
                let log = move |line: &str| {
                    lines.lock().unwrap().push(line.to_owned());
                    Ok(())
                };
                Box::new(LogLines::new(log).keys(Keys::OneLogger).merge_starts(true))
            }
        }
    }

    /// What it got, in the vectors' notation.
    pub(crate) fn got(&self, contexts: &Contexts) -> Json {
        match self {
            Kind::Recording(recording) => {
                Json::Array(recording.inner.lock().unwrap().calls.clone())
            }
            Kind::File { path } => match std::fs::read_to_string(path) {
                Err(_) => Json::Null,
                Ok(text) => {
                    let lines = text.lines().map(|line| {
                        let mut record =
                            serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
                        relabel(&mut record, contexts);
                        record
                    });
                    lines.collect()
                }
            },
            Kind::Logger { lines } => {
                let lines = lines.lock().unwrap();
                let pid = format!("pid={}", std::process::id());
                let shown = lines.iter().map(|line| {
                    let line = contexts.relabel(line).replace(&pid, "pid=<pid>");
                    json!(["INFO", line])
                });
                shown.collect()
            }
        }
    }
}

/// Labels for ids, and placeholders for what differs from machine to machine.
fn relabel(record: &mut Json, contexts: &Contexts) {
    for key in ["id", "span_id"] {
        if let Some(Json::String(id)) = record.get_mut(key) {
            *id = contexts.relabel(id);
        }
    }
    assert_eq!(record["pid"], std::process::id());
    record["pid"] = json!("<pid>");
    for of in ["error", "event"] {
        if let Some(Json::String(message)) =
            record.pointer_mut(&format!("/{of}/attributes/error_message"))
        {
            *message = placeholder(message, "FileExporter");
        }
    }
}

/// Keeps every call, and fails when it is told to.
#[derive(Clone)]
pub(crate) struct Recording {
    contexts: Contexts,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    calls: Vec<Json>,
    ready: bool,
    closed: bool,
    /// The method, or `*`; how often; the exception's type.
    failures: Vec<(String, u64, String)>,
}

const CLASS: &str = "RecordingExporter";

impl Recording {
    pub(crate) fn new(contexts: &Contexts) -> Recording {
        Recording {
            contexts: contexts.clone(),
            inner: Arc::default(),
        }
    }

    pub(crate) fn state(&self) -> Json {
        let inner = self.inner.lock().unwrap();
        json!({"ready": inner.ready, "closed": inner.closed})
    }

    pub(crate) fn inject(&self, method: &str, count: u64, exception: &str) {
        let failure = (method.to_owned(), count, exception.to_owned());
        self.inner.lock().unwrap().failures.push(failure);
    }

    fn call(&self, method: &str, mut call: Json) -> Result<(), ExportError> {
        let mut inner = self.inner.lock().unwrap();
        let failure = inner
            .failures
            .iter_mut()
            .find(|(which, left, _)| *left > 0 && (which == "*" || which == method));
        let exception = failure.map(|(_, left, exception)| {
            *left -= 1;
            exception.clone()
        });
        call["call"] = json!(method);
        if exception.is_some() {
            call["failed"] = json!(true);
        }
        inner.calls.push(call);
        match exception.as_deref() {
            None => Ok(()),
            Some("ExportError") => Err(ExportError::new("injected failure")),
            // Another exception: in Rust, somebody else's error behind it.
            Some(_) => Err(ExportError::of("injected failure", "of another type")),
        }
    }

    fn span(&self, span: &Span, event: &Event) -> Json {
        json!({"span": of_span(span, &self.contexts), "event": of_event(event, CLASS)})
    }

    fn event(&self, span: &Span, event: &Event) -> Json {
        json!({"span_id": self.contexts.label(span.id()), "event": of_event(event, CLASS)})
    }
}

impl Exporter for Recording {
    fn initialize(&self) -> Result<(), ExportError> {
        self.call("initialize", json!({}))?;
        let mut inner = self.inner.lock().unwrap();
        (inner.ready, inner.closed) = (true, false);
        Ok(())
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.call("export_start", self.span(span, span.start_event()))
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let stop = span.stop_event().expect("it was stopped");
        self.call("export_stop", self.span(span, &stop))
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.call("export_event", self.event(span, event))
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.call("export_error", self.event(span, event))
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        let kind = event.own_attributes().get_str("telemetry_data_error_type");
        let call = json!({"error_type": kind.unwrap(), "event": of_event(event, CLASS)});
        self.call("export_telemetry_data_error", call)
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        let closed = self.call("close", json!({}));
        let mut inner = self.inner.lock().unwrap();
        (inner.ready, inner.closed) = (false, true);
        closed
    }
}
