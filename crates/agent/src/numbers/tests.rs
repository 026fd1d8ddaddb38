//! What is counted, and that nothing of the table of metrics is there without somebody who measures it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use warptrace_export::alert::{AlertConfig, Alerter};
use warptrace_export::otlp::{Config, Protocol, Retry, Signal};
use warptrace_export::{
    Batching, MetricSender, MetricSettings, ReceiveConfig, SpanReceiver, SpanRelay, SpanSender,
};
use warptrace_model::inference::{
    BoundedHistogram, Degradation, EventId, InferenceState, LeftOutSteps, OutlierBucket,
    SamplerState, WorkloadKey, WorkloadState,
};
use warptrace_model::metric::{Metric, Point, inference_families, metric, serving_families};
use warptrace_model::record::op::OpId;
use warptrace_model::serving::{
    Engine, ServingHistogram, ServingKind, ServingMetric, ServingReading, ServingValue,
};
use warptrace_model::*;

use super::*;
use crate::outgoing::Outgoing;
use crate::outliers::OutlierSocket;

const CLOCK: ClockAnchor = ClockAnchor {
    boot: BootNanos(0),
    unix: UnixNanos(1_000_000_000),
};

/// Rows of the table that nobody measures, and why.
const NOBODY: [(&[&Metric], &str); 5] = [
    (
        &[
            &metric::NODE_SCORE,
            &metric::NODE_SIGNAL_VALUE,
            &metric::NODE_DEGRADED,
            &metric::NODE_STRAGGLER,
            &metric::DETECTION,
            &metric::FLEET_REACHABLE,
            &metric::FLEET_NODE_ACTIVE,
            &metric::FLEET_THRESHOLD,
            &metric::FLEET_MEDIAN,
            &metric::FLEET_MAD,
            &metric::FLEET_STRAGGLERS,
            &metric::FLEET_COVERAGE_LOW,
        ],
        "nodes are not compared yet",
    ),
    (
        &[&metric::NCCL_COLLECTIVE_LAG],
        "it takes all ranks of a job to tell",
    ),
    (
        &[&metric::DRIVER_CALL_COUNT],
        "ioctls are not traced; the calls of the driver's library that make them are",
    ),
    (
        &[&metric::SERVING_TOKEN_USAGE],
        "no engine publishes tokens by request",
    ),
    (
        &[&metric::STORE_PRUNED],
        "sessions are removed whole, and their rows not counted",
    ),
];

fn call(name: &str, pid: u32, start: u64, arg0: u64, arg1: u64) -> Call {
    Call {
        thread: Thread::new(pid, pid),
        op: OpId::by_name(name).unwrap(),
        start: BootNanos(start),
        dur: 2_000,
        device: Some(Device(0)),
        stream: Stream(0x70),
        ret: 0,
        flags: CallFlags(0),
        arg0,
        arg1,
        stack_id: 0,
        cpu: Cpu(0),
    }
}

fn counts(name: &str, pid: u32, nanos: &[u64]) -> Event {
    let mut durations = Histogram::default();
    nanos.iter().for_each(|n| durations.record(*n));
    Event::Counts(Box::new(OpCount {
        key: OpKey {
            pid: Pid(pid),
            device: None,
            op: OpId::by_name(name).unwrap(),
        },
        window: Window::at(BootNanos(0), 1),
        total: nanos.iter().sum(),
        durations,
    }))
}

fn process(pid: u32, start_ticks: u64, cgroup: &str) -> Event {
    Event::ProcessInfo(Box::new(ProcessInfo {
        incarnation: Incarnation {
            pid: Pid(pid),
            start_ticks,
        },
        name: "python".into(),
        in_job: true,
        cgroup: cgroup.into(),
        world_size: Some(8),
        ..ProcessInfo::default()
    }))
}

fn gpu(at: u64, throttle_reasons: u64) -> Event {
    Event::Gpu(Box::new(GpuSample {
        at: BootNanos(at),
        uuid: "GPU-1".into(),
        name: "NVIDIA H100 80GB HBM3".into(),
        sm_clock_mhz: Some(1_980),
        max_sm_clock_mhz: Some(1_980),
        throttle_reasons: Some(throttle_reasons),
        memory_used: Some(60),
        memory_total: Some(100),
        memory_free: Some(35),
        temperature_celsius: Some(61),
        power_milliwatts: Some(412_500),
        utilization: Some(0.9),
        processes: vec![(Pid(1), Some(0.9), Some(50))],
        ..GpuSample::default()
    }))
}

