//! What must hold whatever the trace: time adds up, and nothing but what happened changes the answer.

use std::collections::BTreeMap;

use proptest::prelude::*;
use warptrace_model::{
    BootNanos, Category, Cause, Event, Finding, FindingId, FindingKind, Parts, Unit,
};

use crate::testing::{explain_events, parse_trace, render, render_finding};
use crate::{Engine, Output, Rules};

/// One step: what its parts took, µs.
#[derive(Debug, Clone, Copy)]
struct Step {
    disk: u64,
    own: u64,
    preempted: u64,
    lock: u64,
    malloc: u64,
    wait: u64,
    stretch: bool,
}

const USUAL: Step = Step {
    disk: 300,
    own: 2_000,
    preempted: 100,
    lock: 50,
    malloc: 40,
    wait: 12_000,
    stretch: false,
};

/// The notation of a step, which moves the time on. Each part but the loader's disk is the lead thread's.
fn step(who: &str, loader: &str, s: &Step) -> String {
    let Step {
        disk,
        own,
        preempted,
        lock,
        malloc,
        wait,
        ..
    } = *s;
    if s.stretch {
        let before = disk + own + preempted + lock + malloc + 80;
        return format!(
            "{who} 0us +{before}us stretch running={own}us runnable={preempted}us
             {who} {}us +40us cudaLaunchKernel stream=16
             {who} {}us +40us cudaLaunchKernel stream=16
             {who} {before}us +{wait}us cudaStreamSync stream=16
             {who} {before}us +{wait}us stretch running={wait}us
             pause {}us\n",
            before - 80,
            before - 40,
            before + wait
        );
    }
    let (a, b) = (disk, disk + own);
    let c = b + malloc;
    let d = c + 80;
    let e = d + preempted;
    let f = e + lock;
    format!(
        "{who} 0us +{disk}us blocked on=futex by={loader}
         {loader} 0us +{disk}us blocked on=pread fd=9 file=regular iowait wake=interrupt
         {who} {a}us +1us cudaEventQuery
         {who} {b}us +{malloc}us cudaMalloc bytes=4096
         {who} {c}us +40us cudaLaunchKernel stream=16
         {who} {}us +40us cudaLaunchKernel stream=16
         {who} {d}us +{preempted}us preempted cpu=1
         cpu1 {d}us +{preempted}us ran hog
         {who} {e}us +{lock}us blocked on=futex
         {who} {f}us +{wait}us cudaStreamSync stream=16
         pause {}us\n",
        c + 40,
        f + wait
    )
}

const HEAD: &str = "process train 4711 job ticks=70
    process hog 4890 silent
    thread loader 4713 of train
    file train 9 data/shard-03.tar
    train 0ms +1ms cudaStreamSync stream=16
    at 1ms
    train 0us +1us preempted\n";

fn job(steps: &[Step]) -> String {
    let body: String = steps.iter().map(|s| step("train", "loader", s)).collect();
    format!("{HEAD}{body}")
}

fn events(text: &str) -> Vec<Event> {
    parse_trace(text).unwrap_or_else(|e| panic!("{e}"))
}

fn any_step() -> impl Strategy<Value = Step> {
    let usual = Just(USUAL);
    let wild = (
        0u64..30_000,
        0u64..9_000,
        0u64..30_000,
        0u64..8_000,
        1u64..9_000,
        1u64..40_000,
        any::<bool>(),
    )
        .prop_map(|(disk, own, preempted, lock, malloc, wait, stretch)| Step {
            disk: disk + 1,
            own: own + 1,
            preempted: preempted + 1,
            lock: lock + 1,
            malloc,
            wait,
            stretch,
        });
    let jitter = (0u64..200, 0u64..200).prop_map(|(a, b)| Step {
        own: USUAL.own + a,
        wait: USUAL.wait - b,
        ..USUAL
    });
    prop_oneof![4 => usual, 3 => jitter, 2 => wild]
}

/// Thirty-five usual steps, then some of all sorts.
fn any_job() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any_step(), 1..60).prop_map(|more| {
        let mut all = vec![USUAL; 35];
        all.extend(more);
        all
    })
}

fn add_up(out: &Output) -> Result<(), TestCaseError> {
    for u in &out.units {
        prop_assert_eq!(u.parts.total(), u.dur);
    }
    for f in out.findings.iter().filter(|f| f.kind != FindingKind::Rule) {
        prop_assert_eq!(f.blame.iter().map(|b| b.ns).sum::<u64>(), f.excess_ns);
        prop_assert!(f.blame.iter().all(|b| b.ns <= b.lost_ns));
        prop_assert_eq!(f.blame.last().map(|b| b.cause), Some(Cause::Unexplained));
        prop_assert!(f.excess_ns > 0);
    }
    Ok(())
}

/// Findings without their ids and times.
fn timeless(out: &Output) -> Vec<String> {
    let mut all: Vec<String> = out
        .findings
        .iter()
        .cloned()
        .map(|mut f| {
            f.window.end = BootNanos(f.window.nanos());
            f.window.start = BootNanos(0);
            f.evidence.iter_mut().for_each(|e| e.start = BootNanos(0));
            render_finding(&f)
        })
        .collect();
    all.sort();
    all
}

