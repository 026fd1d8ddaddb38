//! Spans of scopes, which are plain data of their thread until somebody asks: nobody can tell.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use warptrace_model::SpanRecord;
use warptrace_sdk::span::{
    Attributes, EVENTS_KEPT, ExportError, Exporter, Filter, Interest, MemoryExporter, Recorder,
    Scope, Span, Start, Strategy as Strat,
};

const LONG: Duration = Duration::from_secs(60);

/// A recorder whose scopes' spans are plain, and what it exported.
fn plain() -> (Recorder, MemoryExporter) {
    let kept = MemoryExporter::default();
    let recorder = Recorder::builder().exporter("memory", Box::new(kept.clone()));
    (recorder.build().unwrap(), kept)
}

/// The same by way of spans with all that they are: an exporter wants to hear of their starts.
fn full() -> (Recorder, MemoryExporter) {
    let kept = MemoryExporter::default();
    let recorder = Recorder::builder()
        .exporter("memory", Box::new(kept.clone()))
        .exporter("all", Box::new(All));
    (recorder.build().unwrap(), kept)
}

struct All;

impl Exporter for All {
    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn stop(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn event(&self, _: &warptrace_sdk::span::Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn error(&self, _: &warptrace_sdk::span::Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn data_error(&self, _: &warptrace_sdk::span::Event) -> Result<(), ExportError> {
        Ok(())
    }
    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }
}

fn finished(recorder: &Recorder, kept: &MemoryExporter) -> Vec<SpanRecord> {
    assert!(recorder.flush(LONG));
    kept.finished()
}

/// Name, attributes, events, the name of the parent, and whether it is of the same trace: what does not depend on random ids.
type Shape = (String, String, Vec<String>, Option<String>, bool);

fn shape(spans: &[SpanRecord]) -> Vec<Shape> {
    let shape = |span: &SpanRecord| {
        let parent = spans.iter().find(|s| Some(s.id.otlp()) == span.parent);
        let same_trace = parent.is_none_or(|p| p.trace == span.trace);
        (
            span.name.to_string(),
            format!("{:?} {:?}", span.attributes, span.error),
            span.events.iter().map(|e| e.name.to_string()).collect(),
            parent.map(|p| p.name.to_string()),
            same_trace,
        )
    };
    let without_time = |text: String| match text.find("(\"duration_msec\"") {
        Some(at) => text[..at].to_owned(),
        None => text,
    };
    let shapes = spans.iter().map(shape);
    shapes
        .map(|(name, said, events, parent, trace)| {
            (name, without_time(said), events, parent, trace)
        })
        .collect()
}

/// What a program does with scopes, as numbers say.
#[derive(Debug, Clone, Copy)]
enum Step {
    Open,
    /// Ends the open scope of this number, modulo how many there are.
    End(usize),
    Set(usize),
    Event(usize),
    Ask(usize),
    Fail(usize),
    Current,
    ByHand,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Open),
        3 => (0..1000_usize).prop_map(|n| Step::End(usize::MAX - n % 2)),
        1 => any::<usize>().prop_map(Step::End),
        2 => any::<usize>().prop_map(Step::Set),
        1 => any::<usize>().prop_map(Step::Event),
        1 => any::<usize>().prop_map(Step::Ask),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => Just(Step::Current),
        1 => Just(Step::ByHand),
        1 => Just(Step::Flush),
    ]
}

fn run(recorder: &Recorder, steps: &[Step]) -> Vec<Option<String>> {
    let mut open: Vec<Scope<'_>> = Vec::new();
    let mut currents = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let at = |n: usize| match n {
            n if open.is_empty() => n,
            n if n > usize::MAX - 2 => open.len() - 1,
            n => n % open.len(),
        };
        match *step {
            Step::Open => open.push(recorder.span(format!("s{i}"))),
            Step::End(n) if !open.is_empty() => {
                let n = at(n);
                open.remove(n).end(Attributes::new());
            }
            Step::Set(n) if !open.is_empty() => {
                open[at(n)].set("k", i as i64).set(format!("k{i}"), "v");
            }
            Step::Event(n) if !open.is_empty() => {
                open[at(n)].event(format!("e{i}"), Attributes::new().with("n", 1_i64));
            }
            Step::Ask(n) if !open.is_empty() => {
                let span = open[at(n)].span().unwrap();
                span.set("asked", true).unwrap();
            }
            Step::Fail(n) if !open.is_empty() => {
                open[at(n)].error(&std::fmt::Error);
            }
            Step::Current => {
                currents.push(recorder.current_span().map(|span| span.name().to_owned()));
            }
            Step::ByHand => {
                let span = recorder
                    .start(Start::named(format!("h{i}")))
                    .unwrap()
                    .unwrap();
                let _inner = recorder.span(format!("i{i}"));
                recorder.stop(&span, Default::default()).unwrap();
            }
            Step::Flush => assert!(recorder.flush(LONG)),
            _ => {}
        }
    }
    while let Some(last) = open.pop() {
        drop(last);
    }
    currents.push(recorder.current_span().map(|span| span.name().to_owned()));
    currents
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_is_done_with_scopes_comes_out_as_if_each_were_a_span_from_the_start(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let ((plain, kept), (full, kept_full)) = (self::plain(), self::full());
        let currents = (run(&plain, &steps), run(&full, &steps));
        prop_assert_eq!(currents.0, currents.1);
        plain.close(LONG).unwrap();
        full.close(LONG).unwrap();
        prop_assert_eq!(shape(&kept.finished()), shape(&kept_full.finished()));
        prop_assert_eq!(plain.counts().failed_calls, full.counts().failed_calls);
    }
}

