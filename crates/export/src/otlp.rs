//! How OTLP travels: where to, in which protocol, and what the answer means.

mod client;
mod config;
mod environment;
#[cfg(feature = "grpc")]
mod grpc;
mod http;
mod retry;
mod tls;

pub use self::client::{Answer, Client};
pub use self::config::{Compression, Config, ConfigError, Headers, Protocol, Signal, Tls};
pub(crate) use self::environment::Variables;
pub use self::environment::{Ignored, resource_from_env};
pub use self::retry::{Backoff, Retry};
