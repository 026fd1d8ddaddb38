//! Spans over gRPC to a collector that behaves, and to collectors that do not. The server is `h2` and the five bytes that
//! gRPC puts before a message.
#![cfg(feature = "grpc")]

mod support;

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message as _;
#[cfg(feature = "tls")]
use support::authority::Authority;
use support::*;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use warptrace_export::otlp::{Compression, Config, Headers, Protocol, Signal};
use warptrace_export::{Batching, DropReason};
use warptrace_formats::otlp::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, Span,
};

enum Reply {
    Ok(ExportTraceServiceResponse),
    /// A code, a message, and `grpc-status-details-bin`.
    Status(u16, &'static str, Option<&'static str>),
    Silence,
}

const ALL: Reply = Reply::Ok(ExportTraceServiceResponse {
    partial_success: None,
});

struct Came {
    path: String,
    headers: HeaderMap,
    spans: Vec<Span>,
}

struct Server {
    address: SocketAddr,
    requests: Receiver<Came>,
}

type Answer = Arc<Mutex<dyn FnMut() -> Reply + Send>>;

impl Server {
    fn start(answer: impl FnMut() -> Reply + Send + 'static) -> Server {
        Server::with(None, answer)
    }

    fn with(tls: Option<TlsAcceptor>, answer: impl FnMut() -> Reply + Send + 'static) -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (to, requests) = sync_channel(10_000);
        let answer: Answer = Arc::new(Mutex::new(answer));
        thread("grpc-collector", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    let (to, answer, tls) = (to.clone(), Arc::clone(&answer), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => connection(socket, to, answer).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(socket).await {
                                    connection(stream, to, answer).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Server { address, requests }
    }

    fn config(&self) -> Config {
        let base = format!("http://{}", self.address);
        Config::new(Signal::Traces, Protocol::Grpc).with_base(&base)
    }

    fn spans_so_far(&self) -> Vec<Span> {
        self.requests
            .try_iter()
            .flat_map(|came| came.spans)
            .collect()
    }
}

async fn connection<S>(socket: S, to: SyncSender<Came>, answer: Answer)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut connection) = h2::server::handshake(socket).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(call(request, respond, to.clone(), Arc::clone(&answer)));
    }
}

async fn call(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    to: SyncSender<Came>,
    answer: Answer,
) {
    let (head, mut body) = request.into_parts();
    let mut framed = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        framed.extend_from_slice(&chunk);
    }
    let mut message = framed.split_off(5);
    if framed[0] == 1 {
        let mut plain = Vec::new();
        let mut gzip = flate2::read::GzDecoder::new(message.as_slice());
        gzip.read_to_end(&mut plain).unwrap();
        message = plain;
    }
    let reply = answer.lock().unwrap()();
    let spans = spans_of(ExportTraceServiceRequest::decode(message.as_slice()).unwrap());
    let path = head.uri.path().to_owned();
    to.send(Came {
        path,
        headers: head.headers,
        spans,
    })
    .unwrap();

    let response = Response::builder().header("content-type", "application/grpc");
    let response = response.body(()).unwrap();
    let mut trailers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        trailers.insert(name, HeaderValue::from_str(value).unwrap());
    };
    let mut data = Vec::new();
    match reply {
        Reply::Ok(response) => {
            let message = response.encode_to_vec();
            data.push(0);
            data.extend((message.len() as u32).to_be_bytes());
            data.extend(message);
            set("grpc-status", "0");
        }
        Reply::Status(code, message, details) => {
            set("grpc-status", &code.to_string());
            set("grpc-message", message);
            if let Some(details) = details {
                set("grpc-status-details-bin", details);
            }
        }
        Reply::Silence => return std::future::pending().await,
    }
    let mut stream = respond.send_response(response, false).unwrap();
    let _ = stream.send_data(data.into(), false);
    let _ = stream.send_trailers(trailers);
}

#[test]
fn spans_and_headers_arrive_plain_and_compressed() {
    for compression in [Compression::None, Compression::Gzip] {
        let server = Server::start(|| ALL);
        let config = Config {
            compression,
            headers: Headers(vec![("X-Token".to_owned(), "secret".to_owned())]),
            ..server.config()
        };
        let sender = sender(&config, Batching::default());
        (0..20).for_each(|n| assert!(sender.push(span(n))));
        assert!(sender.close(soon()));
        assert!(!format!("{sender:?}").contains("secret"));
        let came = server.requests.recv_timeout(LONG).unwrap();
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        assert_eq!(came.path, path);
        assert_eq!(came.headers["x-token"], "secret");
        assert!(
            came.headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with("warptrace/")
        );
        assert_are(&came.spans, 0..20);
        assert_eq!(sender.counts().sent, 20);
    }
}

