use warptrace_model::metric::{Explicit, Exponential, Metric, Point, metric};

use super::*;

fn object(pairs: &[(&str, Value)]) -> Object {
    let pairs = pairs.iter().map(|(k, v)| ((*k).into(), v.clone()));
    Object::from_pairs(pairs.collect())
}

fn point(attributes: Object, value: Number) -> Point {
    Point {
        attributes,
        start: UnixNanos(1),
        at: UnixNanos(9),
        value,
        exemplars: Vec::new(),
    }
}

fn family(metric: &'static Metric, points: Vec<Point>) -> Family {
    Family { metric, points }
}

fn of(pairs: &[(&str, &str)], value: Number) -> Point {
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (*k, Value::from(*v))).collect();
    point(object(&pairs), value)
}

/// Labels as text, and values.
fn seen(written: &Written<'_>) -> Vec<(String, Number)> {
    let points = written.points.iter().map(|point| {
        let labels = point
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value:?}"));
        (labels.collect::<Vec<_>>().join(" "), (*point.value).clone())
    });
    points.collect()
}

#[test]
fn points_that_become_alike_are_added_and_of_gauges_the_last_one_holds() {
    let hash = "warptrace.cgroup.hash";
    let launches = [("a", 7, 2), ("a", 8, 3), ("b", 7, 5)].map(|(cgroup, pid, n)| {
        let attributes = object(&[(hash, cgroup.into()), ("process.pid", pid.into())]);
        point(attributes, Number::Int(n))
    });
    let family = family(&metric::CUDA_LAUNCH_COUNT, launches.to_vec());
    assert_eq!(native(&family, Dialect::Otlp).points.len(), 3);
    let [by_cgroup] = &ingero(&family, Dialect::Otlp)[..] else {
        panic!()
    };
    assert_eq!(by_cgroup.name, "ingero.node.cuda_kernel_launch_total");
    assert_eq!(
        seen(by_cgroup),
        [
            (
                r#"ingero.cgroup_path_hash=Text("a")"#.to_owned(),
                Number::Int(5)
            ),
            (
                r#"ingero.cgroup_path_hash=Text("b")"#.to_owned(),
                Number::Int(5)
            ),
        ]
    );
    let [by_pid] = &ingero(&family, Dialect::Prometheus)[..] else {
        panic!()
    };
    assert_eq!(by_pid.name, "gpu_kernel_launch_count");
    assert_eq!(
        seen(by_pid),
        [
            ("pid=Int(7)".to_owned(), Number::Int(7)),
            ("pid=Int(8)".to_owned(), Number::Int(3))
        ]
    );
    // Two processes that had one id after the other.
    let gauges = [0.5, 0.25].map(|x| point(Object::new(), Number::Double(x)));
    let family = Family {
        metric: &metric::INFERENCE_BASELINE_P95,
        points: gauges.to_vec(),
    };
    assert_eq!(
        seen(&native(&family, Dialect::Otlp)),
        [(String::new(), Number::Double(0.25))]
    );
}

#[test]
fn percentiles_are_of_all_calls_of_a_function_whoever_made_them() {
    let calls = |process: &str, n: usize, secs: f64| {
        let mut histogram = Exponential::default();
        (0..n).for_each(|_| histogram.record(secs));
        of(
            &[
                ("warptrace.layer", "cuda"),
                ("warptrace.cuda.function", "cudaMalloc"),
                ("process.pid", process),
            ],
            Number::Exponential(histogram),
        )
    };
    let points = vec![calls("1", 90, 100e-6), calls("2", 10, 2e-3)];
    let family = family(&metric::CUDA_CALL_DURATION, points);
    // No process is told of by this metric: both are one.
    assert_eq!(native(&family, Dialect::Otlp).points.len(), 1);
    let [percentiles, counts] = &ingero(&family, Dialect::Otlp)[..] else {
        panic!()
    };
    let values: Vec<f64> = percentiles
        .points
        .iter()
        .map(|point| match *point.value {
            Number::Double(x) => x,
            _ => panic!("{point:?}"),
        })
        .collect();
    assert!((98.0..=102.0).contains(&values[0]), "{values:?}");
    assert!(
        (1950.0..=2050.0).contains(&values[1]) && values[2] >= values[1],
        "{values:?}"
    );
    assert!(values.iter().all(|value| value.fract() == 0.0));
    assert_eq!(seen(counts)[0].1, Number::Int(100));
}

#[test]
fn a_row_for_one_value_of_an_attribute_takes_those_points_alone() {
    let points = ["power", "thermal", "new"].map(|reason| {
        of(
            &[
                ("hw.id", "GPU-1"),
                ("warptrace.gpu.throttle.reason", reason),
            ],
            Number::Int(1),
        )
    });
    let family = family(&metric::GPU_THROTTLE_ACTIVE, points.to_vec());
    let names: Vec<_> = ingero(&family, Dialect::Otlp)
        .into_iter()
        .map(|w| w.name)
        .collect();
    assert_eq!(
        names,
        ["gpu.throttle.power_active", "gpu.throttle.thermal_active"]
    );
}

