//! One question to one engine: `GET /metrics`, its status and its body, within a time and a size.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ureq::http::header;

/// How we call ourselves.
const USER_AGENT: &str = concat!("warptrace/", env!("CARGO_PKG_VERSION"));

/// Why an engine that runs was not asked, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unreachable {
    /// It publishes nothing; the argument that says so.
    #[error("its metrics are switched off ({0})")]
    Off(&'static str),
    #[error("it serves a Unix socket, which is not asked")]
    UnixSocket,
    #[error("it serves HTTPS, which is not asked")]
    Https,
    /// It loads its model, or listens elsewhere than it says.
    #[error("nothing listens at port {0} of its network namespace yet")]
    NotListening(u16),
    /// Two engines say the same port of the same namespace; the older one has it.
    #[error("port {0} is the older engine's, pid {1}")]
    Taken(u16, u32),
    #[error("its network namespace cannot be seen (CAP_SYS_PTRACE is missing)")]
    NamespaceHidden,
    #[error(
        "it is in another network namespace, which cannot be entered (CAP_SYS_ADMIN is missing)"
    )]
    NamespaceClosed,
    #[error("it answered with status {0}")]
    Status(u16),
    #[error("its answer is larger than {0} bytes")]
    TooLarge(u64),
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// What the system or the HTTP client says of it.
    #[error("no answer: {0}")]
    Failed(String),
}

impl Unreachable {
    /// As an `error.type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Unreachable::Off(_) => "metrics_off",
            Unreachable::UnixSocket => "unix_socket",
            Unreachable::Https => "https",
            Unreachable::NotListening(_) => "not_listening",
            Unreachable::Taken(..) => "port_taken",
            Unreachable::NamespaceHidden => "namespace_hidden",
            Unreachable::NamespaceClosed => "namespace_closed",
            Unreachable::Status(_) => "status",
            Unreachable::TooLarge(_) => "too_large",
            Unreachable::TimedOut(_) => "timeout",
            Unreachable::Failed(_) => "failed",
        }
    }
}

/// What is asked at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// From connecting to the end of the body.
    pub(super) timeout: Duration,
    pub(super) body_bytes: u64,
}

/// The body of `http://ADDRESS/metrics`. No proxy, no redirect, no connection that is kept: the next question may be asked from
/// another network namespace.
pub(super) fn fetch(address: SocketAddr, limits: Limits) -> Result<Vec<u8>, Unreachable> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .proxy(None)
        .user_agent(USER_AGENT)
        .timeout_global(Some(limits.timeout))
        .build()
        .new_agent();
    let failed = |error: ureq::Error| match error {
        ureq::Error::Timeout(_) => Unreachable::TimedOut(limits.timeout),
        ureq::Error::BodyExceedsLimit(_) => Unreachable::TooLarge(limits.body_bytes),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            Unreachable::TimedOut(limits.timeout)
        }
        // As a proxy for text of a limited length: parts of it are the other side's.
        other => Unreachable::Failed(other.to_string().chars().take(200).collect()),
    };
    let request = agent
        .get(format!("http://{address}/metrics"))
        .header(header::ACCEPT, "text/plain; version=0.0.4")
        .header(header::CONNECTION, "close");
    let mut response = request.call().map_err(failed)?;
    if !response.status().is_success() {
        return Err(Unreachable::Status(response.status().as_u16()));
    }
    let body = response.body_mut().with_config().limit(limits.body_bytes);
    body.read_to_vec().map_err(|error| match error {
        // A limit inside of the reader comes out as an I/O error.
        ureq::Error::Io(inner)
            if inner
                .get_ref()
                .and_then(|e| e.downcast_ref::<ureq::Error>())
                .is_some_and(|e| matches!(e, ureq::Error::BodyExceedsLimit(_))) =>
        {
            Unreachable::TooLarge(limits.body_bytes)
        }
        other => failed(other),
    })
}
