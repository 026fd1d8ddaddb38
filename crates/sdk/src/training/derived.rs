//! Events that are made of other events, on their way to an exporter: what passes, and running averages and extremes.
//!
//! ```
//! use warptrace_sdk::span::{Attributes, Event, MemoryExporter, Recorder, Start};
//! use warptrace_sdk::training::derived::{Derived, Running};
//!
//! # fn main() -> Result<(), warptrace_sdk::span::Error> {
//! // One event of ten, with what the ten were, in place of all of them.
//! let exporter = Derived::new(MemoryExporter::default())
//!     .running(Running::of("step", "loss").every(10).as_event("loss"))
//!     .only(|event, _| event.name() != "step");
//! let recorder = Recorder::builder().exporter("memory", Box::new(exporter)).build()?;
//! let span = recorder.start(Start::named("training"))?.expect("it is on");
//! for step in 0..100 {
//!     let attributes = Attributes::new().with("loss", 1.0 / f64::from(step + 1));
//!     recorder.event(&span, Event::new("step", recorder.now(), attributes))?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! It works on events as they are exported. An exporter that reads a span's events from the span itself when it stops, as those
//! for OTLP and for memory do, is told of the derived ones only through [`Exporter::event`].

use std::borrow::Cow;
use std::time::Duration;

use warptrace_model::Value;

use crate::fork::{ForkMutex, Inherit};
use crate::span::{Attributes, Event, ExportError, Exporter, Span};

/// An exporter that is given other events than were recorded. Wrapping one `Derived` in another chains them: what the outer
/// one derives passes through the inner one.
pub struct Derived<E> {
    inner: E,
    passes: Option<Box<Passes>>,
    running: Vec<Running>,
}

type Passes = dyn Fn(&Event, &Span) -> bool + Send + Sync;

impl<E: Exporter> Derived<E> {
    pub fn new(inner: E) -> Derived<E> {
        Derived {
            inner,
            passes: None,
            running: Vec::new(),
        }
    }

    /// Lets through only events of which `passes` says so. Those that are derived always pass, also from events that don't;
    /// spans, and errors in them, are not asked about.
    #[must_use]
    pub fn only(
        mut self,
        passes: impl Fn(&Event, &Span) -> bool + Send + Sync + 'static,
    ) -> Derived<E> {
        self.passes = Some(Box::new(passes));
        self
    }

    #[must_use]
    pub fn running(mut self, running: Running) -> Derived<E> {
        self.running.push(running);
        self
    }
}

/// The average and the extremes of a number that events carry, from the first one on.
#[derive(Debug)]
pub struct Running {
    of_event: Cow<'static, str>,
    attribute: Cow<'static, str>,
    as_event: Cow<'static, str>,
    every: u64,
    sums: ForkMutex<Sums>,
}

/// Of what was seen so far.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Inherit for Sums {
    fn inherit(parent: Option<&mut Sums>) -> Sums {
        parent.copied().unwrap_or_default()
    }
}

impl Running {
    /// Of `attribute` in events of that name. Events without it, or in which it is no finite number, are passed over.
    pub fn of(
        event: impl Into<Cow<'static, str>>,
        attribute: impl Into<Cow<'static, str>>,
    ) -> Running {
        let of_event = event.into();
        Running {
            as_event: format!("{of_event}_running").into(),
            of_event,
            attribute: attribute.into(),
            every: 1,
            sums: ForkMutex::new(Sums::default()),
        }
    }

    /// Sends an event after that many; at least 1.
    #[must_use]
    pub fn every(mut self, events: u64) -> Running {
        self.every = events.max(1);
        self
    }

    /// What the event is called; `NAME_running` unless said. It carries `ATTRIBUTE_avg`, `ATTRIBUTE_min`, `ATTRIBUTE_max` and
    /// `count`, how many events they are of, and the time of the last of them.
    #[must_use]
    pub fn as_event(mut self, name: impl Into<Cow<'static, str>>) -> Running {
        self.as_event = name.into();
        self
    }

    fn note(&self, event: &Event) -> Option<Event> {
        if event.name() != self.of_event {
            return None;
        }
        let value = match event.own_attributes().get(&self.attribute)? {
            Value::Int(n) => n.to_f64(),
            Value::Float(x) => *x,
            _ => return None,
        };
        if !value.is_finite() {
            return None;
        }
        let sums = {
            let mut sums = self.sums.lock();
            let (min, max) = match sums.count {
                0 => (value, value),
                _ => (sums.min.min(value), sums.max.max(value)),
            };
            *sums = Sums {
                count: sums.count + 1,
                sum: sums.sum + value,
                min,
                max,
            };
            *sums
        };
        if sums.count % self.every != 0 {
            return None;
        }
        let name = |what: &str| format!("{}_{what}", self.attribute);
        let attributes = Attributes::new()
            .with(&name("avg"), sums.sum / sums.count as f64)
            .with(&name("min"), sums.min)
            .with(&name("max"), sums.max)
            .with("count", warptrace_model::Int::from(sums.count));
        Some(Event::new(self.as_event.clone(), event.at(), attributes))
    }
}

impl<E: Exporter> Exporter for Derived<E> {
    fn initialize(&self) -> Result<(), ExportError> {
        self.inner.initialize()
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.inner.start(span)
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        self.inner.stop(span)
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        let passes = self.passes.as_ref().is_none_or(|p| p(event, span));
        let mut result = match passes {
            true => self.inner.event(event, span),
            false => Ok(()),
        };
        // All of them count, also when the exporter refuses one.
        for running in &self.running {
            if let Some(derived) = running.note(event) {
                result = result.and(self.inner.event(&derived, span));
            }
        }
        result
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.inner.error(event, span)
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        self.inner.data_error(event)
    }

    fn flush(&self, patience: Duration) -> Result<(), ExportError> {
        self.inner.flush(patience)
    }

    fn close(&self, patience: Duration) -> Result<(), ExportError> {
        self.inner.close(patience)
    }

    fn dropped(&self) -> u64 {
        self.inner.dropped()
    }
}