fn unit_parts(out: &Output) -> Vec<(u64, Parts, bool)> {
    out.units.iter().map(|u| (u.dur, u.parts, u.slow)).collect()
}

/// The last word on each finding, and all units, of several drains.
#[derive(Default)]
struct Log {
    findings: BTreeMap<FindingId, Finding>,
    units: Vec<Unit>,
}

impl Log {
    fn take(&mut self, out: Output) {
        self.findings
            .extend(out.findings.into_iter().map(|f| (f.id, f)));
        self.units.extend(out.units);
    }
}

fn live(mut events: Vec<Event>, seed: u64, portion: u64) -> Log {
    let mut engine = Engine::new(Rules::default());
    let mut log = Log::default();
    // Each event is late by up to a second, by a hash of its place.
    let mut delivery: Vec<(u64, Event)> = events
        .drain(..)
        .enumerate()
        .map(|(i, e)| {
            let late = (i as u64)
                .wrapping_add(seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                >> 34;
            (e.end().map_or(0, |t| t.0) + late % 999_000_000, e)
        })
        .collect();
    delivery.sort_by_key(|(at, _)| *at);
    let mut now = 0;
    for (at, e) in delivery {
        if at > now + portion {
            now = at;
            engine.advance(BootNanos(now));
            log.take(engine.drain());
        }
        engine.push(e);
    }
    engine.finish(BootNanos(0));
    let last = engine.drain();
    assert!(last.losses.is_empty(), "{:?}", last.losses);
    log.take(last);
    log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Invariant 1.
    #[test]
    fn parts_add_up_to_the_unit_and_blame_to_the_excess(steps in any_job()) {
        add_up(&explain_events(events(&job(&steps)), Rules::default()))?;
    }

    /// Invariant 2, times.
    #[test]
    fn a_shift_of_all_times_changes_nothing_but_times(steps in any_job(), by in 1u64..10_000_000_000) {
        let text = job(&steps);
        let a = explain_events(events(&text), Rules::default());
        let shifted = text.replacen("train 0ms +1ms", &format!("at {by}ns\ntrain 0ms +1ms"), 1)
            .replacen("at 1ms", "pause 1ms", 1);
        let b = explain_events(events(&shifted), Rules::default());
        prop_assert_eq!(timeless(&a), timeless(&b));
        prop_assert_eq!(unit_parts(&a), unit_parts(&b));
    }

    /// Invariant 2, names.
    #[test]
    fn other_pids_and_streams_change_nothing_but_names(steps in any_job(), pid in 5_000u32..60_000, stream in 3u64..1 << 40) {
        let text = job(&steps);
        let renamed = text.replace("train 4711 job", &format!("train {pid} job"))
            .replace("loader 4713 of", &format!("loader {} of", pid + 1))
            .replace("stream=16", &format!("stream={stream}"));
        let a = explain_events(events(&text), Rules::default());
        let b = explain_events(events(&renamed), Rules::default());
        prop_assert_eq!(timeless(&a), timeless(&b));
        prop_assert_eq!(unit_parts(&a), unit_parts(&b));
    }

    /// Invariants 3 and 7: portions, cuts and the order of delivery within the merge window do not matter.
    #[test]
    fn live_in_portions_and_replayed_at_once_are_one(
        steps in any_job(),
        seed in any::<u64>(),
        portion in 1_000_000u64..500_000_000,
    ) {
        let all = events(&job(&steps));
        let replayed = explain_events(all.clone(), Rules::default());
        let log = live(all, seed, portion);
        prop_assert_eq!(&log.units, &replayed.units);
        let last: BTreeMap<_, _> = replayed.findings.iter().map(|f| (f.id, f.clone())).collect();
        prop_assert_eq!(&log.findings, &last);
    }

    /// Invariant 4.
    #[test]
    fn a_process_that_shares_nothing_changes_no_blame(steps in any_job(), others in any_job()) {
        let text = job(&steps);
        let body: String = others.iter().map(|s| step("other", "its-loader", s)).collect();
        let body = body.replace("cpu1", "cpu7").replace("cpu=1", "cpu=7").replace("ran hog", "ran its-hog")
            .replace("stream=16", "stream=32 device=3");
        let both = format!(
            "{text}
             at 1ms
             process other 9000 ticks=90
             process its-hog 9100 silent
             thread its-loader 9001 of other
             {body}"
        );
        let a = explain_events(events(&text), Rules::default());
        let mut b = explain_events(events(&both), Rules::default());
        b.findings.retain(|f| f.key.process.pid.0 == 4711);
        b.units.retain(|u| u.key.process.pid.0 == 4711);
        prop_assert_eq!(&a.findings, &b.findings);
        prop_assert_eq!(&a.units, &b.units);
    }

    /// Invariant 5.
    #[test]
    fn lost_records_never_make_more_certain(steps in any_job(), lose in 0usize..2_000) {
        let mut steps = steps;
        steps.iter_mut().for_each(|s| s.stretch = false);
        let all = events(&job(&steps));
        let sched: Vec<usize> = (0..all.len())
            .filter(|i| matches!(&all[*i], Event::OffCpu(o) if o.thread.tid.0 == 4711 && o.dur > 0 && o.start.0 > 2_000_000))
            .collect();
        let at = sched[lose % sched.len()];
        let Event::OffCpu(gone) = all[at] else { unreachable!() };
        let mut less = all.clone();
        less.remove(at);
        less.push(Event::Lost(warptrace_model::Loss {
            source: "test",
            reason: warptrace_model::LossReason::RingFull,
            count: 1,
            window: Some(gone.window()),
            pid: Some(gone.thread.pid),
        }));
        let a = explain_events(all, Rules::default());
        let b = explain_events(less, Rules::default());
        prop_assert_eq!(a.units.len(), b.units.len());
        let mut more_unexplained = 0;
        for (x, y) in a.units.iter().zip(&b.units) {
            for c in Category::ALL {
                prop_assert!(c == Category::Unexplained || y.parts[c] <= x.parts[c]);
            }
            more_unexplained += y.parts[Category::Unexplained] - x.parts[Category::Unexplained];
        }
        prop_assert!(more_unexplained <= gone.dur);
        add_up(&b)?;
    }

    /// Invariant 6.
    #[test]
    fn a_delay_of_one_category_is_lost_by_its_cause_alone(which in 0usize..5, delay in 3_000u64..200_000) {
        let mut late = USUAL;
        let (part, cause) = match which {
            0 => (&mut late.disk, Cause::DiskWait),
            1 => (&mut late.own, Cause::LaunchGap),
            2 => (&mut late.preempted, Cause::RunQueueWait),
            3 => (&mut late.lock, Cause::LockWait),
            _ => (&mut late.malloc, Cause::Allocator),
        };
        *part += delay;
        let mut steps = vec![USUAL; 40];
        steps.push(late);
        let mut rules = Rules::default();
        rules.finding.min_excess_nanos = 0;
        let out = explain_events(events(&job(&steps)), rules);
        let f = out.findings.iter().find(|f| f.kind == FindingKind::Incident).expect("a slow step");
        for b in &f.blame {
            // The usual step is the mean of forty equal ones but for the first microsecond of the trace.
            let want = if b.cause == cause { delay * 1_000 } else { 0 };
            prop_assert!(b.lost_ns.abs_diff(want) < 1_000, "{}", render(&out));
        }
    }
}

/// Any event of a few threads, in any disorder.
fn any_event() -> impl Strategy<Value = Event> {
    use warptrace_model::record::{Kind, Record, op::OPS};
    (
        (
            1u8..=9,
            0usize..OPS.len(),
            any::<u16>(),
            0u64..2_000_000_000,
        ),
        (
            prop_oneof![5 => 0u64..50_000_000, 1 => any::<u64>()],
            1u32..4,
            1u32..4,
            prop_oneof![4 => Just(0), 1 => any::<i32>()],
        ),
        (
            any::<u64>(),
            any::<u64>(),
            prop_oneof![0u64..4, any::<u64>()],
            0u32..3,
            any::<bool>(),
        ),
    )
        .prop_filter_map(
            "an op that is known",
            |((kind, op, flags, ts), (dur, pid, tid, ret), (a, b, stream, cpu, small))| {
                let mut r = Record::new(Kind::Call, ts, dur, pid, pid * 10 + tid);
                r.kind = kind;
                (r.source, r.op) = if matches!(kind, 1 | 8) {
                    (OPS[op].source as u8, OPS[op].number)
                } else {
                    (0, op as u16 % 8)
                };
                r.flags = if small { flags & 0x3 } else { flags };
                r.device = flags & 1;
                (r.ret, r.stack_id, r.cpu) = (ret, pid * 10 + 1, cpu);
                (r.arg0, r.arg1, r.stream) = if small {
                    (a % 40_000_000, b % 30_000_000, stream % 64)
                } else {
                    (a, b, stream)
                };
                Event::from_record(&r)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Records that contradict each other, as a broken producer may write them, still add up and harm nothing.
    #[test]
    fn nonsense_adds_up_too(soup in proptest::collection::vec(any_event(), 0..400)) {
        add_up(&explain_events(soup, Rules::default()))?;
    }
}

/// Invariant 8: what is kept does not grow with the length of the run.
#[test]
fn memory_does_not_grow_with_the_run() {
    let mut engine = Engine::new(Rules::default());
    let mut sizes = Vec::new();
    let steps = vec![USUAL; 500];
    let text = job(&steps);
    let span = 500 * 15_000_000u64;
    for round in 0..12u64 {
        let shifted = text
            .replacen(
                "train 0ms +1ms",
                &format!("at {}ns\ntrain 0ms +1ms", round * span),
                1,
            )
            .replacen("at 1ms", "pause 1ms", 1);
        for e in events(&shifted) {
            engine.push(e);
        }
        engine.advance(BootNanos((round + 1) * span));
        engine.drain();
        sizes.push(engine.records_held());
    }
    let most = sizes.iter().max().unwrap();
    assert!(*most < 2_000, "{sizes:?}");
}
