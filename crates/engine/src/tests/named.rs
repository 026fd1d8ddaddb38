//! Units that the job names: steps and requests.

use warptrace_model::{GapCode, NamedBy, Unit, UnitKind};

use crate::testing::{explain_trace, render};
use crate::{Output, Rules};

fn explain(trace: &str) -> Output {
    explain_trace(trace, Rules::default())
}

/// Value, number, start and length in ms of the named units.
fn named(out: &Output) -> Vec<(String, u64, u64, u64)> {
    out.units
        .iter()
        .filter_map(|u| {
            let name = u.name.as_ref()?;
            assert_eq!(u.key.kind, UnitKind::Named);
            assert_eq!(u.parts.total(), u.dur);
            Some((name.value.to_string(), u.number, ms(u.start.0), ms(u.dur)))
        })
        .collect()
}

fn ms(ns: u64) -> u64 {
    ns / 1_000_000
}

fn part(u: &Unit, category: &str) -> u64 {
    let parts = u.parts.iter();
    parts
        .filter(|(c, _)| c.name() == category)
        .map(|(_, ns)| ms(ns))
        .sum()
}

/// `steps` steps of 40 ms with a wait of 20 ms each, and `between` put in at the 50th.
fn steps(steps: u64, between: &str, late: u64) -> String {
    let mut trace = String::from("process train 1 job\nat 100ms\n");
    for i in 0..steps {
        let slow = i == 50;
        let late = if slow { late } else { 0 };
        trace += &format!("train 0ms label step={}\n", 700 + i);
        if slow {
            trace += between;
        }
        trace += &format!(
            "train {}ms +10us cudaLaunchKernel stream=16\ntrain {}ms +20ms cudaStreamSync stream=16\n",
            5 + late,
            10 + late
        );
        trace += &format!("pause {}ms\n", 40 + late);
    }
    trace
}

#[test]
fn an_empty_name_ends_a_step_and_begins_none() {
    let out = explain(
        "process train 1 job
         train 1ms label step=41
         train 11ms label step=
         train 15ms label step=
         train 500ms label step=42
         train 510ms label step=43",
    );
    assert_eq!(
        named(&out),
        [("41".to_owned(), 41, 1, 10), ("42".to_owned(), 42, 500, 10)]
    );
}

#[test]
fn a_step_lasts_until_the_next_one_and_has_its_number() {
    let out = explain(
        "process train 1 job
         train 1ms label step=41 epoch=2
         train 2ms +10us cudaLaunchKernel stream=16
         train 3ms +5ms cudaStreamSync stream=16
         train 11ms label step=42
         train 14ms label step=42
         train 15ms label phase=eval
         train 21ms label step=last
         train 31ms label step=44",
    );
    assert_eq!(
        named(&out),
        [
            ("41".to_owned(), 41, 1, 10),
            ("42".to_owned(), 42, 11, 10),
            ("last".to_owned(), 2, 21, 10)
        ]
    );
    let first = out.units.iter().find(|u| u.number == 41).unwrap();
    assert_eq!((part(first, "device_wait"), first.launches), (5, 1));
    assert_eq!(
        out.gaps
            .iter()
            .filter(|g| g.code == GapCode::UnitsLeftOut)
            .count(),
        1
    );
}

#[test]
fn a_slow_step_is_told_once_by_its_own_number_and_what_lies_in_it_is_not() {
    let out = explain(
        &steps(
            100,
            "train 1ms +60ms preempted cpu=1\ncpu1 1ms +60ms ran hog\n",
            60,
        )
        .replace(
            "process train 1 job\n",
            "process train 1 job\nprocess hog 9\n",
        ),
    );
    assert_eq!(out.findings.len(), 1, "{}", render(&out));
    let f = &out.findings[0];
    assert_eq!(
        (f.units.worst, f.units.slow, f.cause.name()),
        (750, 1, "run_queue_wait")
    );
    assert_eq!((ms(f.excess_ns), ms(f.baseline_ns)), (60, 40));
    assert_eq!(f.blame.iter().map(|b| b.ns).sum::<u64>(), f.excess_ns);
    let slow: Vec<_> = out.units.iter().filter(|u| u.slow).collect();
    assert_eq!(slow.len(), 1);
    assert_eq!(slow[0].name.as_ref().unwrap().label, NamedBy::Step);
}