#[test]
fn single_calls_are_points_at_their_own_times_and_a_peer_of_0_is_left_out() {
    let calls = [(5, 0.001), (6, 0.002)].map(|(at, value)| Exemplar {
        value,
        at: UnixNanos(at),
        context: None,
        attributes: Object::new(),
    });
    let mut histogram = Exponential::default();
    calls.iter().for_each(|call| histogram.record(call.value));
    let attributes = object(&[
        ("warptrace.nccl.operation", "AllReduce".into()),
        (
            "warptrace.nccl.communicator",
            Value::Int(Int::from(0xab_u64)),
        ),
        ("warptrace.nccl.peer", 0.into()),
    ]);
    let point = Point {
        exemplars: calls.to_vec(),
        ..point(attributes, Number::Exponential(histogram))
    };
    let family = family(&metric::NCCL_COLLECTIVE_DURATION, vec![point]);
    let [durations] = &ingero(&family, Dialect::Otlp)[..] else {
        panic!()
    };
    let labels = r#"nccl.op_type=Text("AllReduce") nccl.comm_id_hash=Text("00000000000000ab")"#;
    assert_eq!(
        seen(durations),
        [
            (labels.to_owned(), Number::Double(1.0)),
            (labels.to_owned(), Number::Double(2.0))
        ]
    );
    let times: Vec<u64> = durations.points.iter().map(|point| point.at.0).collect();
    assert_eq!(times, [5, 6]);
    let [counts] = &ingero(&family, Dialect::Prometheus)[..] else {
        panic!()
    };
    assert_eq!(
        seen(counts),
        [(r#"op_type=Text("AllReduce")"#.to_owned(), Number::Int(2))]
    );
}

#[test]
fn handles_and_hashes_have_the_digits_that_each_reader_expects() {
    let attributes = object(&[
        ("warptrace.cuda.stream", Value::Int(Int::from(u64::MAX))),
        (
            "warptrace.inference.kernel_fingerprint",
            Value::Int(Int::from(0xaf_u64)),
        ),
    ]);
    let histogram = Number::Explicit(Explicit::new(metric::INFERENCE_STEP_DURATION.bounds));
    let family = family(
        &metric::INFERENCE_HEALTHY_STEP_DURATION,
        vec![point(attributes, histogram)],
    );
    let labels = |written: &Written<'_>| seen(written)[0].0.clone();
    assert_eq!(
        labels(&native(&family, Dialect::Otlp)),
        r#"warptrace.cuda.stream=Text("0xffffffffffffffff") warptrace.inference.kernel_fingerprint=Text("00000000000000af")"#
    );
    assert_eq!(
        labels(&ingero(&family, Dialect::Otlp)[0]),
        r#"ingero.infer.stream_handle=Text("18446744073709551615") ingero.infer.kernel_fingerprint=Text("af")"#
    );
    assert_eq!(
        labels(&ingero(&family, Dialect::Prometheus)[0]),
        r#"stream_handle=Text("18446744073709551615") kernel_fingerprint=Text("00000000000000af")"#
    );
    let command = object(&[("warptrace.driver.command", 0xc03_0464e_i64.into())]);
    let calls = Family {
        metric: &metric::DRIVER_CALL_COUNT,
        points: vec![point(command, Number::Int(1))],
    };
    let [written] = &ingero(&calls, Dialect::Prometheus)[..] else {
        panic!()
    };
    assert_eq!(seen(written)[0].0, r#"cmd=Text("0xC030464E")"#);
}

#[test]
fn a_resource_keeps_what_its_user_said_under_any_names() {
    let said = object(&[
        ("service.name", "warptrace".into()),
        ("warptrace.node.id", "n1".into()),
        ("cloud.provider", "aws".into()),
        ("deployment.environment.name", "prod".into()),
    ]);
    let keys = |names| {
        let resource = resource(&said, names);
        let pairs = resource
            .iter()
            .map(|(k, v)| format!("{k}={}", v.as_str().unwrap()));
        pairs.collect::<Vec<_>>()
    };
    assert_eq!(
        keys(Names::Ingero),
        [
            "service.name=ingero",
            "ingero.node.id=n1",
            "ingero.provider=aws",
            "deployment.environment.name=prod"
        ]
    );
    assert_eq!(
        keys(Names::Both),
        [
            "service.name=warptrace",
            "ingero.node.id=n1",
            "ingero.provider=aws",
            "warptrace.node.id=n1",
            "cloud.provider=aws",
            "deployment.environment.name=prod"
        ]
    );
    let named = object(&[("service.name", "mine".into())]);
    let resource = resource(&named, Names::Ingero);
    assert_eq!(
        resource.get("service.name").and_then(Value::as_str),
        Some("mine")
    );
}
