//! Spans over HTTP to a collector that behaves, and to collectors that do not.

mod support;

use std::net::TcpListener;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use prost::Message as _;
use support::*;
use warptrace_export::otlp::{Compression, Config, ConfigError, Headers, Protocol, Retry, Signal};
use warptrace_export::{Batching, Counts, DropReason, SpanSender};
use warptrace_formats::otlp::{
    ExportTracePartialSuccess, ExportTraceServiceResponse, KeyValue, Span, Variant,
};
use warptrace_model::{Object, Value};

const HTTP: [Protocol; 2] = [Protocol::HttpProtobuf, Protocol::HttpJson];

fn counts_add_up(counts: &Counts, pushed: u64) {
    assert_eq!(counts.pushed(), pushed, "{counts:?}");
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Variant> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    pair.value.as_ref()?.value.as_ref()
}

fn dropped_as_told(span: &Span) -> i64 {
    assert_eq!(span.name, "telemetry_data_error");
    assert_eq!(span.status.as_ref().unwrap().code, 2);
    match text_of(&span.attributes, "warptrace.export.dropped") {
        Some(Variant::IntValue(n)) => *n,
        other => panic!("{other:?}"),
    }
}

#[test]
fn spans_arrive_as_they_were_said_in_each_encoding_and_compression() {
    for protocol in HTTP {
        for compression in [Compression::None, Compression::Gzip] {
            let collector = Collector::taking_all();
            let token = ("Authorization".to_owned(), "Bearer x".to_owned());
            let config = Config {
                compression,
                headers: Headers(vec![token]),
                ..collector.config(protocol)
            };
            let sender = sender(&config, Batching::default());
            (0..20).for_each(|n| assert!(sender.push(span(n))));
            assert!(sender.close(soon()));

            let request = collector.request();
            assert_eq!(request.path, "/v1/traces");
            assert_eq!(request.headers["authorization"], "Bearer x");
            assert!(request.headers["user-agent"].starts_with("warptrace/"));
            let is_gzip = request.headers.contains_key("content-encoding");
            assert_eq!(is_gzip, compression == Compression::Gzip);
            assert_are(&request.spans(), 0..20);
            let said = request.decoded().resource_spans.remove(0);
            let pid = Variant::IntValue(i64::from(std::process::id()));
            let resource = said.resource.unwrap().attributes;
            assert_eq!(text_of(&resource, "process.pid"), Some(&pid));
            let scope = said.scope_spans[0].scope.clone().unwrap();
            assert_eq!(
                (scope.name.as_str(), scope.version.as_str()),
                ("warptrace", "1.2.3")
            );

            let counts = sender.counts();
            assert_eq!((counts.sent, counts.retried, counts.unreadable), (20, 0, 0));
            counts_add_up(&counts, 20);
            assert!(collector.so_far().is_empty());
        }
    }
}

#[test]
fn a_burst_of_20_000_spans_arrives_whole_in_batches_and_in_order() {
    for protocol in HTTP {
        let collector = Collector::taking_all();
        let sender = sender(&collector.config(protocol), Batching::default());
        (0..20_000).for_each(|n| assert!(sender.push(span(n))));
        assert!(sender.flush(soon()));
        let counts = sender.counts();
        assert_eq!((counts.sent, counts.pending), (20_000, 0), "{counts:?}");
        let batches: Vec<Vec<Span>> = collector.so_far().iter().map(|r| r.spans()).collect();
        assert!(batches.iter().all(|batch| batch.len() <= 512));
        assert_are(&batches.concat(), 0..20_000);
    }
}

