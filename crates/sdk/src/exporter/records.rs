//! What every exporter of records does: numbers them, keeps them in order, holds a start back where that is asked for, and begins
//! anew in a forked child.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use warptrace_formats::span_record::{Ended, Keys, Moment, ParentId, SpanView, Stamp, Writer};

use crate::fork::{ForkMutex, Inherit, process_id};
use crate::span::{Attributes, DataLoss, Event, ExportError, Parent, Span, Timestamp};

/// Where records go.
pub(super) trait Sink: Send + Sync {
    /// What it knows in one process; a child's begins as [`Default`] says.
    type Process: Default + Send;

    /// `lines` has one more record, or, with `now`, must go out. Takes what it brings out, or gives up, from `lines`.
    ///
    /// # Errors
    /// When records were lost; how many, it counts itself.
    fn put(
        &self,
        process: &mut Self::Process,
        lines: &mut Lines,
        now: bool,
    ) -> Result<(), ExportError>;

    /// How many records were lost that no record tells of yet, now that records come through again.
    fn untold(&self, _: &mut Self::Process) -> Option<u64> {
        None
    }
}

/// Whole records, each with its line feed, that wait.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: String,
    pub(super) records: u64,
}

impl Lines {
    /// Empties it. A buffer that became large is let go.
    pub(super) fn clear(&mut self) {
        self.records = 0;
        self.text.clear();
        if self.text.capacity() > 1 << 20 {
            self.text = String::new();
        }
    }
}

/// How records are written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form {
    pub(super) keys: Keys,
    pub(super) merge_starts: bool,
}

pub(super) struct Records<S: Sink> {
    pub(super) sink: S,
    form: Form,
    stage: AtomicU8,
    state: ForkMutex<State<S::Process>>,
    pub(super) dropped_attributes: AtomicU64,
}

const NEW: u8 = 0;
const READY: u8 = 1;
const CLOSED: u8 = 2;

#[derive(Default)]
struct State<P> {
    process: P,
    count: u64,
    /// A start that is not written yet.
    pending: Option<Span>,
    lines: Lines,
}

impl<P: Default> Inherit for State<P> {
    /// What its parent had not written yet, its parent writes.
    fn inherit(_: Option<&mut State<P>>) -> State<P> {
        State::default()
    }
}

impl<S: Sink> Records<S> {
    pub(super) fn new(sink: S, form: Form) -> Records<S> {
        Records {
            sink,
            form,
            stage: AtomicU8::new(NEW),
            state: ForkMutex::new(State::default()),
            dropped_attributes: AtomicU64::new(0),
        }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// `make_ready` opens what there is to open.
    pub(super) fn initialize(
        &self,
        make_ready: impl FnOnce(&mut S::Process) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut state = self.state.lock();
        make_ready(&mut state.process)?;
        state.pending = None;
        self.stage.store(READY, Ordering::Release);
        Ok(())
    }

    pub(super) fn start(&self, span: &Span) -> Result<(), ExportError> {
        let mut state = self.ready()?;
        if self.form.merge_starts {
            let before = state.pending.replace(span.clone());
            return match before {
                Some(before) => self.span(&mut state, &before, true, false),
                None => Ok(()),
            };
        }
        self.span(&mut state, span, true, false)
    }

    pub(super) fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let mut state = self.ready()?;
        if state.pending.as_ref() == Some(span) {
            state.pending = None;
            return self.span(&mut state, span, true, true);
        }
        let before = self.write_pending(&mut state);
        before.and(self.span(&mut state, span, false, true))
    }

    pub(super) fn event(
        &self,
        event: &Event,
        span: &Span,
        is_error: bool,
    ) -> Result<(), ExportError> {
        let mut state = self.ready()?;
        let before = self.write_pending(&mut state);
        let written = self.record(&mut state, |writer, stamp| {
            writer.event(span.id(), &moment(event), is_error, stamp)
        });
        before.and(written)
    }

