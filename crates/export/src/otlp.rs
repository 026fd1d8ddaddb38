//! How OTLP travels: where to, in which protocol, and what the answer means.

mod client;
mod config;
mod deliver;
mod environment;
#[cfg(feature = "grpc")]
mod grpc;
mod http;
mod retry;
mod tls;

pub use self::client::{Answer, Client};
pub(crate) use self::client::{USER_AGENT, host, reason};
pub use self::config::{Compression, Config, ConfigError, Headers, Protocol, Signal, Tls};
pub(crate) use self::deliver::{Delivered, Pace, deliver};
pub(crate) use self::environment::Variables;
pub use self::environment::{Exporter, Exporters, Ignored, resource_from_env};
pub(crate) use self::http::{authority, connect_for, gzip, retry_after};
pub use self::retry::{Backoff, Retry};
