//! Where spans go, and what happens when that fails.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::event::{DataLoss, Event};
use super::scopes::{Batch, Places};
use super::{Attributes, Span, Timestamp};

/// Why an exporter did not take something.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    message: String,
    code: &'static str,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ExportError {
    /// Any failure, by its message.
    pub fn new(message: impl Into<String>) -> ExportError {
        ExportError {
            message: message.into(),
            code: "export_failed",
            source: None,
        }
    }

    /// The same, with a word that programs can tell it by.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> ExportError {
        self.code = code;
        self
    }

    /// A failure of something else, of which `message` says what was being done.
    pub fn of(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ExportError {
        ExportError {
            source: Some(source.into()),
            ..ExportError::new(message)
        }
    }

    pub const fn code(&self) -> &'static str {
        self.code
    }
}

/// What an exporter wants to hear; the first is the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Interest {
    #[default]
    Everything,
    /// Of a span its stop alone, when it has all of its events; and data errors. Its start and its events cost nothing then.
    Stops,
    /// The same, of the span alone: what it is a part of may be no more than an id ([`Span::parent_link`]). Costs least.
    Finished,
}

/// Takes what a recorder records: each span twice, at its start and at its stop, and the events between.
///
/// All methods may be called from any thread; those of one span come in order. A failure is counted, reported to this exporter
/// alone, and after [`FailureLimit`] the exporter is left out. It never reaches the program.
pub trait Exporter: Send + Sync {
    /// Called once, before anything else, by whoever builds the recorder.
    ///
    /// # Errors
    /// Then there is no recorder.
    fn initialize(&self) -> Result<(), ExportError> {
        Ok(())
    }

    /// What it is called for. Asked once.
    fn interest(&self) -> Interest {
        Interest::Everything
    }

    /// A span has begun.
    ///
    /// # Errors
    /// Any: see the trait.
    fn start(&self, span: &Span) -> Result<(), ExportError>;

    /// A span has ended; it has all of its attributes and events.
    ///
    /// # Errors
    /// Any: see the trait.
    fn stop(&self, span: &Span) -> Result<(), ExportError>;

    /// Something has happened in a span, which is still open.
    ///
    /// # Errors
    /// Any: see the trait.
    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError>;

    /// An error of the program in a span.
    ///
    /// # Errors
    /// Any: see the trait.
    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError>;

    /// What this exporter was given so far is not all, or not to be relied on.
    ///
    /// # Errors
    /// Any: see the trait.
    fn data_error(&self, event: &Event) -> Result<(), ExportError>;

    /// Brings out what it holds back, within `patience`; called when there is nothing more for now.
    ///
    /// # Errors
    /// When it could not.
    fn flush(&self, patience: Duration) -> Result<(), ExportError> {
        let _ = patience;
        Ok(())
    }

    /// Brings out what it holds back, within `patience`, and lets go of what it has. Called once.
    ///
    /// # Errors
    /// When it could not.
    fn close(&self, patience: Duration) -> Result<(), ExportError>;

    /// What it was given and did not bring out.
    fn dropped(&self) -> u64 {
        0
    }
}

impl Exporter for Box<dyn Exporter> {
    fn initialize(&self) -> Result<(), ExportError> {
        (**self).initialize()
    }

    fn interest(&self) -> Interest {
        (**self).interest()
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        (**self).start(span)
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        (**self).stop(span)
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        (**self).event(event, span)
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        (**self).error(event, span)
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        (**self).data_error(event)
    }

    fn flush(&self, patience: Duration) -> Result<(), ExportError> {
        (**self).flush(patience)
    }

    fn close(&self, patience: Duration) -> Result<(), ExportError> {
        (**self).close(patience)
    }

    fn dropped(&self) -> u64 {
        (**self).dropped()
    }
}

/// When an exporter that fails is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureLimit {
    pub failures: u32,
    /// Whether only failures in a row count, or all since the beginning.
    pub in_a_row: bool,
}

impl Default for FailureLimit {
    fn default() -> FailureLimit {
        FailureLimit {
            failures: 5,
            in_a_row: true,
        }
    }
}