#[test]
fn what_is_pushed_while_the_collector_is_down_arrives_when_it_is_back() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let base = format!("http://{address}");
    let config = Config::new(Signal::Traces, Protocol::HttpProtobuf).with_base(&base);
    let sender = sender(&config, patient());
    (0..20_000).for_each(|n| assert!(sender.push(span(n))));
    until(|| sender.counts().retried >= 3);
    let counts = sender.counts();
    assert_eq!((counts.sent, counts.pending), (0, 20_000));
    let why = counts.last_failure.unwrap();
    assert!(why.contains(&address.to_string()), "{why}");

    let collector = Collector::on(TcpListener::bind(address).unwrap(), |_| Reply::Ok);
    assert!(sender.flush(soon()));
    assert_eq!(sender.counts().sent, 20_000);
    let spans: Vec<Span> = collector.so_far().iter().flat_map(|r| r.spans()).collect();
    assert_are(&spans, 0..20_000);
}

#[test]
fn while_the_collector_is_down_the_newest_are_dropped_and_it_is_told_how_many() {
    let (to_collector, gate) = sync_channel::<()>(0);
    let collector = Collector::start(move |_| {
        let _ = gate.recv();
        Reply::Ok
    });
    let batching = Batching {
        queue_spans: 100,
        batch_spans: 10,
        ..patient()
    };
    let sender = sender(&collector.config(Protocol::HttpProtobuf), batching);
    (0..10).for_each(|n| assert!(sender.push(span(n))));
    // The thread has those ten, and the collector holds them.
    until(|| sender.counts().pending == 10 && sender.push(span(10)));
    until(|| !sender.push(span(11)));
    let counts = sender.counts();
    let dropped = counts.dropped(DropReason::QueueFull);
    assert_eq!(dropped, 1);
    drop(to_collector);
    assert!(sender.close(soon()));
    let spans: Vec<Span> = collector.so_far().iter().flat_map(|r| r.spans()).collect();
    let (told, said): (Vec<Span>, Vec<Span>) = spans
        .into_iter()
        .partition(|span| span.name == "telemetry_data_error");
    assert_eq!(told.iter().map(dropped_as_told).sum::<i64>(), 1);
    let by = text_of(&told[0].attributes, "warptrace.export.dropped.queue_full");
    assert_eq!(by, Some(&Variant::IntValue(1)));
    let counts = sender.counts();
    assert_eq!(counts.sent, said.len() as u64);
    assert_eq!(counts.pushed(), counts.sent + 1);
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let collector = Collector::start(|_| Reply::Silence);
    let batching = Batching {
        queue_bytes: 1 << 20,
        batch_bytes: 1 << 20,
        span_bytes: 64 << 10,
        ..Batching::default()
    };
    let config = collector.config(Protocol::HttpProtobuf);
    let sender = sender(&config, batching);
    let mut large = span(0);
    large.attributes.insert("blob", "x".repeat(60 << 10));
    let queued = (0..200).filter(|_| sender.push(large.clone())).count();
    // One batch is with the thread at most, and the queue holds as much again.
    assert!((16..=34).contains(&queued), "{queued}");
    let dropped = sender.counts().dropped(DropReason::QueueFull);
    assert_eq!(dropped, 200 - queued as u64);
}

#[test]
fn a_gigabyte_in_a_span_is_cut_and_counted_and_the_spans_beside_it_stay_whole() {
    let collector = Collector::taking_all();
    let sender = sender(
        &collector.config(Protocol::HttpProtobuf),
        Batching::default(),
    );
    let mut huge = span(1);
    huge.attributes.insert("blob", "x".repeat(1 << 30));
    sender.push(span(0));
    sender.push(huge);
    sender.push(span(2));
    assert!(sender.close(soon()));
    let spans = collector.request().spans();
    assert_is(&spans[0], 0);
    assert_is(&spans[2], 2);
    match text_of(&spans[1].attributes, "blob") {
        Some(Variant::StringValue(text)) => assert!((900_000..1 << 20).contains(&text.len())),
        other => panic!("{other:?}"),
    }
    match text_of(&spans[1].attributes, "warptrace.export.cut_bytes") {
        Some(Variant::IntValue(lost)) => assert!(*lost > (1 << 30) - (1 << 20)),
        other => panic!("{other:?}"),
    }
    let counts = sender.counts();
    assert_eq!((counts.cut, counts.sent), (1, 3));
}

