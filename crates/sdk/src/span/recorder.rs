//! Makes spans, keeps which are open, and hands everything to the exporters.

mod builder;
mod plain;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::current::Contexts;
use super::exporter::{Item, Outlet, exporting, is_exporting};
use super::queue::Queue;
use super::span::{Beginning, Parent};
use super::{
    Attributes, Clock, Error, Event, Exception, Interest, Span, SystemClock, Timestamp, id,
};
use crate::fork::{ForkMutex, Inherit};

pub use builder::Builder;

/// What a recorder does about a call that fails: one that is against the rules, not an exporter's failure, which never
/// reaches the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Signals it to the exporters, counts it, and goes on; the caller sees nothing.
    #[default]
    Continue,
    /// Signals it to the exporters, brings out what there is, and is off from then on; the caller sees nothing.
    Disable,
    /// Signals it to the exporters, and gives it to the caller.
    Propagate,
}

/// Which spans are exported, by name. Others are started, nested and stopped like any, but no exporter hears of them, their
/// events or their errors.
#[derive(Debug, Clone, Default)]
pub enum Filter {
    #[default]
    All,
    Only(HashSet<Box<str>>),
    AllBut(HashSet<Box<str>>),
}

impl Filter {
    #[inline]
    fn passes(&self, name: &str) -> bool {
        match self {
            Filter::All => true,
            Filter::Only(names) => names.contains(name),
            Filter::AllBut(names) => !names.contains(name),
        }
    }
}

/// What a program demands of its spans beyond what every recorder does.
pub trait Rules: Send + Sync {
    /// Whether a span of this name may be started now.
    ///
    /// # Errors
    /// When it may not.
    fn may_start(&self, recorder: &Recorder, name: &str) -> Result<(), Error>;

    /// A span that was allowed has been started. Called before an exporter hears of it.
    fn started(&self, span: &Span) {
        let _ = span;
    }

    /// A span is about to be stopped; what is wrong with that, which is recorded as an error in the span, if anything. Also
    /// called for a span that is not open any more.
    fn stopping(&self, span: &Span, at: Timestamp) -> Option<String>;
}

/// What a span is started with.
#[derive(Debug, Default)]
pub struct Start {
    beginning: Beginning,
    at: Option<Timestamp>,
}

impl Start {
    pub fn named(name: impl Into<Cow<'static, str>>) -> Start {
        Start {
            beginning: Beginning {
                name: name.into(),
                ..Beginning::default()
            },
            at: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.beginning.name
    }

    pub fn initial_attributes(&self) -> &Attributes {
        &self.beginning.attributes
    }

    #[must_use]
    pub fn attributes(mut self, attributes: Attributes) -> Start {
        self.beginning.attributes = attributes;
        self
    }

    /// Attributes of the event `span_start`, not of the span.
    #[must_use]
    pub fn event_attributes(mut self, attributes: Attributes) -> Start {
        self.beginning.event_attributes = attributes;
        self
    }

    /// Instead of the latest span of this context.
    #[must_use]
    pub fn parent(mut self, parent: impl Into<Parent>) -> Start {
        self.beginning.parent = parent.into();
        self
    }

    /// Instead of now.
    #[must_use]
    pub fn at(mut self, at: impl Into<Option<Timestamp>>) -> Start {
        self.at = at.into();
        self
    }
}

impl From<&Span> for Parent {
    fn from(span: &Span) -> Parent {
        Parent::Span(span.clone())
    }
}

impl From<warptrace_model::SpanContext> for Parent {
    fn from(context: warptrace_model::SpanContext) -> Parent {
        Parent::Remote(context)
    }
}

/// What a span is stopped with.
#[derive(Debug, Default)]
pub struct End {
    /// Of the event `span_stop`.
    pub event_attributes: Attributes,
    /// `None` for now.
    pub at: Option<Timestamp>,
}

/// What became of what was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that failed.
    pub failed_calls: u64,
    /// Calls from within an exporter, which are not exported.
    pub from_exporters: u64,
    pub exporters: Vec<ExporterCounts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExporterCounts {
    pub name: Box<str>,
    /// Records that found the queue full.
    pub dropped: u64,
    /// Records that the exporter refused, or was not given because it is left out.
    pub refused: u64,
    /// Records that the exporter took and did not bring out, as it says itself.
    pub lost: u64,
    /// It failed too often, and is left out.
    pub disabled: bool,
}

/// Makes spans and gives them to exporters. Clones are the same recorder, for all threads.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    on: AtomicBool,
    closed: AtomicBool,
    strategy: Strategy,
    filter: Filter,
    /// `None` for [`SystemClock`], which is called often.
    own_clock: Option<Arc<dyn Clock>>,
    contexts: Contexts,
    rules: Option<Arc<dyn Rules>>,
    outlets: Vec<Way>,
    open: ForkMutex<Open>,
    /// Spans of scopes may be plain data: nothing here wants more of them before they end.
    plain: bool,
    failed_calls: AtomicU64,
    from_exporters: AtomicU64,
}