thread_local! {
    /// This thread is within an exporter's call: what is recorded there is not exported, or it would go on for ever.
    static EXPORTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `export` with calls of recorders in it not exported.
pub(super) fn exporting<T>(export: impl FnOnce() -> T) -> T {
    let before = EXPORTING.replace(true);
    let done = export();
    EXPORTING.set(before);
    done
}

#[inline]
pub(super) fn is_exporting() -> bool {
    EXPORTING.get()
}

/// Something to be exported.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Start(Span),
    Stop(Span),
    /// Scopes' spans, stopped.
    Ended(Batch),
    Event(Arc<Event>, Span),
    Error(Arc<Event>, Span),
    /// By the recorder; `loss` is chosen for each exporter by what it had.
    DataError(Arc<str>, Arc<Attributes>, Timestamp),
}

/// An exporter, and how it fares.
pub(super) struct Outlet {
    pub(super) exporter: Box<dyn Exporter>,
    /// For its reports.
    pub(super) name: Box<str>,
    pub(super) interest: Interest,
    limit: FailureLimit,
    failures: AtomicU32,
    any_success: AtomicBool,
    disabled: AtomicBool,
    reported: AtomicBool,
    /// Items that it refused, or was not given since it is left out.
    pub(super) refused: AtomicU64,
}

impl Outlet {
    pub(super) fn new(exporter: Box<dyn Exporter>, name: &str, limit: FailureLimit) -> Outlet {
        Outlet {
            interest: exporter.interest(),
            exporter,
            name: name.into(),
            limit,
            failures: AtomicU32::new(0),
            any_success: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// Gives it `item`. A first failure is reported to it, at `now`. Gives back what can be filled again.
    pub(super) fn deliver(&self, item: Item, now: impl Fn() -> Timestamp) -> Option<Places> {
        let Item::Ended(mut batch) = item else {
            self.deliver_one(&item, now);
            return None;
        };
        for plain in batch.ended() {
            self.deliver_one(&Item::Stop(Span::of(plain)), &now);
        }
        Some(batch.places)
    }

    fn deliver_one(&self, item: &Item, now: impl FnOnce() -> Timestamp) {
        if self.is_disabled() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let exporter = &self.exporter;
        let give = || match item {
            Item::Start(span) => exporter.start(span),
            Item::Stop(span) => exporter.stop(span),
            Item::Ended(_) => unreachable!("they are delivered one by one"),
            Item::Event(event, span) => exporter.event(event, span),
            Item::Error(event, span) => exporter.error(event, span),
            Item::DataError(message, extra, at) => {
                if self.reported.swap(true, Ordering::Relaxed) {
                    return Ok(());
                }
                let event = Event::data_error(message, self.loss(), Some(extra), *at);
                exporter.data_error(&event)
            }
        };
        // An exporter that panics has failed; the program, whose thread this may be, goes on.
        let result = exporting(|| catch_unwind(AssertUnwindSafe(give)))
            .unwrap_or_else(|_| Err(ExportError::new("it panicked").with_code("panicked")));
        match result {
            Ok(()) => {
                // Read first: a store would be seen by all who export, each time.
                if !self.any_success.load(Ordering::Relaxed) {
                    self.any_success.store(true, Ordering::Relaxed);
                }
                if self.limit.in_a_row && self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
            }
            Err(e) => self.failed(&e, now),
        }
    }

    pub(super) fn failed(&self, error: &ExportError, now: impl FnOnce() -> Timestamp) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(
            exporter = &*self.name,
            failures,
            code = error.code(),
            "export failed: {error}"
        );
        self.report(&format!("{} failed: {error}", self.name), now);
        if failures >= self.limit.failures && !self.disabled.swap(true, Ordering::Relaxed) {
            tracing::error!(exporter = &*self.name, failures, "left out from now on");
        }
    }

    /// Tells the exporter, once in its life, that what it has is not all.
    pub(super) fn report(&self, message: &str, now: impl FnOnce() -> Timestamp) {
        if self.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        let event = Event::data_error(message, self.loss(), None, now());
        if let Err(e) = exporting(|| self.exporter.data_error(&event)) {
            tracing::error!(exporter = &*self.name, "export of the failure failed: {e}");
        }
    }

    fn loss(&self) -> DataLoss {
        if self.any_success.load(Ordering::Relaxed) {
            DataLoss::Incomplete
        } else {
            DataLoss::NoData
        }
    }
}
