//! A span: a named unit of work, from its start until it is stopped.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use warptrace_model::{Object, SpanContext, SpanId, SpanRecord, Value};

use super::event::{attribute, name};
use super::scopes::{Plain, State, Within};
use super::{Attributes, Error, Event, Timestamp};
use crate::fork;

/// Events that a span keeps. Those beyond are exported as they happen, and counted, but not kept for the span's end.
/// What an OpenTelemetry SDK keeps by default (specification 1.50, "Span Limits").
pub const EVENTS_KEPT: usize = 128;

/// Where a span comes from.
#[derive(Debug, Clone, Default)]
pub enum Parent {
    #[default]
    None,
    Span(Span),
    /// A scope's that nobody has asked for: its id and its trace are all that is known of it here.
    Scope(SpanId, u128),
    /// Another library's, or another process's.
    Remote(SpanContext),
}

/// A unit of work. Clones are the same span.
///
/// It holds its parent, and its parent nothing of it: what a span costs does not depend on what others have collected.
#[derive(Clone)]
pub struct Span(Arc<Inner>);

struct Inner {
    id: SpanId,
    trace: u128,
    parent: Parent,
    name: Cow<'static, str>,
    start: Event,
    initial: Attributes,
    active: AtomicBool,
    /// Its place among a recorder's open spans.
    place: AtomicU32,
    /// In which process it was started; see [`Span::live`].
    generation: u32,
    /// In which thread it was started.
    thread: u32,
    live: Mutex<Live>,
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
}

#[derive(Default)]
struct Live {
    updated: Attributes,
    events: Vec<Arc<Event>>,
    dropped_events: u32,
    stop: Option<Stop>,
    error: Option<Box<str>>,
}

struct Stop {
    event: Event,
    duration_millis: i64,
    /// How many of `updated` were there before the duration.
    before: usize,
}

/// What a span is started with.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    pub(super) name: Cow<'static, str>,
    pub(super) parent: Parent,
    pub(super) attributes: Attributes,
    pub(super) event_attributes: Attributes,
}

impl Span {
    pub(super) fn new(id: SpanId, beginning: Beginning, at: Timestamp) -> Span {
        let trace = match &beginning.parent {
            Parent::None => id.to_bits(),
            Parent::Span(parent) => parent.0.trace,
            Parent::Scope(_, trace) => *trace,
            Parent::Remote(context) => context.trace,
        };
        Span(Arc::new(Inner {
            id,
            trace,
            parent: beginning.parent,
            name: beginning.name,
            start: Event::new(name::SPAN_START, at, beginning.event_attributes),
            initial: beginning.attributes,
            active: AtomicBool::new(true),
            place: AtomicU32::new(u32::MAX),
            generation: fork::generation(),
            thread: fork::thread_id(),
            live: Mutex::default(),
            attached: OnceLock::new(),
        }))
    }

    /// Of a scope's.
    pub(super) fn of(plain: Plain) -> Span {
        let said = plain.said.map(|said| *said).unwrap_or_default();
        let set = said.set.into_iter();
        let set = set.map(|(name, value)| (name.into(), value));
        let span = Span(Arc::new(Inner {
            id: plain.id,
            trace: plain.trace,
            parent: match plain.within {
                Within::None => Parent::None,
                Within::Scope(id) => Parent::Scope(id, plain.trace),
                Within::Span(span) => Parent::Span(span),
            },
            name: plain.name,
            start: Event::new(name::SPAN_START, plain.start, Attributes::new()),
            initial: Attributes::new(),
            active: AtomicBool::new(true),
            place: AtomicU32::new(u32::MAX),
            generation: fork::generation(),
            thread: plain.thread,
            live: Mutex::new(Live {
                updated: Attributes::unchecked(Object::from_pairs(set.collect())),
                events: said.events.into_iter().map(Arc::new).collect(),
                dropped_events: said.dropped_events,
                ..Live::default()
            }),
            attached: OnceLock::new(),
        }));
        if plain.state == State::Ended {
            span.stop(Attributes::new(), plain.end);
        }
        span
    }

    pub fn id(&self) -> SpanId {
        self.0.id
    }

    pub(super) fn trace(&self) -> u128 {
        self.0.trace
    }