#[test]
fn what_may_be_tried_again_is_and_what_may_not_is_dropped_counted_and_told() {
    let mut tries = 0;
    let collector = Collector::start(move |_| {
        tries += 1;
        match tries {
            1 => Reply::Status(503, "retry-after: 0\r\n", Vec::new()),
            2 => Reply::Status(429, "", b"garbage \xff".to_vec()),
            3 => Reply::HangUp,
            4 => Reply::Status(502, "", Vec::new()),
            5 => Reply::Status(400, "", b"\x12\x06no way".to_vec()),
            _ => Reply::Ok,
        }
    });
    let sender = sender(&collector.config(Protocol::HttpProtobuf), patient());
    (0..3).for_each(|n| assert!(sender.push(span(n))));
    assert!(sender.flush(soon()));
    let counts = sender.counts();
    assert_eq!(counts.dropped(DropReason::Refused), 3, "{counts:?}");
    assert_eq!((counts.retried, counts.sent), (4, 0), "{counts:?}");
    let why = counts.last_failure.unwrap();
    assert!(why.ends_with("answered 400 Bad Request: no way"), "{why}");
    let requests = collector.so_far();
    assert_eq!(requests.len(), 5);
    assert!(
        requests
            .iter()
            .all(|request| request.body == requests[0].body)
    );

    sender.push(span(3));
    assert!(sender.close(soon()));
    let spans = collector.request().spans();
    assert_is(&spans[0], 3);
    assert_eq!(dropped_as_told(&spans[1]), 3);
    counts_add_up(&sender.counts(), 4);
}

#[test]
fn a_collector_that_always_has_no_room_is_left_alone_after_a_while() {
    let collector = Collector::start(|_| Reply::Status(503, "", Vec::new()));
    let batching = Batching {
        retry: Retry {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            total: Duration::from_millis(50),
        },
        ..Batching::default()
    };
    let sender = sender(&collector.config(Protocol::HttpJson), batching);
    sender.push(span(0));
    assert!(sender.flush(soon()));
    let counts = sender.counts();
    assert_eq!(counts.dropped(DropReason::RetriesExhausted), 1);
    assert!(counts.retried >= 1);
    counts_add_up(&counts, 1);
}

#[test]
fn what_the_collector_rejects_of_a_request_is_counted_and_not_sent_again() {
    for protocol in HTTP {
        let collector = Collector::start(move |_| {
            let response = ExportTraceServiceResponse {
                partial_success: Some(ExportTracePartialSuccess {
                    rejected_spans: 2,
                    error_message: "quota".to_owned(),
                }),
            };
            let body = match protocol {
                Protocol::HttpJson => serde_json::to_vec(&response).unwrap(),
                _ => response.encode_to_vec(),
            };
            Reply::Status(200, "", body)
        });
        let sender = sender(&collector.config(protocol), patient());
        (0..5).for_each(|n| assert!(sender.push(span(n))));
        assert!(sender.close(soon()));
        let counts = sender.counts();
        assert_eq!((counts.sent, counts.rejected, counts.retried), (3, 2, 0));
        assert_eq!(counts.last_failure.as_deref(), Some("quota"));
        assert_eq!(collector.so_far().len(), 1);
    }
}

#[test]
fn success_in_a_body_that_is_not_otlp_counts_as_sent_and_as_unreadable() {
    for protocol in HTTP {
        let collector =
            Collector::start(|_| Reply::Status(200, "", b"<html>Sign in</html>".to_vec()));
        let sender = sender(&collector.config(protocol), patient());
        sender.push(span(0));
        assert!(sender.close(soon()));
        let counts = sender.counts();
        assert_eq!((counts.sent, counts.unreadable, counts.retried), (1, 1, 0));
    }
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    let collector = Collector::start(|_| Reply::Status(200, "", vec![b'x'; 20 << 20]));
    let sender = sender(&collector.config(Protocol::HttpProtobuf), patient());
    sender.push(span(0));
    assert!(sender.close(soon()));
    assert_eq!(sender.counts().unreadable, 1);
}