#[test]
fn time_that_the_next_step_gave_back_was_not_lost() {
    // Step 750 is late by 60 ms with work outstanding: 30 ms of it were the device's time, which step 751 need not wait for.
    let mut trace = String::from("process train 1 job\nat 100ms\n");
    for i in 0..100 {
        trace += &format!("train 0ms label step={}\n", 700 + i);
        let (late, less) = match i {
            50 => (60, 0),
            51 => (0, 30),
            _ => (0, 0),
        };
        trace += "train 1ms +30ms cudaStreamSync stream=16\n"
            .replace("30", &(30 - less).to_string())
            .as_str();
        trace += &format!("train {}ms +10us cudaLaunchKernel stream=16\n", 32 - less);
        if late > 0 {
            trace += "train 33ms +60ms blocked on=futex by=train\n";
        }
        trace += &format!("pause {}ms\n", 40 + late - less);
    }
    let out = explain(&trace);
    let excess: Vec<_> = out
        .findings
        .iter()
        .map(|f| (f.units.first, ms(f.excess_ns)))
        .collect();
    assert_eq!(excess, [(750, 30)], "{}", render(&out));
    assert_eq!(
        out.findings[0].blame.iter().map(|b| b.ns).sum::<u64>(),
        out.findings[0].excess_ns
    );
}

#[test]
fn requests_overlap_and_each_is_accounted_for_alone() {
    let out = explain(
        "process serve 1 job
         serve 0ms label step=0
         serve 2ms +10us cudaLaunchKernel stream=16
         serve 3ms +7ms cudaStreamSync stream=16
         serve 0ms +12ms label request_id=a prompt_len=8 output_len=4
         serve 5ms +10ms label request_id=b
         serve 20ms +0ms label request_id=instants-have-no-length",
    );
    assert_eq!(
        named(&out),
        [("a".to_owned(), 0, 0, 12), ("b".to_owned(), 1, 5, 10)]
    );
    let waits: Vec<_> = out
        .units
        .iter()
        .filter(|u| u.name.is_some())
        .map(|u| part(u, "device_wait"))
        .collect();
    assert_eq!(waits, [7, 5]);
    assert_eq!(out.findings, []);
}

#[test]
fn what_is_said_for_all_is_a_step_of_each_process_that_uses_the_device() {
    let out = explain(
        "process a 1 job
         process b 2 job
         process shell 3
         a 1ms +1ms cudaStreamSync stream=16
         b 1ms +1ms cudaStreamSync stream=16
         all 3ms label step=1
         all 9ms label step=2",
    );
    let mut pids: Vec<_> = out
        .units
        .iter()
        .filter(|u| u.name.is_some())
        .map(|u| u.key.process.pid.0)
        .collect();
    pids.sort_unstable();
    assert_eq!(pids, [1, 2]);
}

#[test]
fn labels_of_another_life_of_a_pid_name_nothing() {
    use warptrace_model::{Annotation, BootNanos, Event, Incarnation, Labels, Pid};
    let mut events = crate::testing::parse_trace(
        "process train 1 job ticks=7\ntrain 1ms +1ms cudaStreamSync stream=16",
    )
    .unwrap();
    for (at, value) in [(3_000_000, "1"), (9_000_000, "2")] {
        let mut labels = Labels::default();
        labels.insert("step", value).unwrap();
        events.push(Event::Annotation(Box::new(Annotation {
            at: BootNanos(at),
            span: None,
            scope: Some(Incarnation {
                pid: Pid(1),
                start_ticks: 8,
            }),
            labels,
            sender: None,
        })));
    }
    let out = crate::testing::explain_events(events, Rules::default());
    assert_eq!(named(&out), []);
}
