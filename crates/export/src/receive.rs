//! Spans of others, taken by OTLP over HTTP and passed on to a collector: those of the job that is recorded, so that it needs to know of
//! one place only.
//!
//! What is taken is passed on as it came, ids, resource and scope included: the same bytes where the collector has the encoding in which
//! they came, else the same messages in the other one. Nothing is added, and nothing is stored. A request is answered when it waits to be
//! sent; when there is no room, its sender is told to try again, and what it holds is still its own.
//!
//! Source: OTLP specification 1.x, *OTLP/HTTP*.

mod relay;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use warptrace_formats::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, Refusal, UnreadableRequest,
};

pub use self::relay::SpanRelay;
use crate::server::{
    Answer, Listen, Method, Request, Serve, ServeError, Server, ServerTls, Stream,
};

/// Bytes of a request, as it comes and inflated. The batches of OpenTelemetry's SDKs, 512 spans, are some hundred KiB.
const BODY_LIMIT_BYTES: usize = 4 << 20;

/// Connections at once. Each may hold a body as it came; one at a time is inflated and read.
const CONNECTIONS: usize = 8;

/// Seconds after which a sender tries again, when there was no room.
const RETRY_AFTER_SECS: &str = "1";

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// Where to listen, and who may send.
#[derive(Clone, PartialEq, Eq)]
pub struct ReceiveConfig {
    pub address: SocketAddr,
    /// Asked for as `Authorization: Bearer TOKEN`; needed unless `address` is on loopback.
    pub token: Option<String>,
    /// Needed unless `address` is on loopback.
    pub tls: Option<ServerTls>,
}

impl std::fmt::Debug for ReceiveConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveConfig")
            .field("address", &self.address)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .finish()
    }
}

/// What came. What became of it then is in the counts of the [`SpanRelay`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Requests that were taken.
    pub requests: u64,
    /// Spans in them.
    pub spans: u64,
    /// Requests to `/v1/traces` that were not, by why: `unauthorized`, `unsupported`, `incomplete`, `too_large`, `malformed`,
    /// `queue_full`; and connections that were `turned_away`.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Takes spans at `/v1/traces`. Dropping it ends that.
pub struct SpanReceiver {
    shared: Arc<Shared>,
    server: Server,
}

impl std::fmt::Debug for SpanReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanReceiver")
            .field("address", &self.server.address())
            .finish_non_exhaustive()
    }
}

struct Shared {
    token: Option<String>,
    relay: Mutex<Arc<SpanRelay>>,
    received: Mutex<Received>,
    /// Held while a body is inflated and read.
    reading: Mutex<()>,
}

