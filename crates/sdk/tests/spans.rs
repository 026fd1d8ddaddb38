//! Spans as a program uses them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warptrace_sdk::span::{
    Attributes, Event, ExportError, Exporter, Filter, MemoryExporter, Recorder, Span, Start,
    Strategy,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn kept() -> (MemoryExporter, Recorder) {
    let memory = MemoryExporter::default();
    let recorder = Recorder::builder()
        .exporter("memory", Box::new(memory.clone()))
        .build()
        .unwrap();
    (memory, recorder)
}

#[test]
fn spans_nest_by_scope_and_arrive_with_what_was_said_of_them() {
    let (memory, recorder) = kept();
    {
        let outer = recorder.span("outer");
        outer.set("n", 1_i64);
        recorder.in_span("inner", |inner| {
            inner.event("e", Attributes::new().with("k", "v"));
        });
        outer.set("n", 2_i64);
    }
    assert!(recorder.flush(PATIENCE));
    let spans = memory.finished();
    assert_eq!(spans.len(), 2);
    assert_eq!((&*spans[0].name, &*spans[1].name), ("inner", "outer"));
    assert_eq!(spans[0].parent, Some(spans[1].id.otlp()));
    assert_eq!(spans[0].trace, spans[1].trace);
    assert_eq!(
        spans[1]
            .attributes
            .get("n")
            .unwrap()
            .as_int()
            .unwrap()
            .to_i64(),
        Some(2)
    );
    assert_eq!(&*spans[0].events[0].name, "e");
    assert!(spans[0].end.unwrap() <= spans[1].end.unwrap());
}

#[test]
fn a_failed_call_passes_its_error_on_and_leaves_it_in_the_span() {
    let (memory, recorder) = kept();
    let result = recorder.try_in_span("load", |_| "x".parse::<u32>());
    assert!(result.is_err());
    assert!(recorder.flush(PATIENCE));
    let span = &memory.finished()[0];
    assert!(span.error.is_some());
    let attributes = &span.events[0].attributes;
    let message = attributes.get("exception_message").unwrap();
    assert_eq!(message.as_str(), Some("invalid digit found in string"));
}

#[test]
fn a_panic_stops_its_spans_and_is_recorded() {
    let (memory, recorder) = kept();
    let inner = recorder.clone();
    let panicked = std::thread::Builder::new()
        .name("panics".into())
        .spawn(move || {
            let _scope = inner.span("outer");
            panic!("on purpose");
        })
        .unwrap()
        .join();
    assert!(panicked.is_err());
    assert!(recorder.flush(PATIENCE));
    assert!(memory.finished()[0].error.is_some());
}

#[test]
fn what_is_recorded_before_a_flush_is_out_after_it_whatever_comes_meanwhile() {
    let (memory, recorder) = kept();
    for round in 1..=50 {
        for _ in 0..100 {
            drop(recorder.span("s"));
        }
        assert!(recorder.flush(PATIENCE));
        assert_eq!(memory.finished().len(), round * 100);
    }
}

#[test]
fn many_threads_lose_nothing_that_is_not_counted() {
    let (memory, recorder) = kept();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let outer = recorder.span("outer");
                    outer.set("x", 0.5);
                }
            });
        }
    });
    recorder.close(PATIENCE).unwrap();
    let counts = recorder.counts();
    let arrived = memory.finished().len() as u64;
    // A span whose start was dropped may still arrive with its stop, and the other way around.
    assert!(arrived <= 40_000);
    assert!(
        arrived + counts.exporters[0].dropped >= 40_000,
        "{arrived} {counts:?}"
    );
}

/// Fails as told, and keeps the names of the calls.
#[derive(Clone, Default)]
struct Failing {
    failures: Arc<AtomicU32>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Failing {
    fn call(&self, call: String) -> Result<(), ExportError> {
        self.calls.lock().unwrap().push(call);
        let left = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            Ok(_) => Err(ExportError::new("injected failure")),
            Err(_) => Ok(()),
        }
    }
}

impl Exporter for Failing {
    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.call(format!("start {}", span.name()))
    }
    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        self.call(format!("stop {}", span.name()))
    }
    fn event(&self, event: &Event, _: &Span) -> Result<(), ExportError> {
        self.call(format!("event {}", event.name()))
    }
    fn error(&self, event: &Event, _: &Span) -> Result<(), ExportError> {
        self.call(format!("error {}", event.error_message().unwrap()))
    }
    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        let attributes = event.attributes();
        let kind = attributes
            .get("telemetry_data_error_type")
            .unwrap()
            .as_str()
            .unwrap();
        self.calls
            .lock()
            .unwrap()
            .push(format!("data_error {kind}"));
        Ok(())
    }
    fn close(&self, _: Duration) -> Result<(), ExportError> {
        self.call("close".into())
    }
}

