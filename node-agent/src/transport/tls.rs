//! TLS to the controller: version 1.3 only, the hybrid key exchange first, and connections that take up a
//! renewed certificate.
//!
//! Nothing here trusts the system's authorities: only the fleet's own, which came with enrollment.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::identity::Identity;

/// A peer that is silent this long is asked for a sign of life …
pub const KEEPALIVE: Duration = Duration::from_secs(9);
/// … and has so long to give it: a dead one is found within 30 seconds. Where one direction only is cut, the peer's
/// own question still arrives and begins the silence anew, so that its interval counts, too: 9 + 9 + 8.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What the controller may send ahead of the disk: it bounds the agent's memory, and the rate on a long line.
const BULK_WINDOW: u32 = 4 * 1024 * 1024;
/// A message of 1 MiB fits one frame.
const BULK_FRAME: u32 = 1024 * 1024 + 4096;

/// Why no connection could be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address or the name is not usable. For the operator.
    #[error("`{0}` is not a usable address")]
    Address(String),
    /// The certificate or its authorities can't be used. For the operator.
    #[error("the certificates can't be used")]
    Tls(#[source] rustls::Error),
    /// The network, or the other side's certificate.
    #[error("could not connect to `{address}`")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

/// The one provider of cryptography: aws-lc-rs with X25519MLKEM768 preferred.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// The roots that are made of `authorities`.
///
/// # Errors
/// Where one is not a certificate.
pub fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?;
    Ok(roots)
}

/// A configuration for connections as `identity`.
///
/// # Errors
/// Where the identity's certificates can't be used.
pub fn client_config(identity: &Identity) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(identity.authorities())?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.private_key())?;
    // A resumed session would skip the check of a certificate that was revoked meanwhile.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A configuration for connections that show no certificate: to the enrollment listener.
///
/// # Errors
/// Where an authority is not a certificate.
pub fn anonymous_config(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connects to `address`, whose certificate must carry `server_name`, with `config`.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    address: &str,
    server_name: &str,
    config: ClientConfig,
) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    dial(endpoint, address, server_name, config).await
}

/// Connects like [`connect`], for artifacts' bytes. No sign of life is asked for: it would wait behind the bytes
/// on a slow line, and whoever waits for bytes sees that none come.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_bulk(
    address: &str,
    server_name: &str,
    config: ClientConfig,
) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?
        .initial_stream_window_size(BULK_WINDOW)
        .initial_connection_window_size(BULK_WINDOW)
        .max_frame_size(BULK_FRAME);
    dial(endpoint, address, server_name, config).await
}

fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    // `http` because TLS is done here; with `https` tonic would want to do it itself.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| ConnectError::Address(address.to_owned()))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT))
}

async fn dial(
    endpoint: Endpoint,
    address: &str,
    server_name: &str,
    config: ClientConfig,
) -> Result<Channel, ConnectError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| ConnectError::Address(server_name.to_owned()))?;
    let connector = TlsConnector::from(Arc::new(config));
    let target = address.to_owned();
    let service = tower::service_fn(move |_| {
        let (target, name, connector) = (target.clone(), name.clone(), connector.clone());
        async move {
            let tcp = TcpStream::connect(&target).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    endpoint
        .connect_with_connector(service)
        .await
        .map_err(|source| ConnectError::Connect { address: address.to_owned(), source })
}
