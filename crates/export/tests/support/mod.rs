//! A collector for tests, which takes OTLP over HTTP and answers as it is told to; and spans to send to it.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod authority;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prost::Message as _;
use warptrace_export::otlp::{Config, Protocol, Retry, Signal};
use warptrace_export::{Batching, SpanSender};
use warptrace_formats::otlp::{ExportMetricsServiceRequest, ExportTraceServiceRequest, Span};
use warptrace_model::{Object, SpanEvent, SpanId, SpanRecord, UnixNanos, Value};

/// For what is only waited for when something is broken.
pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) fn soon() -> Instant {
    Instant::now() + LONG
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// Decompressed.
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn decoded(&self) -> ExportTraceServiceRequest {
        match self.headers["content-type"].as_str() {
            "application/json" => serde_json::from_slice(&self.body).unwrap(),
            "application/x-protobuf" => {
                ExportTraceServiceRequest::decode(self.body.as_slice()).unwrap()
            }
            other => panic!("content type {other}"),
        }
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        spans_of(self.decoded())
    }

    pub(crate) fn metrics(&self) -> ExportMetricsServiceRequest {
        match self.headers["content-type"].as_str() {
            "application/json" => serde_json::from_slice(&self.body).unwrap(),
            _ => ExportMetricsServiceRequest::decode(self.body.as_slice()).unwrap(),
        }
    }
}

pub(crate) fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let resources = request.resource_spans.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

/// What the collector answers.
pub(crate) enum Reply {
    Ok,
    /// A status, further header lines, a body.
    Status(u16, &'static str, Vec<u8>),
    /// Closes the connection without a word.
    HangUp,
    /// Says nothing until the other side closes.
    Silence,
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    requests: Receiver<Request>,
}

impl Collector {
    /// On a port that the system picks.
    pub(crate) fn start(answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Collector {
        Collector::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub(crate) fn taking_all() -> Collector {
        Collector::start(|_| Reply::Ok)
    }

    pub(crate) fn on(
        listener: TcpListener,
        answer: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Collector {
        Collector::behind(listener, answer, Some)
    }

    /// With `accept` between the socket and HTTP, for TLS.
    pub(crate) fn behind<S: Read + Write + 'static>(
        listener: TcpListener,
        answer: impl FnMut(&Request) -> Reply + Send + 'static,
        accept: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
    ) -> Collector {
        let address = listener.local_addr().unwrap();
        let (to, requests) = sync_channel(100_000);
        let answer = Arc::new(Mutex::new(answer));
        let accept = Arc::new(accept);
        thread("collector", move || {
            for socket in listener.incoming() {
                let (to, answer, accept) = (to.clone(), Arc::clone(&answer), Arc::clone(&accept));
                thread("connection", move || {
                    if let Some(stream) = socket.ok().and_then(|socket| accept(socket)) {
                        // A peer that goes away in the middle is part of some tests.
                        let _ = serve(stream, &to, &*answer);
                    }
                });
            }
        });
        Collector { address, requests }
    }

    /// The next request.
    #[track_caller]
    pub(crate) fn request(&self) -> Request {
        self.requests.recv_timeout(LONG).expect("no request came")
    }

    /// All requests that came until now.
    pub(crate) fn so_far(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn config(&self, protocol: Protocol) -> Config {
        Config::new(Signal::Traces, protocol).with_base(&self.base())
    }

    pub(crate) fn metrics_config(&self, protocol: Protocol) -> Config {
        Config::new(Signal::Metrics, protocol).with_base(&self.base())
    }
}

pub(crate) fn thread(name: &str, body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).unwrap();
}

fn serve<S: Read + Write>(
    stream: S,
    to: &SyncSender<Request>,
    answer: &Mutex<impl FnMut(&Request) -> Reply>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        stream.read_exact(&mut body)?;
        if headers.get("content-encoding").is_some_and(|e| e == "gzip") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut plain)?;
            body = plain;
        }
        let request = Request {
            path,
            headers,
            body,
        };
        let reply = answer.lock().unwrap()(&request);
        let kind = request.headers["content-type"].clone();
        let empty = if kind == "application/json" { "{}" } else { "" };
        to.send(request).unwrap();
        let (status, more, body) = match reply {
            Reply::Ok => (200, "", empty.as_bytes().to_vec()),
            Reply::Status(status, more, body) => (status, more, body),
            Reply::HangUp => return Ok(()),
            Reply::Silence => {
                let mut byte = [0];
                while stream.read(&mut byte)? > 0 {}
                return Ok(());
            }
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{more}\r\n"
        );
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().write_all(&body)?;
        stream.get_mut().flush()?;
    }
}

