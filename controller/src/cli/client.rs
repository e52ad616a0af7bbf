//! The connection to a controller: TLS 1.3 with the context's key, and the generated clients on it.
//!
//! Fleet commands get nothing of the controller but this: they can do what any third party can.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use upfleet_api::v1::{
    artifact_service_client::ArtifactServiceClient, node_service_client::NodeServiceClient,
    patch_service_client::PatchServiceClient, release_service_client::ReleaseServiceClient,
    rollout_service_client::RolloutServiceClient, user_service_client::UserServiceClient,
};

use super::{
    config::Context,
    failure::{Failure, Result, of_tls},
};
use crate::exit::Exit;

/// How long a connection may take to come about, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead controller is found within the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer: a page of 1000 nodes with their components stays far below it.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// A connection to one controller.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    /// Where it leads; `None` for scripted controllers in tests.
    context: Option<Arc<Context>>,
}

macro_rules! clients {
    ($($method:ident: $client:ident,)+) => {
        impl Client {
            $(
                #[doc = concat!("The generated `", stringify!($client), "`.")]
                #[must_use]
                pub fn $method(&self) -> $client<Channel> {
                    $client::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
                }
            )+
        }
    };
}

clients! {
    artifacts: ArtifactServiceClient,
    releases: ReleaseServiceClient,
    nodes: NodeServiceClient,
    users: UserServiceClient,
    rollouts: RolloutServiceClient,
    patches: PatchServiceClient,
}

impl Client {
    /// Connects as `context` says.
    ///
    /// # Errors
    /// [`Exit::Unavailable`] where nobody answers, [`Exit::NotAuthorised`] where one side does not trust the other.
    pub async fn connect(name: &str, context: &Context) -> Result<Self> {
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls_config(context)?));
        let server_name = ServerName::try_from(context.server_name.clone())
            .map_err(|_| Failure::usage(format!("`{}` is no server name", context.server_name)))?;
        let address = context.address.clone();
        let connector = tower::service_fn(move |_| {
            let (tls, server_name, address) = (tls.clone(), server_name.clone(), address.clone());
            async move { open(tls, server_name, &address).await.map(TokioIo::new) }
        });
        // The scheme is plain because TLS happens in the connector, see above.
        let endpoint = Endpoint::from_shared(format!("http://{}", context.address))
            .map_err(|error| Failure::usage("the context's address is not valid").because(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .user_agent(concat!("upfleet/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::new(Exit::Internal, "the user agent is not valid").because(&error))?;
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => Ok(Self { channel, context: Some(Arc::new(context.clone())) }),
            Err(error) => Err(unreachable(name, context, &error)),
        }
    }
}

impl Client {
    /// A broken connection as it is best told; see [`explain`].
    pub async fn explain(&self, failure: Failure) -> Failure {
        match &self.context {
            Some(context) => explain(context, failure).await,
            None => failure,
        }
    }
}

async fn open(
    tls: tokio_rustls::TlsConnector,
    server_name: ServerName<'static>,
    address: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    tls.connect(server_name, tcp).await
}

/// Tells a controller that is away from one that no longer lets this certificate in.
///
/// A controller asks its store about a certificate once TLS is established, and closes the connection without a
/// word where the answer is no. One that lets us in speaks first.
pub async fn explain(context: &Context, failure: Failure) -> Failure {
    if !failure.is_transient() || failure.reason.is_some() {
        return failure;
    }
    let shut_out = tokio::time::timeout(CONNECT_TIMEOUT, is_shut_out(context)).await;
    if !matches!(shut_out, Ok(Some(true))) {
        return failure;
    }
    let mut refused = Failure::new(
        Exit::NotAuthorised,
        "the controller closed the connection as soon as it had seen this context's certificate",
    );
    refused.reason = Some("UNAUTHENTICATED".into());
    refused.hint(
        "it was revoked, or is not one of this fleet's; an admin can issue a new one: upfleet user issue",
    )
}

/// `None` where that can't be told.
async fn is_shut_out(context: &Context) -> Option<bool> {
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls_config(context).ok()?));
    let server_name = ServerName::try_from(context.server_name.clone()).ok()?;
    let mut stream = open(tls, server_name, &context.address).await.ok()?;
    // HTTP/2's first frame of a server comes unasked.
    let first = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
    Some(!matches!(first, Ok(1..)))
}

#[cfg(test)]
impl Client {
    /// Without TLS, for scripted controllers in tests.
    pub(super) fn plain(address: std::net::SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URI");
        Self { channel: endpoint.connect_lazy(), context: None }
    }
}

fn unreachable(name: &str, context: &Context, error: &tonic::transport::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut failure = Failure::new(
        Exit::Unavailable,
        format!("could not reach the controller at {} (context `{name}`)", context.address),
    );
    while let Some(error) = source {
        if let Some(refused) = of_tls(error) {
            return refused;
        }
        source = error.source();
    }
    // The outermost text is tonic's "transport error", which says nothing.
    if let Some(inner) = std::error::Error::source(error) {
        failure = failure.because(inner);
    }
    failure.hint("is the controller running there? `upfleet context show` prints where this context leads")
}

fn tls_config(context: &Context) -> Result<ClientConfig> {
    let bad = |path: &std::path::Path, error: &(dyn std::error::Error + 'static)| {
        Failure::usage(format!("could not read `{}`", path.display()))
            .because(error)
            .hint("upfleet context show prints which files belong to the context")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&context.ca).map_err(|error| bad(&context.ca, &error))? {
        let certificate = certificate.map_err(|error| bad(&context.ca, &error))?;
        roots.add(certificate).map_err(|error| bad(&context.ca, &error))?;
    }
    let chain = CertificateDer::pem_file_iter(&context.cert)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| bad(&context.cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(&context.key).map_err(|error| bad(&context.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| bad(&context.key, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