fn system() -> Event {
    Event::System(Box::new(SystemSample {
        cpu: Some(0.25),
        memory_total: 100,
        memory_available: 40,
        load1: 1.5,
        ..SystemSample::default()
    }))
}

fn finding(ns: u64) -> Finding {
    Finding {
        id: FindingId(7),
        kind: FindingKind::Incident,
        severity: Severity::High,
        cause: Cause::DiskWait,
        second: None,
        key: UnitKey {
            process: Incarnation::default(),
            device: None,
            stream: StreamScope::Many,
            kind: UnitKind::Named,
            class: 0,
        },
        op: None,
        tid: Tid(1),
        comm: String::new(),
        place: None,
        window: Window::at(BootNanos(0), 1),
        units: UnitSpan {
            first: 0,
            last: 1,
            slow: 1,
            worst: 0,
        },
        shifted: false,
        baseline_ns: 1,
        baseline_units: 1,
        excess_ns: ns + 5,
        blame: vec![
            Blame {
                cause: Cause::DiskWait,
                ns,
                lost_ns: ns,
                detail: String::new(),
            },
            Blame {
                cause: Cause::Unexplained,
                ns: 5,
                lost_ns: 5,
                detail: String::new(),
            },
        ],
        evidence: Vec::new(),
    }
}

fn unit() -> Unit {
    Unit {
        key: finding(0).key,
        name: None,
        lead: Tid(1),
        number: 0,
        start: BootNanos(0),
        dur: 20_000_000,
        parts: Parts::default(),
        launches: 1,
        slow: false,
        incomplete: false,
    }
}

fn numbers(events: &[Event]) -> Numbers {
    let mut numbers = Numbers::new(BootNanos(0), CLOCK.unix);
    numbers.events(events, CLOCK);
    numbers
}

fn told(numbers: &mut Numbers) -> Vec<Family> {
    numbers.families(&Own::default(), CLOCK, BootNanos(5_000_000_000))
}

fn points<'a>(families: &'a [Family], metric: &Metric) -> &'a [Point] {
    let of = families.iter().find(|family| family.metric == metric);
    of.map_or(&[], |family| &family.points)
}

/// Attributes without their names, and the value, a histogram's as count and sum; sorted.
fn said(families: &[Family], metric: &Metric) -> Vec<String> {
    let points = points(families, metric).iter().map(|point| {
        let attributes = point
            .attributes
            .iter()
            .map(|(_, value)| match value.as_str() {
                Some(text) => text.to_owned(),
                None => format!("{value:?}"),
            });
        let attributes: Vec<String> = attributes.collect();
        let value = match &point.value {
            Number::Int(n) => n.to_string(),
            Number::Double(x) => x.to_string(),
            Number::Explicit(h) => format!("{} of {}", h.count(), h.sum()),
            Number::Exponential(h) => format!("{} of {}", h.count(), h.sum()),
        };
        format!("{}: {value}", attributes.join(" "))
    });
    let mut said: Vec<String> = points.collect();
    said.sort();
    said
}

#[test]
fn calls_are_as_many_and_as_long_as_the_backends_say() {
    let families = told(&mut numbers(&[
        counts("cudaLaunchKernel", 1, &[1_000, 3_000]),
        counts("cudaLaunchKernel", 2, &[5_000]),
        counts("cuLaunchKernel", 1, &[900]),
        counts("ncclAllReduce", 1, &[900]),
        Event::Call(call("cudaLaunchKernel", 1, 0, 0, 0)),
    ]));
    assert_eq!(
        said(&families, &metric::CUDA_CALL_DURATION),
        [
            "cuda cudaLaunchKernel: 3 of 0.000009",
            "driver cuLaunchKernel: 1 of 0.0000009"
        ]
    );
}

