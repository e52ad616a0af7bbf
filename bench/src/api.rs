//! The generated API with what benchmarks ask again and again.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use upfleet_api::v1::{
    self, artifact_service_client::ArtifactServiceClient, node_service_client::NodeServiceClient,
    patch_service_client::PatchServiceClient, release_service_client::ReleaseServiceClient,
    rollout_service_client::RolloutServiceClient, user_service_client::UserServiceClient,
};
use upfleet_domain::{
    digest::Digest,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
};

/// The name that a controller's certificate carries here.
pub const SERVER_NAME: &str = "localhost";
/// The largest answer: a plan of a whole fleet.
const MAX_MESSAGE: usize = 256 << 20;
/// Between two looks whether something is so.
const LOOK: Duration = Duration::from_millis(20);

/// A connection as one user.
#[derive(Clone, Debug)]
pub struct Api(Channel);

macro_rules! clients {
    ($($method:ident: $client:ident,)+) => {
        impl Api {
            $(
                #[doc = concat!("The generated `", stringify!($client), "`.")]
                #[must_use]
                pub fn $method(&self) -> $client<Channel> {
                    $client::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE)
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

/// Opens a channel to `address` (`host:port`) with our own TLS.
///
/// # Errors
/// Where nobody answers, or one side does not trust the other.
pub async fn channel(address: &str, tls: Arc<ClientConfig>) -> anyhow::Result<Channel> {
    let name = ServerName::try_from(SERVER_NAME).context("the name is valid")?;
    let target = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (target, name, tls) = (target.clone(), name.clone(), TlsConnector::from(tls.clone()));
        async move {
            let tcp = TcpStream::connect(&target).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    // `http` because TLS is done here; with `https` tonic would want to do it itself.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(Some(4 << 20))
        .initial_connection_window_size(Some(8 << 20));
    endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("could not connect to {address}"))
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// As [`channel`].
    pub async fn connect(address: &str, tls: Arc<ClientConfig>) -> anyhow::Result<Self> {
        Ok(Self(channel(address, tls).await?))
    }

    /// The channel, for clients of one's own.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.0.clone()
    }

    /// Makes an enrollment token for any node with these labels.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn token(&self, labels: &[(&str, &str)]) -> anyhow::Result<String> {
        let request = v1::CreateEnrollmentTokenRequest {
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        Ok(self.nodes().create_enrollment_token(request).await?.into_inner().secret)
    }

    /// Uploads bytes.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn upload(&self, bytes: Bytes) -> anyhow::Result<Digest> {
        use v1::upload_artifact_request::Part;
        let digest = Digest::of(&bytes);
        let start =
            v1::UploadStart { digest: Some((&digest).into()), size_bytes: bytes.len() as u64, offset: 0 };
        let pieces = (0..bytes.len())
            .step_by(1 << 20)
            .map(move |at| Part::Data(bytes.slice(at..bytes.len().min(at + (1 << 20)))));
        let parts = std::iter::once(Part::Start(start))
            .chain(pieces)
            .chain([Part::Commit(v1::UploadCommit {})])
            .map(|part| v1::UploadArtifactRequest { part: Some(part) });
        self.artifacts().upload_artifact(tokio_stream::iter(parts.collect::<Vec<_>>())).await?;
        Ok(digest)
    }

    /// Uploads bytes and publishes them as a release of one file for every processor.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn publish(
        &self,
        component: &str,
        version: &str,
        sequence: u64,
        bytes: Bytes,
    ) -> anyhow::Result<Digest> {
        let digest = self.upload(bytes.clone()).await?;
        let manifest = Manifest {
            format: FORMAT,
            component: component.parse()?,
            version: version.parse()?,
            sequence,
            kind: Kind::Binary,
            notes: String::new(),
            artifacts: vec![ArtifactRef {
                platform: Platform { os: "linux".to_owned(), arch: "any".to_owned() },
                sha256: digest,
                md5: None,
                size: bytes.len() as u64,
                sources: Vec::new(),
                encodings: Vec::new(),
            }],
            fixes: Vec::new(),
            patch: None,
            files: None,
        };
        let request = v1::CreateReleaseRequest { manifest: manifest.to_bytes().into(), ..Default::default() };
        self.releases().create_release(request).await?;
        Ok(digest)
    }

    /// Plans and stores a rollout; gives its name.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn create_rollout(&self, spec: v1::RolloutSpec) -> anyhow::Result<String> {
        let request = v1::CreateRolloutRequest {
            spec: Some(spec),
            message: "a benchmark".to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let created = self.rollouts().create_rollout(request).await?.into_inner();
        Ok(created.rollout.context("the answer has a rollout")?.name)
    }

    /// Starts a rollout.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn start_rollout(&self, name: &str) -> anyhow::Result<()> {
        let request = v1::StartRolloutRequest { name: name.to_owned(), ..Default::default() };
        self.rollouts().start_rollout(request).await?;
        Ok(())
    }

    /// A rollout as it is now.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn rollout(&self, name: &str) -> anyhow::Result<v1::Rollout> {
        let request = v1::GetRolloutRequest { name: name.to_owned() };
        let answer = self.rollouts().get_rollout(request).await?.into_inner();
        answer.rollout.context("the answer has a rollout")
    }

    /// Waits until a rollout is in `state`.
    ///
    /// # Errors
    /// Where it comes to rest elsewhere, or `patience` passes.
    pub async fn reach(
        &self,
        name: &str,
        state: v1::rollout::State,
        patience: Duration,
    ) -> anyhow::Result<v1::Rollout> {
        use v1::rollout::State;
        let until = Instant::now() + patience;
        loop {
            let rollout = self.rollout(name).await?;
            if rollout.state() == state {
                return Ok(rollout);
            }
            let rests = !matches!(rollout.state(), State::Running | State::Planned | State::Reverting);
            let why = rollout.reason.as_ref().map_or("", |reason| reason.message.as_str());
            anyhow::ensure!(!rests && Instant::now() < until, "{name} is {:?}: {why}", rollout.state());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A number of nodes, for policies.
#[must_use]
pub fn count(count: u32) -> v1::NodeCount {
    v1::NodeCount { value: Some(v1::node_count::Value::Count(count)) }
}

/// The install of a release on every node at once.
#[must_use]
pub fn all_at_once(component: &str, version: &str) -> v1::RolloutSpec {
    let percent = v1::NodeCount { value: Some(v1::node_count::Value::Percent(100)) };
    v1::RolloutSpec {
        component: component.to_owned(),
        selector: "*".to_owned(),
        change: Some(v1::rollout_spec::Change::Install(v1::InstallChange {
            release: format!("releases/{component}@{version}"),
            ..Default::default()
        })),
        policy: Some(v1::RolloutPolicy {
            waves: vec![v1::WaveSpec { size: Some(percent), ..Default::default() }],
            max_unavailable: Some(percent),
            ..Default::default()
        }),
        ..Default::default()
    }
}
