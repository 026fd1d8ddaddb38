//! One request and what its answer means, whatever the protocol.

use std::time::Duration;

use warptrace_formats::otlp::{Partial, UnreadableResponse};

use super::config::{Config, ConfigError, Protocol};
#[cfg(feature = "grpc")]
use super::grpc::Grpc;
use super::http::Http;
use crate::start_of;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The collector took it, all but what it says it rejected. What is unreadable was said with a status of success, so it
    /// is not sent again; a proxy's page is such an answer.
    Taken(Result<Partial, UnreadableResponse>),
    /// Not taken, and may be tried again, after the time that the collector asked for. The collector may have it all the
    /// same, when its answer got lost.
    Again {
        after: Option<Duration>,
        why: String,
    },
    /// Not taken, and would not be.
    Refused { why: String },
}

/// A connection to a collector, made when it is first needed.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
}

#[derive(Debug, Clone)]
enum Transport {
    Http(Box<Http>),
    #[cfg(feature = "grpc")]
    Grpc(Box<Grpc>),
}

impl Client {
    /// Checks `config` and reads its certificates; connects to nothing, starts nothing.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: &Config) -> Result<Client, ConfigError> {
        if config.timeout.is_zero() {
            return Err(ConfigError::NoTimeout);
        }
        let transport = match config.protocol {
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                Transport::Http(Box::new(Http::new(config)?))
            }
            #[cfg(feature = "grpc")]
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(config)?)),
            #[cfg(not(feature = "grpc"))]
            Protocol::Grpc => return Err(ConfigError::NoGrpc),
        };
        Ok(Client { transport })
    }

    /// Sends an encoded request and waits for the answer, `timeout` at most.
    pub fn send(&mut self, request: &[u8], timeout: Duration) -> Answer {
        match &mut self.transport {
            Transport::Http(http) => http.send(request, timeout),
            #[cfg(feature = "grpc")]
            Transport::Grpc(grpc) => grpc.send(request, timeout),
        }
    }
}

impl Clone for Client {
    /// A client with the same settings and connections of its own.
    fn clone(&self) -> Client {
        Client {
            transport: self.transport.clone(),
        }
    }
}

/// How `warptrace` calls itself.
pub(crate) const USER_AGENT: &str = concat!("warptrace/", env!("CARGO_PKG_VERSION"));

/// `what`, and what the collector says about it, of which a page of HTML is cut.
pub(crate) fn reason(what: impl std::fmt::Display, message: &str) -> String {
    const LIMIT: usize = 300;
    let message = message.trim();
    match message.is_empty() {
        true => what.to_string(),
        false => format!("{what}: {}", start_of(message, LIMIT)),
    }
}

/// The host and port of a URL, for messages: paths and user names may hold secrets.
pub(crate) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}
