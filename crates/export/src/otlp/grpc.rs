//! OTLP over gRPC, by tonic.
//!
//! Requests are encoded already, so that a try after a failure costs no encoding: the codec hands bytes through. The tokio
//! runtime has one thread of its own, which keeps the connection alive between requests.
//!
//! Source: OTLP specification 1.x, *OTLP/gRPC*: which codes may be tried again, and `RetryInfo`.

use std::error::Error as _;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use tonic::client::Grpc as Caller;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use warptrace_formats::otlp::{Partial, Refusal};

use super::client::{Answer, USER_AGENT, host, reason};
use super::config::{Compression, Config, ConfigError};
use super::http::check_url;
use super::tls::Pem;

#[derive(Debug)]
pub(super) struct Grpc {
    endpoint: Endpoint,
    path: PathAndQuery,
    metadata: MetadataMap,
    gzip: bool,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    /// `None` only while it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
    channel: Channel,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Clone for Grpc {
    fn clone(&self) -> Grpc {
        Grpc {
            endpoint: self.endpoint.clone(),
            path: self.path.clone(),
            metadata: self.metadata.clone(),
            gzip: self.gzip,
            connection: None,
        }
    }
}

impl Grpc {
    pub(super) fn new(config: &Config) -> Result<Grpc, ConfigError> {
        let wrong = || ConfigError::Endpoint(config.endpoint.clone());
        let uri = check_url(&config.endpoint)?;
        let is_https = uri.scheme_str() == Some("https");
        let pem = Pem::load(config)?;
        let endpoint = Endpoint::from(uri);
        let endpoint = endpoint.user_agent(USER_AGENT).map_err(|_| wrong())?;
        let endpoint = match is_https {
            true => with_tls(endpoint, &pem).map_err(|_| wrong())?,
            false => endpoint,
        };
        let mut metadata = MetadataMap::new();
        for (name, value) in &config.headers.0 {
            // gRPC's names are lower-case.
            let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| ConfigError::HeaderName(name.clone()))?;
            let mut value = MetadataValue::try_from(value.as_str())
                .map_err(|_| ConfigError::HeaderValue(name.clone()))?;
            value.set_sensitive(true);
            metadata.insert(key, value);
        }
        Ok(Grpc {
            endpoint,
            path: PathAndQuery::from_static(config.signal.grpc_path()),
            metadata,
            gzip: config.compression == Compression::Gzip,
            connection: None,
        })
    }

    pub(super) fn send(&mut self, request: &[u8], timeout: Duration) -> Answer {
        let host = host(&self.endpoint.uri().to_string()).to_owned();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => match connect(&self.endpoint) {
                Ok(connection) => self.connection.insert(connection),
                Err(error) => {
                    let why = reason("no thread for gRPC", &error.to_string());
                    return Answer::Again { after: None, why };
                }
            },
        };
        let mut caller = Caller::new(connection.channel.clone());
        if self.gzip {
            caller = caller.send_compressed(CompressionEncoding::Gzip);
        }
        let mut message = Request::new(Bytes::copy_from_slice(request));
        message.metadata_mut().clone_from(&self.metadata);
        message.set_timeout(timeout);
        let path = self.path.clone();
        let call = async move {
            caller
                .ready()
                .await
                .map_err(|error| Status::from_error(error.into()))?;
            caller.unary(message, path, BytesCodec).await
        };
        let Some(runtime) = &connection.runtime else {
            let why = "the runtime is shutting down".to_owned();
            return Answer::Again { after: None, why };
        };
        let timed = runtime.block_on(async { tokio::time::timeout(timeout, call).await });
        match timed {
            Ok(Ok(response)) => Answer::Taken(Partial::decode_protobuf(response.get_ref())),
            Ok(Err(status)) => refused(&host, &status),
            Err(_) => Answer::Again {
                after: None,
                why: format!("no answer from {host}: timeout"),
            },
        }
    }
}

fn connect(endpoint: &Endpoint) -> std::io::Result<Connection> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("warptrace-grpc")
        .enable_all()
        .build()?;
    let channel = {
        let _inside = runtime.enter();
        endpoint.connect_lazy()
    };
    Ok(Connection {
        runtime: Some(runtime),
        channel,
    })
}

#[cfg(feature = "tls")]
fn with_tls(endpoint: Endpoint, pem: &Pem) -> Result<Endpoint, tonic::transport::Error> {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};

    let mut tls = match &pem.certificate {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_enabled_roots(),
    };
    if let Some((certificate, key)) = &pem.client {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    endpoint.tls_config(tls)
}

#[cfg(not(feature = "tls"))]
#[expect(clippy::unnecessary_wraps, reason = "as with TLS")]
fn with_tls(endpoint: Endpoint, _: &Pem) -> Result<Endpoint, tonic::transport::Error> {
    Ok(endpoint)
}

fn refused(host: &str, status: &Status) -> Answer {
    let details = Refusal::decode_protobuf(status.details());
    // A status of our own side has what caused it: no connection, one that broke.
    let own = status.source().is_some();
    let why = reason(
        match own {
            true => format!("no answer from {host}"),
            false => format!("{host} answered {:?}", status.code()),
        },
        &match status.source() {
            Some(cause) => deepest(cause),
            None => status.message().to_owned(),
        },
    );
    let again = own
        || match status.code() {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => true,
            Code::ResourceExhausted => details.retry_after.is_some(),
            _ => false,
        };
    match again {
        true => Answer::Again {
            after: details.retry_after,
            why,
        },
        false => Answer::Refused { why },
    }
}

/// The first cause, which says what happened; the rest say "transport error".
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Messages as bytes that somebody else encodes and decodes.
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
