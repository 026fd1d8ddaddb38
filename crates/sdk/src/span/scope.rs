//! Spans by blocks of code: a guard, a closure, a future.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use warptrace_model::Value;

use super::{Attributes, End, Event, Exception, Recorder, Span, Start};

/// A span that ends with its scope. Off, it is empty, and everything on it does nothing.
#[must_use = "the span ends when this is dropped"]
#[derive(Debug)]
pub struct Scope {
    open: Option<(Recorder, Span)>,
}

impl Scope {
    /// `None` when nothing is recorded.
    pub fn span(&self) -> Option<&Span> {
        self.open.as_ref().map(|(_, span)| span)
    }

    /// Adds an attribute, or replaces the one of that name; a list of several kinds is left out.
    pub fn set(&self, name: &str, value: impl Into<Value>) -> &Scope {
        if let Some((_, span)) = &self.open {
            let _ = span.set(name, value);
        }
        self
    }

    /// Something happened now.
    pub fn event(&self, name: impl Into<Cow<'static, str>>, attributes: Attributes) -> &Scope {
        if let Some((recorder, span)) = &self.open {
            let event = Event::new(name, recorder.now(), attributes);
            let _ = recorder.event(span, event);
        }
        self
    }

    /// It went wrong.
    pub fn error<E: std::error::Error + ?Sized>(&self, error: &E) -> &Scope {
        if let Some((recorder, span)) = &self.open {
            let message = format!("Error in {}: ", span.name());
            let _ = recorder.error(span, &message, Some(&Exception::of(error)));
        }
        self
    }

    /// Ends here, with attributes of the event of its end.
    pub fn end(mut self, event_attributes: Attributes) {
        self.stop(event_attributes);
    }

    fn stop(&mut self, event_attributes: Attributes) {
        if let Some((recorder, span)) = self.open.take() {
            let end = End {
                event_attributes,
                at: None,
            };
            let _ = recorder.stop(&span, end);
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some((recorder, span)) = &self.open
            && std::thread::panicking()
        {
            let panic = Exception {
                kind: "panic".into(),
                ..Exception::default()
            };
            let message = format!("Error in {}: ", span.name());
            let _ = recorder.error(span, &message, Some(&panic));
        }
        self.stop(Attributes::new());
    }
}

impl Recorder {
    /// A span until the scope ends. Never fails: what is wrong is counted, and signalled by the exporters.
    ///
    /// ```
    /// # let recorder = warptrace_sdk::span::Recorder::off();
    /// let step = recorder.span("train.step");
    /// step.set("loss", 0.25);
    /// ```
    pub fn span(&self, name: impl Into<Cow<'static, str>>) -> Scope {
        match self.is_on() {
            true => self.scope(Start::named(name)),
            false => Scope { open: None },
        }
    }

    /// The same, with more said at its start.
    pub fn scope(&self, start: Start) -> Scope {
        let span = self.start(start).ok().flatten();
        Scope {
            open: span.map(|span| (self.clone(), span)),
        }
    }

    /// A span around a call.
    pub fn in_span<T>(
        &self,
        name: impl Into<Cow<'static, str>>,
        call: impl FnOnce(&Scope) -> T,
    ) -> T {
        call(&self.span(name))
    }

    /// A span around a call that can fail: its error is recorded, and passes through as it is.
    ///
    /// # Errors
    /// What `call` gives.
    pub fn try_in_span<T, E: std::error::Error>(
        &self,
        name: impl Into<Cow<'static, str>>,
        call: impl FnOnce(&Scope) -> Result<T, E>,
    ) -> Result<T, E> {
        let scope = self.span(name);
        let result = call(&scope);
        if let Err(e) = &result {
            scope.error(e);
        }
        result
    }

    /// A span around a future: from its first poll to its end, and the latest span while it is polled, on whichever thread.
    pub fn instrument<F: Future>(&self, start: Start, future: F) -> InSpan<F> {
        InSpan {
            recorder: self.clone(),
            start: Some(start),
            scope: None,
            future: Box::pin(future),
        }
    }
}

/// A future in a span: see [`Recorder::instrument`].
#[must_use = "futures do nothing unless they are polled"]
pub struct InSpan<F> {
    recorder: Recorder,
    start: Option<Start>,
    scope: Option<Scope>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let before = this.recorder.latest();
        if let Some(start) = this.start.take() {
            this.scope = Some(this.recorder.scope(start));
        } else if let Some(span) = this.scope.as_ref().and_then(Scope::span) {
            this.recorder.set_current(Some(span));
        }
        let polled = this.future.as_mut().poll(context);
        if polled.is_ready() {
            this.scope = None;
        }
        this.recorder.set_current(before.as_ref());
        polled
    }
}

static GLOBAL: OnceLock<Recorder> = OnceLock::new();

/// Makes `recorder` the process's own; `false` when there is one already.
pub fn install(recorder: Recorder) -> bool {
    GLOBAL.set(recorder).is_ok()
}

/// The process's own recorder; one that is off until there is one. Cost: one load.
pub fn global() -> &'static Recorder {
    static OFF: OnceLock<Recorder> = OnceLock::new();
    GLOBAL
        .get()
        .unwrap_or_else(|| OFF.get_or_init(Recorder::off))
}