#[test]
fn a_collector_that_says_nothing_costs_the_timeout_and_the_next_try_is_taken() {
    let mut tries = 0;
    let collector = Collector::start(move |_| {
        tries += 1;
        if tries == 1 {
            Reply::Silence
        } else {
            Reply::Ok
        }
    });
    let config = Config {
        timeout: Duration::from_millis(50),
        ..collector.config(Protocol::HttpProtobuf)
    };
    let sender = sender(&config, patient());
    sender.push(span(0));
    assert!(sender.flush(soon()));
    let counts = sender.counts();
    assert_eq!((counts.sent, counts.pending), (1, 0));
    assert!(counts.retried >= 1);
}

#[test]
fn closing_without_a_collector_ends_at_the_deadline_and_counts_what_was_left() {
    let collector = Collector::start(|_| Reply::Silence);
    let config = Config {
        timeout: Duration::from_millis(500),
        ..collector.config(Protocol::HttpProtobuf)
    };
    let sender = sender(&config, patient());
    (0..2_000).for_each(|n| assert!(sender.push(span(n))));
    assert!(!sender.flush(Instant::now() + Duration::from_millis(50)));
    assert!(!sender.close(Instant::now() + Duration::from_millis(50)));
    assert!(!sender.push(span(0)), "after close nothing is taken in");
    let counts = sender.counts();
    counts_add_up(&counts, 2_001);
    assert_eq!(counts.sent, 0);
    assert!(counts.pending <= 512, "one request may be under way");
    // It ends, too, and then all are accounted for.
    until(|| sender.counts().pending == 0);
    assert_eq!(sender.counts().dropped(DropReason::Closed), 2_001);
    assert!(!sender.close(Instant::now()) || sender.counts().pending == 0);
}

#[test]
fn closing_with_nothing_to_send_needs_neither_a_thread_nor_a_collector() {
    let base = "http://127.0.0.1:1";
    let config = Config::new(Signal::Traces, Protocol::HttpProtobuf).with_base(base);
    let sender = sender(&config, Batching::default());
    assert!(sender.flush(Instant::now()));
    assert!(sender.close(Instant::now()));
    assert!(sender.close(Instant::now()));
    assert_eq!(sender.counts(), Counts::default());
}

#[test]
fn a_sender_that_is_dropped_still_sends_what_it_has() {
    let collector = Collector::taking_all();
    let sender = sender(
        &collector.config(Protocol::HttpProtobuf),
        Batching::default(),
    );
    (0..5).for_each(|n| assert!(sender.push(span(n))));
    drop(sender);
    assert_are(&collector.request().spans(), 0..5);
}

#[test]
fn spans_are_sent_after_the_delay_without_a_flush() {
    let collector = Collector::taking_all();
    let batching = Batching {
        delay: Duration::from_millis(20),
        ..Batching::default()
    };
    let sender = sender(&collector.config(Protocol::HttpProtobuf), batching);
    sender.push(span(0));
    assert_are(&collector.request().spans(), 0..1);
    sender.push(span(1));
    assert_are(&collector.request().spans(), 1..2);
}