#[test]
fn a_failing_exporter_is_told_once_and_left_out_after_five_failures_in_a_row() {
    let failing = Failing::default();
    failing.failures.store(2, Ordering::SeqCst);
    let recorder = Recorder::builder()
        .direct_exporter("failing", Box::new(failing.clone()))
        .build()
        .unwrap();
    drop(recorder.span("a"));
    drop(recorder.span("b"));
    assert!(!recorder.counts().exporters[0].disabled);
    failing.failures.store(u32::MAX, Ordering::SeqCst);
    for _ in 0..4 {
        drop(recorder.span("c"));
    }
    assert!(recorder.counts().exporters[0].disabled);
    recorder.close(PATIENCE).unwrap();
    let calls = failing.calls.lock().unwrap().join(", ");
    assert_eq!(
        calls,
        "start a, data_error no_telemetry_data, stop a, start b, stop b, \
         start c, stop c, start c, stop c, start c, close"
    );
    assert_eq!(recorder.counts().exporters[0].refused, 2 + 5 + 3);
}

/// Records what it is told of, in the recorder that tells it.
struct Recursive(Arc<std::sync::OnceLock<Recorder>>);

impl Exporter for Recursive {
    fn start(&self, _: &Span) -> Result<(), ExportError> {
        if let Some(recorder) = self.0.get() {
            drop(recorder.span("from within"));
        }
        Ok(())
    }
    fn stop(&self, _: &Span) -> Result<(), ExportError> {
        panic!("an exporter's own bug");
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

#[test]
fn an_exporter_that_records_or_panics_harms_nobody() {
    for direct in [false, true] {
        let place = Arc::new(std::sync::OnceLock::new());
        let recursive = Box::new(Recursive(place.clone()));
        let builder = Recorder::builder();
        let recorder = match direct {
            true => builder.direct_exporter("recursive", recursive),
            false => builder.exporter("recursive", recursive),
        };
        let recorder = recorder.build().unwrap();
        let _ = place.set(recorder.clone());
        drop(recorder.span("a"));
        drop(recorder.span("b"));
        assert!(recorder.flush(PATIENCE));
        recorder.close(PATIENCE).unwrap();
        let counts = recorder.counts();
        assert_eq!(counts.from_exporters, 4, "{counts:?}");
        assert_eq!(counts.exporters[0].refused, 2, "{counts:?}");
    }
}

#[test]
fn a_full_queue_drops_what_is_new_counts_it_and_says_so_once() {
    /// Takes nothing until it may.
    #[derive(Clone, Default)]
    struct Stuck(Arc<Mutex<()>>, Failing);
    impl Exporter for Stuck {
        fn start(&self, span: &Span) -> Result<(), ExportError> {
            drop(self.0.lock().unwrap());
            self.1.start(span)
        }
        fn stop(&self, span: &Span) -> Result<(), ExportError> {
            self.1.stop(span)
        }
        fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
            self.1.event(event, span)
        }
        fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
            self.1.error(event, span)
        }
        fn data_error(&self, event: &Event) -> Result<(), ExportError> {
            self.1.data_error(event)
        }
        fn close(&self, _: Duration) -> Result<(), ExportError> {
            Ok(())
        }
    }
    let stuck = Stuck::default();
    let recorder = Recorder::builder()
        .queue_items(10)
        .exporter("stuck", Box::new(stuck.clone()))
        .build()
        .unwrap();
    let held = stuck.0.lock().unwrap();
    for _ in 0..100 {
        drop(recorder.span("s"));
    }
    assert!(!recorder.flush(Duration::from_millis(1)));
    drop(held);
    recorder.close(PATIENCE).unwrap();
    let calls = stuck.1.calls.lock().unwrap();
    let dropped = recorder.counts().exporters[0].dropped;
    assert!((180..=190).contains(&dropped), "{dropped}");
    let told = calls.iter().filter(|c| c.starts_with("data_error")).count();
    assert_eq!(told, 1, "{calls:?}");
    assert_eq!(calls.len() as u64 + dropped, 200 + 1);
}

#[test]
fn a_recorder_that_is_off_or_closed_does_nothing_and_says_nothing() {
    let off = Recorder::off();
    let scope = off.span("x");
    assert!(scope.set("k", 1_i64).span().is_none());
    let (memory, recorder) = kept();
    recorder.close(PATIENCE).unwrap();
    recorder.span("late").event("e", Attributes::new());
    assert_eq!(memory.finished(), []);
    assert_eq!(recorder.counts().failed_calls, 1);
}

