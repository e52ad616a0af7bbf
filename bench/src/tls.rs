//! TLS 1.3 as a third party would set it up: the fleet's authority, a certificate of one's own.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// The provider that controller and agents use: X25519MLKEM768 first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// The authorities of a PEM text.
///
/// # Errors
/// Where it holds something else.
pub fn roots(pem: &[u8]) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.context("could not read an authority")?)?;
    }
    Ok(Arc::new(roots))
}

/// A configuration that shows the certificate `chain` with its key, both in PEM; none where `None`.
///
/// # Errors
/// Where they can't be read or do not fit.
pub fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    identity: Option<(&[u8], &[u8])>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
            let key = PrivateKeyDer::from_pem_slice(key).context("could not read a key")?;
            builder.with_client_auth_cert(chain.context("could not read a certificate")?, key)?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// As [`client`], from the files of a context directory: `ca.crt`, `user.crt`, `user.key`.
///
/// # Errors
/// Where they can't be read or do not fit.
pub fn of_context(directory: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).with_context(|| format!("could not read `{}`", path.display()))
    };
    let roots = roots(&read("ca.crt")?)?;
    client(&provider(), &roots, Some((&read("user.crt")?, &read("user.key")?)))
}
