//! The index against the rule written plainly, and its bounds.

use proptest::prelude::*;

use super::*;

fn life(pid: u32, start_ticks: u64) -> Incarnation {
    Incarnation {
        pid: Pid(pid),
        start_ticks,
    }
}

fn said(
    at: u64,
    span: Option<(u64, u64)>,
    scope: Option<Incarnation>,
    labels: &[(&str, &str)],
) -> Annotation {
    Annotation {
        at: BootNanos(at),
        span: span.map(|(start, end)| Window {
            start: BootNanos(start),
            end: BootNanos(end),
        }),
        scope,
        labels: Labels::from_pairs(labels).unwrap(),
        sender: None,
    }
}

fn index(annotations: &[Annotation]) -> LabelIndex {
    let mut index = LabelIndex::default();
    annotations.iter().for_each(|a| index.push(a));
    index
}

fn at(index: &LabelIndex, who: Incarnation, at: u64) -> String {
    let labels = index.at(who, BootNanos(at));
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(" ")
}

#[test]
fn an_instant_holds_until_its_process_says_the_key_again() {
    let p = life(7, 5);
    let index = index(&[
        said(100, None, None, &[("run", "r"), ("step", "0")]),
        said(120, None, Some(p), &[("step", "1")]),
        said(200, None, Some(p), &[("step", "2")]),
        // Late.
        said(150, None, Some(p), &[("phase", "train")]),
    ]);
    assert_eq!(at(&index, p, 99), "");
    assert_eq!(at(&index, p, 100), "run=r step=0");
    assert_eq!(at(&index, p, 199), "phase=train run=r step=1");
    assert_eq!(at(&index, p, 9_999), "phase=train run=r step=2");
    assert_eq!(at(&index, life(8, 5), 9_999), "run=r step=0");
    assert_eq!(index.value(p, BootNanos(199), "step"), Some("1"));
    assert_eq!(index.value(p, BootNanos(99), "step"), None);
}

#[test]
fn what_is_said_at_one_moment_is_in_order_of_arrival() {
    let p = life(7, 5);
    let index = index(&[
        said(100, None, Some(p), &[("step", "1")]),
        said(100, None, Some(p), &[("step", "2")]),
        said(100, Some((50, 150)), Some(p), &[("step", "3")]),
    ]);
    assert_eq!(at(&index, p, 120), "step=3");
    assert_eq!(at(&index, p, 151), "step=2");
}

#[test]
fn a_pid_that_came_again_does_not_inherit_labels() {
    let tick = CLOCK_TICK_NANOS;
    let (first, second) = (life(7, 10), life(7, 20));
    let index = index(&[
        said(11 * tick, None, Some(first), &[("step", "1")]),
        said(21 * tick, None, Some(second), &[("step", "9")]),
        said(12 * tick, None, Some(life(7, 0)), &[("who", "?")]),
    ]);
    assert_eq!(at(&index, first, 30 * tick), "step=1 who=?");
    assert_eq!(at(&index, second, 30 * tick), "step=9 who=?");
    assert_eq!(at(&index, life(7, 30), 30 * tick), "who=?");
    // Without a start time: the life that had begun by then.
    assert_eq!(at(&index, life(7, 0), 15 * tick), "step=1 who=?");
    assert_eq!(at(&index, life(7, 0), 22 * tick), "step=9 who=?");
    assert_eq!(at(&index, life(7, 0), 9 * tick), "");
}

#[test]
fn spans_that_lie_over_each_other_are_all_found() {
    let p = life(7, 5);
    let request = |id, start, end| said(end, Some((start, end)), Some(p), &[("request_id", id)]);
    let index = index(&[
        request("a", 100, 250),
        request("b", 200, 350),
        request("long", 0, 1 << 40),
        request("moment", 240, 240),
        said(1, Some((10, 20)), None, &[("phase", "load")]),
    ]);
    let found = |who, start, end| {
        let window = Window {
            start: BootNanos(start),
            end: BootNanos(end),
        };
        let spans = index.spans(who, window);
        let ids = spans
            .iter()
            .flat_map(|s| s.labels.iter().map(|(_, v)| v.to_owned()));
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found(p, 240, 245), "long a b moment");
    assert_eq!(found(p, 251, 300), "long b");
    assert_eq!(found(p, 20, 20), "long load");
    assert_eq!(found(life(8, 1), 0, 1_000), "load");
    assert_eq!(at(&index, p, 240), "request_id=long");
    assert_eq!(index.all_spans(Window::at(BootNanos(0), 1_000)).len(), 5);
}

#[test]
fn superseded_values_go_before_those_that_hold() {
    let mut index = LabelIndex::new(LabelCaps {
        instants: 10,
        ..LabelCaps::default()
    });
    let p = life(7, 5);
    index.push(&said(1, None, None, &[("run", "r")]));
    index.push(&said(1, None, Some(life(8, 5)), &[("rank", "0")]));
    for step in 0..1_000u64 {
        let text = step.to_string();
        index.push(&said(10 + step, None, Some(p), &[("step", &text)]));
    }
    assert_eq!(at(&index, p, 5_000), "run=r step=999");
    assert_eq!(at(&index, p, 1_005), "run=r step=995");
    assert_eq!(at(&index, life(8, 5), 5_000), "rank=0 run=r");
    assert_eq!((index.instants, index.forgotten().instants), (10, 992));
}

