//! Certificates: read from their files when a client is made, so that a wrong path is an error there and not a silence later.

use std::fmt;
use std::path::Path;

use super::config::{Config, ConfigError};

/// What a TLS connection needs, as read from files. `Debug` leaves the key out.
#[derive(Clone)]
#[cfg_attr(
    not(feature = "tls"),
    expect(
        dead_code,
        reason = "files are read all the same, so that a wrong path is an error"
    )
)]
pub(super) struct Pem {
    /// Whom to trust instead of the system's authorities.
    pub(super) certificate: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

impl Pem {
    /// # Errors
    /// When a file cannot be read or holds no PEM, or when the endpoint is `https` and this build has no TLS.
    pub(super) fn load(config: &Config) -> Result<Pem, ConfigError> {
        let is_https = config
            .endpoint
            .get(..6)
            .is_some_and(|s| s.eq_ignore_ascii_case("https:"));
        if is_https && !cfg!(feature = "tls") {
            return Err(ConfigError::NoTls(config.endpoint.clone()));
        }
        let read = |path: &Path, what| {
            let bytes = std::fs::read(path).map_err(|source| ConfigError::File {
                path: path.to_owned(),
                source,
            })?;
            let begins = b"-----BEGIN ";
            match bytes.windows(begins.len()).any(|window| window == begins) {
                true => Ok(bytes),
                false => Err(ConfigError::NotPem {
                    what,
                    path: path.to_owned(),
                }),
            }
        };
        let tls = &config.tls;
        Ok(Pem {
            certificate: match &tls.certificate {
                Some(path) => Some(read(path, "the certificate")?),
                None => None,
            },
            client: match &tls.client {
                Some((certificate, key)) => Some((
                    read(certificate, "the client's certificate")?,
                    read(key, "the client's key")?,
                )),
                None => None,
            },
        })
    }
}

#[cfg(feature = "tls")]
impl Pem {
    /// As ureq takes it. The system's authorities are loaded here, some milliseconds.
    pub(super) fn for_ureq(&self) -> ureq::tls::TlsConfig {
        use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

        let mut config = TlsConfig::builder();
        config = config.root_certs(match &self.certificate {
            Some(pem) => RootCerts::new_with_certs(&certificates(pem)),
            None => {
                let system = rustls_native_certs::load_native_certs().certs;
                let system: Vec<Certificate<'static>> = system
                    .iter()
                    .map(|der| Certificate::from_der(der).to_owned())
                    .collect();
                match system.is_empty() {
                    true => RootCerts::WebPki,
                    false => RootCerts::new_with_certs(&system),
                }
            }
        });
        if let Some((chain, key)) = &self.client
            && let Ok(key) = PrivateKey::from_pem(key)
        {
            let client = ClientCert::new_with_certs(&certificates(chain), key);
            config = config.client_cert(Some(client));
        }
        config.build()
    }
}

#[cfg(feature = "tls")]
fn certificates(pem: &[u8]) -> Vec<ureq::tls::Certificate<'static>> {
    let items = ureq::tls::parse_pem(pem);
    let certificates = items.filter_map(|item| match item {
        Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    certificates.collect()
}
