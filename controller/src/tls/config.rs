//! TLS configurations: TLS 1.3, post-quantum key exchange first, no resumption.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::files::{self, FileError};

/// Why a configuration can't be made. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or key can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds no certificate or key.
    #[error("could not find a certificate and a key in `{path}`")]
    Pem {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate is not what the authority signed. The operator's to solve.
    #[error(
        "the controller's certificate in `{directory}` is damaged; put a backup back with `upfleet restore`"
    )]
    Damaged {
        /// The directory.
        directory: String,
    },
    /// Certificate and key do not fit, or the library refuses them.
    #[error("could not use the certificate and key")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Refused(Box::new(error))
}

/// The one provider: X25519MLKEM768 first, X25519 for those who do not know it.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// The certificate chain and key that the controller shows.
#[derive(Debug)]
pub struct ServerIdentity {
    /// Leaf first, then the authority's certificate, so that an enrolling agent can check its pin.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl ServerIdentity {
    /// Reads `server.crt` and `server.key` from a directory.
    ///
    /// # Errors
    /// Where they can't be read or hold something else.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = directory.join(name);
            let pem = files::read_text(&path)?;
            Ok::<_, TlsError>((path.display().to_string(), pem))
        };
        let (path, pem) = read("server.crt")?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|source| TlsError::Pem { path, source })?;
        let (path, pem) = read("server.key")?;
        let key =
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { path, source })?;
        Ok(Self { chain, key })
    }
}

/// A server's configuration; with `client_ca` every client must show a certificate of that authority.
///
/// # Errors
/// Where certificate and key do not fit.
pub fn server_config(
    identity: &ServerIdentity,
    client_ca: Option<&CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.clone()).map_err(refused)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(refused)?)
        }
    };
    let mut config =
        builder.with_single_cert(identity.chain.clone(), identity.key.clone_key()).map_err(refused)?;
    config.alpn_protocols = match client_ca {
        Some(_) => vec![upfleet_api::BULK_ALPN.to_vec(), b"h2".to_vec()],
        None => vec![b"h2".to_vec()],
    };
    // A resumed session restores the client's certificate without verifying it again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