#[test]
fn a_burst_arrives_whole_after_the_collector_comes_up() {
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", place.local_addr().unwrap());
    drop(place);
    let config = Config::new(Signal::Traces, Protocol::Grpc).with_base(&base);
    let waiting = sender(&config, patient());
    assert!(waiting.push(span(0)));
    until(|| waiting.counts().retried >= 3);
    assert!(!waiting.close(std::time::Instant::now()));

    let server = Server::start(|| ALL);
    let sender = sender(&server.config(), patient());
    (0..20_000).for_each(|n| assert!(sender.push(span(n))));
    assert!(sender.flush(soon()));
    assert_are(&server.spans_so_far(), 0..20_000);
    assert_eq!(sender.counts().sent, 20_000);
}

#[test]
fn codes_that_may_be_tried_again_are_and_others_are_not() {
    // google.rpc.Status with a RetryInfo of 1 ms.
    const SOON: &str = "CAgaMgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIGCgQQwIQ9";
    for (code, details, again) in [
        (1, None, true),
        (2, None, false),
        (3, None, false),
        (4, None, true),
        (5, None, false),
        (7, None, false),
        (8, None, false),
        (8, Some(SOON), true),
        (10, None, true),
        (11, None, true),
        (12, None, false),
        (13, None, false),
        (14, None, true),
        (14, Some(SOON), true),
        (15, None, true),
        (16, None, false),
    ] {
        let mut tries = 0;
        let server = Server::start(move || {
            tries += 1;
            match tries {
                1 => Reply::Status(code, "because", details),
                _ => ALL,
            }
        });
        let sender = sender(&server.config(), patient());
        assert!(sender.push(span(0)));
        assert!(sender.flush(soon()));
        let counts = sender.counts();
        let expected = if again { (1, 1, 0) } else { (0, 0, 1) };
        let refused = counts.dropped(DropReason::Refused);
        assert_eq!(
            (counts.sent, counts.retried, refused),
            expected,
            "{code}: {counts:?}"
        );
        let why = counts.last_failure.unwrap();
        assert!(why.ends_with("because"), "{why}");
    }
}

#[test]
fn what_the_collector_rejects_is_counted() {
    let server = Server::start(|| {
        Reply::Ok(ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans: 1,
                error_message: String::new(),
            }),
        })
    });
    let sender = sender(&server.config(), patient());
    (0..3).for_each(|n| assert!(sender.push(span(n))));
    assert!(sender.close(soon()));
    let counts = sender.counts();
    assert_eq!((counts.sent, counts.rejected, counts.retried), (2, 1, 0));
}

#[test]
fn a_collector_that_says_nothing_costs_the_timeout_and_the_next_try_is_taken() {
    let mut tries = 0;
    let server = Server::start(move || {
        tries += 1;
        if tries == 1 { Reply::Silence } else { ALL }
    });
    let config = Config {
        timeout: Duration::from_millis(100),
        ..server.config()
    };
    let sender = sender(&config, patient());
    assert!(sender.push(span(0)));
    assert!(sender.flush(soon()));
    let counts = sender.counts();
    assert_eq!(counts.sent, 1, "{counts:?}");
    assert!(counts.retried >= 1);
}

#[cfg(feature = "tls")]
#[test]
fn a_collector_behind_tls_that_asks_for_our_certificate_gets_spans() {
    let authority = Authority::new(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&authority.server));
    let server = Server::with(Some(acceptor), || ALL);
    let mut config = server.config();
    config.endpoint = config.endpoint.replace("http://", "https://");
    config.tls.certificate = Some(authority.file("authority.pem"));
    config.tls.client = Some((authority.file("client.pem"), authority.file("client.key")));
    let sender = sender(&config, patient());
    assert!(sender.push(span(0)));
    assert!(sender.close(soon()));
    assert_eq!(sender.counts().sent, 1, "{:?}", sender.counts());
    assert_are(&server.spans_so_far(), 0..1);
}
