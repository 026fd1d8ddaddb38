//! The endpoint that Prometheus asks: `/metrics`, and `/healthz` and `/readyz` for whoever watches the process.
//!
//! The token is asked for `/metrics` alone: health says nothing that a connection does not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use warptrace_formats::metrics::Names;
use warptrace_formats::openmetrics::{Format, encode};
use warptrace_model::metric::Snapshot;

use crate::otlp::{Ignored, Variables};
use crate::server::{
    Answer, Listen, Method, Request, Serve, ServeError, Server, ServerTls, Stream,
};

/// Connections at once; one more is answered with 503.
const CONNECTIONS: usize = 16;

/// Where to listen, and who may ask.
#[derive(Clone, PartialEq, Eq)]
pub struct ScrapeConfig {
    pub address: SocketAddr,
    /// Asked for as `Authorization: Bearer TOKEN`; needed unless `address` is on loopback. From a file or the environment, never
    /// from a flag.
    pub token: Option<String>,
    /// Needed unless `address` is on loopback.
    pub tls: Option<ServerTls>,
    pub names: Names,
}

impl std::fmt::Debug for ScrapeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScrapeConfig")
            .field("address", &self.address)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .field("names", &self.names)
            .finish()
    }
}

impl ScrapeConfig {
    /// Port 9464 of loopback, OpenTelemetry's for this.
    pub fn loopback() -> ScrapeConfig {
        ScrapeConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 9464)),
            token: None,
            tls: None,
            names: Names::Native,
        }
    }

    /// By `OTEL_EXPORTER_PROMETHEUS_HOST` (an address, or `localhost`) and `OTEL_EXPORTER_PROMETHEUS_PORT`, and which of them were
    /// ignored.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> (ScrapeConfig, Vec<Ignored>) {
        let variables = Variables::new(lookup);
        let mut config = ScrapeConfig::loopback();
        let host = variables.get("OTEL_EXPORTER_PROMETHEUS_HOST");
        let host = host.and_then(|said| {
            said.read("an address, or localhost", |text| match text {
                "localhost" => Some(config.address.ip()),
                text => text.trim_matches(['[', ']']).parse().ok(),
            })
        });
        let port = variables.get("OTEL_EXPORTER_PROMETHEUS_PORT");
        let port = port.and_then(|said| said.read("a port", |text| text.parse().ok()));
        config.address = SocketAddr::new(
            host.unwrap_or(config.address.ip()),
            port.unwrap_or(config.address.port()),
        );
        (config, variables.ignored())
    }
}

/// Serves the last snapshot that it was given. Dropping it ends the server.
pub struct Scrape {
    shared: Arc<Shared>,
    server: Server,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape")
            .field("address", &self.server.address())
            .field("stage", &self.shared.stage)
            .finish_non_exhaustive()
    }
}

/// What the process does, as `/readyz` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It does not do its work yet.
    Starting,
    Ready,
    Stopping,
}

/// What is wrong with the process, if anything is.
type Watch = dyn Fn() -> Result<(), String> + Send + Sync;

struct Shared {
    names: Mutex<Names>,
    token: Option<String>,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    stage: Mutex<Stage>,
    watch: Mutex<Option<Box<Watch>>>,
}

impl Scrape {
    /// Listens, and starts the thread that serves. [`Stage::Starting`], and healthy as far as nobody says otherwise.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn start(config: &ScrapeConfig) -> Result<Scrape, ServeError> {
        let shared = Arc::new(Shared {
            names: Mutex::new(config.names),
            token: config.token.clone(),
            snapshot: Mutex::new(None),
            stage: Mutex::new(Stage::Starting),
            watch: Mutex::new(None),
        });
        let listen = Listen {
            address: config.address,
            token: config.token.as_deref(),
            tls: config.tls.as_ref(),
            connections: CONNECTIONS,
            threads: ("warptrace-scrape", "warptrace-scraped"),
        };
        let server = Server::start(&listen, Arc::clone(&shared) as Arc<dyn Serve>)?;
        Ok(Scrape { shared, server })
    }

    /// Where it listens: with the port that the system picked, when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What is served from now on. Cost: a lock that nobody holds for long; the text is written when somebody asks.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let mut current = lock(&self.shared.snapshot);
        let old = current.replace(snapshot);
        drop(current);
        drop(old);
    }

    /// Whose names metrics have from now on.
    pub fn set_names(&self, names: Names) {
        *lock(&self.shared.names) = names;
    }

    /// What `/readyz` says: 200 while the process does its work.
    pub fn set_stage(&self, stage: Stage) {
        *lock(&self.shared.stage) = stage;
    }

    /// What `/healthz` says: `watch` is called for each question, and gives what is wrong with the process, so that it should be
    /// started anew or looked after. It must not wait.
    pub fn set_watch(&self, watch: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        *lock(&self.shared.watch) = Some(Box::new(watch));
    }

    /// Connections that were answered with 503, since there were too many at once.
    pub fn turned_away(&self) -> u64 {
        self.server.turned_away()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serve for Shared {
    fn answer(&self, request: &Request, _: &mut dyn Stream) -> Option<Answer> {
        if !matches!(request.method(), Method::Get | Method::Head) {
            return Some(Answer::text(405, "GET or HEAD\n").with("Allow", "GET, HEAD"));
        }
        Some(match request.path() {
            "/metrics" if !self.may_ask(request) => {
                let answer = Answer::text(401, "a token is needed\n");
                answer.with("WWW-Authenticate", "Bearer")
            }
            "/metrics" => {
                let snapshot = lock(&self.snapshot).clone();
                let names = *lock(&self.names);
                let format = Format::negotiate(request.header("accept"), names);
                let text = match snapshot {
                    Some(snapshot) => encode(&snapshot, names, format),
                    None => encode(&Snapshot::default(), names, format),
                };
                Answer::new(200, format.content_type(), text.into_bytes())
            }
            "/healthz" => match lock(&self.watch).as_ref().map_or(Ok(()), |watch| watch()) {
                Ok(()) => Answer::text(200, "ok\n"),
                Err(wrong) => Answer::text(503, &format!("not healthy: {wrong}\n")),
            },
            "/readyz" => match *lock(&self.stage) {
                Stage::Starting => Answer::text(503, "not ready: starting\n"),
                Stage::Ready => Answer::text(200, "ready\n"),
                Stage::Stopping => Answer::text(503, "not ready: stopping\n"),
            },
            _ => Answer::text(404, "there are /metrics, /healthz and /readyz\n"),
        })
    }
}

impl Shared {
    fn may_ask(&self, request: &Request) -> bool {
        let token = self.token.as_deref();
        token.is_none_or(|token| request.has_token(token))
    }
}
