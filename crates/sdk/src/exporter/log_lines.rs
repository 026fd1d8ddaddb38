//! Records as lines of the program's log.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warptrace_formats::open_json;
use warptrace_formats::span_record::{Keys, log_line};
use warptrace_model::Value;

use super::records::{Form, Lines, Records, Sink};
use crate::span::{Event, ExportError, Exporter, Span};

/// Writes one line a record to a log: `[type="start" | name="train.step" | …]`.
///
/// See [`warptrace_formats::span_record::log_line`], which also reads it.
pub struct LogLines(Records<Target>);

type Put = dyn Fn(&str) -> Result<(), ExportError> + Send + Sync;

struct Target {
    put: Box<Put>,
    lost: AtomicU64,
}

impl LogLines {
    /// To whatever `log` does with a line, which has no line feed.
    pub fn new(log: impl Fn(&str) -> Result<(), ExportError> + Send + Sync + 'static) -> LogLines {
        LogLines::build(Box::new(log), Form::default())
    }

    /// To a writer, each line in one write.
    pub fn to_writer(writer: impl Write + Send + 'static) -> LogLines {
        let writer = Mutex::new(writer);
        LogLines::new(move |line| {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let line = format!("{line}\n");
            let written = writer.write_all(line.as_bytes());
            written
                .and_then(|()| writer.flush())
                .map_err(|e| ExportError::of("cannot write to the log", e))
        })
    }

    /// To `tracing`, level info, target `warptrace::spans`.
    pub fn to_tracing() -> LogLines {
        LogLines::new(|line| {
            tracing::info!(target: "warptrace::spans", "{line}");
            Ok(())
        })
    }

    /// Which keys records have. To be called before it is given to a recorder, as all of these.
    #[must_use]
    pub fn keys(self, keys: Keys) -> LogLines {
        let (put, form) = self.parts();
        LogLines::build(put, Form { keys, ..form })
    }

    /// Whether a start waits for what comes next, to be one `complete` record with its stop. A crash loses it.
    #[must_use]
    pub fn merge_starts(self, merge_starts: bool) -> LogLines {
        let (put, form) = self.parts();
        LogLines::build(
            put,
            Form {
                merge_starts,
                ..form
            },
        )
    }

    fn parts(self) -> (Box<Put>, Form) {
        let form = self.0.form();
        (self.0.sink.put, form)
    }

    fn build(put: Box<Put>, form: Form) -> LogLines {
        let lost = AtomicU64::new(0);
        LogLines(Records::new(Target { put, lost }, form))
    }
}

impl Sink for Target {
    type Process = ();

    fn put(&self, (): &mut (), lines: &mut Lines, _: bool) -> Result<(), ExportError> {
        let mut result = Ok(());
        let mut text = String::new();
        for line in lines.text.lines() {
            text.clear();
            match open_json::parse(line.as_bytes()) {
                Ok(Value::Object(record)) => log_line::write(&mut text, &record),
                // What we wrote is JSON, unless a value was nested deeper than anybody reads.
                _ => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    result = Err(ExportError::new("a value is nested too deeply"));
                    continue;
                }
            }
            if let Err(e) = (self.put)(&text) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                result = Err(e);
            }
        }
        lines.clear();
        result
    }
}

impl Exporter for LogLines {
    fn initialize(&self) -> Result<(), ExportError> {
        self.0.initialize(|()| Ok(()))
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.0.start(span)
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        self.0.stop(span)
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.0.event(event, span, false)
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.0.event(event, span, true)
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        self.0.data_error(event)
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        self.0.close(|()| {})
    }

    /// Records that the log refused.
    fn dropped(&self) -> u64 {
        self.0.sink.lost.load(Ordering::Relaxed)
    }
}
