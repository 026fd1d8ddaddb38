//! Sessions with named units, asked by step, by request and by label.

use std::path::Path;
use std::sync::Arc;

use warptrace_api::{ByUnitQuestion, ExplainQuestion, OVERLAP_CAVEAT, by_unit, explain};
use warptrace_engine::Rules;
use warptrace_engine::testing::{explain_trace, parse_trace};
use warptrace_model::{BootNanos, ClockAnchor, Event, NamedBy, UnixNanos};
use warptrace_store::fs::{Fs, MemFs};
use warptrace_store::{DataDir, Session, SessionMeta, SessionWriter};

/// What a recorder would have stored of `trace`.
fn session(trace: &str) -> Session {
    let fs: Arc<dyn Fs> = Arc::new(MemFs::new());
    let mut meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(0),
        unix: UnixNanos(1_000_000_000_000_000_000),
    });
    meta.id = "s".to_owned();
    let dir = DataDir::at("/data");
    let mut writer = SessionWriter::create(fs.clone(), &dir, meta).unwrap();
    let out = explain_trace(trace, Rules::default());
    let said: Vec<Event> = parse_trace(trace).unwrap();
    writer.events(&said);
    writer.units(&out.units);
    writer.findings(&out.findings);
    writer.seal().unwrap();
    Session::open(fs, Path::new("/data/sessions/s")).unwrap()
}

/// A hundred steps of two epochs, the 50th of which waited 60 ms for a CPU.
fn training() -> Session {
    let mut trace = String::from("process train 1 job\nprocess hog 9\nat 100ms\n");
    for i in 0..100 {
        let late = if i == 50 { 60 } else { 0 };
        trace += &format!("train 0ms label step={i} epoch={}\n", i / 60);
        if late > 0 {
            trace += "train 1ms +60ms preempted cpu=1\ncpu1 1ms +60ms ran hog\n";
        }
        trace += &format!(
            "train {}ms +10us cudaLaunchKernel stream=16\ntrain {}ms +20ms cudaStreamSync stream=16\npause {}ms\n",
            5 + late,
            10 + late,
            40 + late
        );
    }
    session(&trace)
}

fn steps(label: Option<(&str, &str)>) -> ByUnitQuestion {
    ByUnitQuestion {
        by: NamedBy::Step,
        since_nanos: None,
        label: label.map(|(k, v)| (k.to_owned(), v.to_owned())),
    }
}

#[test]
fn the_slow_step_is_named_with_its_time_its_finding_and_its_labels() {
    let answer = by_unit(&training(), &steps(None)).unwrap();
    assert_eq!(
        (answer.units.len(), answer.slow, answer.caveat),
        (99, 1, None)
    );
    let slow = answer.units.iter().find(|u| u.slow).unwrap();
    assert_eq!(
        (slow.value.as_str(), slow.dur_ns, slow.usual_ns),
        ("50", 100_000_000, Some(40_000_000))
    );
    assert_eq!(slow.excess_ns, Some(60_000_000));
    let first = &slow.parts[0];
    assert_eq!(
        (first.category, first.ns, first.usual_ns),
        ("run_queue_wait", 60_000_000, 0)
    );
    assert_eq!(slow.parts.iter().map(|p| p.ns).sum::<u64>(), slow.dur_ns);
    assert_eq!(slow.labels.get("epoch").map(String::as_str), Some("0"));
    assert_eq!(slow.findings.len(), 1);
    assert_eq!(slow.memory, None, "no sample is no zero");
}

#[test]
fn a_label_keeps_the_units_that_carry_it() {
    let session = training();
    let epoch = by_unit(&session, &steps(Some(("epoch", "1")))).unwrap();
    assert_eq!((epoch.units.len(), epoch.slow), (39, 0));
    assert!(
        by_unit(&session, &steps(Some(("epoch", "7"))))
            .unwrap()
            .units
            .is_empty()
    );
    let with = |value: &str| {
        let question = ExplainQuestion {
            label: Some(("epoch".to_owned(), value.to_owned())),
            ..ExplainQuestion::default()
        };
        explain(&session, &question).unwrap()
    };
    assert_eq!((with("0").findings.len(), with("1").findings.len()), (1, 0));
    assert!(
        with("1")
            .profile
            .iter()
            .any(|p| p.key.kind == "named" && p.units == 39)
    );
}

#[test]
fn requests_are_told_with_the_caveat_that_they_share_the_device() {
    let session = session(
        "process serve 1 job
         serve 1ms +1ms cudaStreamSync stream=16
         serve 2ms +10us cudaLaunchKernel stream=16
         serve 3ms +7ms cudaStreamSync stream=16
         serve 0ms +12ms label request_id=a model=tiny
         serve 5ms +10ms label request_id=b model=big",
    );
    let question = ByUnitQuestion {
        by: NamedBy::Request,
        since_nanos: None,
        label: None,
    };
    let answer = by_unit(&session, &question).unwrap();
    assert_eq!(answer.caveat, Some(OVERLAP_CAVEAT));
    let told: Vec<_> = answer
        .units
        .iter()
        .map(|u| (u.value.as_str(), u.labels["model"].as_str()))
        .collect();
    assert_eq!(
        told,
        [("a", "tiny"), ("b", "big")],
        "each has its own labels where they overlap"
    );
}
