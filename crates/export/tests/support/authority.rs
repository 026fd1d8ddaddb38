//! A certificate authority for one test, a server that it vouches for, and a client.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;

pub(crate) struct Authority {
    folder: TempDir,
    pub(crate) server: Arc<ServerConfig>,
}

impl Authority {
    /// With a server for 127.0.0.1, which asks for a certificate of the authority's if `asks_client`.
    pub(crate) fn new(asks_client: bool) -> Authority {
        let own_key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::default();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        own.distinguished_name.push(DnType::CommonName, "authority");
        let certificate = own.self_signed(&own_key).unwrap();
        let issuer = Issuer::new(own, own_key);
        let signed = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.signed_by(&key, &issuer).unwrap(), key)
        };

        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write("authority.pem", certificate.pem());
        let (client, client_key) = signed("client");
        write("client.pem", client.pem());
        write("client.key", client_key.serialize_pem());

        let (server, server_key) = signed("127.0.0.1");
        write("server.pem", server.pem());
        write("server.key", server_key.serialize_pem());
        let chain = vec![CertificateDer::from(server.der().to_vec())];
        let key = PrivateKeyDer::Pkcs8(server_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = if asks_client {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from(certificate.der().to_vec()))
                .unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let mut server = config.with_single_cert(chain, key).unwrap();
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Authority {
            folder,
            server: Arc::new(server),
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
