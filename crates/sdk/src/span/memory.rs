//! Keeps what it is given: for tests, and for programs that look at their own spans.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use warptrace_model::SpanRecord;

use super::{Event, ExportError, Exporter, Interest, Span};
use crate::fork::{ForkMutex, Inherit};

/// Keeps finished spans, at most [`MemoryExporter::LIMIT`] of them. Clones share what is kept.
#[derive(Debug, Clone)]
pub struct MemoryExporter(Arc<ForkMutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    finished: Vec<SpanRecord>,
    dropped: u64,
}

impl Inherit for Kept {
    /// A child keeps its own.
    fn inherit(_: Option<&mut Kept>) -> Kept {
        Kept::default()
    }
}

impl Default for MemoryExporter {
    fn default() -> MemoryExporter {
        MemoryExporter(Arc::new(ForkMutex::new(Kept::default())))
    }
}

impl MemoryExporter {
    pub const LIMIT: usize = 100_000;

    /// The spans that were stopped, in that order.
    pub fn finished(&self) -> Vec<SpanRecord> {
        self.kept().finished.clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock()
    }
}

impl Exporter for MemoryExporter {
    fn interest(&self) -> Interest {
        Interest::Finished
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let mut kept = self.kept();
        if kept.finished.len() < MemoryExporter::LIMIT {
            kept.finished.push(span.record());
        } else {
            kept.dropped += 1;
        }
        Ok(())
    }

    fn event(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn error(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn data_error(&self, _: &Event) -> Result<(), ExportError> {
        Ok(())
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }

    fn dropped(&self) -> u64 {
        self.kept().dropped
    }
}
