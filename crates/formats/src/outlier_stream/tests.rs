use expect_test::expect;
use proptest::prelude::*;
use warptrace_model::inference::{
    CgroupHash, Degradation, EventId, Outlier, OutlierBucket, Phase, Straggle as Straggling,
    StraggleState, WorkloadKey,
};
use warptrace_model::record::{OpId, Source};
use warptrace_model::{
    BootNanos, ClockAnchor, Incarnation, Pid, SpanContext, Stream, Tid, UnixNanos,
};

use super::*;

fn line(message: &Message) -> String {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn round_trip(message: impl Into<Message>, expected: expect_test::Expect) {
    let message = message.into();
    let text = line(&message);
    expected.assert_eq(&text);
    assert_eq!(Message::decode(text.as_bytes()), Ok(Some(message.clone())));
    assert_eq!(
        Message::decode(text.trim_end().as_bytes()),
        Ok(Some(message))
    );
}

fn key() -> WorkloadKey {
    WorkloadKey {
        cgroup: Some(CgroupHash(0xf6f7_a079_fa79_fb5d)),
        process: Incarnation {
            pid: Pid(4242),
            start_ticks: 1,
        },
        stream: Stream(u64::MAX),
        phase: Some(Phase::Decode),
        device: None,
        fingerprint: 0,
    }
}

const CLOCK: ClockAnchor = ClockAnchor {
    boot: BootNanos(0),
    unix: UnixNanos(1_700_000_000_000_000_000),
};

fn outlier() -> Outlier {
    Outlier {
        id: EventId(0xcfe2_4907_0b29_4732_8438_a7b8_f11d_aceb),
        span: SpanContext { trace: 1, span: 2 },
        key: key(),
        at: BootNanos(1_500_000_000),
        step_nanos: 60_000_000,
        p95_nanos: 20_000_000,
        mean_nanos: 18_000_000,
        bucket: OutlierBucket::X3,
        tid: Tid(4243),
        op: OpId::find(Source::Runtime, 5).unwrap(),
        launches: 10,
        copied_bytes: 0,
        memory_calls: 2,
        throttle_reasons: 1 << 63,
        min_sm_clock_mhz: Some(1410),
        kv_ages_millis: vec![900, 20],
        first_in_minute: true,
    }
}

#[test]
fn an_outlier_has_its_fields_in_the_contracts_order_and_exact_64_bit_numbers() {
    let node = Node {
        node_id: "n1".into(),
        cluster_id: "c".into(),
        rank: 3,
        world_size: 8,
    };
    round_trip(
        node.outlier(&outlier(), CLOCK),
        expect![[r#"
            {"type":"inference_outlier","node_id":"n1","cluster_id":"c","timestamp":"2023-11-14T22:13:21.5Z","event_id":"cfe24907-0b29-4732-8438-a7b8f11daceb","cgroup_path_hash":"f6f7a079fa79fb5d","pid":4242,"stream_handle":18446744073709551615,"phase":"decode","step_duration_ns":60000000,"baseline_p95_ns":20000000,"baseline_mean_ns":18000000,"bucket":"3x","rank":3,"world_size":8,"memfrag_events_in_step":2,"throttle_reasons":9223372036854775808,"min_sm_clock_mhz":1410,"kv_cache_top_alloc_ages_ms":[900,20]}
        "#]],
    );
    let bare = Outlier {
        key: WorkloadKey {
            cgroup: None,
            stream: Stream(0),
            phase: None,
            ..key()
        },
        memory_calls: 0,
        throttle_reasons: 0,
        min_sm_clock_mhz: None,
        kv_ages_millis: Vec::new(),
        mean_nanos: 0,
        ..outlier()
    };
    round_trip(
        Node::default().outlier(&bare, CLOCK),
        expect![[r#"
            {"type":"inference_outlier","node_id":"","cluster_id":"","timestamp":"2023-11-14T22:13:21.5Z","event_id":"cfe24907-0b29-4732-8438-a7b8f11daceb","pid":4242,"step_duration_ns":60000000,"baseline_p95_ns":20000000,"bucket":"3x"}
        "#]],
    );
}

#[test]
fn the_samplers_message_says_until_when() {
    let degradation = Degradation {
        at: BootNanos(1_500_000_000),
        outlier: EventId(1),
        key: key(),
        bucket: OutlierBucket::X3,
        cooldown_end: BootNanos(31_500_000_000),
    };
    round_trip(
        Node::default().degradation(&degradation, CLOCK),
        expect![[r#"
            {"type":"inference_sampler_degraded","node_id":"","cluster_id":"","timestamp":"2023-11-14T22:13:21.5Z","cgroup_path_hash":"f6f7a079fa79fb5d","pid":4242,"stream_handle":18446744073709551615,"phase":"decode","bucket":"3x","cause":"3x:cgroup=f6f7a079fa79fb5d,pid=4242,phase=decode","cooldown_end":"2023-11-14T22:13:51.5Z"}
        "#]],
    );
}

#[test]
fn a_straggle_has_null_for_nobody_and_an_end_is_no_message() {
    let straggle = |state, preempted_by| Straggling {
        id: EventId(7),
        at: BootNanos(5),
        process: key().process,
        comm: "py\"thon".to_owned(),
        state,
        drop_millis: 425,
        preemptions: 6,
        preempted_by,
    };
    let node = Node::default();
    let began = straggle(StraggleState::Began, Vec::new());
    round_trip(
        node.straggle(&began, CLOCK).unwrap(),
        expect![[r#"
            {"type":"straggle","pid":4242,"comm":"py\"thon","throughput_drop_pct":42.5,"sched_switch_count":6,"preempting_pids":null,"timestamp_ns":1700000000000000005,"sustained":false,"event_id":"00000000-0000-0000-0000-000000000007"}
        "#]],
    );
    let sustained = straggle(StraggleState::Sustained, vec![Pid(7), Pid(9)]);
    round_trip(
        node.straggle(&sustained, CLOCK).unwrap(),
        expect![[r#"
            {"type":"straggle","pid":4242,"comm":"py\"thon","throughput_drop_pct":42.5,"sched_switch_count":6,"preempting_pids":[7,9],"timestamp_ns":1700000000000000005,"sustained":true,"event_id":"00000000-0000-0000-0000-000000000007"}
        "#]],
    );
    let resolved = straggle(StraggleState::Resolved, Vec::new());
    assert_eq!(node.straggle(&resolved, CLOCK), None);
}

#[test]
fn the_other_messages_have_their_fields_in_the_contracts_order() {
    round_trip(
        Memory {
            pid: 1,
            comm: "python".into(),
            gpu_id: 0,
            allocated_bytes: 1 << 30,
            total_vram: 80 << 30,
            utilization_pct: 1.25,
            last_alloc_size: 4096,
            timestamp_ns: 1_700_000_000_000_000_001,
        },
        expect![[r#"
            {"type":"memory","pid":1,"comm":"python","gpu_id":0,"allocated_bytes":1073741824,"total_vram":85899345920,"utilization_pct":1.25,"last_alloc_size":4096,"timestamp_ns":1700000000000000001}
        "#]],
    );
    round_trip(
        StragglerState {
            node_id: "n".into(),
            cluster_id: "c".into(),
            score: 0.61,
            threshold: 0.85,
            detection_mode: "local-baseline".into(),
            dominant_signal: "cpu".into(),
            timestamp: UnixNanos(1_700_000_000_120_000_000),
            event_id: "e".into(),
            rank: 0,
            world_size: 2,
        },
        expect![[r#"
            {"type":"straggler_state","node_id":"n","cluster_id":"c","score":0.61,"threshold":0.85,"detection_mode":"local-baseline","dominant_signal":"cpu","timestamp":"2023-11-14T22:13:20.12Z","event_id":"e","world_size":2}
        "#]],
    );
    let at = UnixNanos(1_700_000_000_000_000_000);
    round_trip(
        StragglerResolved {
            timestamp: at,
            ..StragglerResolved::default()
        },
        expect![[r#"
            {"type":"straggler_resolved","node_id":"","cluster_id":"","timestamp":"2023-11-14T22:13:20Z"}
        "#]],
    );
}

#[test]
fn what_is_not_known_is_ignored_and_what_is_missing_is_empty() {
    let text = br#"{"pid":7,"new":{"a":[1,{}]},"preempting_pids":null,"sustained":null,"type":"straggle"}"#;
    let straggle = Straggle {
        pid: 7,
        ..Straggle::default()
    };
    assert_eq!(Message::decode(text), Ok(Some(straggle.into())));
    assert_eq!(
        Message::decode(br#"{"type":"of_tomorrow","x":1}"#),
        Ok(None)
    );
    let go = br#"{"type":"straggler_resolved","timestamp":"0001-01-01T00:00:00Z"}"#;
    assert_eq!(
        Message::decode(go),
        Ok(Some(StragglerResolved::default().into()))
    );
}

#[test]
fn a_wrong_line_says_what_is_wrong() {
    for (text, expected) in [
        ("", "unexpected end at byte 0"),
        ("[]", "not an object"),
        ("{}", "\"type\" is missing or no text"),
        (r#"{"type":7}"#, "\"type\" is missing or no text"),
        (
            r#"{"type":"memory"} x"#,
            "more after the end of the value at byte 18",
        ),
        (
            r#"{"type":"memory","pid":-1}"#,
            "\"pid\" is not an integer of 32 bits",
        ),
        (
            r#"{"type":"memory","pid":4294967296}"#,
            "\"pid\" is not an integer of 32 bits",
        ),
        (
            r#"{"type":"memory","allocated_bytes":1.5}"#,
            "\"allocated_bytes\" is not an integer of 64 bits",
        ),
        (
            r#"{"type":"memory","utilization_pct":1e999}"#,
            "\"utilization_pct\" is not a number",
        ),
        (
            r#"{"type":"straggle","preempting_pids":[1,"2"]}"#,
            "\"preempting_pids\" is not a list of numbers",
        ),
        (
            r#"{"type":"straggler_resolved","timestamp":"soon"}"#,
            "\"timestamp\" is not a time (RFC 3339)",
        ),
    ] {
        let error = Message::decode(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
    let long = format!(
        r#"{{"type":"memory","comm":"{}"}}"#,
        "x".repeat(MAX_LINE_BYTES)
    );
    assert_eq!(Message::decode(long.as_bytes()), Err(BadMessage::TooLong));
    let mut out = b"before".to_vec();
    let not_finite: Message = Memory {
        utilization_pct: f64::NAN,
        ..Memory::default()
    }
    .into();
    assert_eq!(not_finite.encode(&mut out), Err(Unwritable::NotFinite));
    let long: Message = Memory {
        comm: "x".repeat(MAX_LINE_BYTES),
        ..Memory::default()
    }
    .into();
    assert_eq!(long.encode(&mut out), Err(Unwritable::TooLong));
    assert_eq!(out, b"before");
}

proptest! {
    #[test]
    fn any_message_is_one_line_and_comes_back(
        pid: u32, stream: u64, text: String, ages: Vec<u64>, at: u64,
        step: i64, x in -1e300..1e300_f64,
    ) {
        let outlier = InferenceOutlier {
            pid,
            stream_handle: stream,
            node_id: text.clone(),
            kv_cache_top_alloc_ages_ms: ages,
            timestamp: UnixNanos(at),
            step_duration_ns: step,
            ..InferenceOutlier::default()
        };
        let state = StragglerState { score: x, dominant_signal: text, ..StragglerState::default() };
        for message in [Message::from(outlier), Message::from(state)] {
            let text = line(&message);
            prop_assert_eq!(text.matches('\n').count(), 1);
            prop_assert_eq!(Message::decode(text.as_bytes()), Ok(Some(message)));
        }
    }

    #[test]
    fn no_line_makes_the_decoder_panic(line: Vec<u8>) {
        let _ = Message::decode(&line);
    }
}
