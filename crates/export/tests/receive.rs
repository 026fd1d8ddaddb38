//! Spans of others: what comes in goes out as it was, and what cannot is refused and counted.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression as Level;
use flate2::write::{GzEncoder, ZlibEncoder};
use prost::Message as _;
use support::*;
use warptrace_export::otlp::{Config, Protocol, Retry, Signal};
use warptrace_export::{DropReason, ReceiveConfig, ServeError, SpanReceiver, SpanRelay};
use warptrace_formats::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Link, Origin, Refusal,
};

const QUEUE: usize = 1 << 20;

fn relay(config: &Config, queue: usize) -> Arc<SpanRelay> {
    Arc::new(SpanRelay::new(config, queue, Retry::default()).unwrap())
}

fn at_loopback() -> ReceiveConfig {
    ReceiveConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        token: None,
        tls: None,
    }
}

/// As another SDK would say it: of its own resource and scope, with links, a kind and a state.
fn theirs(spans: u64) -> ExportTraceServiceRequest {
    let resource = object(&[("service.name", "their-job".into())]);
    let records: Vec<_> = (0..spans).map(span).collect();
    let mut request = Origin::new(&resource, "their.scope", "7").request(&records);
    request.resource_spans[0].schema_url = "https://opentelemetry.io/schemas/1.40.0".to_owned();
    for span in &mut request.resource_spans[0].scope_spans[0].spans {
        span.kind = 3;
        span.trace_state = "vendor=1".to_owned();
        span.flags = 0x301;
        span.links = vec![Link {
            trace_id: vec![8; 16],
            span_id: vec![9; 8],
            attributes: vec![KeyValue::default()],
            ..Link::default()
        }];
    }
    request
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// Sends `head` and `body`, and says that no more comes.
fn send(to: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    // It may be refused before all of it came.
    let _ = stream.write_all(body);
    let _ = stream.shutdown(Shutdown::Write);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let body = bytes.split_off(end.expect("an answer") + 4);
    let head = String::from_utf8(bytes).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body }
}

fn post(to: SocketAddr, kind: &str, more: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}Content-Length: {length}\r\n\r\n"
    );
    send(to, &head, body)
}

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json; charset=utf-8";

#[test]
fn spans_go_on_as_they_came_whatever_the_encodings() {
    let request = theirs(3);
    let later_field = [request.to_protobuf(), vec![0xfa, 0x7f, 1, b'x']].concat();
    for (kind, body) in [(PROTOBUF, later_field), (JSON, request.to_json())] {
        for protocol in [Protocol::HttpProtobuf, Protocol::HttpJson] {
            let collector = Collector::taking_all();
            let relay = relay(&collector.config(protocol), QUEUE);
            let receiver = SpanReceiver::start(&at_loopback(), Arc::clone(&relay)).unwrap();
            let answer = post(receiver.address(), kind, "", &body);
            assert_eq!(answer.status, 200, "{}", answer.head);
            let response = match kind {
                PROTOBUF => ExportTraceServiceResponse::decode(answer.body.as_slice()).unwrap(),
                _ => serde_json::from_slice(&answer.body).unwrap(),
            };
            assert_eq!(response, ExportTraceServiceResponse::default());
            let arrived = collector.request();
            assert_eq!(arrived.path, "/v1/traces");
            assert_eq!(arrived.decoded(), request);
            if (kind == PROTOBUF) == (protocol == Protocol::HttpProtobuf) {
                assert_eq!(arrived.body, body, "the same bytes");
            }
            until(|| relay.counts().sent == 3);
            let received = receiver.received();
            assert_eq!((received.requests, received.spans), (1, 3));
            assert!(received.refused.is_empty());
            assert!(relay.close(soon()));
        }
    }
}

