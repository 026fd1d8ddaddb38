//! What receivers that nobody here wrote make of our requests: the collector of the `rotel` wheel, and the messages of the
//! Python package `opentelemetry-proto`.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use support::*;
use tempfile::TempDir;
use warptrace_export::otlp::{Compression, Config, Protocol, Signal};
use warptrace_export::{MetricSender, MetricSettings, ReceiveConfig, SpanReceiver, SpanRelay};
use warptrace_formats::otlp::{ExportMetricsServiceRequest, Metric, MetricsEncoder, Origin, Span};
use warptrace_model::metric::{Exemplar, Meter, Number, Snapshot, metric};
use warptrace_model::{Int, Object, UnixNanos, Value, lone_surrogate};

/// The `rotel` collector, between a sender and our own receiver.
struct Rotel {
    process: Child,
    grpc: u16,
    http: u16,
    _files: TempDir,
}

impl Drop for Rotel {
    /// Kills it, as if it had crashed.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rotel_binary() -> Option<PathBuf> {
    let python = python_with("rotel")?;
    let code =
        "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
    let output = Command::new(python).args(["-c", code]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.exists().then_some(path)
}

fn free_port() -> u16 {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    place.local_addr().unwrap().port()
}

impl Rotel {
    /// Passes on what it gets to `to`.
    fn start(binary: &Path, to: &Collector) -> Rotel {
        Rotel::on(binary, &to.base(), free_port(), free_port())
    }