pub(crate) fn object(pairs: &[(&str, Value)]) -> Object {
    let pairs = pairs.iter().map(|(k, v)| ((*k).into(), v.clone()));
    Object::from_pairs(pairs.collect())
}

/// The `n`th span: `n` is its name, its id and when it starts.
pub(crate) fn span(n: u64) -> SpanRecord {
    SpanRecord {
        trace: 0x0123_4567_89ab_cdef_0000_0000_0000_0001,
        id: SpanId::from_bits(u128::from(n) + 1),
        parent: (n > 0).then_some(1),
        name: format!("step {n}").into(),
        start: UnixNanos(1_750_000_000_000_000_000 + n),
        end: Some(UnixNanos(1_750_000_000_500_000_000 + n)),
        attributes: object(&[
            ("n", Value::from(n as i64)),
            ("text", "é".into()),
            ("double", Value::Float(0.5)),
            ("list", Value::Array(vec!["a".into(), "b".into()])),
        ]),
        events: vec![SpanEvent {
            name: "checkpoint".into(),
            at: UnixNanos(1_750_000_000_250_000_000),
            attributes: object(&[("bytes", Value::from(1_i64 << 40))]),
        }],
        dropped_events: 0,
        error: (n % 7 == 1).then(|| "out of memory".into()),
    }
}

/// That `span` is [`span`]`(n)`.
#[track_caller]
pub(crate) fn assert_is(span: &Span, n: u64) {
    let said = self::span(n);
    assert_eq!(span.name, *said.name);
    assert_eq!(span.trace_id, said.trace.to_be_bytes());
    assert_eq!(span.span_id, (n + 1).to_be_bytes());
    assert_eq!(span.start_time_unix_nano, said.start.0);
    assert_eq!(span.end_time_unix_nano, said.end.unwrap().0);
    assert_eq!(span.status.is_some(), n % 7 == 1);
    assert_eq!(span.attributes.len(), 4);
    assert_eq!(span.events[0].name, "checkpoint");
}

/// That `spans` are [`span`]`(n)` for all `n` in `range`, in that order.
#[track_caller]
pub(crate) fn assert_are(spans: &[Span], range: std::ops::Range<u64>) {
    assert_eq!(spans.len() as u64, range.end - range.start);
    for (span, n) in spans.iter().zip(range) {
        assert_is(span, n);
    }
}

pub(crate) fn sender(config: &Config, batching: Batching) -> SpanSender {
    let resource = object(&[
        ("service.name", "train".into()),
        ("process.pid", Value::from(1_i64)),
    ]);
    SpanSender::new(config, batching, resource, "warptrace", "1.2.3").unwrap()
}

/// Tries again soon, and for long.
pub(crate) fn patient() -> Batching {
    Batching {
        retry: Retry {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(100),
            total: LONG,
        },
        ..Batching::default()
    }
}

/// Waits for what nobody signals.
#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let end = soon();
    while !holds() {
        assert!(Instant::now() < end, "it did not come to hold");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says why `test` cannot run here, where CI counts it.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

/// A Python that has `package`: the one on the path, or the one in `target/venv`.
pub(crate) fn python_with(package: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python3");
    [PathBuf::from("python3"), venv].into_iter().find(|python| {
        let import = Command::new(python)
            .args(["-c", &format!("import {package}")])
            .output();
        import.is_ok_and(|output| output.status.success())
    })
}