#[test]
fn a_call_that_fails_reaches_the_caller_only_where_asked_for() {
    for (strategy, raises) in [
        (Strategy::Continue, false),
        (Strategy::Disable, false),
        (Strategy::Propagate, true),
    ] {
        let failing = Failing::default();
        let recorder = Recorder::builder()
            .strategy(strategy)
            .direct_exporter("kept", Box::new(failing.clone()))
            .build()
            .unwrap();
        let span = recorder.start(Start::named("a")).unwrap().unwrap();
        recorder.stop(&span, Default::default()).unwrap();
        let again = recorder.stop(&span, Default::default());
        assert_eq!(again.is_err(), raises);
        assert_eq!(recorder.is_on(), strategy != Strategy::Disable);
        let calls = failing.calls.lock().unwrap().join(", ");
        assert_eq!(
            calls,
            "start a, stop a, data_error incomplete_telemetry_data"
        );
    }
}

#[test]
fn spans_that_are_filtered_out_still_are_parents() {
    let memory = MemoryExporter::default();
    let recorder = Recorder::builder()
        .filter(Filter::AllBut(["step".into()].into()))
        .exporter("memory", Box::new(memory.clone()))
        .build()
        .unwrap();
    let step = recorder.span("step");
    drop(recorder.span("inner"));
    let id = step.span().unwrap().id().otlp();
    drop(step);
    assert!(recorder.flush(PATIENCE));
    let spans = memory.finished();
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0].parent, Some(id));
}

#[test]
fn a_future_has_its_span_wherever_it_is_polled() {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    struct Yield(bool);
    impl Future for Yield {
        type Output = ();
        fn poll(mut self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            match std::mem::replace(&mut self.0, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }
    }
    let (memory, recorder) = kept();
    let task = |name: &'static str| {
        let inner = recorder.clone();
        recorder.instrument(Start::named(name), async move {
            Yield(false).await;
            drop(inner.span(format!("in {name}")));
        })
    };
    let mut a = Box::pin(task("a"));
    let mut b = Box::pin(task("b"));
    let mut context = Context::from_waker(Waker::noop());
    assert!(a.as_mut().poll(&mut context).is_pending());
    assert!(b.as_mut().poll(&mut context).is_pending());
    assert!(recorder.current_span().is_none());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            a.as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        });
        assert!(other.join().unwrap());
    });
    assert!(b.as_mut().poll(&mut context).is_ready());
    assert!(recorder.flush(PATIENCE));
    let spans = memory.finished();
    let parent = |name: &str| {
        let span = spans.iter().find(|s| &*s.name == name).unwrap();
        let parent = spans.iter().find(|p| Some(p.id.otlp()) == span.parent);
        parent.map(|p| p.name.to_string())
    };
    assert_eq!(parent("in a").as_deref(), Some("a"));
    assert_eq!(parent("in b").as_deref(), Some("b"));
    assert_eq!(parent("b"), None);
}

#[test]
fn a_span_that_was_stopped_elsewhere_is_nobodys_parent() {
    let (memory, recorder) = kept();
    let outer = recorder.start(Start::named("outer")).unwrap().unwrap();
    let inner = recorder.start(Start::named("inner")).unwrap().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| recorder.stop(&inner, Default::default()));
    });
    drop(recorder.span("next"));
    recorder.stop(&outer, Default::default()).unwrap();
    assert!(recorder.flush(PATIENCE));
    let spans = memory.finished();
    assert_eq!(&*spans[1].name, "next");
    assert_eq!(spans[1].parent, Some(outer.id().otlp()));
}

#[test]
fn a_chain_of_a_million_spans_is_let_go() {
    let recorder = Recorder::builder().build().unwrap();
    let mut spans = Vec::new();
    for _ in 0..1_000_000 {
        spans.push(recorder.start(Start::named("deeper")).unwrap().unwrap());
    }
    let last = spans.pop().unwrap();
    for span in &spans {
        recorder.stop(span, Default::default()).unwrap();
    }
    drop(spans);
    recorder.stop(&last, Default::default()).unwrap();
    drop(last);
}

#[test]
fn long_text_is_cut_and_mixed_lists_are_refused() {
    use warptrace_model::Value;
    let huge = "ä".repeat(10 << 20);
    let attributes = Attributes::new().with("huge", huge.as_str());
    assert!(attributes.get_str("huge").unwrap().unwrap().len() <= 1 << 20);
    let mut attributes = Attributes::new();
    let mixed = Value::Array(vec![Value::from(true), Value::from(1_i64)]);
    assert!(attributes.try_add("l", mixed).is_err());
    let fine = Value::Array(vec![Value::from(1_i64), Value::from(true)]);
    attributes.try_add("l", fine).unwrap();
}
