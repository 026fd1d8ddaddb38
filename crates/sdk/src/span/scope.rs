//! Spans by blocks of code: a guard, a closure, a future.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use warptrace_model::Value;

use super::{Attributes, End, Event, Exception, Recorder, Span, Start};

/// A span that ends with its scope, in the thread that opened it. Off, it is empty, and everything on it does nothing.
#[must_use = "the span ends when this is dropped"]
#[derive(Debug)]
pub struct Scope<'r> {
    recorder: Option<&'r Recorder>,
    /// Of a plain span, in this thread.
    key: Option<u64>,
    /// Its span, when it is no plain one, or was asked for.
    span: OnceCell<Span>,
    /// What is plain is this thread's.
    this_thread: PhantomData<*const ()>,
}

impl<'r> Scope<'r> {
    const fn new(
        recorder: Option<&'r Recorder>,
        key: Option<u64>,
        span: OnceCell<Span>,
    ) -> Scope<'r> {
        Scope {
            recorder,
            key,
            span,
            this_thread: PhantomData,
        }
    }

    /// `None` when nothing is recorded. Cost: an allocation the first time, and the span costs what one costs that is started by
    /// hand.
    pub fn span(&self) -> Option<&Span> {
        if let (None, Some(recorder), Some(key)) = (self.span.get(), self.recorder, self.key)
            && let Some(span) = recorder.share(key)
        {
            let _ = self.span.set(span);
        }
        self.span.get()
    }

    /// Adds an attribute, or replaces the one of that name; a list of several kinds is left out.
    pub fn set(&self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> &Self {
        match (self.span.get(), self.recorder, self.key) {
            (Some(span), ..) => {
                let _ = span.set(&name.into(), value);
            }
            (None, Some(recorder), Some(key)) => recorder.set(key, name.into(), value.into()),
            _ => {}
        }
        self
    }

    /// Something happened now.
    pub fn event(&self, name: impl Into<Cow<'static, str>>, attributes: Attributes) -> &Self {
        if let Some(recorder) = self.recorder {
            let event = Event::new(name, recorder.now(), attributes);
            match (self.span.get(), self.key) {
                (Some(span), _) => {
                    let _ = recorder.event(span, event);
                }
                (None, Some(key)) => recorder.say(key, event),
                (None, None) => {}
            }
        }
        self
    }

    /// It went wrong.
    pub fn error<E: std::error::Error + ?Sized>(&self, error: &E) -> &Self {
        if let (Some(recorder), Some(span)) = (self.recorder, self.span()) {
            record_error(recorder, span, &Exception::of(error));
        }
        self
    }

    /// Ends here, with attributes of the event of its end.
    pub fn end(mut self, event_attributes: Attributes) {
        if event_attributes.is_empty() {
            return;
        }
        let _ = self.span();
        if let (Some(recorder), Some(span)) = (self.recorder.take(), self.span.take()) {
            stop(recorder, &span, self.key, event_attributes);
        }
    }

    /// A plain span has no attributes of its end.
    #[inline]
    fn stop(&mut self) {
        let Some(recorder) = self.recorder.take() else {
            return;
        };
        match (self.span.take(), self.key) {
            (Some(span), key) => stop(recorder, &span, key, Attributes::new()),
            (None, Some(key)) => recorder.end(key),
            (None, None) => {}
        }
    }
}

#[inline(never)]
fn stop(recorder: &Recorder, span: &Span, key: Option<u64>, event_attributes: Attributes) {
    if let Some(key) = key {
        recorder.forget(key);
    }
    let end = End {
        event_attributes,
        at: None,
    };
    let _ = recorder.stop(span, end);
}

fn record_error(recorder: &Recorder, span: &Span, exception: &Exception) {
    let message = format!("Error in {}: ", span.name());
    let _ = recorder.error(span, &message, Some(exception));
}

fn record_panic(recorder: &Recorder, span: &Span) {
    let panic = Exception {
        kind: "panic".into(),
        ..Exception::default()
    };
    record_error(recorder, span, &panic);
}

impl Drop for Scope<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking()
            && let (Some(recorder), Some(span)) = (self.recorder, self.span())
        {
            record_panic(recorder, span);
        }
        self.stop();
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
    pub fn span(&self, name: impl Into<Cow<'static, str>>) -> Scope<'_> {
        if !self.is_on() {
            return Scope::new(None, None, OnceCell::new());
        }
        match self.begin(name.into()) {
            Ok(key) => Scope::new(Some(self), Some(key), OnceCell::new()),
            Err(name) => self.scope(Start::named(name)),
        }
    }

    /// The same, with more said at its start.
    pub fn scope(&self, start: Start) -> Scope<'_> {
        match self.start(start) {
            Ok(Some(span)) => Scope::new(Some(self), None, OnceCell::from(span)),
            _ => Scope::new(None, None, OnceCell::new()),
        }
    }

    /// A span around a call.
    pub fn in_span<T>(
        &self,
        name: impl Into<Cow<'static, str>>,
        call: impl FnOnce(&Scope<'_>) -> T,
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
        call: impl FnOnce(&Scope<'_>) -> Result<T, E>,
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
            open: None,
            future: Box::pin(future),
        }
    }
}

/// A future in a span: see [`Recorder::instrument`].
#[must_use = "futures do nothing unless they are polled"]
pub struct InSpan<F> {
    recorder: Recorder,
    start: Option<Start>,
    open: Option<Span>,
    future: Pin<Box<F>>,
}

impl<F> InSpan<F> {
    fn stop(&mut self) {
        if let Some(span) = self.open.take() {
            if std::thread::panicking() {
                record_panic(&self.recorder, &span);
            }
            let _ = self.recorder.stop(&span, End::default());
        }
    }
}

impl<F> Drop for InSpan<F> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let before = this.recorder.latest();
        if let Some(start) = this.start.take() {
            this.open = this.recorder.start(start).ok().flatten();
        } else if this.open.is_some() {
            this.recorder.set_current(this.open.as_ref());
        }
        let polled = this.future.as_mut().poll(context);
        if polled.is_ready() {
            this.stop();
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