#[test]
fn bodies_come_compressed_and_in_chunks_within_bounds() {
    let collector = Collector::taking_all();
    let relay = relay(&collector.config(Protocol::HttpProtobuf), QUEUE);
    let receiver = SpanReceiver::start(&at_loopback(), relay).unwrap();
    let address = receiver.address();
    let body = theirs(2).to_protobuf();
    let gzip = |body: &[u8]| {
        let mut to = GzEncoder::new(Vec::new(), Level::best());
        to.write_all(body).unwrap();
        to.finish().unwrap()
    };
    let mut zlib = ZlibEncoder::new(Vec::new(), Level::fast());
    zlib.write_all(&body).unwrap();
    let zlib = zlib.finish().unwrap();
    let coding = |name: &str| format!("Content-Encoding: {name}\r\n");
    for (more, body) in [
        (coding("gzip"), gzip(&body)),
        (coding("deflate"), zlib),
        ("Expect: 100-continue\r\n".to_owned(), body.clone()),
    ] {
        let answer = post(address, PROTOBUF, &more, &body);
        let is_asked_to_go_on = answer.head.starts_with("HTTP/1.1 100 Continue");
        assert!(answer.status == 200 || is_asked_to_go_on, "{}", answer.head);
        assert_eq!(collector.request().decoded(), theirs(2));
    }
    let chunked = |sizes: &[usize], end: &str| {
        let (mut to, mut rest) = (Vec::new(), body.as_slice());
        for size in sizes {
            let (chunk, after) = rest.split_at(*size);
            to.extend(
                format!("{size:X};x=y\r\n")
                    .bytes()
                    .chain(chunk.iter().copied()),
            );
            to.extend(b"\r\n");
            rest = after;
        }
        to.extend(end.as_bytes());
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        send(address, &head, &to).status
    };
    let all = [1, 30, body.len() - 31];
    assert_eq!(chunked(&all, "0\r\nTrailer: x\r\n\r\n"), 200);
    assert_eq!(collector.request().decoded(), theirs(2));
    assert_eq!(chunked(&all, ""), 400);
    assert_eq!(chunked(&all, "x\r\n"), 400);
    assert_eq!(chunked(&all, "7fffffff\r\n"), 413);

    // 64 MiB in 64 KiB.
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 100_000);
    assert_eq!(post(address, PROTOBUF, &coding("gzip"), &bomb).status, 413);
    assert_eq!(post(address, PROTOBUF, "", &vec![0; 5 << 20]).status, 413);
    assert_eq!(
        post(address, JSON, "", "{},".repeat(1 << 20).as_bytes()).status,
        413
    );
    assert_eq!(receiver.received().refused["too_large"], 4);
    assert_eq!(receiver.received().refused["incomplete"], 2);
    assert!(collector.so_far().is_empty());
}

