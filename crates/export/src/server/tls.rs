//! TLS for the server, by rustls.

use std::fs::read;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::http::Timed;
use super::{ServeError, ServerTls};

type Secured = StreamOwned<ServerConnection, Timed<TcpStream>>;

/// What makes a TLS session of a connection; the handshake comes with the first read.
///
/// # Errors
/// When a file cannot be read, or certificate and key are not a pair.
pub(super) fn acceptor(
    files: &ServerTls,
) -> Result<impl Fn(Timed<TcpStream>) -> Option<Secured> + Send + Sync + use<>, ServeError> {
    let load = |path: &Path| {
        read(path).map_err(|source| ServeError::File {
            path: path.to_owned(),
            source,
        })
    };
    let bad = || ServeError::BadTls(files.certificate.clone());
    let chain = CertificateDer::pem_slice_iter(&load(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad())?;
    let key = PrivateKeyDer::from_pem_slice(&load(&files.key)?).map_err(|_| bad())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| bad())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|_| bad())?;
    let config = Arc::new(config);
    Ok(move |stream| {
        let session = ServerConnection::new(Arc::clone(&config)).ok()?;
        Some(StreamOwned::new(session, stream))
    })
}
