//! Alerts from what the engine concludes.
//!
//! Keys are by what is affected and why, not by the id of one finding or outlier: an incident that comes again each minute is
//! one alert that lasts.

use warptrace_model::inference::{Outlier, OutlierBucket, Phase, Straggle, StraggleState};
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
        key: format!(
            "warptrace/{node}/outlier/{pid}/{}/{phase}/{:x}/{:x}",
            key.process.start_ticks, key.stream.0, key.fingerprint
        ),
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
