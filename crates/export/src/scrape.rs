//! The endpoint that Prometheus asks: `/metrics`, and `/healthz` and `/readyz` for whoever watches the process.
//!
//! A small HTTP/1.1 server of its own, since it answers three paths and must not be what brings the process down: a request ends with
//! its connection, heads and times are bounded, and what is above 16 connections at once is turned away. `tiny_http` (0.12) bounds
//! none of these, and a server on hyper would bring a runtime for it.
//!
//! On loopback it is plain HTTP. Anywhere else it needs TLS and a token; it says so and does not start without. The token is asked
//! for `/metrics` alone: health says nothing that a connection does not.

mod http;
#[cfg(feature = "tls")]
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use warptrace_formats::metrics::Names;
use warptrace_formats::openmetrics::{Format, encode};
use warptrace_model::metric::Snapshot;

use self::http::{Answer, Request, Timed};
use crate::otlp::{Ignored, Variables};

/// Connections at once; one more is answered with 503.
const CONNECTIONS: usize = 16;

/// From accepting a connection to the end of the answer.
const TIME: Duration = Duration::from_secs(10);

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

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
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

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    #[error("metrics on {0}, which is not loopback, need a token")]
    NoToken(SocketAddr),
    #[error("metrics on {0}, which is not loopback, need TLS: a certificate and its key")]
    NoTls(SocketAddr),
    #[error("a token has 16 characters at least, of those that a header can have")]
    BadToken,
    #[error("this build speaks no TLS (cargo feature `tls`)")]
    NotBuilt,
    #[error("cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no certificate and key for TLS in {0:?}")]
    BadTls(PathBuf),
    #[error("cannot start a thread to serve metrics with")]
    Thread(#[source] std::io::Error),
}

/// Serves the last snapshot that it was given. Dropping it ends the server.
pub struct Scrape {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape")
            .field("address", &self.address)
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
    stopped: AtomicBool,
    open: AtomicUsize,
    turned_away: AtomicU64,
}

/// Plain or TLS.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

type Accept = dyn Fn(Timed<TcpStream>) -> Option<Box<dyn Stream>> + Send + Sync;

impl Scrape {
    /// Listens, and starts the thread that serves. [`Stage::Starting`], and healthy as far as nobody says otherwise.
    ///
    /// # Errors
    /// See [`ScrapeError`].
    pub fn start(config: &ScrapeConfig) -> Result<Scrape, ScrapeError> {
        if !config.address.ip().to_canonical().is_loopback() {
            if config.token.is_none() {
                return Err(ScrapeError::NoToken(config.address));
            }
            if config.tls.is_none() {
                return Err(ScrapeError::NoTls(config.address));
            }
        }
        if let Some(token) = &config.token
            && (token.len() < 16 || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(ScrapeError::BadToken);
        }
        let accept: Arc<Accept> = match &config.tls {
            None => Arc::new(|stream| Some(Box::new(stream))),
            #[cfg(feature = "tls")]
            Some(files) => {
                let accept = tls::acceptor(files)?;
                Arc::new(move |stream| {
                    let stream = accept(stream)?;
                    Some(Box::new(stream))
                })
            }
            #[cfg(not(feature = "tls"))]
            Some(_) => return Err(ScrapeError::NotBuilt),
        };
        let refused = |source| ScrapeError::Bind {
            address: config.address,
            source,
        };
        let listener = TcpListener::bind(config.address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared {
            names: Mutex::new(config.names),
            token: config.token.clone(),
            snapshot: Mutex::new(None),
            stage: Mutex::new(Stage::Starting),
            watch: Mutex::new(None),
            stopped: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("warptrace-scrape".to_owned());
        let served = thread.spawn(move || serve(&listener, &serving, &accept));
        served.map_err(ScrapeError::Thread)?;
        Ok(Scrape { shared, address })
    }

    /// Where it listens: with the port that the system picked, when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
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
        self.shared.turned_away.load(Ordering::Relaxed)
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits for a connection.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>, accept: &Arc<Accept>) {
    loop {
        let accepted = listener.accept();
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => Timed::new(stream, Instant::now() + TIME),
            Err(error) => {
                // No descriptors, most likely: there may be some later.
                tracing::debug!(%error, "no connection for metrics");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            shared.turned_away.fetch_add(1, Ordering::Relaxed);
            http::turn_away(stream);
            continue;
        }
        let (of_connection, accept) = (Arc::clone(shared), Arc::clone(accept));
        let thread = std::thread::Builder::new().name("warptrace-scraped".to_owned());
        let started = thread.spawn(move || {
            let open = Open(of_connection);
            if let Some(mut stream) = accept(stream) {
                let answer = match Request::read(&mut *stream) {
                    Ok(request) => Some(open.0.answer(&request)),
                    Err(refusal) => refusal,
                };
                if let Some(answer) = answer {
                    answer.send(&mut *stream);
                }
            }
        });
        if started.is_err() {
            shared.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection that counts as open until it is dropped, by a panic too.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn answer(&self, request: &Request) -> Answer {
        let answer = match request.path() {
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
        };
        answer.to(request)
    }

    fn may_ask(&self, request: &Request) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let said = request.header("authorization");
        let said = match said.split_once(' ') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim(),
            _ => "",
        };
        same(said.as_bytes(), token.as_bytes())
    }
}

/// Compares in a time that does not say where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differences) == 0 && a.len() == b.len()
}