#[test]
fn what_the_driver_does_for_the_runtime_is_not_counted_twice() {
    let nested = |call| Call {
        flags: CallFlags(warptrace_model::record::flag::NESTED),
        ..call
    };
    let dims = (4 << 16) | 256;
    let families = told(&mut numbers(&[
        process(1, 5, "/a"),
        counts("cudaLaunchKernel", 1, &[1_000, 3_000]),
        Event::Call(call("cudaLaunchKernel", 1, 0, 0, dims)),
        Event::Call(nested(call("cuLaunchKernel", 1, 0, 0, dims))),
        Event::Call(call("cuLaunchKernel", 1, 0, 0, dims)),
        Event::Call(call("cudaMemcpyAsync", 1, 0, 4_096, 1)),
        Event::Call(nested(call("cuMemcpyHtoDAsync", 1, 0, 4_096, 1))),
        Event::Call(Call {
            ret: 2,
            ..call("cudaMemcpy", 1, 0, 4_096, 9)
        }),
        Event::Call(Call {
            ret: 600,
            ..call("cudaEventQuery", 1, 0, 0, 0)
        }),
    ]));
    let a = cgroup_text("/a");
    let of = |metric| said(&families, metric);
    // Two of the runtime, and one of the driver alone.
    assert_eq!(of(&metric::CUDA_LAUNCH_COUNT), [format!("{a} Int(1): 3")]);
    assert_eq!(of(&metric::CUDA_LAUNCH_BLOCK_SIZE), ["Int(1): 2 of 512"]);
    assert_eq!(of(&metric::CUDA_LAUNCH_GRID_SIZE), ["Int(1): 2 of 8"]);
    assert_eq!(of(&metric::CUDA_COPY_IO), [format!("{a} h2d: 4096")]);
    assert_eq!(
        of(&metric::CUDA_COPY_DURATION),
        ["h2d: 1 of 0.000002", "unknown: 1 of 0.000002"]
    );
    assert_eq!(of(&metric::CUDA_CALL_FAILED), ["cuda cudaMemcpy 2: 1"]);
}

fn cgroup_text(path: &str) -> String {
    warptrace_engine::cgroup_hash(path).unwrap().to_string()
}

#[test]
fn sums_never_fall_when_processes_go_and_their_ids_come_again() {
    let sum = |families: &[Family]| {
        let of = points(families, &metric::CUDA_LAUNCH_COUNT).iter();
        of.map(|point| match point.value {
            Number::Int(n) => n,
            _ => 0,
        })
        .sum::<i64>()
    };
    let mut numbers = numbers(&[process(1, 5, "/a"), counts("cudaLaunchKernel", 1, &[1; 10])]);
    numbers.events(&[process(1, 6, "/a")], CLOCK);
    numbers.events(&[counts("cudaLaunchKernel", 1, &[1; 3])], CLOCK);
    let a = cgroup_text("/a");
    assert_eq!(
        said(&told(&mut numbers), &metric::CUDA_LAUNCH_COUNT),
        [format!("{a} Int(1): 3"), format!("{a}: 10")]
    );
    let mut before = sum(&told(&mut numbers));
    for pid in 2..2_000 {
        let events = [process(pid, 1, "/b"), counts("cudaLaunchKernel", pid, &[1])];
        numbers.events(&events, CLOCK);
        if pid % 500 == 0 {
            let families = told(&mut numbers);
            assert!(sum(&families) > before);
            before = sum(&families);
            let series = points(&families, &metric::CUDA_LAUNCH_COUNT).len();
            assert!(series < SERIES_LIMIT, "{series}");
        }
    }
    assert_eq!(sum(&told(&mut numbers)), 13 + 1_998);
}

#[test]
fn a_collective_has_the_rank_of_its_communicator_and_the_wait_for_it() {
    let families = told(&mut numbers(&[
        Event::Call(call("ncclCommInitRank", 1, 0, (8 << 32) | 3, 0xc0)),
        Event::Call(call("ncclAllReduce", 1, 1_000, 1 << 20, 0xc0)),
        Event::Call(call("ncclAllReduce", 2, 1_000, 1 << 20, 0xc0)),
        Event::Call(call("cudaStreamSync", 1, 11_000, 0, 0)),
        Event::Call(call("cudaStreamSync", 1, 90_000, 0, 0)),
    ]));
    let of = |metric| said(&families, metric);
    assert_eq!(
        of(&metric::NCCL_COLLECTIVE_DURATION),
        [
            "AllReduce Int(3) Int(8): 1 of 0.000002",
            "AllReduce: 1 of 0.000002"
        ]
    );
    assert_eq!(
        of(&metric::NCCL_BARRIER_DURATION),
        ["AllReduce Int(3) Int(8): 1 of 0.00001"]
    );
    let single = &points(&families, &metric::NCCL_COLLECTIVE_SIZE)[0].exemplars;
    assert_eq!(single[0].value, f64::from(1 << 20));
    assert_eq!(single[0].at, UnixNanos(1_000_001_000));
}