#[test]
fn what_is_no_request_of_spans_is_refused_in_its_own_encoding_and_counted() {
    let collector = Collector::taking_all();
    let relay = relay(&collector.config(Protocol::HttpProtobuf), QUEUE);
    let receiver = SpanReceiver::start(&at_loopback(), relay).unwrap();
    let address = receiver.address();
    let answer = post(address, PROTOBUF, "", b"\x0a\xff\xff");
    assert_eq!(answer.status, 400);
    let refusal = Refusal::decode_protobuf(&answer.body);
    assert!(refusal.message.contains("ExportTraceServiceRequest"));
    let answer = post(address, JSON, "", b"{\"resourceSpans\":7}");
    assert_eq!(answer.status, 400);
    let refusal = Refusal::decode_json(&answer.body);
    assert!(refusal.message.contains("ExportTraceServiceRequest"));
    let gzip = "Content-Encoding: gzip\r\n";
    assert_eq!(post(address, PROTOBUF, gzip, b"no gzip").status, 400);
    assert_eq!(receiver.received().refused["malformed"], 3);

    assert_eq!(post(address, "text/plain", "", b"x").status, 415);
    let brotli = "Content-Encoding: br\r\n";
    assert_eq!(post(address, PROTOBUF, brotli, b"x").status, 415);
    assert_eq!(receiver.received().refused["unsupported"], 2);

    let headers = format!("Content-Type: {PROTOBUF}\r\n");
    let with = |more: &str| {
        let head = format!("POST /v1/traces HTTP/1.1\r\n{headers}{more}\r\n");
        send(address, &head, b"").status
    };
    assert_eq!(with(""), 411);
    assert_eq!(with("Content-Length: 9\r\n"), 400);
    assert_eq!(with("Content-Length: -1\r\n"), 400);
    assert_eq!(with("Content-Length: 0\r\nContent-Length: 0\r\n"), 400);
    assert_eq!(
        with("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
        400
    );
    assert_eq!(with("Transfer-Encoding: gzip\r\n"), 400);
    assert_eq!(receiver.received().refused["incomplete"], 6);

    // Nothing is in it, so that nothing is passed on.
    assert_eq!(with("Content-Length: 0\r\n"), 200);
    let got = send(address, "GET /v1/traces HTTP/1.1\r\n\r\n", b"");
    assert_eq!(got.status, 405);
    let logs = send(
        address,
        "POST /v1/logs HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"",
    );
    assert_eq!(logs.status, 404);
    assert_eq!(receiver.received().spans, 0);
    assert!(collector.so_far().is_empty());
}

#[test]
fn a_sender_is_told_to_try_again_while_there_is_no_room() {
    let collector = Collector::start(|_| Reply::Status(503, "Retry-After: 60\r\n", Vec::new()));
    let body = theirs(4).to_protobuf();
    let relay = relay(&collector.config(Protocol::HttpProtobuf), 2 * body.len());
    let receiver = SpanReceiver::start(&at_loopback(), Arc::clone(&relay)).unwrap();
    let send = || post(receiver.address(), PROTOBUF, "", &body);
    assert_eq!((send().status, send().status), (200, 200));
    let answer = send();
    assert_eq!(answer.status, 503);
    assert!(
        answer.head.contains("Retry-After: 1\r\n"),
        "{}",
        answer.head
    );
    assert_eq!(receiver.received().refused["queue_full"], 1);
    assert_eq!(relay.counts().pending, 8);
    collector.request();

    // Another collector, and the first relay given up.
    let next = Collector::taking_all();
    let other = self::relay(&next.config(Protocol::HttpProtobuf), QUEUE);
    receiver.pass_to(Arc::clone(&other));
    assert_eq!(send().status, 200);
    assert_eq!(next.request().decoded(), theirs(4));
    assert!(!relay.close(Instant::now()));
    until(|| relay.counts().pending == 0);
    assert_eq!(relay.counts().dropped(DropReason::Closed), 8);
    assert!(!relay.pass(body.clone(), 4), "it is closed");
    assert!(other.close(soon()));
    assert_eq!(send().status, 503);
}

#[test]
fn what_a_collector_refuses_is_counted_and_the_next_is_tried() {
    let mut first = true;
    let collector = Collector::start(move |_| match std::mem::take(&mut first) {
        true => Reply::Status(400, "", Vec::new()),
        false => Reply::Ok,
    });
    let relay = relay(&collector.config(Protocol::HttpProtobuf), QUEUE);
    assert!(relay.pass(theirs(2).to_protobuf(), 2));
    assert!(relay.pass(theirs(5).to_protobuf(), 5));
    assert!(relay.close(soon()) || relay.counts().pending == 0);
    let counts = relay.counts();
    assert_eq!((counts.sent, counts.dropped(DropReason::Refused)), (5, 2));
}

#[test]
fn nobody_but_this_machine_sends_without_a_token() {
    let relay = relay(&Config::new(Signal::Traces, Protocol::HttpProtobuf), QUEUE);
    let start = |config: &ReceiveConfig| SpanReceiver::start(config, Arc::clone(&relay));
    let mut config = at_loopback();
    config.address = SocketAddr::from(([0, 0, 0, 0], 0));
    assert!(matches!(start(&config), Err(ServeError::NoToken(_))));
    config.token = Some("0123456789abcdef".to_owned());
    assert!(matches!(start(&config), Err(ServeError::NoTls(_))));
    config.address = at_loopback().address;
    assert!(!format!("{config:?}").contains("0123"));
    let receiver = start(&config).unwrap();
    let send = |more: &str| post(receiver.address(), PROTOBUF, more, b"").status;
    assert_eq!(send(""), 401);
    assert_eq!(send("Authorization: Bearer 0123456789abcdeF\r\n"), 401);
    assert_eq!(send("Authorization: bearer 0123456789abcdef\r\n"), 200);
    assert_eq!(receiver.received().refused["unauthorized"], 2);
}

#[test]
fn a_way_back_to_the_receiver_is_seen() {
    let leads = |endpoint: &str, address: &str| {
        let config = Config {
            endpoint: endpoint.to_owned(),
            ..Config::new(Signal::Traces, Protocol::HttpProtobuf)
        };
        relay(&config, QUEUE).leads_to(address.parse().unwrap())
    };
    assert!(leads("http://127.0.0.1:4318/v1/traces", "127.0.0.1:4318"));
    assert!(leads("http://localhost:4318/v1/traces", "127.0.0.1:4318"));
    assert!(leads("http://127.0.0.2:4318/", "0.0.0.0:4318"));
    assert!(leads("http://[::1]:4318/", "[::1]:4318"));
    assert!(leads("http://0.0.0.0:4318/", "127.0.0.1:4318"));
    assert!(!leads("http://127.0.0.1:4317/", "127.0.0.1:4318"));
    assert!(!leads("http://192.0.2.1:4318/", "127.0.0.1:4318"));
}

#[test]
fn more_connections_than_there_is_room_for_are_turned_away() {
    let relay = relay(&Config::new(Signal::Traces, Protocol::HttpProtobuf), QUEUE);
    let receiver = SpanReceiver::start(&at_loopback(), relay).unwrap();
    let idle: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(receiver.address()).unwrap())
        .collect();
    let mut last = TcpStream::connect(receiver.address()).unwrap();
    last.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut said = String::new();
    let _ = last.read_to_string(&mut said);
    assert!(said.starts_with("HTTP/1.1 503 "), "{said}");
    assert_eq!(receiver.received().refused["turned_away"], 1);
    drop(idle);
}