#[test]
fn of_100_threads_each_span_is_accounted_for() {
    let collector = Collector::taking_all();
    let batching = Batching {
        queue_spans: 5_000,
        ..patient()
    };
    let sender = sender(&collector.config(Protocol::HttpProtobuf), batching);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| (0..500).filter(|n| sender.push(span(*n))).count());
        }
    });
    assert!(sender.close(soon()));
    let counts = sender.counts();
    counts_add_up(&counts, 50_000);
    assert_eq!(counts.pending, 0);
    let spans: Vec<Span> = collector.so_far().iter().flat_map(|r| r.spans()).collect();
    let told = |span: &&Span| span.name == "telemetry_data_error";
    let dropped: i64 = spans.iter().filter(told).map(dropped_as_told).sum();
    assert_eq!(dropped as u64, counts.dropped(DropReason::QueueFull));
    let arrived = spans.len() - spans.iter().filter(told).count();
    assert_eq!(arrived as u64, counts.sent);
}

#[test]
fn small_bounds_work_too() {
    let collector = Collector::taking_all();
    let batching = Batching {
        batch_spans: 1,
        batch_bytes: 0,
        delay: Duration::ZERO,
        queue_spans: 0,
        queue_bytes: 0,
        span_bytes: 0,
        retry: Retry::default(),
    };
    let sender = sender(&collector.config(Protocol::HttpProtobuf), batching);
    for n in 0..20 {
        assert!(sender.push(span(n)));
        assert!(sender.flush(soon()));
        assert_are(&collector.request().spans(), n..n + 1);
    }
}

#[test]
fn a_configuration_that_cannot_work_is_an_error_at_once() {
    let good = Config::new(Signal::Traces, Protocol::HttpProtobuf);
    let header = |name: &str, value: &str| Config {
        headers: Headers(vec![(name.to_owned(), value.to_owned())]),
        ..good.clone()
    };
    let endpoint = |endpoint: &str| Config {
        endpoint: endpoint.to_owned(),
        ..good.clone()
    };
    let mut missing = good.clone();
    missing.tls.certificate = Some("/does/not/exist.pem".into());
    let mut no_pem = good.clone();
    no_pem.tls.certificate = Some(env!("CARGO_MANIFEST_PATH").into());
    let mut no_time = good.clone();
    no_time.timeout = Duration::ZERO;
    for (config, says) in [
        (endpoint("collector:4318"), "not an http or https URL"),
        (endpoint("http://"), "not an http or https URL"),
        (header("a b", "1"), "no header can be named \"a b\""),
        (header("a", "secret\n"), "the value of header \"a\""),
        (missing, "cannot read \"/does/not/exist.pem\""),
        (no_pem, "the certificate is not in PEM"),
        (no_time, "no timeout is 0"),
    ] {
        let made: Result<SpanSender, ConfigError> =
            SpanSender::new(&config, Batching::default(), Object::new(), "s", "1");
        let error = made.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn secrets_are_not_in_debug_texts() {
    let collector = Collector::taking_all();
    let token = ("authorization".to_owned(), "Bearer secret".to_owned());
    let config = Config {
        headers: Headers(vec![token]),
        ..collector.config(Protocol::HttpProtobuf)
    };
    let sender = sender(&config, Batching::default());
    assert!(!format!("{sender:?} {config:?}").contains("secret"));
}

#[test]
fn values_of_all_kinds_arrive() {
    let collector = Collector::taking_all();
    let sender = sender(&collector.config(Protocol::HttpJson), Batching::default());
    let mut said = span(0);
    said.attributes.insert("nan", Value::Float(f64::NAN));
    said.attributes.insert("null", Value::Null);
    let nested = object(&[("k", Value::Array(vec![1_i64.into(), 2_i64.into()]))]);
    said.attributes.insert("object", Value::Object(nested));
    sender.push(said);
    assert!(sender.close(soon()));
    let spans = collector.request().spans();
    let attributes = &spans[0].attributes;
    assert!(matches!(text_of(attributes, "nan"), Some(Variant::DoubleValue(x)) if x.is_nan()));
    assert_eq!(text_of(attributes, "null"), None);
    assert!(matches!(
        text_of(attributes, "object"),
        Some(Variant::KvlistValue(_))
    ));
}