    /// In order: a start that waits is written before.
    pub(super) fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        let mut state = self.ready()?;
        let before = self.write_pending(&mut state);
        let written = self.record(&mut state, |writer, stamp| {
            writer.data_error(&moment(event), stamp)
        });
        before.and(written)
    }

    /// Brings out all but a start that waits.
    pub(super) fn flush(&self) -> Result<(), ExportError> {
        match self.ready() {
            Ok(mut state) => self.put(&mut state, true),
            Err(_) => Ok(()),
        }
    }

    /// Brings out all. `let_go` closes what was opened.
    pub(super) fn close(&self, let_go: impl FnOnce(&mut S::Process)) -> Result<(), ExportError> {
        let Ok(mut state) = self.ready() else {
            return Ok(());
        };
        self.stage.store(CLOSED, Ordering::Release);
        let pending = self.write_pending(&mut state);
        let written = self.put(&mut state, true);
        let_go(&mut state.process);
        pending.and(written)
    }

    fn ready(&self) -> Result<MutexGuard<'_, State<S::Process>>, ExportError> {
        match self.stage.load(Ordering::Acquire) {
            READY => Ok(self.state.lock()),
            NEW => {
                Err(ExportError::new("not initialized yet").with_code("exporter_not_initialized"))
            }
            _ => Err(ExportError::new("closed").with_code("exporter_closed")),
        }
    }

    fn write_pending(&self, state: &mut State<S::Process>) -> Result<(), ExportError> {
        match state.pending.take() {
            Some(span) => self.span(state, &span, true, false),
            None => Ok(()),
        }
    }

    fn span(
        &self,
        state: &mut State<S::Process>,
        span: &Span,
        begins: bool,
        ends: bool,
    ) -> Result<(), ExportError> {
        let stop = if ends { span.stop_event() } else { None };
        let all: Attributes;
        let attributes = match (self.form.keys, ends) {
            // Ours says what it began with: by now it may be over.
            (Keys::All, false) => span.initial_attributes(),
            _ => {
                all = span.attributes();
                &all
            }
        };
        let start = span.start_event();
        let start_unix_nanos = start.at().unix_nanos();
        let view = SpanView {
            id: span.id(),
            name: span.name(),
            attributes: attributes.as_object(),
            trace: span.context().trace,
            parent: match span.parent_link() {
                Parent::None => None,
                Parent::Span(parent) => Some(ParentId::Span(parent.id())),
                Parent::Scope(id, _) => Some(ParentId::Span(*id)),
                Parent::Remote(context) => Some(ParentId::Remote(context.span)),
            },
            thread: span.thread_id(),
            start_unix_nanos,
            dropped_events: if ends { span.dropped_events() } else { 0 },
        };
        let ended = stop.as_deref().map(|stop| Ended {
            moment: moment(stop),
            end_unix_nanos: span.end_unix_nanos().unwrap_or(start_unix_nanos),
        });
        if ends && ended.is_none() {
            return Err(ExportError::new("the span was not stopped").with_code("span_not_stopped"));
        }
        let begun = begins.then(|| moment(start));
        self.record(state, |writer, stamp| {
            writer.span(&view, begun.as_ref(), ended.as_ref(), stamp)
        })
    }

    fn record(
        &self,
        state: &mut State<S::Process>,
        write: impl FnOnce(Writer<'_>, Stamp) -> u32,
    ) -> Result<(), ExportError> {
        let lost = self.sink.untold(&mut state.process);
        let told = match lost {
            Some(lost) => self.tell(state, lost),
            None => Ok(()),
        };
        let stamp = next(state);
        let writer = Writer::new(&mut state.lines.text, self.form.keys);
        let dropped = write(writer, stamp);
        if dropped > 0 {
            self.dropped_attributes
                .fetch_add(u64::from(dropped), Ordering::Relaxed);
        }
        state.lines.records += 1;
        told.and(self.put(state, false))
    }

    /// Says in the records themselves that some are missing.
    fn tell(&self, state: &mut State<S::Process>, lost: u64) -> Result<(), ExportError> {
        let extra = Attributes::new().with("lost_records", i64::try_from(lost).unwrap_or(i64::MAX));
        let event = Event::data_error(
            "records before this one were lost: they could not be written",
            DataLoss::Incomplete,
            Some(&extra),
            now(),
        );
        let stamp = next(state);
        let writer = Writer::new(&mut state.lines.text, self.form.keys);
        writer.data_error(&moment(&event), stamp);
        state.lines.records += 1;
        self.put(state, false)
    }

    fn put(&self, state: &mut State<S::Process>, now: bool) -> Result<(), ExportError> {
        self.sink.put(&mut state.process, &mut state.lines, now)
    }
}

fn next<P>(state: &mut State<P>) -> Stamp {
    state.count += 1;
    Stamp {
        count: state.count,
        pid: process_id(),
    }
}

fn now() -> Timestamp {
    use crate::span::Clock as _;
    crate::span::SystemClock.now()
}

fn moment(event: &Event) -> Moment<'_> {
    Moment {
        name: event.name(),
        attributes: event.own_attributes().as_object(),
        unix_nanos: event.at().unix_nanos(),
        unix_millis: event.at().unix_millis(),
    }
}
