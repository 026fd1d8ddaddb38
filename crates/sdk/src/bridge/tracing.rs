//! The `tracing` crate's spans and events, recorded as ours.
//!
//! ```
//! use tracing_subscriber::layer::SubscriberExt as _;
//! use warptrace_sdk::bridge::tracing::TracingLayer;
//! use warptrace_sdk::span::{MemoryExporter, Recorder};
//!
//! # fn main() -> Result<(), warptrace_sdk::span::Error> {
//! let kept = MemoryExporter::default();
//! let recorder = Recorder::builder().exporter("memory", Box::new(kept.clone())).build()?;
//! let subscriber = tracing_subscriber::registry().with(TracingLayer::new(recorder.clone()));
//! tracing::subscriber::with_default(subscriber, || {
//!     let _step = tracing::info_span!("train.step", step = 7).entered();
//!     tracing::info!(rows = 12, "cache miss");
//! });
//! recorder.close(std::time::Duration::from_secs(5))?;
//! assert_eq!(&*kept.finished()[0].events[0].name, "cache miss");
//! # Ok(())
//! # }
//! ```

use std::cell::RefCell;
use std::fmt::Debug;

use ::tracing::field::{Field, Visit};
use ::tracing::span::{Attributes as Fields, Id, Record};
use ::tracing::{Event as Said, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use warptrace_model::{Int, Value};

use crate::span::{Attributes, End, Event, Recorder, Span, Start};

/// Records what passes through it. A span's parent is its parent in `tracing`; else the latest span of ours.
#[derive(Debug, Clone)]
pub struct TracingLayer {
    recorder: Recorder,
}

impl TracingLayer {
    pub fn new(recorder: Recorder) -> TracingLayer {
        TracingLayer { recorder }
    }
}

/// Our span, in the extensions of theirs.
struct Ours(Span);

thread_local! {
    /// The spans that were entered on this thread, and our latest one before each.
    static ENTERED: RefCell<Vec<(Id, Option<Span>)>> = const { RefCell::new(Vec::new()) };
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TracingLayer {
    fn on_new_span(&self, fields: &Fields<'_>, id: &Id, context: Context<'_, S>) {
        let Some(theirs) = context.span(id) else {
            return;
        };
        let metadata = fields.metadata();
        let mut said = FieldValues::default();
        fields.record(&mut said);
        let mut start = Start::named(metadata.name()).attributes(said.with_code(metadata));
        let parent = theirs.parent();
        if let Some(parent) = parent.as_ref().and_then(|p| ours(&p.extensions())) {
            start = start.parent(&parent);
        }
        // Only those that are entered are anybody's parent here.
        let before = self.recorder.latest();
        let started = self.recorder.start(start);
        self.recorder.set_current(before.as_ref());
        if let Ok(Some(span)) = started {
            theirs.extensions_mut().insert(Ours(span));
        }
    }

    fn on_record(&self, id: &Id, fields: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = find(&context, id) {
            let mut said = FieldValues::default();
            fields.record(&mut said);
            span.set_all(&said.attributes);
        }
    }

    fn on_event(&self, event: &Said<'_>, context: Context<'_, S>) {
        let Some(theirs) = context.event_span(event) else {
            return;
        };
        let Some(span) = ours(&theirs.extensions()) else {
            return;
        };
        let metadata = event.metadata();
        let mut said = FieldValues::default();
        event.record(&mut said);
        let message = said.message.take();
        if *metadata.level() == Level::ERROR {
            let _ = self
                .recorder
                .error(&span, message.as_deref().unwrap_or_default(), None);
            return;
        }
        let name = message.unwrap_or_else(|| metadata.target().to_owned());
        let attributes = said
            .with_code(metadata)
            .with("level", metadata.level().as_str());
        let _ = self
            .recorder
            .event(&span, Event::new(name, self.recorder.now(), attributes));
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = find(&context, id) {
            let before = self.recorder.latest();
            ENTERED.with_borrow_mut(|entered| entered.push((id.clone(), before)));
            self.recorder.set_current(Some(&span));
        }
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        let before = ENTERED.with_borrow_mut(|entered| {
            let at = entered.iter().rposition(|(i, _)| i == id)?;
            Some((at == entered.len() - 1, entered.remove(at).1))
        });
        // One that was entered later, and is left later, stays the latest.
        if let Some((true, before)) = before {
            self.recorder.set_current(before.as_ref());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = find(&context, &id) {
            let _ = self.recorder.stop(&span, End::default());
        }
    }
}

fn find<S: Subscriber + for<'a> LookupSpan<'a>>(context: &Context<'_, S>, id: &Id) -> Option<Span> {
    ours(&context.span(id)?.extensions())
}

fn ours(extensions: &tracing_subscriber::registry::Extensions<'_>) -> Option<Span> {
    extensions.get::<Ours>().map(|ours| ours.0.clone())
}

/// What the fields of a span or an event say.
#[derive(Default)]
struct FieldValues {
    attributes: Attributes,
    message: Option<String>,
}

impl FieldValues {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        let _ = self.attributes.try_add(field.name(), value);
    }

    /// With the place in the code, by OpenTelemetry's names.
    fn with_code(self, metadata: &Metadata<'_>) -> Attributes {
        let mut all = self.attributes;
        if let Some(file) = metadata.file() {
            all = all.with("code.file.path", file);
        }
        if let Some(line) = metadata.line() {
            all = all.with("code.line.number", i64::from(line));
        }
        all
    }
}

impl Visit for FieldValues {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Int::from(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Int::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = Some(value.to_owned()),
            _ => self.add(field, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::span::MemoryExporter;

    #[test]
    fn spans_of_both_libraries_nest_in_each_other() {
        let kept = MemoryExporter::default();
        let recorder = Recorder::builder()
            .exporter("memory", Box::new(kept.clone()))
            .build()
            .unwrap();
        let subscriber = tracing_subscriber::registry().with(TracingLayer::new(recorder.clone()));
        ::tracing::subscriber::with_default(subscriber, || {
            let outer = recorder.span("ours");
            let theirs = ::tracing::info_span!("theirs", n = 3, late = ::tracing::field::Empty);
            let unentered = ::tracing::info_span!(parent: &theirs, "unentered");
            theirs.in_scope(|| {
                drop(recorder.span("inner"));
                ::tracing::warn!(k = true, "careful");
                ::tracing::error!("broken");
                theirs.record("late", "yes");
            });
            drop(unentered);
            assert_eq!(recorder.current_span().as_ref(), outer.span());
        });
        assert!(recorder.flush(Duration::from_secs(20)));
        let spans = kept.finished();
        let span = |name: &str| spans.iter().find(|s| &*s.name == name).unwrap();
        let parent = |name: &str| {
            let id = span(name).parent;
            spans
                .iter()
                .find(|s| Some(s.id.otlp()) == id)
                .map(|s| &*s.name)
        };
        assert_eq!(parent("theirs"), Some("ours"));
        assert_eq!(parent("inner"), Some("theirs"));
        assert_eq!(parent("unentered"), Some("theirs"));
        let theirs = span("theirs");
        assert_eq!(theirs.attributes.get("late").unwrap().as_str(), Some("yes"));
        assert_eq!(
            theirs
                .attributes
                .get("n")
                .unwrap()
                .as_int()
                .unwrap()
                .to_i64(),
            Some(3)
        );
        assert_eq!(&*theirs.events[0].name, "careful");
        assert_eq!(theirs.error.as_deref(), Some("broken"));
    }
}