#[test]
fn spans_come_in_the_order_in_which_they_ended_through_many_batches() {
    let (recorder, kept) = plain();
    {
        let _outermost = recorder.span("outermost");
        for i in 0..1000 {
            let outer = recorder.span(format!("outer {i}"));
            drop(recorder.span(format!("inner {i}")));
            drop(outer);
        }
    }
    let names: Vec<_> = finished(&recorder, &kept)
        .into_iter()
        .map(|s| s.name)
        .collect();
    let pairs = (0..1000).flat_map(|i| [format!("inner {i}"), format!("outer {i}")]);
    let expected: Vec<String> = pairs.chain(["outermost".to_owned()]).collect();
    assert_eq!(names.iter().map(|n| &**n).collect::<Vec<_>>(), expected);
}

#[test]
fn what_a_thread_ended_is_exported_though_the_thread_does_nothing_more() {
    let (recorder, kept) = plain();
    let (go, wait) = sync_channel::<()>(0);
    std::thread::scope(|threads| {
        let recorder = &recorder;
        threads.spawn(move || {
            drop(recorder.span("alone"));
            let _ = wait.recv();
        });
        // Without a flush: the exporters' thread fetches it.
        while kept.finished().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(go);
    });
    assert_eq!(&*kept.finished()[0].name, "alone");
}