#[test]
fn every_bound_holds_whatever_is_said_and_what_goes_is_counted() {
    let caps = LabelCaps {
        processes: 8,
        keys: 4,
        instants: 50,
        spans: 20,
        bytes: 500,
    };
    let mut index = LabelIndex::new(caps);
    let (mut instants, mut spans) = (0, 0);
    // A small generator: the same numbers each time.
    let mut state = 1u64;
    let mut next = |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % n
    };
    for _ in 0..20_000 {
        let scope = (next(10) > 0).then(|| life(next(30) as u32, 1 + next(3)));
        let key = format!("k{}", next(9));
        let value = "v".repeat(next(40) as usize);
        let at = next(1_000);
        let span = (next(4) == 0).then(|| (at, at + next(300)));
        spans += u64::from(span.is_some());
        instants += u64::from(span.is_none());
        index.push(&said(at, span, scope, &[(&key, &value)]));
        assert!(index.by_age.len() <= caps.processes && index.scopes.len() <= caps.processes + 1);
        assert!(index.scopes.values().all(|s| s.keys.len() <= caps.keys));
        assert!(index.instants <= caps.instants && index.span_count <= caps.spans);
        assert!(index.bytes <= caps.bytes, "{}", index.bytes);
        assert!(index.superseded.len() <= 2 * caps.instants + 64);
        assert!(index.spans.len() <= 2 * caps.spans + 64);
    }
    let kept: usize = index
        .scopes
        .values()
        .flat_map(|s| s.keys.values())
        .map(|s| s.values.len())
        .sum();
    assert_eq!(kept, index.instants);
    let bytes: usize = index
        .scopes
        .values()
        .map(|s| {
            let spans = s.spans.values().map(|a| a.labels.heap_bytes());
            spans.sum::<usize>() + s.keys.values().map(Series::bytes).sum::<usize>()
        })
        .sum();
    assert_eq!(bytes, index.bytes);
    let forgotten = index.forgotten();
    assert_eq!(forgotten.instants + index.instants as u64, instants);
    assert_eq!(forgotten.spans + index.span_count as u64, spans);
    assert!(forgotten.keys > 0 && forgotten.processes > 0);
}

#[test]
fn a_life_that_ended_and_one_that_began_are_told_apart_by_exec_and_exit() {
    let pid = Pid(7);
    let exec = |at| ProcessEvent::Exec {
        at: BootNanos(at),
        pid,
        start_ticks: 0,
    };
    let exit = |at| ProcessEvent::Exit {
        at: BootNanos(at),
        pid,
        status: 0,
    };
    let lifecycle = [exec(100), exit(200), exec(300), exit(50)];
    let annotations = [
        said(110, None, Some(life(7, 0)), &[("step", "1")]),
        said(250, None, Some(life(7, 0)), &[("between", "1")]),
    ];
    let events = [150, 199, 200, 260, 300].map(|at| (BootNanos(at), pid));
    let window = BootNanos(0)..=BootNanos(1_000);
    let joined = join(window, &lifecycle, &annotations, &events);
    let keys = joined
        .iter()
        .map(|j| j.labels.iter().map(|(k, _)| k).collect::<String>());
    assert_eq!(
        keys.collect::<Vec<_>>(),
        ["step", "step", "", "between", ""]
    );
}

fn annotations() -> impl Strategy<Value = Vec<Annotation>> {
    let annotation = (
        0..60u64,
        prop::option::of((0..60u64, 0..40u64)),
        prop::option::of(0..3u32),
        prop::collection::vec((0..4usize, 0..100u32), 1..4),
    );
    let annotation = annotation.prop_map(|(at, span, pid, labels)| {
        let labels: Vec<(String, String)> = labels
            .into_iter()
            .map(|(k, v)| {
                (
                    ["step", "epoch", "phase", "run"][k].to_owned(),
                    v.to_string(),
                )
            })
            .collect();
        let span = span.map(|(start, length)| Window::at(BootNanos(start), length));
        Annotation {
            at: BootNanos(at),
            span,
            scope: pid.map(|pid| life(pid, 0)),
            labels: Labels::from_pairs(&labels).unwrap(),
            sender: None,
        }
    });
    prop::collection::vec(annotation, 0..40)
}

proptest! {
    #[test]
    fn the_index_says_what_the_join_says(annotations in annotations(), events in prop::collection::vec((0..110u64, 0..4u32), 1..20)) {
        let index = index(&annotations);
        let events: Vec<_> = events.into_iter().map(|(at, pid)| (BootNanos(at), Pid(pid))).collect();
        let joined = join(BootNanos(0)..=BootNanos(1_000), &[], &annotations, &events);
        for ((at, pid), joined) in events.into_iter().zip(joined) {
            let who = Incarnation { pid, start_ticks: 0 };
            let labels = index.at(who, at);
            prop_assert_eq!(&labels, &joined.labels);
            for key in ["step", "epoch", "phase", "run", "other"] {
                prop_assert_eq!(index.value(who, at, key), labels.get(key));
            }
        }
    }

    #[test]
    fn the_spans_of_a_window_are_those_that_touch_it(annotations in annotations(), start in 0..110u64, length in 0..30u64) {
        let index = index(&annotations);
        let window = Window::at(BootNanos(start), length);
        let mut plain: Vec<&Annotation> = annotations
            .iter()
            .filter(|a| a.span.is_some_and(|s| s.start <= window.end && window.start <= s.end))
            .collect();
        plain.sort_by_key(|a| a.span.map(|s| s.start));
        prop_assert_eq!(index.all_spans(window), plain);
    }
}
