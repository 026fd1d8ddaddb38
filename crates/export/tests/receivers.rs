//! What receivers that nobody here wrote make of our requests: the collector of the `rotel` wheel, and the messages of the
//! Python package `opentelemetry-proto`.

mod support;

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use support::*;
use tempfile::TempDir;
use warptrace_export::otlp::{Compression, Config, Protocol, Signal};
use warptrace_formats::otlp::{Origin, Span};
use warptrace_model::{Int, Object, Value, lone_surrogate};

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
        Rotel::on(binary, to, free_port(), free_port())
    }

    fn on(binary: &Path, to: &Collector, grpc: u16, http: u16) -> Rotel {
        let files = tempfile::tempdir().unwrap();
        let process = Command::new(binary)
            .arg("start")
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", &to.base()])
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
        let port = match protocol {
            Protocol::Grpc => self.grpc,
            _ => self.http,
        };
        Config::new(Signal::Traces, protocol).with_base(&format!("http://127.0.0.1:{port}"))
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

    let _next = Rotel::on(&binary, &to, grpc, http);
    assert!(sender.close(soon()));
    // What a killed collector had taken and not passed on is its own loss: we count what it took.
    assert_eq!(sender.counts().sent, 20_000, "{:?}", sender.counts());
}

/// What the Python package makes of our bytes, as JSON of its own.
const DECODE: &str = r#"
import base64, json, re, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request

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