#[test]
fn throttling_is_counted_when_it_begins_and_a_device_that_is_gone_is_not_told() {
    let (idle, thermal, unknown) = (0x1, 0x40, 1 << 40);
    let mut numbers = numbers(&[
        gpu(0, thermal),
        gpu(1, thermal | idle),
        gpu(2, idle),
        gpu(3, thermal),
        gpu(4, unknown),
    ]);
    let families = told(&mut numbers);
    let of = |metric| said(&families, metric);
    assert_eq!(
        of(&metric::GPU_THROTTLE_COUNT),
        [
            "GPU-1 hw: 1",
            "GPU-1 power: 0",
            "GPU-1 sw: 0",
            "GPU-1 thermal: 1"
        ]
    );
    assert_eq!(
        of(&metric::GPU_THROTTLE_ACTIVE),
        [
            "GPU-1 hw: 1",
            "GPU-1 power: 0",
            "GPU-1 sw: 0",
            "GPU-1 thermal: 0"
        ]
    );
    assert_eq!(of(&metric::GPU_MEMORY_RESERVED), ["GPU-1: 0.05"]);
    assert_eq!(of(&metric::GPU_POWER), ["GPU-1: 412.5"]);
    assert_eq!(of(&metric::NODE_INFO), ["NVIDIA H100 80GB HBM3 Int(1): 1"]);
    let late = numbers.families(&Own::default(), CLOCK, BootNanos(100_000_000_000));
    assert!(points(&late, &metric::GPU_POWER).is_empty());
}

#[test]
fn a_finding_that_is_told_again_adds_what_is_new_of_its_blame() {
    let mut numbers = numbers(&[]);
    for ns in [1_000_000_000, 1_000_000_000, 3_000_000_000] {
        numbers.findings(&[finding(ns)]);
    }
    let families = told(&mut numbers);
    let of = |metric| said(&families, metric);
    assert_eq!(of(&metric::FINDING_COUNT), ["high disk_wait: 1"]);
    assert_eq!(
        of(&metric::BLAME_TIME),
        ["disk_wait: 3", "unexplained: 0.000000005"]
    );
}

#[test]
fn what_ways_out_counted_stays_counted_when_others_take_their_place() {
    let dead = |signal| Config::new(signal, Protocol::HttpProtobuf);
    let ways = || Outgoing {
        spans: SpanSender::new(
            &dead(Signal::Traces),
            Batching::default(),
            Object::new(),
            "a",
            "1",
        )
        .ok(),
        metrics: MetricSender::new(&dead(Signal::Metrics), MetricSettings::default(), "1")
            .ok()
            .map(|sender| (sender, std::time::Duration::from_secs(1))),
        ..Outgoing::default()
    };
    let mut own = Own::default();
    let old = ways();
    let spans = old.spans.as_ref().unwrap();
    assert!(spans.close(std::time::Instant::now()));
    let record = warptrace_formats::otlp::finding_span(
        &finding(1),
        SpanContext { trace: 1, span: 1 },
        CLOCK,
    );
    assert!(!spans.push(record));
    own.leave(&old);
    // The job's spans wait with ours.
    let nobody = dead(Signal::Traces).with_base("http://127.0.0.1:9");
    let relay = Arc::new(SpanRelay::new(&nobody, 100, Retry::default()).unwrap());
    assert!(relay.pass(vec![0; 60], 2));
    assert!(!relay.pass(vec![0; 60], 1), "there is no room");
    let receiver = receiver(&relay);
    for body in ["{", "{}"] {
        let answer = post(receiver.address(), "/v1/traces", body);
        assert_eq!(answer.contains(" 200 "), body == "{}", "{answer}");
    }
    own.look(&Outgoing {
        relay: Some(relay),
        receiver: Some(receiver),
        ..ways()
    });
    let mut to = Families::new(UnixNanos(0), UnixNanos(1));
    own.tell(&mut to, 1);
    let families = to.finish();
    let spans = said(&families, &metric::EXPORT_SPANS);
    assert!(spans.contains(&"closed: 1".to_owned()), "{spans:?}");
    assert_eq!(said(&families, &metric::EXPORT_SPANS_WAITING), [": 2"]);
    assert_eq!(
        said(&families, &metric::RECEIVE_REQUEST_COUNT),
        [": 1", "malformed: 1"]
    );
}