/// How an exporter is reached.
enum Way {
    /// In the thread that records.
    Direct(Outlet),
    Queued(Queue),
}

impl Way {
    fn outlet(&self) -> &Outlet {
        match self {
            Way::Direct(outlet) => outlet,
            Way::Queued(queue) => queue.outlet(),
        }
    }
}

/// Spans that are open, by places that they remember.
#[derive(Default)]
struct Open {
    places: Vec<Option<(u64, Span)>>,
    free: Vec<u32>,
    started: u64,
}

impl Inherit for Open {
    fn inherit(parent: Option<&mut Open>) -> Open {
        parent.map_or_else(Open::default, |p| Open {
            places: p.places.clone(),
            free: p.free.clone(),
            started: p.started,
        })
    }
}

impl Open {
    fn add(&mut self, span: &Span) {
        let entry = Some((self.started, span.clone()));
        self.started += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = entry;
                place
            }
            None => {
                self.places.push(entry);
                self.places.len() as u32 - 1
            }
        };
        span.set_place(place);
    }

    fn take(&mut self, span: &Span) -> Option<Span> {
        let place = span.place();
        let entry = self.places.get_mut(place as usize)?;
        if entry.as_ref().is_none_or(|(_, open)| open != span) {
            return None;
        }
        self.free.push(place);
        entry.take().map(|(_, span)| span)
    }

    /// In the order in which they were started.
    fn all(&self) -> Vec<Span> {
        let mut open: Vec<_> = self.places.iter().flatten().collect();
        open.sort_by_key(|(started, _)| *started);
        open.into_iter().map(|(_, span)| span.clone()).collect()
    }
}

impl Recorder {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A recorder that records nothing.
    pub fn off() -> Recorder {
        let built = Recorder::builder().on(false).build();
        built.unwrap_or_else(|_| unreachable!("no filter, no exporter"))
    }

    pub fn downgrade(&self) -> WeakRecorder {
        WeakRecorder(Arc::downgrade(&self.0))
    }