    /// Its identity for other libraries.
    pub fn context(&self) -> SpanContext {
        SpanContext {
            trace: self.0.trace,
            span: self.0.id.otlp(),
        }
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The span of this process that it is a part of, if it is more than an id: see [`Parent::Scope`].
    pub fn parent(&self) -> Option<&Span> {
        match &self.0.parent {
            Parent::Span(parent) => Some(parent),
            _ => None,
        }
    }

    /// What it is a part of, be it another library's.
    pub fn parent_link(&self) -> &Parent {
        &self.0.parent
    }

    /// The thread that started it, as the operating system counts them.
    pub fn thread_id(&self) -> u32 {
        self.0.thread
    }

    /// When it ended, ns since the Unix epoch: as long after its start as the monotonic clock says. `None` while it is active.
    pub fn end_unix_nanos(&self) -> Option<i64> {
        let live = self.live()?;
        Some(self.end_nanos(live.stop.as_ref()?))
    }

    fn end_nanos(&self, stop: &Stop) -> i64 {
        let start = self.0.start.at();
        let nanos = stop.event.at().secs_since(start) * 1e9;
        start.unix_nanos().saturating_add(nanos.round() as i64)
    }

    pub fn is_active(&self) -> bool {
        self.0.active.load(Ordering::Acquire)
    }

    /// The nearest span that is active: this one, or one that it is a part of.
    pub(super) fn nearest_active(&self) -> Option<&Span> {
        let mut span = Some(self);
        while let Some(s) = span.filter(|s| !s.is_active()) {
            span = s.parent();
        }
        span
    }

    /// The event of its start.
    pub fn start_event(&self) -> &Event {
        &self.0.start
    }

    /// The event of its stop; `None` while it is active.
    pub fn stop_event(&self) -> Option<Arc<Event>> {
        Some(Arc::new(self.live()?.stop.as_ref()?.event.clone()))
    }

    /// The events between its start and its stop, at most [`EVENTS_KEPT`] of them.
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.live()
            .map_or_else(Vec::new, |live| live.events.clone())
    }

    /// Events that were recorded but are not in [`Span::events`].
    pub fn dropped_events(&self) -> u32 {
        self.live().map_or(0, |live| live.dropped_events)
    }

    /// What went wrong in it last, in one line, if anything did.
    pub fn error(&self) -> Option<Box<str>> {
        self.live()?.error.clone()
    }

    /// What it was started with.
    pub fn initial_attributes(&self) -> &Attributes {
        &self.0.initial
    }

    /// What was said of it later, with `duration_msec` once it was stopped.
    pub fn updated_attributes(&self) -> Attributes {
        let Some(live) = self.live() else {
            return Attributes::new();
        };
        let Some(stop) = &live.stop else {
            return live.updated.clone();
        };
        if live.updated.get(attribute::DURATION_MSEC).is_some() {
            return live.updated.clone();
        }
        let mut all = Attributes::new();
        let mut said = live.updated.iter();
        for (name, value) in said.by_ref().take(stop.before) {
            let _ = all.try_add(name, value.clone());
        }
        let _ = all.try_add(attribute::DURATION_MSEC, stop.duration_millis);
        for (name, value) in said {
            let _ = all.try_add(name, value.clone());
        }
        all
    }

    /// All of its attributes as they are now.
    pub fn attributes(&self) -> Attributes {
        let mut all = self.0.initial.clone();
        all.merge(&self.updated_attributes());
        all
    }

    /// Adds an attribute, or replaces the one of that name. Also after the stop, as long as an exporter has not read it yet.
    ///
    /// # Errors
    /// [`Error::MixedList`].
    pub fn set(&self, name: &str, value: impl Into<Value>) -> Result<(), Error> {
        match self.live() {
            Some(mut live) => live.updated.try_add(name, value),
            None => Ok(()),
        }
    }

    /// Adds many.
    pub fn set_all(&self, attributes: &Attributes) {
        if let Some(mut live) = self.live() {
            live.updated.merge(attributes);
        }
    }

    /// ms from start to stop, truncated towards zero; by the monotonic clock, whatever was done to the wall clock.
    ///
    /// # Errors
    /// [`Error::SpanNotStopped`].
    pub fn duration_millis(&self) -> Result<i64, Error> {
        let live = self.live();
        let stop = live.as_ref().and_then(|live| live.stop.as_ref());
        stop.map_or(Err(Error::SpanNotStopped), |s| Ok(s.duration_millis))
    }

