//! Alerts from what the engine concludes.
//!
//! Keys are by what is affected and why, not by the id of one finding or outlier: an incident that comes again each minute is
//! one alert that lasts.

use warptrace_model::inference::{
    BaselineShift, Outlier, OutlierBucket, Phase, Straggle, StraggleState, WorkloadKey,
};
use warptrace_model::{Cause, ClockAnchor, Finding, Severity};

use super::Alert;

/// Outliers of a workload before anybody is told; one is noise.
const OUTLIERS: u32 = 5;

/// What an event says about an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raised {
    Alert(Alert),
    /// The alert with this key is over.
    Over(String),
}

/// Of a finding, each time that it is new or updated. `summary` is what it is in words; `cluster` may be empty.
pub fn of_finding(
    finding: &Finding,
    summary: &str,
    clock: &ClockAnchor,
    node: &str,
    cluster: &str,
) -> Alert {
    let pid = finding.key.process.pid.0;
    let (cause, kind) = (finding.cause.name(), finding.kind.name());
    let mut details = vec![
        ("finding".to_owned(), finding.id.to_string()),
        ("pid".to_owned(), pid.to_string()),
        ("cause".to_owned(), cause.to_owned()),
        ("excess_ms".to_owned(), millis(finding.excess_ns)),
        ("units".to_owned(), finding.units.slow.to_string()),
    ];
    for blame in finding.blame.iter().take(3) {
        if blame.cause != Cause::Unexplained && !blame.detail.is_empty() {
            details.push((blame.cause.name().to_owned(), blame.detail.clone()));
        }
    }
    Alert {
        key: format!(
            "warptrace/{node}/{kind}/{cause}/{pid}/{}",
            finding.key.process.start_ticks
        ),
        severity: finding.severity,
        summary: match summary.trim() {
            "" => format!("{cause} in {}", finding.comm),
            summary => summary.to_owned(),
        },
        source: node.to_owned(),
        component: format!("{} (pid {pid})", finding.comm),
        group: cluster.to_owned(),
        class: cause.to_owned(),
        details,
        at: clock.unix(finding.window.start),
        needs: 1,
    }
}