fn receiver(relay: &Arc<SpanRelay>) -> SpanReceiver {
    let anywhere = ReceiveConfig {
        address: ([127, 0, 0, 1], 0).into(),
        token: None,
        tls: None,
    };
    SpanReceiver::start(&anywhere, Arc::clone(relay)).unwrap()
}

/// What is answered to JSON.
fn post(to: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn degradation(key: WorkloadKey) -> Degradation {
    Degradation {
        at: BootNanos(0),
        outlier: EventId(1),
        key,
        bucket: OutlierBucket::X3,
        cooldown_end: BootNanos(1),
    }
}

/// A state in which every metric of inference has a value.
fn inference() -> InferenceState {
    let mut histogram = BoundedHistogram::default();
    histogram.record(1, &warptrace_model::inference::STEP_BOUNDS_NANOS);
    let key = WorkloadKey {
        cgroup: None,
        process: Incarnation::default(),
        stream: Stream(1),
        phase: None,
        device: None,
        fingerprint: 0,
    };
    let mut kv_ages = BoundedHistogram::default();
    kv_ages.record(1, &warptrace_model::inference::KV_AGE_BOUNDS_MILLIS);
    InferenceState {
        workloads: vec![WorkloadState {
            key,
            since: BootNanos(0),
            seen: BootNanos(1),
            warmed: true,
            steps: 1,
            paused_steps: 0,
            outliers: [1; 3],
            throttled_outliers: [1; 3],
            shifts: 0,
            mean_nanos: 1,
            p95_nanos: 1,
            healthy: histogram.clone(),
            all: histogram,
        }],
        steps: 1,
        phases: [1, 0, 0, 0],
        outliers: [1; 3],
        throttled_outliers: [1; 3],
        paused_steps: 0,
        shifts: 0,
        left_out: LeftOutSteps::default(),
        kv_ages,
        sampler: SamplerState::Healthy,
        last_degradation: Some(degradation(key)),
        degradations: 1,
        admitted: 1,
        admitted_weight: 1,
        shed: 1,
        dropped: 0,
        evicted: 0,
    }
}

#[test]
fn every_metric_of_the_table_is_measured_or_is_on_a_short_list_that_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = numbers(&[
        process(std::process::id(), 5, "/a"),
        counts("cudaLaunchKernel", 1, &[1]),
        Event::Call(Call {
            ret: 2,
            ..call("cudaMalloc", 1, 0, 1, 1)
        }),
        Event::Call(call("cudaLaunchKernel", 1, 0, 0, (1 << 16) | 1)),
        Event::Call(call("cudaMemcpyAsync", 1, 0, 1, 1)),
        Event::Call(call("ncclAllReduce", 1, 0, 1, 1)),
        Event::Call(call("cudaStreamSync", 1, 1, 0, 0)),
        Event::Stretch(Stretch {
            thread: Thread::new(1, 1),
            start: BootNanos(0),
            dur: 1,
            running: 0,
            runnable: 1,
            throttled: 0,
            major_faults: 0,
            minor_faults: 0,
        }),
        Event::OffCpu(OffCpu {
            thread: Thread::new(1, 1),
            start: BootNanos(0),
            dur: 1,
            runnable: 1,
            throttled: 0,
            preempted: true,
            iowait: false,
            uninterruptible: false,
            stopped: false,
            timed: false,
            poll_socket: false,
            syscall: None,
            fd: None,
            file: FileType::None,
            waker: None,
            last_occupant: Tid(0),
            cpu: Cpu(0),
        }),
        system(),
        gpu(0, 0x40),
    ]);
    numbers.losses(&[Loss {
        source: "ebpf",
        reason: LossReason::RingFull,
        count: 1,
        window: None,
        pid: None,
    }]);
    numbers.gaps(&[Gap {
        code: GapCode::NoNvml,
        detail: String::new(),
        count: 1,
    }]);
    numbers.units(&[unit()]);
    numbers.findings(&[finding(1)]);
    let library = "/usr/lib/libnccl.so.2.21.5";
    numbers.libraries.found(Pid(std::process::id()), library);
    let dead = |signal| Config::new(signal, Protocol::HttpProtobuf);
    let variable = |name: &str| {
        (name == "WARPTRACE_ALERT_WEBHOOK_URL").then(|| "https://127.0.0.1:9/".to_owned())
    };
    let alerts = AlertConfig::from_value(&Value::Null, &variable, "node").unwrap();
    let alerts = Alerter::start(alerts).ok();
    let mut own = Own::default();
    own.unanswered(vec![("timeout", 1)]);
    let relay = SpanRelay::new(&dead(Signal::Traces), 100, Retry::default());
    own.look(&Outgoing {
        receiver: Some(receiver(&Arc::new(relay.unwrap()))),
        outliers: OutlierSocket::start(&folder.path().join("outliers.sock")).ok(),
        spans: SpanSender::new(
            &dead(Signal::Traces),
            Batching::default(),
            Object::new(),
            "a",
            "1",
        )
        .ok(),
        metrics: MetricSender::new(&dead(Signal::Metrics), MetricSettings::default(), "1")
            .ok()
            .map(|sender| (sender, std::time::Duration::from_secs(1))),
        alerts,
        ..Outgoing::default()
    });
    let mut families = numbers.families(&own, CLOCK, BootNanos(1));
    families.extend(inference_families(
        &inference(),
        &|_| None,
        CLOCK,
        BootNanos(0),
        BootNanos(1),
    ));
    let readings = ServingMetric::ALL.into_iter().map(|metric| ServingReading {
        metric,
        model: None,
        value: match metric.kind() {
            ServingKind::Histogram => ServingValue::Histogram(ServingHistogram {
                sum: 1.0,
                count: 1,
                bounds: vec![1.0],
                counts: vec![1, 0],
            }),
            _ => ServingValue::Number(1.0),
        },
    });
    let readings: Vec<_> = readings.collect();
    families.extend(serving_families(
        &readings,
        Engine::Vllm,
        None,
        UnixNanos(0),
        UnixNanos(1),
    ));

    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for family in &families {
        *times.entry(family.metric.name).or_default() += 1;
        let of = family.metric.attributes;
        let elsewhere = family.metric.ingero.iter().flat_map(|row| row.attributes);
        let known: BTreeSet<&str> = of.iter().chain(elsewhere).map(|a| a.name).collect();
        for point in &family.points {
            for (key, _) in point.attributes.iter() {
                assert!(known.contains(key), "{} has {key}", family.metric.name);
            }
        }
    }
    assert!(times.values().all(|n| *n == 1), "{times:?}");
    let excused = NOBODY.iter().flat_map(|(metrics, _)| *metrics);
    let excused: BTreeSet<&str> = excused.map(|metric| metric.name).collect();
    for metric in metric::ALL {
        let (measured, excused) = (
            times.contains_key(metric.name),
            excused.contains(metric.name),
        );
        assert!(
            measured != excused,
            "{}: measured {measured}, excused {excused}",
            metric.name
        );
    }
}

#[test]
fn the_page_on_metrics_says_which_are_not_measured_and_why() {
    let page = include_str!("../../../../docs/metrics.md");
    for (metrics, why) in NOBODY {
        assert!(page.contains(why), "docs/metrics.md does not say: {why}");
        for metric in metrics {
            let name = format!("`{}`", metric.name);
            assert!(
                page.split("<!--")
                    .next()
                    .unwrap_or_default()
                    .contains(&name),
                "{name}"
            );
        }
    }
}

#[test]
fn a_finding_costs_what_its_process_s_device_costs() {
    let numbers = numbers(&[gpu(0, 0)]);
    let mut finding = finding(1_000_000_000);
    finding.key.process.pid = Pid(1);
    finding.window = Window::at(BootNanos(0), 3_600_000_000_000);
    let prices = Prices::default();
    let cost = numbers.cost(&finding, &prices, "aws").unwrap();
    assert_eq!((cost.gpu, cost.gpus), ("NVIDIA H100 80GB HBM3", 1));
    // $6.88 an hour: a second of one.
    assert_eq!(cost.cost.total.0, 1_911);
    assert!(numbers.cost(&finding, &prices, "").is_none());
}