    /// Stops it, once; `false` when it was stopped already.
    pub(super) fn stop(&self, attributes: Attributes, at: Timestamp) -> bool {
        let Some(mut live) = self.live() else {
            return self.0.active.swap(false, Ordering::AcqRel);
        };
        if live.stop.is_some() {
            return false;
        }
        // What somebody gave as its duration is replaced.
        let secs = at.secs_since(self.0.start.at());
        let duration_millis = (secs * 1000.0) as i64;
        if live.updated.get(attribute::DURATION_MSEC).is_some() {
            let _ = live
                .updated
                .try_add(attribute::DURATION_MSEC, duration_millis);
        }
        live.stop = Some(Stop {
            event: Event::new(name::SPAN_STOP, at, attributes),
            duration_millis,
            before: live.updated.len(),
        });
        self.0.active.store(false, Ordering::Release);
        true
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`Error::SpanStopped`].
    pub(super) fn add_event(&self, event: &Arc<Event>) -> Result<(), Error> {
        let Some(mut live) = self.live() else {
            return Ok(());
        };
        if live.stop.is_some() {
            return Err(Error::SpanStopped);
        }
        if event.name() == name::ERROR {
            live.error = event.error_text();
        }
        if live.events.len() < EVENTS_KEPT {
            live.events.push(Arc::clone(event));
        } else {
            live.dropped_events += 1;
        }
        Ok(())
    }

    /// The span as plain data.
    pub fn record(&self) -> SpanRecord {
        let attributes = self.attributes().into_object();
        let live = self.live();
        let stop = live.as_ref().and_then(|live| live.stop.as_ref());
        let start = self.0.start.at();
        SpanRecord {
            trace: self.0.trace,
            id: self.0.id,
            parent: match &self.0.parent {
                Parent::None => None,
                Parent::Span(parent) => Some(parent.0.id.otlp()),
                Parent::Scope(id, _) => Some(id.otlp()),
                Parent::Remote(context) => Some(context.span),
            },
            name: self.name().into(),
            start: start.unix(),
            end: stop
                .map(|s| warptrace_model::UnixNanos(self.end_nanos(s).try_into().unwrap_or(0))),
            attributes,
            events: live.as_ref().map_or_else(Vec::new, |live| {
                live.events.iter().map(|e| e.record()).collect()
            }),
            dropped_events: live.as_ref().map_or(0, |live| live.dropped_events),
            error: live.as_ref().and_then(|live| live.error.clone()),
        }
    }

    /// Something of the caller's that goes with the span, made at the first call: a binding's object for it.
    pub fn attach<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        let attached = self.0.attached.get_or_init(|| Box::new(make()));
        attached.downcast_ref()
    }

    /// What was attached.
    pub fn attached<T: Any>(&self) -> Option<&T> {
        self.0.attached.get()?.downcast_ref()
    }

    pub(super) fn place(&self) -> u32 {
        self.0.place.load(Ordering::Relaxed)
    }

    pub(super) fn set_place(&self, place: u32) {
        self.0.place.store(place, Ordering::Relaxed);
    }

    /// In a forked child, `None` for a span of the parent process that another thread was changing at the fork: that thread
    /// is not here to let it go.
    fn live(&self) -> Option<MutexGuard<'_, Live>> {
        let lock = &self.0.live;
        if self.0.generation == fork::generation() {
            return Some(lock.lock().unwrap_or_else(PoisonError::into_inner));
        }
        for _ in 0..1000 {
            if let Ok(live) = lock.try_lock() {
                return Some(live);
            }
            std::hint::spin_loop();
        }
        None
    }
}

impl PartialEq for Span {
    fn eq(&self, other: &Span) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Span {}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span")
            .field("id", &self.0.id)
            .field("name", &self.0.name)
            .field("parent", &self.parent().map(Span::id))
            .field("active", &self.is_active())
            .finish()
    }
}

impl Drop for Inner {
    /// A chain of a million spans is let go one by one, not by a million calls within each other.
    fn drop(&mut self) {
        let mut parent = std::mem::take(&mut self.parent);
        while let Parent::Span(span) = parent {
            match Arc::into_inner(span.0) {
                Some(mut inner) => parent = std::mem::take(&mut inner.parent),
                None => break,
            }
        }
    }
}
