//! What several tests need: an authority in a temporary directory, identities, and a TLS client.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use upfleet_domain::time::Time;

use crate::{
    auth::Identity,
    ca::{self, Ca, Issued},
    clock::Clock,
    tls,
};

/// A key with its certificate.
pub(crate) struct Holder {
    pub(crate) issued: Issued,
    pub(crate) key: rcgen::KeyPair,
}

impl Holder {
    /// A certificate for `identity` that is good for an hour.
    pub(crate) fn new(ca: &Ca, identity: &Identity) -> Self {
        Self::at(ca, identity, Clock::System.now())
    }

    /// A certificate that was issued at `now` for an hour.
    pub(crate) fn at(ca: &Ca, identity: &Identity, now: Time) -> Self {
        let (key, proven) = ca::new_key().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let names = if *identity == Identity::Controller { &names[..] } else { &[] };
        let issued = ca.issue(identity, names, &proven, now, Duration::from_secs(3600)).unwrap();
        Self { issued, key }
    }

    pub(crate) fn node(ca: &Ca, name: &str) -> Self {
        Self::new(ca, &Identity::Node(name.parse().unwrap()))
    }

    pub(crate) fn user(ca: &Ca, name: &str) -> Self {
        Self::new(ca, &Identity::User(name.parse().unwrap()))
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.issued.chain_pem.as_bytes()).map(Result::unwrap).collect()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.serialize_der().try_into().unwrap()
    }

    pub(crate) fn server_identity(&self) -> tls::ServerIdentity {
        tls::ServerIdentity { chain: self.chain(), key: self.private_key() }
    }
}

/// An authority in a directory that goes with it.
pub(crate) fn authority() -> (tempfile::TempDir, Arc<Ca>) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(&dir.path().join("ca"), Clock::System.now()).unwrap();
    (dir, Arc::new(ca))
}

/// A client's configuration that trusts `ca` and shows the certificate of `holder`.
pub(crate) fn client_config(ca: &Ca, holder: Option<&Holder>) -> Arc<ClientConfig> {
    client_config_with(ca, holder.map(|holder| (holder.chain(), holder.private_key())))
}

pub(crate) fn client_config_with(
    ca: &Ca,
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

pub(crate) async fn tls_connect(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(addr).await?;
    TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

/// A channel; in TLS 1.3 a refused client certificate shows with the first call only.
pub(crate) async fn channel(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    channel_of(Endpoint::from_static("http://controller"), addr, config).await
}

/// The same with the settings of an endpoint.
pub(crate) async fn channel_of(
    endpoint: Endpoint,
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let config = config.clone();
        async move { tls_connect(addr, config).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

/// Waits until `condition` holds, at most ten seconds.
pub(crate) async fn eventually<F: FnMut() -> bool>(what: &str, mut condition: F) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still not: {what}");
}
