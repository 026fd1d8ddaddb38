//! Steps of an inference server on simgpu, followed by the real binary: outliers as they are found, and again from the session.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Home, Ran, can_trace};
use warptrace_formats::otlp::ExportTraceServiceRequest;

/// So long anything may take on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whatever else the machine is busy with: a server in trouble is not judged otherwise.
const JUDGED: [&str; 2] = ["--inference-pause-on-severity", "off"];

/// Serves for `millis`, each 100th decode step taking ten times as long, under `verb` (record or trace).
fn serve(home: &Home, verb: &str, millis: u64, more: &[&str]) -> Child {
    serving(home, verb, millis, more).spawn().unwrap()
}

fn serving(home: &Home, verb: &str, millis: u64, more: &[&str]) -> Command {
    let libraries = home.simgpu();
    let serve = serde_json::json!({"serve": {
        "millis": millis, "cudart": libraries.join("libcudart.so.12"), "socket": null, "slow_decode_every": 100,
    }});
    let binary = env!("CARGO_BIN_EXE_warptrace");
    let mut command = home.command([verb, "--quiet", "--inference"]);
    command.args(JUDGED);
    command.args(more).args(["--", binary, "simgpu-workload"]);
    command
        .arg(serve.to_string())
        .env("LD_LIBRARY_PATH", &libraries)
        .env("SIMGPU_SHM", home.dir.path().join("device"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn connect(place: &Path) -> UnixStream {
    let began = Instant::now();
    loop {
        match UnixStream::connect(place) {
            Ok(stream) => return stream,
            Err(e) => assert!(began.elapsed() < PATIENCE, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// What tells an outlier, without who said it.
fn steps(messages: &[Value]) -> Vec<(String, i64, i64, String)> {
    let outliers = messages.iter().filter(|m| m["type"] == "inference_outlier");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let step = |m: &Value| {
        (
            text(&m["event_id"]),
            m["step_duration_ns"].as_i64().unwrap(),
            m["baseline_p95_ns"].as_i64().unwrap(),
            format!("{} {}", text(&m["phase"]), text(&m["bucket"])),
        )
    };
    outliers.map(step).collect()
}

fn a_slow_decode_is_an_outlier(verb: &str) {
    let home = Home::new();
    let place = home.dir.path().join("told/outliers.sock");
    let mut child = serve(
        &home,
        verb,
        12_000,
        &["--outliers", place.to_str().unwrap()],
    );
    // Two consumers, and one that never reads.
    let (mut first, second, _silent) = (connect(&place), connect(&place), connect(&place));
    let mut told = String::new();
    first.read_to_string(&mut told).unwrap();
    let ran = Ran::from(child_output(&mut child));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let mut again = String::new();
    BufReader::new(second).read_to_string(&mut again).unwrap();
    assert_eq!(told, again, "all consumers are told the same");

    let live = steps(&lines(&told));
    let slow: Vec<_> = live
        .iter()
        .filter(|(.., what)| what == "decode 3x")
        .collect();
    assert!(!slow.is_empty(), "{live:?}");
    for (_, step, p95, _) in &slow {
        assert!(*step >= 3 * *p95, "{step} {p95}");
    }
    let ids: std::collections::HashSet<_> = live.iter().map(|(id, ..)| id).collect();
    assert_eq!(ids.len(), live.len());

    // What was lost, the session may have and the run not.
    let answer = home.run(["explain", "--json"]).json();
    let gaps = answer["gaps"].to_string();
    let is_whole = answer["drops"].as_array().is_some_and(Vec::is_empty)
        && !gaps.contains("late_records")
        && !gaps.contains("records_lost");
    let mut replay = vec!["replay"];
    replay.extend(JUDGED);
    let people = home.run(replay.clone());
    assert_eq!(people.code, Some(0), "{people:#?}");
    assert!(people.out.contains("decode"), "{people:#?}");
    if is_whole {
        let same = "as the recording found them";
        assert!(people.err.contains(same), "{people:#?} {live:?} {gaps}");
    }
    replay.push("--json");
    let again = steps(&lines(&home.run(replay).out));
    // Who connects late is not told what was before.
    let is_known = |step| !is_whole || again.contains(step);
    assert!(live.iter().all(is_known), "{live:?} {again:?} {gaps}");
}

/// A recording that goes on in new sessions is judged from its beginning.
#[test]
fn a_recording_over_several_sessions_is_replayed_as_a_whole() {
    let home = Home::new();
    let mut child = serve(
        &home,
        "record",
        12_000,
        &["--rollover-size", "128KiB", "--keep", "100"],
    );
    let ran = Ran::from(child_output(&mut child));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let sessions = home.sessions();
    assert!(sessions.len() > 2, "{sessions:?}");
    let mut replay = vec!["replay"];
    replay.extend(JUDGED);
    let people = home.run(replay);
    assert_eq!(people.code, Some(0), "{people:#?}");
    let steps = |ran: &Ran| {
        let (_, after) = ran.err.split_once("outliers of ").unwrap();
        after.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // The last session alone has a part of them.
    assert!(steps(&people) > 100, "{people:#?}");
    assert!(
        people.err.contains("as the recording found them"),
        "{people:#?}"
    );
    // Without the first one what was usual is learned again, and that is said.
    std::fs::remove_dir_all(&sessions[0]).unwrap();
    let rest = home.run(["replay"]);
    assert!(rest.err.contains("the first 1 sessions"), "{rest:#?}");
    assert!(steps(&rest) < steps(&people), "{rest:#?}");
    let explained = home.run(["explain"]);
    assert_eq!(explained.code, Some(0), "{explained:#?}");
}

/// What is left out is counted all the same, and what belongs to a slow step is there.
#[test]
fn a_thinned_out_session_has_the_slow_steps_whole_and_the_counts_of_everything() {
    let home = Home::new();
    let mut child = serve(&home, "record", 9_000, &["--inference-sampler"]);
    let ran = Ran::from(child_output(&mut child));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let [folder] = &home.sessions()[..] else {
        panic!("one session");
    };
    let fs: std::sync::Arc<dyn warptrace_store::fs::Fs> =
        std::sync::Arc::new(warptrace_store::fs::RealFs);
    let session = warptrace_store::Session::open(fs, folder).unwrap();
    assert_eq!(session.meta().sample_one_in, Some(100));
    let counted: u64 = session.ops(None).unwrap().iter().map(|op| op.count).sum();
    let (mut stream, mut batch, mut ends) = (session.events(None).unwrap(), Vec::new(), Vec::new());
    while stream.next_batch(&mut batch) {
        let calls = batch
            .drain(..)
            .filter(|e| matches!(e, warptrace_model::Event::Call(_)));
        ends.extend(calls.filter_map(|e| e.end()));
    }
    assert!((ends.len() as u64) < counted, "{} of {counted}", ends.len());
    let outliers = session.outliers().unwrap();
    assert!(!outliers.is_empty());
    for outlier in outliers.iter().filter(|o| o.bucket.name() == "3x") {
        let window = outlier.window();
        let inside = ends.iter().filter(|end| window.contains(**end)).count() as u64;
        assert!(inside >= outlier.launches, "{inside} calls of {outlier:?}");
    }
    let again = home.run(["replay"]);
    assert_eq!(again.code, Some(2), "{again:#?}");
    assert!(again.err.contains("one event in 100"), "{again:#?}");
    assert_eq!(home.run(["explain"]).code, Some(0));
}

fn child_output(child: &mut Child) -> std::process::Output {
    let mut output = std::process::Output {
        status: child.wait().unwrap(),
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output.stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut output.stderr)
        .unwrap();
    output
}

#[test]
fn a_slow_decode_among_prefills_is_an_outlier_from_inside() {
    a_slow_decode_is_an_outlier("record");
}

#[test]
fn a_slow_decode_among_prefills_is_an_outlier_from_outside() {
    if can_trace("inference_trace") {
        a_slow_decode_is_an_outlier("trace");
    }
}

#[test]
fn prometheus_is_served_while_it_runs_and_the_command_line_follows_the_outliers() {
    let home = Home::new();
    let place = home.dir.path().join("told/outliers.sock");
    let mut child = serve(
        &home,
        "record",
        12_000,
        &[
            "--verbose",
            "--prometheus=127.0.0.1:0",
            "--outliers",
            place.to_str().unwrap(),
        ],
    );
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut log = stderr.lines();
    let address = log
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| Some(line.split_once("address=")?.1.to_owned()))
        .expect("it says where metrics are");
    drop(connect(&place));
    let mut follow = home.command(["outliers", "--json", "-n", "1", "--socket"]);
    let follow = follow
        .arg(&place)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let rest = std::thread::Builder::new().name("log".to_owned());
    let rest = rest.spawn(move || log.for_each(drop)).unwrap();
    let began = Instant::now();
    let served = loop {
        let served = scrape(address.trim());
        if served.contains("warptrace_inference_step_duration_seconds_bucket") {
            break served;
        }
        assert!(began.elapsed() < PATIENCE, "{served}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(served.contains("phase=\"decode\""), "{served}");
    for name in [
        "warptrace_cuda_call_duration_seconds_count",
        "warptrace_cuda_launch_count_total",
        "system_cpu_load_average_1m",
        "process_memory_usage_bytes",
        "warptrace_agent_record_count_total",
    ] {
        assert!(served.contains(&format!("\n{name}")), "no {name}: {served}");
    }
    assert!(served.trim_end().ends_with("# EOF"), "{served}");
    let followed = follow.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&followed.stdout);
    assert_eq!(lines(&text).len(), 1, "{followed:?}");
    assert!(child.wait().unwrap().success());
    rest.join().unwrap();
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nAccept: application/openmetrics-text;version=1.0.0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Takes what is posted: where to, and the body.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (to, posted) = sync_channel(10_000);
    let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let serve = move || {
        for stream in listener.incoming() {
            let (mut stream, to) = (BufReader::new(stream.unwrap()), to.clone());
            let of_connection = move || {
                // A connection may be kept for several requests.
                while let Some(request) = request(&mut stream) {
                    if to.send(request).is_err() {
                        return;
                    }
                    // In either encoding it says that all was taken.
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    let _ = stream.get_mut().write_all(answer);
                }
            };
            named("connection").spawn(of_connection).unwrap();
        }
    };
    named("collector").spawn(serve).unwrap();
    (format!("http://{address}"), posted)
}

/// The path and the body of a request; `None` when the connection ended.
fn request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(n) = header.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((path, body))
}

#[test]
fn a_collector_is_told_of_as_many_calls_as_the_session_has() {
    let home = Home::new();
    let (url, posted) = collector();
    let otlp = format!("--otlp={url}");
    let mut child = serving(&home, "record", 2_000, &[&otlp, "--metric-names", "both"]);
    let child = child.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    let ran = Ran::from(child_output(&mut child.spawn().unwrap()));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let metrics = posted.try_iter().filter(|(path, _)| path == "/v1/metrics");
    let (_, last) = metrics.last().expect("metrics were pushed");
    let last: Value = serde_json::from_slice(&last).unwrap();

    let explained = home.run(["explain", "--json"]).json();
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for op in explained["ops"].as_array().unwrap() {
        let op_name = op["op"].as_str().unwrap().to_owned();
        *stored.entry(op_name).or_default() += op["count"].as_u64().unwrap();
    }
    assert!(stored["cudaLaunchKernel"] > 100, "{stored:?}");
    let number = |value: &Value| match value {
        Value::String(digits) => digits.parse().unwrap(),
        number => number.as_u64().unwrap(),
    };
    for (name, shape, key, count) in [
        (
            "warptrace.cuda.call.duration",
            "exponentialHistogram",
            "warptrace.cuda.function",
            "count",
        ),
        ("gpu.cuda.operation.count", "sum", "operation", "asInt"),
    ] {
        let scopes = last["resourceMetrics"][0]["scopeMetrics"]
            .as_array()
            .unwrap()
            .iter();
        let mut metrics = scopes.flat_map(|scope| scope["metrics"].as_array().unwrap());
        let metric = metrics.find(|metric| metric["name"] == name).expect(name);
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        for point in metric[shape]["dataPoints"].as_array().unwrap() {
            let mut attributes = point["attributes"].as_array().unwrap().iter();
            let function = attributes
                .find(|attribute| attribute["key"] == key)
                .unwrap();
            let function = function["value"]["stringValue"].as_str().unwrap();
            *told.entry(function.to_owned()).or_default() += number(&point[count]);
        }
        assert_eq!(told, stored, "{name}");
    }
}

/// Two spans as the SDK makes them, and what they are to the SDK itself.
const OPENTELEMETRY_JOB: &str = r#"
import json, os
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode

ended = []
class Seen(SpanProcessor):
    def on_end(self, span):
        ended.append(span)

provider = TracerProvider(resource=Resource.create({"service.name": "their-job"}))
provider.add_span_processor(Seen())
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(compression=Compression.Gzip)))
tracer = provider.get_tracer("their.scope", "7.1")
with tracer.start_as_current_span("request", kind=SpanKind.SERVER, attributes={"tokens": 2**40, "model": "toy", "warm": True}) as outer:
    with tracer.start_as_current_span("decode", links=[Link(outer.get_span_context(), {"why": "test"})]) as inner:
        inner.add_event("first token", {"ratio": 0.1})
        inner.set_status(StatusCode.ERROR, "too slow")
provider.shutdown()
hexadecimal = lambda context, digits: format(context, f"0{digits}x")
print(json.dumps({
    "endpoint": os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
    "protocol": os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"],
    "spans": [{
        "name": span.name,
        "trace": hexadecimal(span.context.trace_id, 32),
        "id": hexadecimal(span.context.span_id, 16),
        "parent": span.parent and hexadecimal(span.parent.span_id, 16),
        "start": str(span.start_time),
        "end": str(span.end_time),
    } for span in ended],
}))
"#;

/// Under `verb`, record or trace.
fn spans_of_an_opentelemetry_client_arrive(verb: &str, test: &str) {
    let package = "opentelemetry.exporter.otlp.proto.http.trace_exporter";
    let import = format!("import {package}, opentelemetry.sdk.trace");
    let has_package = |python: &&str| {
        let ran = Command::new(python).args(["-c", &import]).output();
        ran.is_ok_and(|ran| ran.status.success())
    };
    let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python3");
    let Some(python) = ["python3", venv].into_iter().find(has_package) else {
        return support::skip(test, &format!("python3 has no {package}"));
    };
    let home = Home::new();
    let (url, posted) = collector();
    let otlp = format!("--otlp={url}");
    let flags = [
        "--quiet",
        "--verbose",
        "--inference",
        "--otlp-receive=127.0.0.1:0",
    ];
    let mut command = home.command([verb]);
    command
        .args(flags)
        .args([&otlp, "--", python, "-c", OPENTELEMETRY_JOB]);
    // Of whoever runs the tests.
    for name in ["ENDPOINT", "PROTOCOL", "TRACES_ENDPOINT", "TRACES_PROTOCOL"] {
        command.env_remove(format!("OTEL_EXPORTER_OTLP_{name}"));
    }
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let said = ran.json();
    let taken = ran
        .err
        .lines()
        .find(|line| line.contains("spans are taken at"));
    let (_, address) = taken
        .expect("it says where")
        .split_once("address=")
        .unwrap();
    let endpoint = format!("http://{}/v1/traces", address.trim());
    assert_eq!(said["endpoint"], endpoint, "{ran:#?}");
    assert_eq!(said["protocol"], "http/protobuf");

    let traces = posted.try_iter().filter(|(path, _)| path == "/v1/traces");
    let requests: Vec<Value> = traces
        .map(|(_, body)| ExportTraceServiceRequest::decode_protobuf(&body).unwrap())
        .map(|request| serde_json::from_slice(&request.to_json()).unwrap())
        .collect();
    let [request] = &requests[..] else {
        panic!("one request: {requests:#?} {ran:#?}");
    };
    let of_resource = &request["resourceSpans"][0];
    let attribute = |of: &Value, key: &str| {
        let all = of["attributes"].as_array().unwrap();
        let found = all.iter().find(|attribute| attribute["key"] == key);
        found.unwrap_or_else(|| panic!("no {key}: {of}"))["value"].clone()
    };
    let service = attribute(&of_resource["resource"], "service.name");
    assert_eq!(service["stringValue"], "their-job");
    let language = attribute(&of_resource["resource"], "telemetry.sdk.language");
    assert_eq!(language["stringValue"], "python");
    let of_scope = &of_resource["scopeSpans"][0];
    assert_eq!(of_scope["scope"]["name"], "their.scope");
    assert_eq!(of_scope["scope"]["version"], "7.1");
    let spans = of_scope["spans"].as_array().unwrap();
    let arrived: Vec<Value> = spans
        .iter()
        .map(|span| {
            serde_json::json!({
                "name": span["name"],
                "trace": span["traceId"],
                "id": span["spanId"],
                "parent": span["parentSpanId"],
                "start": span["startTimeUnixNano"],
                "end": span["endTimeUnixNano"],
            })
        })
        .collect();
    assert_eq!(said["spans"], Value::from(arrived), "{request}");
    let [decode, request] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!(request["kind"], 2, "SERVER");
    assert_eq!(attribute(request, "tokens")["intValue"], "1099511627776");
    assert_eq!(attribute(request, "model")["stringValue"], "toy");
    assert_eq!(attribute(request, "warm")["boolValue"], true);
    assert_eq!(decode["status"]["message"], "too slow");
    let event = &decode["events"][0];
    assert_eq!(event["name"], "first token");
    assert_eq!(attribute(event, "ratio")["doubleValue"], 0.1);
    let link = &decode["links"][0];
    assert_eq!(link["spanId"], request["spanId"]);
    assert_eq!(attribute(link, "why")["stringValue"], "test");
}

#[test]
fn spans_of_an_opentelemetry_client_are_passed_on_from_inside() {
    spans_of_an_opentelemetry_client_arrive("record", "otlp_receive_record");
}

#[test]
fn spans_of_an_opentelemetry_client_are_passed_on_from_outside() {
    if can_trace("otlp_receive_trace") {
        spans_of_an_opentelemetry_client_arrive("trace", "otlp_receive_trace");
    }
}

#[test]
fn the_jobs_spans_are_not_taken_without_a_place_to_pass_them_on_to() {
    let home = Home::new();
    let alone = home.run(["record", "--inference", "--otlp-receive", "--", "true"]);
    assert_eq!(alone.code, Some(125), "{alone:#?}");
    assert!(alone.err.contains("--otlp=URL"), "{alone:#?}");
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let (to, from) = (
        format!("--otlp=http://{address}"),
        format!("--otlp-receive={address}"),
    );
    let round = home.run(["record", "--inference", &to, &from, "--", "true"]);
    assert_eq!(round.code, Some(125), "{round:#?}");
    assert!(round.err.contains("same place"), "{round:#?}");
    assert!(home.sessions().is_empty());
}

#[test]
fn settings_that_cannot_be_judged_by_are_refused_before_anything_begins() {
    let home = Home::new();
    for (flag, word) in [
        (&["--inference-outlier-ratio", "1"][..], "threshold_ratio"),
        (&["--inference-warmup", "0"][..], "warmup_samples"),
        (&["--prometheus=0.0.0.0:0"][..], "token"),
    ] {
        let mut args = vec!["record", "--inference"];
        args.extend(flag);
        args.extend(["--", "true"]);
        let ran = home.run(args);
        assert_eq!(ran.code, Some(125), "{ran:#?}");
        assert!(ran.err.contains(word), "{ran:#?}");
    }
    assert!(home.sessions().is_empty());
    let ran = home.run(["record", "--prometheus", "--", "true"]);
    assert!(ran.err.contains("--inference"), "{ran:#?}");
    // Of another recorder on this machine, if there is one, nothing is waited for.
    let nobody = home.run(["outliers", "-n", "0"]);
    let is_answered = [
        "trace --inference",
        "outliers from",
        "several recorders run",
    ]
    .into_iter()
    .any(|answer| nobody.err.contains(answer));
    assert!(is_answered, "{nobody:#?}");
}