/// Of an outlier. It is told when five of its workload came within the time that alerts take to be over; one is noise.
pub fn of_outlier(outlier: &Outlier, clock: &ClockAnchor, node: &str, cluster: &str) -> Alert {
    let key = &outlier.key;
    let pid = key.process.pid.0;
    let phase = key.phase.map_or("any", Phase::name);
    let step = millis(outlier.step_nanos);
    let usual = millis(outlier.p95_nanos);
    Alert {
        key: format!("warptrace/{node}/outlier/{}", workload(key)),
        severity: match outlier.bucket {
            OutlierBucket::X1_5 => Severity::Low,
            OutlierBucket::X2 => Severity::Medium,
            OutlierBucket::X3 => Severity::High,
        },
        summary: format!("{phase} steps of pid {pid} take {step} ms, 95 % of them took {usual} ms"),
        source: node.to_owned(),
        component: format!("pid {pid}, {phase}"),
        group: cluster.to_owned(),
        class: "inference_outlier".to_owned(),
        details: [
            ("event_id", outlier.id.to_string()),
            ("bucket", outlier.bucket.name().to_owned()),
            ("step_ms", step),
            ("p95_ms", usual),
            (
                "cgroup",
                key.cgroup.map_or_else(String::new, |c| c.to_string()),
            ),
            (
                "throttle_reasons",
                format!("{:#x}", outlier.throttle_reasons),
            ),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect(),
        at: clock.unix(outlier.at),
        needs: OUTLIERS,
    }
}

/// Of a slow-down that lasted until it was the usual. Nothing is over with it, but nothing more will be said of it either.
pub fn of_shift(shift: &BaselineShift, clock: &ClockAnchor, node: &str, cluster: &str) -> Alert {
    let key = &shift.key;
    let pid = key.process.pid.0;
    let phase = key.phase.map_or("any", Phase::name);
    let (from, to) = (millis(shift.from_p95_nanos), millis(shift.to_p95_nanos));
    Alert {
        key: format!("warptrace/{node}/shift/{}", workload(key)),
        severity: Severity::Medium,
        summary: format!(
            "{phase} steps of pid {pid} stay slower: 95 % of them take {to} ms, {from} ms before"
        ),
        source: node.to_owned(),
        component: format!("pid {pid}, {phase}"),
        group: cluster.to_owned(),
        class: "inference_baseline_shift".to_owned(),
        details: vec![
            ("steps".to_owned(), shift.steps.to_string()),
            ("outliers".to_owned(), shift.outliers.to_string()),
        ],
        at: clock.unix(shift.window.start),
        needs: 1,
    }
}

/// What tells workloads of a node apart, as part of a key.
fn workload(key: &WorkloadKey) -> String {
    let phase = key.phase.map_or("any", Phase::name);
    let (pid, start) = (key.process.pid.0, key.process.start_ticks);
    format!(
        "{pid}/{start}/{phase}/{:x}/{:x}",
        key.stream.0, key.fingerprint
    )
}

/// Of a straggling process: one alert from its begin to its end, however often it is said meanwhile.
pub fn of_straggle(straggle: &Straggle, clock: &ClockAnchor, node: &str, cluster: &str) -> Raised {
    let pid = straggle.process.pid.0;
    let key = format!(
        "warptrace/{node}/straggle/{pid}/{}",
        straggle.process.start_ticks
    );
    if straggle.state == StraggleState::Resolved {
        return Raised::Over(key);
    }
    let comm = match straggle.comm.is_empty() {
        true => format!("pid {pid}"),
        false => format!("{} (pid {pid})", straggle.comm),
    };
    let percent = f64::from(straggle.drop_millis) / 10.0;
    let by: Vec<String> = straggle
        .preempted_by
        .iter()
        .map(|p| p.0.to_string())
        .collect();
    Raised::Alert(Alert {
        key,
        severity: Severity::High,
        summary: format!("{comm} launches {percent} % less than usual while others take its CPUs"),
        source: node.to_owned(),
        component: comm,
        group: cluster.to_owned(),
        class: "gpu_straggler".to_owned(),
        details: vec![
            ("event_id".to_owned(), straggle.id.to_string()),
            ("preemptions".to_owned(), straggle.preemptions.to_string()),
            ("preempted_by".to_owned(), by.join(",")),
        ],
        at: clock.unix(straggle.at),
        needs: 1,
    })
}

fn millis(nanos: u64) -> String {
    format!("{:.1}", nanos as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use warptrace_model::inference::EventId;
    use warptrace_model::record::OpId;
    use warptrace_model::{
        Blame, BootNanos, FindingId, FindingKind, Incarnation, Pid, SpanContext, Stream,
        StreamScope, Tid, UnitKey, UnitKind, UnitSpan, UnixNanos, Window,
    };

    use super::*;

    const CLOCK: ClockAnchor = ClockAnchor {
        boot: BootNanos(1_000),
        unix: UnixNanos(5_001_000),
    };
    const PROCESS: Incarnation = Incarnation {
        pid: Pid(4711),
        start_ticks: 99,
    };

    fn finding(id: u64, cause: Cause) -> Finding {
        Finding {
            id: FindingId(id),
            kind: FindingKind::Incident,
            severity: Severity::High,
            cause,
            second: None,
            key: UnitKey {
                process: PROCESS,
                device: None,
                stream: StreamScope::Many,
                kind: UnitKind::WaitInterval,
                class: 0,
            },
            op: None,
            tid: Tid(4711),
            comm: "train.py".to_owned(),
            place: None,
            window: Window {
                start: BootNanos(2_000),
                end: BootNanos(9_000),
            },
            units: UnitSpan {
                first: 412,
                last: 538,
                slow: 127,
                worst: 500,
            },
            shifted: false,
            baseline_ns: 38_200_000,
            baseline_units: 100,
            excess_ns: 2_700_000_000,
            blame: vec![Blame {
                cause,
                ns: 2_450_000_000,
                lost_ns: 2_450_000_000,
                detail: "stress-ng (pid 4890) held cpu 1".to_owned(),
            }],
            evidence: Vec::new(),
        }
    }

    #[test]
    fn an_incident_that_comes_again_has_the_key_that_it_had_and_another_cause_another_one() {
        let of = |f: &Finding| of_finding(f, "Waiting for a CPU", &CLOCK, "node-7", "a100");
        let first = of(&finding(1, Cause::RunQueueWait));
        assert_eq!(first.key, of(&finding(2, Cause::RunQueueWait)).key);
        assert_ne!(first.key, of(&finding(1, Cause::DiskWait)).key);
        let elsewhere = of_finding(&finding(1, Cause::RunQueueWait), "", &CLOCK, "node-8", "");
        assert_ne!(first.key, elsewhere.key);
        assert_eq!(elsewhere.summary, "run_queue_wait in train.py");
        assert_eq!(
            (first.at, first.class.as_str()),
            (UnixNanos(5_002_000), "run_queue_wait")
        );
        assert_eq!(first.component, "train.py (pid 4711)");
        let detail = |name: &str| {
            first
                .details
                .iter()
                .find(|(k, _)| k == name)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(detail("excess_ms"), "2700.0");
        assert_eq!(detail("run_queue_wait"), "stress-ng (pid 4890) held cpu 1");
    }

    fn key(phase: Phase) -> WorkloadKey {
        WorkloadKey {
            cgroup: None,
            process: PROCESS,
            stream: Stream(7),
            phase: Some(phase),
            device: None,
            fingerprint: 0,
        }
    }

    #[test]
    fn outliers_of_a_workload_are_one_alert_that_needs_five_and_is_as_severe_as_the_worst() {
        let outlier = |bucket, phase| Outlier {
            id: EventId(1),
            span: SpanContext { trace: 1, span: 1 },
            key: key(phase),
            at: BootNanos(2_000),
            step_nanos: 120_000_000,
            p95_nanos: 12_000_000,
            mean_nanos: 10_000_000,
            bucket,
            tid: Tid(1),
            op: OpId::from_index(0).unwrap(),
            launches: 40,
            copied_bytes: 0,
            memory_calls: 0,
            throttle_reasons: 0x44,
            min_sm_clock_mhz: None,
            kv_ages_millis: Vec::new(),
            first_in_minute: true,
        };
        let of = |bucket, phase| of_outlier(&outlier(bucket, phase), &CLOCK, "node-7", "");
        let worst = of(OutlierBucket::X3, Phase::Decode);
        assert_eq!((worst.severity, worst.needs), (Severity::High, 5));
        assert_eq!(
            worst.summary,
            "decode steps of pid 4711 take 120.0 ms, 95 % of them took 12.0 ms"
        );
        assert_eq!(worst.key, of(OutlierBucket::X2, Phase::Decode).key);
        assert_ne!(worst.key, of(OutlierBucket::X3, Phase::Prefill).key);
        assert_eq!(
            of(OutlierBucket::X1_5, Phase::Decode).severity,
            Severity::Low
        );
    }

    #[test]
    fn a_straggle_is_one_alert_from_its_begin_to_its_end() {
        let straggle = |id, state| Straggle {
            id: EventId(id),
            at: BootNanos(2_000),
            process: PROCESS,
            comm: "train.py".to_owned(),
            state,
            drop_millis: 425,
            preemptions: 12,
            preempted_by: vec![Pid(1), Pid(2)],
        };
        let of = |id, state| of_straggle(&straggle(id, state), &CLOCK, "node-7", "");
        let Raised::Alert(began) = of(1, StraggleState::Began) else {
            panic!("it began");
        };
        assert_eq!(
            began.summary,
            "train.py (pid 4711) launches 42.5 % less than usual while others take its CPUs"
        );
        let Raised::Alert(lasts) = of(2, StraggleState::Sustained) else {
            panic!("it lasts");
        };
        assert_eq!(lasts.key, began.key);
        assert_eq!(of(3, StraggleState::Resolved), Raised::Over(began.key));
    }

    #[test]
    fn a_slow_down_that_became_the_usual_is_said_once() {
        let shift = BaselineShift {
            key: key(Phase::Decode),
            window: Window {
                start: BootNanos(2_000),
                end: BootNanos(9_000),
            },
            steps: 300,
            outliers: 290,
            from_p95_nanos: 12_000_000,
            from_mean_nanos: 10_000_000,
            to_p95_nanos: 30_000_000,
            to_mean_nanos: 25_000_000,
        };
        let alert = of_shift(&shift, &CLOCK, "node-7", "");
        assert_eq!(
            alert.summary,
            "decode steps of pid 4711 stay slower: 95 % of them take 30.0 ms, 12.0 ms before"
        );
        assert_eq!((alert.severity, alert.needs), (Severity::Medium, 1));
    }
}
