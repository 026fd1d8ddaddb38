use warptrace_model::inference::{CgroupHash, EventId, OutlierBucket, Phase, WorkloadKey};
use warptrace_model::record::{OpId, Source};
use warptrace_model::serving::Engine;
use warptrace_model::{
    Blame, BootNanos, Cause, Device, FindingId, FindingKind, Incarnation, Pid, Place, Severity,
    Stream, StreamScope, Tid, UnitKey, UnitKind, UnitSpan, UnixNanos, Window,
};

use super::*;

const CLOCK: ClockAnchor = ClockAnchor {
    boot: BootNanos(0),
    unix: UnixNanos(1_700_000_000_000_000_000),
};

fn outlier() -> Outlier {
    Outlier {
        id: EventId(0xcfe2_4907_0b29_4732_8438_a7b8_f11d_aceb),
        span: SpanContext {
            trace: 0xcfe2,
            span: 0x4907,
        },
        key: WorkloadKey {
            cgroup: Some(CgroupHash(0xf6f7_a079_fa79_fb5d)),
            process: Incarnation {
                pid: Pid(4242),
                start_ticks: 1,
            },
            stream: Stream(0x7f00),
            phase: Some(Phase::Decode),
            device: Some(Device(1)),
            fingerprint: 0xaf,
        },
        at: BootNanos(1_500_000_000),
        step_nanos: 60_000_000,
        p95_nanos: 20_000_000,
        mean_nanos: 18_000_000,
        bucket: OutlierBucket::X3,
        tid: Tid(4243),
        op: OpId::find(Source::Runtime, 5).unwrap(),
        launches: 10,
        copied_bytes: 4096,
        memory_calls: 2,
        throttle_reasons: 1 << 63,
        min_sm_clock_mhz: Some(1410),
        kv_ages_millis: vec![900, 20],
        first_in_minute: true,
    }
}

fn pairs(span: &SpanRecord) -> Vec<String> {
    let pairs = span.attributes.iter();
    pairs
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect()
}

#[test]
fn an_outliers_span_is_its_step() {
    let server = ServerFacts {
        engine: Engine::Vllm,
        model: Some("m".to_owned()),
    };
    let span = outlier_span(&outlier(), Names::Native, Some(&server), CLOCK);
    assert_eq!(
        (&*span.name, span.trace, span.id.otlp(), span.parent),
        ("inference.outlier", 0xcfe2, 0x4907, None)
    );
    assert_eq!(span.start, UnixNanos(1_700_000_001_440_000_000));
    assert_eq!(span.end, Some(UnixNanos(1_700_000_001_500_000_000)));
    assert!(span.error.as_deref().unwrap().contains("3x"));
    let has = |key: &str| span.attributes.get(key).cloned();
    assert_eq!(has("warptrace.inference.outlier.bucket"), Some("3x".into()));
    assert_eq!(has("warptrace.cuda.device"), Some(1.into()));
    assert_eq!(
        has("warptrace.inference.step.duration"),
        Some(Value::Float(0.06))
    );
    assert_eq!(
        has("warptrace.gpu.throttle.reasons"),
        Some("0x8000000000000000".into())
    );
    assert_eq!(has("warptrace.gpu.clock.least"), Some(1_410_000_000.into()));
    assert_eq!(has("gen_ai.provider.name"), Some("vllm".into()));
    assert!(
        span.attributes
            .iter()
            .all(|(key, _)| !key.contains("ingero"))
    );
}

#[test]
fn under_another_tracers_names_it_has_that_ones_attributes_in_their_order() {
    let server = ServerFacts {
        engine: Engine::Vllm,
        model: Some("m".to_owned()),
    };
    let span = outlier_span(&outlier(), Names::Ingero, Some(&server), CLOCK);
    assert_eq!(&*span.name, "infer.outlier.3x");
    assert_eq!(
        pairs(&span),
        [
            r#"ingero.cgroup_path_hash=String("f6f7a079fa79fb5d")"#,
            "pid=Int(4242)",
            r#"ingero.infer.stream_handle=String("32512")"#,
            r#"ingero.infer.phase=String("decode")"#,
            r#"ingero.infer.outlier_bucket=String("3x")"#,
            "ingero.infer.step_duration_ns=Int(60000000)",
            "ingero.infer.baseline_p95_ns=Int(20000000)",
            "ingero.infer.baseline_mean_ns=Int(18000000)",
            r#"ingero.event.id=String("cfe24907-0b29-4732-8438-a7b8f11daceb")"#,
            r#"ingero.infer.kernel_fingerprint=String("af")"#,
            "ingero.infer.memfrag_events_in_step=Int(2)",
            r#"ingero.infer.throttle_reasons=String("9223372036854775808")"#,
            "ingero.infer.kvcache.oldest_alloc_age_ms=Int(900)",
            r#"gen_ai.request.model=String("m")"#,
            r#"gen_ai.system=String("vllm")"#,
        ]
    );
    let bare = Outlier {
        memory_calls: 0,
        throttle_reasons: 0,
        kv_ages_millis: Vec::new(),
        key: WorkloadKey {
            fingerprint: 0,
            ..outlier().key
        },
        ..outlier()
    };
    assert_eq!(
        pairs(&outlier_span(&bare, Names::Ingero, None, CLOCK)).len(),
        9
    );
}

#[test]
fn a_findings_span_says_what_it_cost_and_why() {
    let finding = Finding {
        id: FindingId(0xf3a1),
        kind: FindingKind::Incident,
        severity: Severity::High,
        cause: Cause::RunQueueWait,
        second: Some(Cause::DiskWait),
        key: UnitKey {
            process: Incarnation {
                pid: Pid(4711),
                start_ticks: 1,
            },
            device: None,
            stream: StreamScope::Many,
            kind: UnitKind::Named,
            class: 0,
        },
        op: None,
        tid: Tid(4712),
        comm: "train".to_owned(),
        place: Some(Place {
            file: Some("train.py".to_owned()),
            line: Some(142),
            function: None,
            op: None,
        }),
        window: Window {
            start: BootNanos(1_000),
            end: BootNanos(3_000),
        },
        units: UnitSpan {
            first: 1,
            last: 9,
            slow: 5,
            worst: 3,
        },
        shifted: false,
        baseline_ns: 38_200_000,
        baseline_units: 100,
        excess_ns: 2_700_000_000,
        blame: vec![Blame {
            cause: Cause::RunQueueWait,
            ns: 2_450_000_000,
            lost_ns: 2_450_000_000,
            detail: "stress-ng (pid 4890) held cpu 1".to_owned(),
        }],
        evidence: Vec::new(),
    };
    let span = finding_span(&finding, SpanContext { trace: 7, span: 8 }, CLOCK);
    assert_eq!((&*span.name, span.trace, span.id.otlp()), ("finding", 7, 8));
    assert_eq!(
        span.error.as_deref(),
        Some("run_queue_wait: 2.700 s longer than usual")
    );
    let has = |key: &str| span.attributes.get(key).cloned();
    assert_eq!(has("warptrace.finding.severity"), Some("high".into()));
    assert_eq!(has("process.pid"), Some(4711.into()));
    assert_eq!(has("code.line.number"), Some(142.into()));
    assert_eq!(
        has("warptrace.blame.run_queue_wait"),
        Some(Value::Float(2.45))
    );
    let detail = "warptrace.blame.run_queue_wait.detail";
    assert_eq!(has(detail), Some("stress-ng (pid 4890) held cpu 1".into()));
}