/// Why a request is not taken, as it is counted, and what is answered.
type Refused = (&'static str, Option<Answer>);

impl SpanReceiver {
    /// Listens, and starts the thread that serves; what comes goes to `relay`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn start(
        config: &ReceiveConfig,
        relay: Arc<SpanRelay>,
    ) -> Result<SpanReceiver, ServeError> {
        let shared = Arc::new(Shared {
            token: config.token.clone(),
            relay: Mutex::new(relay),
            received: Mutex::default(),
            reading: Mutex::default(),
        });
        let listen = Listen {
            address: config.address,
            token: config.token.as_deref(),
            tls: config.tls.as_ref(),
            connections: CONNECTIONS,
            threads: ("wt-spans-in", "wt-spans-from"),
        };
        let server = Server::start(&listen, Arc::clone(&shared) as Arc<dyn Serve>)?;
        Ok(SpanReceiver { shared, server })
    }

    /// Where it listens: with the port that the system picked, when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where what comes goes from now on.
    pub fn pass_to(&self, relay: Arc<SpanRelay>) {
        *lock(&self.shared.relay) = relay;
    }

    pub fn received(&self) -> Received {
        let mut received = lock(&self.shared.received).clone();
        let turned_away = self.server.turned_away();
        if turned_away > 0 {
            received.refused.insert("turned_away", turned_away);
        }
        received
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serve for Shared {
    fn answer(&self, request: &Request, stream: &mut dyn Stream) -> Option<Answer> {
        if request.path() != "/v1/traces" {
            return Some(Answer::text(404, "spans are taken at /v1/traces\n"));
        }
        if request.method() != Method::Post {
            return Some(Answer::text(405, "POST\n").with("Allow", "POST"));
        }
        let is_json = is_json(request);
        match self.take(request, stream, is_json) {
            Ok(spans) => {
                let mut received = lock(&self.received);
                received.requests += 1;
                received.spans += spans;
                drop(received);
                let response = ExportTraceServiceResponse::default();
                Some(match is_json {
                    Some(true) => Answer::new(200, JSON, response.to_json()),
                    _ => Answer::new(200, PROTOBUF, response.to_protobuf()),
                })
            }
            Err((why, answer)) => {
                let mut received = lock(&self.received);
                let times = received.refused.entry(why).or_default();
                *times += 1;
                if *times == 1 {
                    tracing::warn!(why, "a request with spans is refused, its sender is told");
                }
                drop(received);
                // A refusal is a `google.rpc.Status`, in the encoding of what is refused.
                let answer = answer?;
                let said = String::from_utf8_lossy(answer.body()).trim().to_owned();
                let refusal = Refusal {
                    message: said,
                    retry_after: None,
                };
                Some(match is_json {
                    Some(true) => answer.said_as(JSON, refusal.to_json()),
                    Some(false) => answer.said_as(PROTOBUF, refusal.to_protobuf()),
                    None => answer,
                })
            }
        }
    }
}

impl Shared {
    /// How many spans were taken.
    fn take(
        &self,
        request: &Request,
        stream: &mut dyn Stream,
        is_json: Option<bool>,
    ) -> Result<u64, Refused> {
        if let Some(token) = &self.token
            && !request.has_token(token)
        {
            let answer = Answer::text(401, "a token is needed\n");
            let answer = answer.with("WWW-Authenticate", "Bearer");
            return Err(("unauthorized", Some(answer)));
        }
        let unsupported = |what| ("unsupported", Some(Answer::text(415, what)));
        let is_json =
            is_json.ok_or_else(|| unsupported("application/x-protobuf or application/json\n"))?;
        let coding = Coding::of(request.header("content-encoding"))
            .ok_or_else(|| unsupported("gzip, deflate or no content-encoding\n"))?;
        let too_large = || ("too_large", Some(Answer::text(413, "too large\n")));
        let body = request.body(stream, BODY_LIMIT_BYTES).map_err(|answer| {
            let status = answer.as_ref().map_or(0, Answer::status);
            let why = if status == 413 {
                "too_large"
            } else {
                "incomplete"
            };
            (why, answer)
        })?;
        let reading = lock(&self.reading);
        let malformed = |what: String| ("malformed", Some(Answer::text(400, &what)));
        let body = match coding.inflate(body) {
            Ok(body) if body.len() > BODY_LIMIT_BYTES => return Err(too_large()),
            Ok(body) => body,
            Err(error) => return Err(malformed(format!("cannot inflate: {error}"))),
        };
        let read = match is_json {
            true => ExportTraceServiceRequest::decode_json(&body),
            false => ExportTraceServiceRequest::decode_protobuf(&body),
        };
        let spans = read.map_err(|error| match error {
            UnreadableRequest::TooMany => {
                ("too_large", Some(Answer::text(413, &error.to_string())))
            }
            UnreadableRequest::Malformed(_) => malformed(error.to_string()),
        })?;
        let count = spans.span_count();
        if count == 0 {
            return Ok(0);
        }
        let relay = Arc::clone(&lock(&self.relay));
        let body = match (is_json, relay.takes_json()) {
            (true, false) => spans.to_protobuf(),
            (false, true) => spans.to_json(),
            _ => body,
        };
        drop((spans, reading));
        match relay.pass(body, count) {
            true => Ok(count),
            false => {
                let answer = Answer::text(503, "no room: the collector is slow, or away\n");
                let answer = answer.with("Retry-After", RETRY_AFTER_SECS);
                Err(("queue_full", Some(answer)))
            }
        }
    }
}

/// Whether a body is JSON, not protobuf; `None` when it is neither.
fn is_json(request: &Request) -> Option<bool> {
    let kind = request.header("content-type").split(';').next();
    let kind = kind.unwrap_or_default().trim();
    [(JSON, true), (PROTOBUF, false)]
        .into_iter()
        .find_map(|(name, is_json)| kind.eq_ignore_ascii_case(name).then_some(is_json))
}

/// How a body is compressed.
#[derive(Clone, Copy)]
enum Coding {
    Identity,
    Gzip,
    /// Of zlib, as HTTP means it.
    Deflate,
}

impl Coding {
    fn of(header: &str) -> Option<Coding> {
        match header.to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Coding::Identity),
            "gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }

    /// A byte more than the limit at most, however much there is.
    fn inflate(self, body: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let limit = BODY_LIMIT_BYTES as u64 + 1;
        let mut inflated = Vec::new();
        match self {
            Coding::Identity => return Ok(body),
            Coding::Gzip => {
                let mut from = flate2::read::MultiGzDecoder::new(body.as_slice()).take(limit);
                from.read_to_end(&mut inflated)?;
            }
            Coding::Deflate => {
                let mut from = flate2::read::ZlibDecoder::new(body.as_slice()).take(limit);
                from.read_to_end(&mut inflated)?;
            }
        }
        Ok(inflated)
    }
}