    fn on(binary: &Path, base: &str, grpc: u16, http: u16) -> Rotel {
        let files = tempfile::tempdir().unwrap();
        let process = Command::new(binary)
            .arg("start")
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", base])
            .args([
                OsStr::new("--pid-file"),
                files.path().join("pid").as_os_str(),
            ])
            .args([
                OsStr::new("--log-file"),
                files.path().join("log").as_os_str(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Rotel {
            process,
            grpc,
            http,
            _files: files,
        }
    }

    fn config(&self, protocol: Protocol) -> Config {
        self.config_of(Signal::Traces, protocol)
    }

    fn config_of(&self, signal: Signal, protocol: Protocol) -> Config {
        let port = match protocol {
            Protocol::Grpc => self.grpc,
            _ => self.http,
        };
        Config::new(signal, protocol).with_base(&format!("http://127.0.0.1:{port}"))
    }
}

/// The spans that come out of `to` until there are `count`.
fn arrived(to: &Collector, count: usize) -> Vec<Span> {
    let mut spans = Vec::new();
    while spans.len() < count {
        spans.extend(to.request().spans());
    }
    spans.sort_by_key(|span| span.start_time_unix_nano);
    spans
}

/// Sends to a collector that is still starting: the first tries find nobody.
fn rotel_passes_on(test: &str, protocol: Protocol, compression: Compression, count: u64) {
    let Some(binary) = rotel_binary() else {
        return skip(test, "no rotel (pip install rotel)");
    };
    let to = Collector::taking_all();
    let rotel = Rotel::start(&binary, &to);
    let config = Config {
        compression,
        ..rotel.config(protocol)
    };
    let sender = sender(&config, patient());
    (0..count).for_each(|n| assert!(sender.push(span(n))));
    assert!(sender.close(soon()), "{:?}", sender.counts());
    let counts = sender.counts();
    assert_eq!(counts.sent, count, "{counts:?}");
    assert_eq!((counts.unreadable, counts.rejected), (0, 0), "{counts:?}");
    assert_are(&arrived(&to, count as usize), 0..count);
}

#[test]
fn rotel_takes_http_with_protobuf() {
    let protocol = Protocol::HttpProtobuf;
    rotel_passes_on("rotel_http_protobuf", protocol, Compression::None, 2_000);
}

#[test]
fn rotel_takes_http_with_gzip() {
    let protocol = Protocol::HttpProtobuf;
    rotel_passes_on("rotel_http_gzip", protocol, Compression::Gzip, 2_000);
}

#[test]
fn rotel_takes_http_with_json() {
    let protocol = Protocol::HttpJson;
    rotel_passes_on("rotel_http_json", protocol, Compression::None, 2_000);
}

#[test]
fn rotel_takes_a_burst_of_20_000_spans() {
    let protocol = Protocol::HttpProtobuf;
    rotel_passes_on("rotel_burst", protocol, Compression::None, 20_000);
}

#[cfg(feature = "grpc")]
#[test]
fn rotel_takes_grpc() {
    rotel_passes_on("rotel_grpc", Protocol::Grpc, Compression::None, 20_000);
}

#[cfg(feature = "grpc")]
#[test]
fn rotel_takes_grpc_with_gzip() {
    rotel_passes_on("rotel_grpc_gzip", Protocol::Grpc, Compression::Gzip, 2_000);
}

/// One of them before our receiver, as its client, and one behind it.
#[test]
fn what_rotel_sends_is_passed_on_to_rotel() {
    let Some(binary) = rotel_binary() else {
        return skip("rotel_passed_on", "no rotel (pip install rotel)");
    };
    let to = Collector::taking_all();
    let behind = Rotel::start(&binary, &to);
    let (queue_bytes, retry) = (64 << 20, patient().retry);
    let config = behind.config(Protocol::HttpProtobuf);
    let relay = Arc::new(SpanRelay::new(&config, queue_bytes, retry).unwrap());
    let config = ReceiveConfig {
        address: ([127, 0, 0, 1], 0).into(),
        token: None,
        tls: None,
    };
    let receiver = SpanReceiver::start(&config, Arc::clone(&relay)).unwrap();
    let base = format!("http://{}", receiver.address());
    let before = Rotel::on(&binary, &base, free_port(), free_port());
    let sender = sender(&before.config(Protocol::HttpProtobuf), patient());
    (0..2_000).for_each(|n| assert!(sender.push(span(n))));
    assert!(sender.close(soon()), "{:?}", sender.counts());
    assert_are(&arrived(&to, 2_000), 0..2_000);
    assert_eq!(receiver.received().spans, 2_000);
    assert!(relay.close(soon()));
    let counts = relay.counts();
    assert_eq!((counts.sent, counts.unreadable), (2_000, 0), "{counts:?}");
}

#[test]
fn a_collector_that_is_killed_under_a_burst_and_started_again_gets_the_rest() {
    let Some(binary) = rotel_binary() else {
        return skip("rotel_killed", "no rotel (pip install rotel)");
    };
    let to = Collector::taking_all();
    let rotel = Rotel::start(&binary, &to);
    let config = rotel.config(Protocol::HttpProtobuf);
    let sender = sender(&config, patient());
    (0..5_000).for_each(|n| assert!(sender.push(span(n))));
    until(|| sender.counts().sent >= 512);
    let (grpc, http) = (rotel.grpc, rotel.http);
    drop(rotel);
    (5_000..20_000).for_each(|n| assert!(sender.push(span(n))));
    let retried = sender.counts().retried;
    until(|| sender.counts().retried > retried);

    let _next = Rotel::on(&binary, &to.base(), grpc, http);
    assert!(sender.close(soon()));
    // What a killed collector had taken and not passed on is its own loss: we count what it took.
    assert_eq!(sender.counts().sent, 20_000, "{:?}", sender.counts());
}

/// A metric of each kind, with all that a point can have.
fn each_kind() -> Snapshot {
    let mut meter = Meter::new(UnixNanos(1_750_000_000_000_000_000), 100);
    let exemplar = Exemplar {
        value: 0.02,
        at: UnixNanos(1_750_000_000_500_000_000),
        context: Some((0x0123_4567_89ab_cdef_0000_0000_0000_0001, 2)),
        attributes: object(&[("n", 1.into())]),
    };
    let of = |pid: i64| object(&[("process.pid", pid.into())]);
    meter.add(&metric::CUDA_LAUNCH_COUNT, of(7), 3).unwrap();
    meter
        .add_real(&metric::BLAME_TIME, Object::new(), 0.5)
        .unwrap();
    meter
        .set(
            &metric::GPU_UTILIZATION,
            Object::new(),
            Number::Double(0.25),
        )
        .unwrap();
    meter
        .set(&metric::STORE_SIZE, Object::new(), Number::Int(1 << 40))
        .unwrap();
    let steps = &metric::INFERENCE_STEP_DURATION;
    meter
        .record_explicit(steps, of(7), 0.02, Some(exemplar.clone()))
        .unwrap();
    meter.record_explicit(steps, of(7), 100.0, None).unwrap();
    let copies = &metric::CUDA_COPY_DURATION;
    meter.record(copies, Object::new(), 0.0, None).unwrap();
    meter
        .record(copies, Object::new(), 0.02, Some(exemplar))
        .unwrap();
    meter.record(copies, Object::new(), 3.0, None).unwrap();
    let resource = object(&[("service.name", "warptrace".into())]);
    meter.snapshot(resource, UnixNanos(1_750_000_001_000_000_000))
}

/// By name, since a collector may group and order metrics as it likes.
fn metrics_of(request: ExportMetricsServiceRequest) -> BTreeMap<String, Metric> {
    let scopes = request
        .resource_metrics
        .into_iter()
        .flat_map(|r| r.scope_metrics);
    let metrics = scopes.flat_map(|scope| scope.metrics);
    metrics
        .map(|metric| (metric.name.clone(), metric))
        .collect()
}

/// Sends a metric of each kind through a collector, and has it back unchanged.
fn rotel_passes_metrics_on(test: &str, protocol: Protocol, compression: Compression) {
    let Some(binary) = rotel_binary() else {
        return skip(test, "no rotel (pip install rotel)");
    };
    let to = Collector::taking_all();
    let rotel = Rotel::start(&binary, &to);
    let config = Config {
        compression,
        ..rotel.config_of(Signal::Metrics, protocol)
    };
    let settings = MetricSettings {
        retry: patient().retry,
        ..MetricSettings::default()
    };
    let sender = MetricSender::new(&config, settings, "1.2.3").unwrap();
    let snapshot = each_kind();
    assert!(sender.offer(Arc::new(snapshot.clone())));
    assert!(sender.close(soon()), "{:?}", sender.counts());
    let counts = sender.counts();
    assert_eq!(
        (counts.sent, counts.rejected, counts.unreadable),
        (6, 0, 0),
        "{counts:?}"
    );
    let encoder = MetricsEncoder {
        version: "1.2.3".into(),
        ..MetricsEncoder::default()
    };
    let said = metrics_of(encoder.request(&snapshot));
    let mut arrived = BTreeMap::new();
    while arrived.len() < said.len() {
        let request = to.request();
        assert_eq!(request.path, "/v1/metrics");
        arrived.extend(metrics_of(request.metrics()));
    }
    if protocol == Protocol::HttpJson {
        // rotel reads no 64-bit integer that stands as text, as OTLP's JSON has them (and protobuf's rules for JSON): it leaves
        // out values and whole histograms. What Python makes of the same bytes is held below.
        assert_eq!(
            arrived.keys().collect::<Vec<_>>(),
            said.keys().collect::<Vec<_>>()
        );
        arrived.retain(|name, _| {
            *name == metric::GPU_UTILIZATION.name || *name == metric::BLAME_TIME.name
        });
        assert!(arrived.iter().all(|(name, metric)| *metric == said[name]));
        assert_eq!(arrived.len(), 2);
        return;
    }
    assert_eq!(arrived, said);
}

#[test]
fn rotel_takes_metrics_over_http_with_protobuf() {
    rotel_passes_metrics_on("rotel_metrics", Protocol::HttpProtobuf, Compression::Gzip);
}

#[test]
fn rotel_takes_metrics_of_doubles_over_http_with_json() {
    rotel_passes_metrics_on("rotel_metrics_json", Protocol::HttpJson, Compression::None);
}

#[cfg(feature = "grpc")]
#[test]
fn rotel_takes_metrics_over_grpc() {
    rotel_passes_metrics_on("rotel_metrics_grpc", Protocol::Grpc, Compression::None);
}

/// What the Python package makes of our bytes, as JSON of its own.
const DECODE: &str = r#"
import base64, json, re, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

Request = ExportMetricsServiceRequest if sys.argv[2:] == ["metrics"] else ExportTraceServiceRequest

def text(request):
    return json_format.MessageToDict(request, always_print_fields_with_no_presence=False)

folder = sys.argv[1]
binary = Request()
binary.ParseFromString(open(folder + "/request.pb", "rb").read())
# OTLP's JSON has ids in hexadecimal, protobuf's own has them in base64: nothing else is different.
said = open(folder + "/request.json").read()
said = re.sub(r'("(?:traceId|spanId|parentSpanId)":)"([0-9a-f]*)"',
              lambda m: m[1] + json.dumps(base64.b64encode(bytes.fromhex(m[2])).decode()), said)
from_json = json_format.Parse(said, Request())
assert binary == from_json
print(json.dumps({"binary": text(binary), "json": text(from_json)}))
"#;

#[test]
fn the_python_messages_of_opentelemetry_read_both_encodings_alike() {
    let Some(python) = python_with("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    else {
        let reason = "no opentelemetry-proto (pip install opentelemetry-proto)";
        return skip("python_reads_otlp", reason);
    };
    let mut said = span(1);
    let big = Int::parse("9223372036854775808").unwrap();
    let half = format!("a{}", lone_surrogate(0xDC00).unwrap());
    let nested = object(&[("k", Value::Array(vec![true.into(), false.into()]))]);
    for (key, value) in [
        ("big", Value::Int(big)),
        ("least", i64::MIN.into()),
        ("infinite", f64::INFINITY.into()),
        ("null", Value::Null),
        ("half", half.into()),
        ("object", Value::Object(nested)),
    ] {
        said.attributes.insert(key, value);
    }
    let request = Origin::new(&Object::new(), "warptrace", "1.2.3").request([&said]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("request.pb"), request.to_protobuf()).unwrap();
    std::fs::write(folder.path().join("request.json"), request.to_json()).unwrap();
    let output = Command::new(python)
        .args(["-c", DECODE])
        .arg(folder.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["binary"], read["json"]);
    let attribute = |key: &str, value: serde_json::Value| json!({"key": key, "value": value});
    let expected = json!({"resourceSpans": [{
        "resource": {},
        "scopeSpans": [{
            "scope": {"name": "warptrace", "version": "1.2.3"},
            "spans": [{
                "traceId": "ASNFZ4mrze8AAAAAAAAAAQ==",
                "spanId": "AAAAAAAAAAI=",
                "parentSpanId": "AAAAAAAAAAE=",
                "name": "step 1",
                "kind": "SPAN_KIND_INTERNAL",
                "flags": 1,
                "startTimeUnixNano": "1750000000000000001",
                "endTimeUnixNano": "1750000000500000001",
                "attributes": [
                    attribute("n", json!({"intValue": "1"})),
                    attribute("text", json!({"stringValue": "é"})),
                    attribute("double", json!({"doubleValue": 0.5})),
                    attribute("list", json!({"arrayValue": {"values": [
                        {"stringValue": "a"}, {"stringValue": "b"}]}})),
                    attribute("big", json!({"stringValue": "9223372036854775808"})),
                    attribute("least", json!({"intValue": "-9223372036854775808"})),
                    attribute("infinite", json!({"doubleValue": "Infinity"})),
                    attribute("null", json!({})),
                    attribute("half", json!({"stringValue": "a\u{FFFD}"})),
                    attribute("object", json!({"kvlistValue": {"values": [
                        {"key": "k", "value": {"arrayValue": {"values": [
                            {"boolValue": true}, {"boolValue": false}]}}}]}})),
                ],
                "events": [{
                    "timeUnixNano": "1750000000250000000",
                    "name": "checkpoint",
                    "attributes": [attribute("bytes", json!({"intValue": "1099511627776"}))],
                }],
                "status": {"message": "out of memory", "code": "STATUS_CODE_ERROR"},
            }],
        }],
    }]});
    assert_eq!(read["binary"], expected);
}

#[test]
fn the_python_messages_of_opentelemetry_read_metrics_in_both_encodings_alike() {
    let Some(python) = python_with("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    else {
        let reason = "no opentelemetry-proto (pip install opentelemetry-proto)";
        return skip("python_reads_otlp_metrics", reason);
    };
    let encoder = MetricsEncoder {
        version: "1.2.3".into(),
        ..MetricsEncoder::default()
    };
    let request = encoder.request(&each_kind());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("request.pb"), request.to_protobuf()).unwrap();
    std::fs::write(folder.path().join("request.json"), request.to_json()).unwrap();
    let output = Command::new(python)
        .args(["-c", DECODE])
        .arg(folder.path())
        .arg("metrics")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["binary"], read["json"]);
    let said = &read["binary"]["resourceMetrics"][0]["scopeMetrics"][0];
    assert_eq!(
        said["scope"],
        json!({"name": "warptrace", "version": "1.2.3"})
    );
    let metrics = said["metrics"].as_array().unwrap();
    let named = |metric: &warptrace_model::metric::Metric| {
        let found = metrics
            .iter()
            .find(|m| m["name"] == metric.name)
            .unwrap()
            .clone();
        assert_eq!(
            (&found["unit"], &found["description"]),
            (&json!(metric.unit), &json!(metric.meaning))
        );
        found
    };
    let start = json!("1750000000000000000");
    let at = json!("1750000001000000000");
    let pid = json!([{"key": "process.pid", "value": {"intValue": "7"}}]);
    let exemplar = json!([{
        "timeUnixNano": "1750000000500000000",
        "asDouble": 0.02,
        "spanId": "AAAAAAAAAAI=",
        "traceId": "ASNFZ4mrze8AAAAAAAAAAQ==",
        "filteredAttributes": [{"key": "n", "value": {"intValue": "1"}}],
    }]);
    assert_eq!(
        named(&metric::CUDA_LAUNCH_COUNT)["sum"],
        json!({
            "aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE",
            "isMonotonic": true,
            "dataPoints": [
                {"startTimeUnixNano": start, "timeUnixNano": at, "asInt": "3", "attributes": pid}],
        })
    );
    assert_eq!(
        named(&metric::STORE_SIZE)["sum"],
        json!({
            "aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE",
            "dataPoints": [{"timeUnixNano": at, "asInt": "1099511627776"}],
        })
    );
    assert_eq!(
        named(&metric::GPU_UTILIZATION)["gauge"],
        json!({"dataPoints": [{"timeUnixNano": at, "asDouble": 0.25}]})
    );
    let steps = &named(&metric::INFERENCE_STEP_DURATION)["histogram"]["dataPoints"][0];
    assert_eq!(steps["bucketCounts"][7], "1");
    assert_eq!(steps["bucketCounts"].as_array().unwrap().len(), 17);
    assert_eq!(steps["explicitBounds"][15], 10.0);
    assert_eq!(
        (&steps["count"], &steps["sum"]),
        (&json!("2"), &json!(100.02))
    );
    assert_eq!(
        (&steps["min"], &steps["max"]),
        (&json!(0.02), &json!(100.0))
    );
    assert_eq!(
        (&steps["exemplars"], &steps["attributes"]),
        (&exemplar, &pid)
    );
    let copies = &named(&metric::CUDA_COPY_DURATION)["exponentialHistogram"]["dataPoints"][0];
    assert_eq!(
        (&copies["count"], &copies["zeroCount"]),
        (&json!("3"), &json!("1"))
    );
    assert_eq!(
        (&copies["startTimeUnixNano"], &copies["exemplars"]),
        (&start, &exemplar)
    );
    let counts = copies["positive"]["bucketCounts"].as_array().unwrap();
    let sum: u64 = counts
        .iter()
        .map(|n| n.as_str().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, 2);
    // The first bucket ends above the smallest value: its scale and offset are the ones that we meant.
    let number = |value: &serde_json::Value| value.as_i64().unwrap() as f64;
    let base = 2_f64.powf(2_f64.powf(-number(&copies["scale"])));
    let low = base.powf(number(&copies["positive"]["offset"]));
    assert!(low <= 0.02 && low * base >= 0.02, "{copies}");
}
