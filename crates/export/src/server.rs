//! A small HTTP/1.1 server, for the few paths that a process answers beside its work.
//!
//! It must not be what brings the process down: a request ends with its connection, heads, bodies and times are bounded, and what is
//! above a number of connections at once is turned away. `tiny_http` (0.12) bounds none of these, and a server on hyper would bring
//! a runtime for it.
//!
//! On loopback it is plain HTTP. Anywhere else it needs TLS and a token; it says so and does not start without. It knows no paths:
//! those are whose [`Serve`] it was given.

mod http;
#[cfg(feature = "tls")]
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::http::Timed;
pub(crate) use self::http::{Answer, Method, Request};

/// From accepting a connection to the end of the answer.
const TIME: Duration = Duration::from_secs(10);

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0} is not loopback: a token is needed")]
    NoToken(SocketAddr),
    #[error("{0} is not loopback: TLS is needed, a certificate and its key")]
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
    #[error("cannot start a thread to serve with")]
    Thread(#[source] std::io::Error),
}

/// Where to listen, and how much at once.
pub(crate) struct Listen<'a> {
    pub(crate) address: SocketAddr,
    /// That there is one is checked here; whether a request has it is asked by who answers, for the paths that need it.
    pub(crate) token: Option<&'a str>,
    pub(crate) tls: Option<&'a ServerTls>,
    /// Connections at once; one more is answered with 503.
    pub(crate) connections: usize,
    /// Of the thread that accepts, and of those that answer.
    pub(crate) threads: (&'static str, &'static str),
}

/// What answers.
pub(crate) trait Serve: Send + Sync + 'static {
    /// `None` when nothing can be answered, since the connection is broken. Of `stream` a [body](Request::body) is read.
    fn answer(&self, request: &Request, stream: &mut dyn Stream) -> Option<Answer>;
}

/// Plain or TLS.
pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

type Accept = dyn Fn(Timed<TcpStream>) -> Option<Box<dyn Stream>> + Send + Sync;

/// A listening socket and the thread behind it. Dropping it ends both; requests under way are answered.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    serve: Arc<dyn Serve>,
    accept: Box<Accept>,
    connections: usize,
    stopped: AtomicBool,
    open: AtomicUsize,
    turned_away: AtomicU64,
}

impl Server {
    /// Listens, and starts the thread that serves.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub(crate) fn start(listen: &Listen<'_>, serve: Arc<dyn Serve>) -> Result<Server, ServeError> {
        if !listen.address.ip().to_canonical().is_loopback() {
            if listen.token.is_none() {
                return Err(ServeError::NoToken(listen.address));
            }
            if listen.tls.is_none() {
                return Err(ServeError::NoTls(listen.address));
            }
        }
        if let Some(token) = listen.token
            && (token.len() < 16 || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(ServeError::BadToken);
        }
        let accept: Box<Accept> = match listen.tls {
            None => Box::new(|stream| Some(Box::new(stream))),
            #[cfg(feature = "tls")]
            Some(files) => {
                let accept = tls::acceptor(files)?;
                Box::new(move |stream| {
                    let stream = accept(stream)?;
                    Some(Box::new(stream))
                })
            }
            #[cfg(not(feature = "tls"))]
            Some(_) => return Err(ServeError::NotBuilt),
        };
        let refused = |source| ServeError::Bind {
            address: listen.address,
            source,
        };
        let listener = TcpListener::bind(listen.address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared {
            serve,
            accept,
            connections: listen.connections,
            stopped: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        let (name, of_connections) = listen.threads;
        let thread = std::thread::Builder::new().name(name.to_owned());
        let served = thread.spawn(move || accept_all(&listener, &serving, of_connections));
        served.map_err(ServeError::Thread)?;
        Ok(Server { address, shared })
    }

    /// Where it listens: with the port that the system picked, when 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that were answered with 503, since there were too many at once.
    pub(crate) fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
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

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, of_connections: &'static str) {
    loop {
        let accepted = listener.accept();
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => Timed::new(stream, Instant::now() + TIME),
            Err(error) => {
                // No descriptors, most likely: there may be some later.
                tracing::debug!(%error, "no connection");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.open.fetch_add(1, Ordering::Relaxed) >= shared.connections {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            shared.turned_away.fetch_add(1, Ordering::Relaxed);
            http::turn_away(stream);
            continue;
        }
        let of_connection = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(of_connections.to_owned());
        let started = thread.spawn(move || {
            let open = Open(of_connection);
            if let Some(mut stream) = (open.0.accept)(stream) {
                respond(&*open.0.serve, &mut *stream);
            }
        });
        if started.is_err() {
            shared.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn respond(serve: &dyn Serve, stream: &mut dyn Stream) {
    let (answer, is_body_left) = match Request::read(stream) {
        Ok(request) => {
            let answer = serve.answer(&request, stream);
            let is_body_left = request.has_body();
            (answer.map(|answer| answer.to(&request)), is_body_left)
        }
        Err(refusal) => (refusal, false),
    };
    if let Some(answer) = answer {
        answer.send(stream);
        if is_body_left && answer.is_refusal() {
            http::linger(stream);
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