    /// Whether it records. Cost: one load.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    pub fn strategy(&self) -> Strategy {
        self.0.strategy
    }

    /// Records nothing from now on. What is open stays open, and what is queued goes out.
    pub fn disable(&self) {
        self.0.on.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub fn now(&self) -> Timestamp {
        match &self.0.own_clock {
            None => SystemClock.now(),
            Some(clock) => clock.now(),
        }
    }

    /// The latest span of this context that is active.
    pub fn current_span(&self) -> Option<Span> {
        self.latest()?.nearest_active().cloned()
    }

    pub(crate) fn set_current(&self, span: Option<&Span>) {
        self.0.contexts.set(span);
    }

    pub(crate) fn latest(&self) -> Option<Span> {
        self.0.contexts.latest(&|span| self.0.add_open(span))
    }

    /// Starts a span, which becomes the latest of this context. `None` when the recorder is off, or when the call failed and the
    /// [`Strategy`] keeps that from the caller.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`]: [`Error::Closed`], [`Error::InvalidStart`], or what [`Rules`] say.
    pub fn start(&self, start: Start) -> Result<Option<Span>, Error> {
        self.guarded("start", || self.try_start(start))
    }

    /// Stops a span.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`]: [`Error::Closed`], [`Error::SpanNotActive`].
    pub fn stop(&self, span: &Span, end: End) -> Result<Option<()>, Error> {
        self.guarded("stop", || self.try_stop(span, end))
    }

    /// Records an event in a span.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`]: [`Error::Closed`], [`Error::SpanStopped`].
    pub fn event(&self, span: &Span, event: Event) -> Result<Option<Arc<Event>>, Error> {
        self.guarded("event", || self.try_event(span, event, Item::Event))
    }

    /// Records an error of the program in a span.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`]: [`Error::Closed`], [`Error::SpanStopped`].
    pub fn error(
        &self,
        span: &Span,
        message: &str,
        exception: Option<&Exception>,
    ) -> Result<Option<Arc<Event>>, Error> {
        self.guarded("error", || {
            let event = Event::error(message, exception, self.now());
            self.try_event(span, event, Item::Error)
        })
    }

    /// Records that what was exported is not all, or not to be relied on: to each exporter once in its life.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`]: [`Error::Closed`].
    pub fn data_error(&self, message: &str, extra: Attributes) -> Result<Option<()>, Error> {
        self.guarded("telemetry_data_error", || {
            self.check_open()?;
            self.say_data_error(message, extra);
            Ok(())
        })
    }

    /// Spans of that name that are open, in the order in which they were started; none after the close. Cost: O(open spans).
    pub fn open_spans(&self, name: &str) -> Vec<Span> {
        self.0.share_scopes(&|scope| scope == name);
        let mut open = self.0.open.lock().all();
        open.retain(|span| span.name() == name);
        open
    }

    /// Waits until what was recorded before has been brought out; `false` when that took longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let began = Instant::now();
        let left = || patience.saturating_sub(began.elapsed());
        let mut all = true;
        self.0.fetch();
        for way in &self.0.outlets {
            all &= match way {
                Way::Direct(outlet) => outlet.exporter.flush(left()).is_ok(),
                Way::Queued(queue) => {
                    queue.flush(left()) && queue.outlet().exporter.flush(left()).is_ok()
                }
            };
        }
        all
    }

    /// Stops what is open, newest first, brings everything out within `patience`, and closes the exporters. A second time closes
    /// the exporters again. Afterwards nothing is recorded.
    ///
    /// # Errors
    /// None but by a strategy: exporters that fail are logged.
    pub fn close(&self, patience: Duration) -> Result<Option<()>, Error> {
        self.guarded("close", || {
            let began = Instant::now();
            if !self.0.closed.load(Ordering::Acquire) {
                self.0.share_scopes(&|_| true);
                self.0.fetch();
                let open = self.0.open.lock().all();
                for span in open.iter().rev() {
                    let _ = self.guarded("stop", || self.try_stop(span, End::default()));
                }
            }
            for way in &self.0.outlets {
                let left = patience.saturating_sub(began.elapsed());
                let result = match way {
                    Way::Direct(outlet) => exporting(|| outlet.exporter.close(left)),
                    Way::Queued(queue) => queue.close(left),
                };
                if let Err(e) = result {
                    let exporter = &*way.outlet().name;
                    tracing::error!(exporter, code = e.code(), "closing failed: {e}");
                }
            }
            self.0.closed.store(true, Ordering::Release);
            // What ended meanwhile came too late, and is counted.
            self.0.fetch();
            Ok(())
        })
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    pub fn counts(&self) -> Counts {
        let exporter = |way: &Way| {
            let outlet = way.outlet();
            ExporterCounts {
                name: outlet.name.clone(),
                dropped: match way {
                    Way::Direct(_) => 0,
                    Way::Queued(queue) => queue.dropped(),
                },
                refused: outlet.refused.load(Ordering::Relaxed),
                lost: outlet.exporter.dropped(),
                disabled: outlet.is_disabled(),
            }
        };
        Counts {
            failed_calls: self.0.failed_calls.load(Ordering::Relaxed),
            from_exporters: self.0.from_exporters.load(Ordering::Relaxed),
            exporters: self.0.outlets.iter().map(exporter).collect(),
        }
    }

    /// Runs a call by the recorder's strategy: `None` when it is off. `function` is what the report calls it; calls within calls
    /// report once, under the inner one's name, since an exporter takes one report.
    ///
    /// # Errors
    /// With [`Strategy::Propagate`], what `call` gives.
    pub fn guarded<T>(
        &self,
        function: &str,
        call: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if !self.is_on() {
            return Ok(None);
        }
        match call() {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.failed(function, error).map(|()| None),
        }
    }

    #[cold]
    fn failed(&self, function: &str, error: Error) -> Result<(), Error> {
        self.0.failed_calls.fetch_add(1, Ordering::Relaxed);
        if !self.is_closed() {
            let message = format!("error in {function}: {}: {error}", error.code());
            self.say_data_error(&message, Attributes::new());
        }
        match self.0.strategy {
            Strategy::Continue => Ok(()),
            Strategy::Disable => {
                tracing::error!(function, code = error.code(), "off from now on: {error}");
                self.disable();
                Ok(())
            }
            Strategy::Propagate => Err(error),
        }
    }

    fn check_open(&self) -> Result<(), Error> {
        match self.is_closed() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    /// [`Recorder::start`] within a call that is guarded as a whole.
    pub(crate) fn try_start(&self, start: Start) -> Result<Span, Error> {
        self.check_open()?;
        let Start { mut beginning, at } = start;
        if at.is_some_and(|at| at.perf_secs() == 0.0) {
            return Err(Error::InvalidStart);
        }
        if let Some(rules) = &self.0.rules {
            rules.may_start(self, &beginning.name)?;
        }
        if matches!(beginning.parent, Parent::None)
            && let Some(latest) = self.latest()
        {
            // One that was stopped elsewhere is still the latest here.
            match latest.is_active() {
                true => beginning.parent = Parent::Span(latest),
                false => {
                    if let Some(active) = latest.nearest_active() {
                        beginning.parent = Parent::Span(active.clone());
                    }
                }
            }
        }
        let at = at.unwrap_or_else(|| self.now());
        let passes = self.0.filter.passes(&beginning.name);
        let span = Span::new(id::next(at.unix_nanos()), beginning, at);
        self.0.add_open(&span);
        if let Some(rules) = &self.0.rules {
            rules.started(&span);
        }
        self.0.contexts.set(Some(&span));
        if passes {
            self.export(false, || Item::Start(span.clone()));
        }
        Ok(span)
    }

    /// [`Recorder::stop`] within a call that is guarded as a whole.
    pub(crate) fn try_stop(&self, span: &Span, end: End) -> Result<(), Error> {
        self.check_open()?;
        let at = end.at.unwrap_or_else(|| self.now());
        if let Some(rules) = &self.0.rules
            && let Some(wrong) = rules.stopping(span, at)
        {
            let event = Event::error(&wrong, None, self.now());
            self.try_event(span, event, Item::Error)?;
        }
        if self.0.open.lock().take(span).is_none() {
            return Err(Error::SpanNotActive);
        }
        span.stop(end.event_attributes, at);
        self.0.contexts.leave(span);
        if self.0.filter.passes(span.name()) {
            self.export(true, || Item::Stop(span.clone()));
        }
        Ok(())
    }

    /// [`Recorder::event`] within a call that is guarded as a whole.
    pub(crate) fn add_event(&self, span: &Span, event: Event) -> Result<Arc<Event>, Error> {
        self.try_event(span, event, Item::Event)
    }

    fn try_event(
        &self,
        span: &Span,
        event: Event,
        item: impl Fn(Arc<Event>, Span) -> Item,
    ) -> Result<Arc<Event>, Error> {
        self.check_open()?;
        let event = Arc::new(event);
        span.add_event(&event)?;
        if self.0.filter.passes(span.name()) {
            self.export(false, || item(Arc::clone(&event), span.clone()));
        }
        Ok(event)
    }

    fn say_data_error(&self, message: &str, extra: Attributes) {
        let (message, extra) = (Arc::from(message), Arc::new(extra));
        let at = self.now();
        self.export(true, || {
            Item::DataError(Arc::clone(&message), Arc::clone(&extra), at)
        });
    }

    /// Hands it to all, or, unless it is `vital`, to those who want to hear everything.
    fn export(&self, vital: bool, item: impl Fn() -> Item) {
        let outlets = &self.0.outlets;
        if outlets.is_empty() {
            return;
        }
        if is_exporting() {
            self.0.from_exporters.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.0.plain
            && vital
            && let Contexts::Threads(scopes) = &self.0.contexts
        {
            scopes.bring();
        }
        for way in outlets {
            if !vital && way.outlet().interest != Interest::Everything {
                continue;
            }
            match way {
                Way::Direct(outlet) => drop(outlet.deliver(item(), || self.now())),
                Way::Queued(queue) => queue.push(item()),
            }
        }
    }
}

impl Shared {
    fn add_open(&self, span: &Span) {
        self.open.lock().add(span);
    }

    fn share_scopes(&self, wanted: &dyn Fn(&str) -> bool) {
        if let Contexts::Threads(scopes) = &self.contexts {
            scopes.share_all(wanted, &|span| self.add_open(span));
        }
    }

    /// Brings the queues what scopes have ended.
    fn fetch(&self) {
        if let Contexts::Threads(scopes) = &self.contexts {
            scopes.collect();
        }
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("on", &self.is_on())
            .field("closed", &self.is_closed())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    /// Whoever forgets to close still gets what was recorded, if the program lives on for as long as that takes; spans that are open
    /// stay unfinished. Nobody waits.
    fn drop(&mut self) {
        if *self.closed.get_mut() {
            return;
        }
        self.fetch();
        for way in &self.outlets {
            match way {
                Way::Direct(outlet) => {
                    if let Err(e) = exporting(|| outlet.exporter.close(Duration::ZERO)) {
                        tracing::error!(exporter = &*outlet.name, "closing failed: {e}");
                    }
                }
                Way::Queued(queue) => queue.close_later(),
            }
        }
    }
}

/// A recorder, as long as somebody else uses it.
#[derive(Clone)]
pub struct WeakRecorder(Weak<Shared>);

impl WeakRecorder {
    pub fn upgrade(&self) -> Option<Recorder> {
        self.0.upgrade().map(Recorder)
    }
}
