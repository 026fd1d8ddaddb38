//! What a scenario runs in: a clock that stands still, contexts that can be copied, and labels for spans.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use warptrace_model::SpanId;
use warptrace_sdk::span::{Clock, Current, Span, Timestamp};

/// Stands still but for `advance`.
#[derive(Debug)]
pub(crate) struct StandingClock(Mutex<(f64, f64)>);

impl StandingClock {
    pub(crate) fn new() -> Arc<StandingClock> {
        Arc::new(StandingClock(Mutex::new((1_750_000_000.0, 1000.0))))
    }

    pub(crate) fn advance(&self, wall_secs: f64, perf_secs: f64) {
        let mut now = self.0.lock().unwrap();
        now.0 += wall_secs;
        now.1 += perf_secs;
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        let (wall, perf) = *self.0.lock().unwrap();
        Timestamp::from_secs(wall, perf)
    }
}

thread_local! {
    static CONTEXT: Cell<usize> = const { Cell::new(0) };
}

/// Latest spans by context, as a language with copyable contexts has them; and every span that was ever started, in order,
/// since a start makes it the latest.
#[derive(Clone, Default)]
pub(crate) struct Contexts(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    latest: HashMap<usize, Span>,
    contexts: usize,
    started: Vec<SpanId>,
}

impl Contexts {
    /// Makes a context: empty, or with what this thread's has. Spans are started in it after [`Contexts::enter`].
    pub(crate) fn make(&self, copy: bool) -> usize {
        let mut inner = self.0.lock().unwrap();
        inner.contexts += 1;
        let context = inner.contexts;
        if copy && let Some(latest) = inner.latest.get(&CONTEXT.get()).cloned() {
            inner.latest.insert(context, latest);
        }
        context
    }

    pub(crate) fn enter(context: usize) {
        CONTEXT.set(context);
    }

    /// `span-1` for the first that was started.
    pub(crate) fn label(&self, span: SpanId) -> String {
        let inner = self.0.lock().unwrap();
        let at = inner.started.iter().position(|id| *id == span);
        at.map_or_else(|| "unknown".into(), |at| format!("span-{}", at + 1))
    }

    /// `text` with labels for the ids in it.
    pub(crate) fn relabel(&self, text: &str) -> String {
        let started = self.0.lock().unwrap().started.clone();
        let labels = started.iter().enumerate();
        labels.fold(text.to_owned(), |text, (at, id)| {
            text.replace(&id.to_string(), &format!("span-{}", at + 1))
        })
    }
}

impl Current for Contexts {
    fn latest(&self) -> Option<Span> {
        self.0.lock().unwrap().latest.get(&CONTEXT.get()).cloned()
    }

    fn set(&self, span: Option<&Span>) {
        let mut inner = self.0.lock().unwrap();
        match span {
            Some(span) => {
                if !inner.started.contains(&span.id()) {
                    inner.started.push(span.id());
                }
                inner.latest.insert(CONTEXT.get(), span.clone());
            }
            None => _ = inner.latest.remove(&CONTEXT.get()),
        }
    }
}
