//! Several exporters as one, and none.

use std::time::{Duration, Instant};

use crate::span::{Event, ExportError, Exporter, Interest, Span};

/// Gives everything to each of its exporters, in order. A failure of one keeps nothing from the others, and is the failure of all:
/// give exporters to the recorder one by one where each should be judged alone.
pub struct Tee(Vec<Box<dyn Exporter>>);

impl Tee {
    pub fn new(exporters: Vec<Box<dyn Exporter>>) -> Tee {
        Tee(exporters)
    }

    /// All of them, whatever fails; the first failure.
    fn each(
        &self,
        mut call: impl FnMut(&dyn Exporter) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut result = Ok(());
        for exporter in &self.0 {
            result = result.and(call(&**exporter));
        }
        result
    }
}

impl Exporter for Tee {
    /// Those before the first that fails are closed again.
    fn initialize(&self) -> Result<(), ExportError> {
        for (ready, exporter) in self.0.iter().enumerate() {
            if let Err(e) = exporter.initialize() {
                for exporter in &self.0[..ready] {
                    let _ = exporter.close(Duration::ZERO);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// What the one that wants most wants.
    fn interest(&self) -> Interest {
        let all = self.0.iter().map(|e| e.interest());
        all.min().unwrap_or_default()
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.each(|e| e.start(span))
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        self.each(|e| e.stop(span))
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.each(|e| e.event(event, span))
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.each(|e| e.error(event, span))
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        self.each(|e| e.data_error(event))
    }

    fn flush(&self, patience: Duration) -> Result<(), ExportError> {
        let began = Instant::now();
        self.each(|e| e.flush(patience.saturating_sub(began.elapsed())))
    }

    fn close(&self, patience: Duration) -> Result<(), ExportError> {
        let began = Instant::now();
        self.each(|e| e.close(patience.saturating_sub(began.elapsed())))
    }

    fn dropped(&self) -> u64 {
        self.0.iter().map(|e| e.dropped()).sum()
    }
}

/// Takes everything and does nothing with it: for measuring, and for a configuration that wants no exporter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Exporter for Discard {
    fn interest(&self) -> Interest {
        Interest::Finished
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, _: &Span) -> Result<(), ExportError> {
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
}