#[test]
fn after_a_long_rest_what_ends_wakes_the_exporters_thread() {
    let (recorder, kept) = plain();
    for round in 1..=3 {
        drop(recorder.span("one"));
        while kept.finished().len() < round {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Longer than its naps.
        std::thread::sleep(Duration::from_millis(700));
    }
}

#[test]
fn a_thread_that_ends_leaves_nothing_behind() {
    let (recorder, kept) = plain();
    std::thread::scope(|threads| {
        for t in 0..50 {
            let recorder = &recorder;
            threads.spawn(move || {
                for i in 0..(t * 7) {
                    recorder.span("of a thread").set("i", i);
                }
            });
        }
    });
    let expected: usize = (0..50).map(|t| t * 7).sum();
    assert_eq!(finished(&recorder, &kept).len(), expected);
}

#[test]
fn other_threads_see_what_is_open_and_a_close_stops_it() {
    let (recorder, kept) = plain();
    let (ready, is_ready) = sync_channel::<()>(0);
    let (go, wait) = sync_channel::<()>(0);
    std::thread::scope(|threads| {
        let recorder = &recorder;
        threads.spawn(move || {
            let outer = recorder.span("outer");
            let inner = recorder.span("inner");
            inner.set("k", 1_i64);
            ready.send(()).unwrap();
            let _ = wait.recv();
            // Too late.
            inner.set("k", 2_i64);
            drop(inner);
            drop(outer);
        });
        is_ready.recv().unwrap();
        let inner = recorder.open_spans("inner");
        assert_eq!(inner.len(), 1);
        assert_eq!(inner[0].parent().map(Span::name), Some("outer"));
        assert!(inner[0].is_active());
        assert!(recorder.open_spans("none").is_empty());
        recorder.close(LONG).unwrap();
        drop(go);
    });
    let finished = kept.finished();
    let names: Vec<_> = finished.iter().map(|s| &*s.name).collect();
    assert_eq!(names, ["inner", "outer"]);
    assert!(finished.iter().all(|s| s.end.is_some()));
    assert_eq!(finished[0].attributes.get("k"), Some(&1_i64.into()));
    assert_eq!(
        recorder.counts().failed_calls,
        2,
        "they were stopped once more"
    );
}

#[test]
fn a_span_that_was_asked_for_is_the_same_however_it_is_looked_at() {
    let (recorder, kept) = plain();
    let scope = recorder.span("one");
    scope.set("before", 1_i64);
    let asked = scope.span().unwrap().clone();
    assert_eq!(recorder.current_span(), Some(asked.clone()));
    scope.set("after", 2_i64);
    assert_eq!(asked.attributes().len(), 2);
    drop(scope);
    assert!(!asked.is_active());
    assert_eq!(recorder.current_span(), None);
    assert_eq!(finished(&recorder, &kept).len(), 1);
}

#[test]
fn events_beyond_the_limit_are_counted() {
    let (recorder, kept) = plain();
    let scope = recorder.span("one");
    for _ in 0..EVENTS_KEPT + 7 {
        scope.event("e", Attributes::new());
    }
    drop(scope);
    let finished = finished(&recorder, &kept);
    assert_eq!(
        (finished[0].events.len(), finished[0].dropped_events),
        (EVENTS_KEPT, 7)
    );
}

#[test]
fn filters_and_switching_off_leave_the_others_as_they_are() {
    let kept = MemoryExporter::default();
    let recorder = Recorder::builder()
        .exporter("memory", Box::new(kept.clone()))
        .filter(Filter::AllBut(["hidden".into()].into()))
        .build()
        .unwrap();
    {
        let _outer = recorder.span("outer");
        let _hidden = recorder.span("hidden");
        drop(recorder.span("inner"));
        assert!(recorder.flush(LONG));
        recorder.disable();
    }
    let finished = kept.finished();
    assert_eq!(finished.len(), 1, "{finished:?}");
    assert!(finished[0].parent.is_some());
    assert_eq!(recorder.current_span(), None);
}

#[test]
fn a_full_queue_drops_by_count_the_newest_of_a_batch() {
    /// Holds on to the exporters' thread.
    struct Holds(Arc<Mutex<()>>, MemoryExporter);
    impl Exporter for Holds {
        fn interest(&self) -> Interest {
            Interest::Finished
        }
        fn start(&self, _: &Span) -> Result<(), ExportError> {
            Ok(())
        }
        fn stop(&self, span: &Span) -> Result<(), ExportError> {
            drop(self.0.lock());
            self.1.stop(span)
        }
        fn event(&self, _: &warptrace_sdk::span::Event, _: &Span) -> Result<(), ExportError> {
            Ok(())
        }
        fn error(&self, _: &warptrace_sdk::span::Event, _: &Span) -> Result<(), ExportError> {
            Ok(())
        }
        fn data_error(&self, _: &warptrace_sdk::span::Event) -> Result<(), ExportError> {
            Ok(())
        }
        fn close(&self, _: Duration) -> Result<(), ExportError> {
            Ok(())
        }
    }
    let (gate, kept) = (Arc::new(Mutex::new(())), MemoryExporter::default());
    let recorder = Recorder::builder()
        .exporter("holds", Box::new(Holds(Arc::clone(&gate), kept.clone())))
        .queue_items(100)
        .strategy(Strat::Continue)
        .build()
        .unwrap();
    let held = gate.lock().unwrap();
    for i in 0..10_000_i64 {
        recorder.span("s").set("i", i);
    }
    drop(held);
    let finished = finished(&recorder, &kept);
    let dropped = recorder.counts().exporters[0].dropped;
    assert_eq!(finished.len() as u64 + dropped, 10_000);
    assert!(dropped >= 10_000 - 2 * 228, "{dropped}");
    let order: Vec<_> = finished
        .iter()
        .map(|s| s.attributes.get("i").cloned())
        .collect();
    assert!(order.first() == Some(&Some(0_i64.into())));
}

#[test]
fn a_thousand_scopes_within_each_other_end_in_any_order() {
    let (recorder, kept) = plain();
    let mut open: Vec<_> = (0..1000).map(|i| recorder.span(format!("s{i}"))).collect();
    // Every third one first, outermost first.
    let mut i = 0;
    open.retain(|_| {
        i += 1;
        i % 3 != 0
    });
    assert_eq!(
        recorder.current_span().map(|s| s.name().to_owned()),
        Some("s999".into())
    );
    open.clear();
    let finished = finished(&recorder, &kept);
    assert_eq!(finished.len(), 1000);
    let traces: std::collections::HashSet<_> = finished.iter().map(|s| s.trace).collect();
    assert_eq!(traces.len(), 1);
    assert_eq!(recorder.current_span(), None);
}
