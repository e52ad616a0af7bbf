//! The generated client with what tests ask again and again. Everything here, a third party could write.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tonic::Status;
use upfleet_api::v1::{self, rollout::State, rollout_spec::Change};
use upfleet_controller::cli::{client::Client, config::Context};
use upfleet_domain::{
    digest::Digest,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
};

use super::{program::COMPONENT, wait::eventually_async};

/// A connection with one identity.
pub struct Api {
    pub client: Client,
}

/// An InstallChange to `version`.
pub fn change(version: &str) -> Change {
    Change::Install(v1::InstallChange {
        release: format!("releases/{COMPONENT}@{version}"),
        ..Default::default()
    })
}

/// The states of a rollout's upgrades, by node.
pub fn upgrade_states(upgrades: &[v1::Upgrade]) -> BTreeMap<String, v1::UpgradeState> {
    upgrades
        .iter()
        .map(|upgrade| (upgrade.node.trim_start_matches("nodes/").to_owned(), upgrade.state()))
        .collect()
}

impl Api {
    /// Connects as `context` says.
    pub async fn connect(context: &Context) -> Self {
        let client = Client::connect("test", context).await.unwrap_or_else(|failure| panic!("{failure:?}"));
        Self { client }
    }

    /// Uploads `bytes` and publishes them as `version`, for every processor.
    pub async fn publish(&self, version: &str, sequence: u64, bytes: &[u8]) -> Digest {
        let digest = self.upload(bytes).await;
        self.publish_manifest(&manifest(version, sequence, bytes)).await.unwrap();
        digest
    }

    /// Publishes a manifest made by the caller.
    pub async fn publish_manifest(&self, manifest: &Manifest) -> Result<v1::Release, Status> {
        let request = v1::CreateReleaseRequest { manifest: manifest.to_bytes().into(), ..Default::default() };
        Ok(self.client.releases().create_release(request).await?.into_inner().release.unwrap())
    }

    /// Uploads the bytes of an agent and publishes them as `version`.
    pub async fn publish_agent(&self, version: &str, sequence: u64, bytes: &[u8]) -> Digest {
        let digest = self.upload(bytes).await;
        let component = super::AGENT.parse().unwrap();
        let manifest = Manifest { component, kind: Kind::Agent, ..manifest(version, sequence, bytes) };
        self.publish_manifest(&manifest).await.unwrap();
        digest
    }

    /// Uploads bytes.
    pub async fn upload(&self, bytes: &[u8]) -> Digest {
        use v1::upload_artifact_request::Part;
        let digest = Digest::of(bytes);
        let start =
            v1::UploadStart { digest: Some((&digest).into()), size_bytes: bytes.len() as u64, offset: 0 };
        let mut parts = vec![Part::Start(start)];
        parts.extend(bytes.chunks(1 << 19).map(|chunk| Part::Data(chunk.to_vec().into())));
        parts.push(Part::Commit(v1::UploadCommit {}));
        let stream = tokio_stream::iter(
            parts.into_iter().map(|part| v1::UploadArtifactRequest { part: Some(part) }).collect::<Vec<_>>(),
        );
        self.client.artifacts().upload_artifact(stream).await.unwrap();
        digest
    }

    /// Creates a rollout.
    pub async fn create(&self, spec: v1::RolloutSpec) -> Result<v1::Rollout, Status> {
        let request = v1::CreateRolloutRequest {
            spec: Some(spec),
            message: "a test".to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        Ok(self.client.rollouts().create_rollout(request).await?.into_inner().rollout.unwrap())
    }

    /// Creates a rollout and starts it; returns its name.
    pub async fn start(&self, spec: v1::RolloutSpec) -> String {
        let name = self.create(spec).await.unwrap().name;
        self.begin(&name).await;
        name
    }

    /// Starts a rollout that was created before.
    pub async fn begin(&self, name: &str) {
        let request = v1::StartRolloutRequest { name: name.to_owned(), ..Default::default() };
        self.client.rollouts().start_rollout(request).await.unwrap();
    }

    pub async fn rollout(&self, name: &str) -> v1::Rollout {
        let request = v1::GetRolloutRequest { name: name.to_owned() };
        self.client.rollouts().get_rollout(request).await.unwrap().into_inner().rollout.unwrap()
    }

    pub async fn upgrades(&self, name: &str) -> Vec<v1::Upgrade> {
        let request =
            v1::ListUpgradesRequest { parent: name.to_owned(), page_size: 1000, ..Default::default() };
        self.client.rollouts().list_upgrades(request).await.unwrap().into_inner().upgrades
    }

    pub async fn upgrade(&self, name: &str, node: &str) -> v1::Upgrade {
        let wanted = format!("nodes/{node}");
        let found = self.upgrades(name).await.into_iter().find(|upgrade| upgrade.node == wanted);
        found.unwrap_or_else(|| panic!("{name} has no upgrade of {node}"))
    }

    /// Waits until the rollout is in `state`.
    pub async fn reach(&self, name: &str, state: State) -> v1::Rollout {
        eventually_async(&format!("{name} to be {state:?}"), || async {
            // A controller that is being restarted is asked again.
            let request = v1::GetRolloutRequest { name: name.to_owned() };
            let rollout = match self.client.rollouts().get_rollout(request).await {
                Ok(response) => response.into_inner().rollout.unwrap(),
                Err(status) => return Err(status.to_string()),
            };
            if rollout.state() == state {
                return Ok(rollout);
            }
            let upgrades: Vec<_> = match self
                .client
                .rollouts()
                .list_upgrades(v1::ListUpgradesRequest {
                    parent: name.to_owned(),
                    page_size: 1000,
                    ..Default::default()
                })
                .await
            {
                Ok(response) => response.into_inner().upgrades.iter().map(describe).collect(),
                Err(status) => return Err(status.to_string()),
            };
            let reason = rollout.reason.as_ref().map_or("", |reason| &reason.message);
            Err(format!("{:?}: {reason}\n  {}", rollout.state(), upgrades.join("\n  ")))
        })
        .await
    }

    /// Waits until the upgrade of `node` is in `state`.
    pub async fn reach_upgrade(&self, name: &str, node: &str, state: v1::UpgradeState) -> v1::Upgrade {
        eventually_async(&format!("{node} to be {state:?}"), || async {
            let upgrade = self.upgrade(name, node).await;
            if upgrade.state() == state { Ok(upgrade) } else { Err(describe(&upgrade)) }
        })
        .await
    }

    pub async fn node(&self, name: &str) -> v1::Node {
        let request = v1::GetNodeRequest { name: format!("nodes/{name}") };
        self.client.nodes().get_node(request).await.unwrap().into_inner().node.unwrap()
    }

    /// The test component of a node, as the controller knows it.
    pub async fn component(&self, node: &str) -> Option<v1::NodeComponent> {
        self.node(node).await.components.into_iter().find(|component| component.component == COMPONENT)
    }

    /// Waits until `node` is connected or not.
    pub async fn reach_online(&self, node: &str, online: bool) {
        eventually_async(&format!("{node} online: {online}"), || async {
            let request = v1::GetNodeRequest { name: format!("nodes/{node}") };
            match self.client.nodes().get_node(request).await {
                Ok(response)
                    if response.get_ref().node.as_ref().is_some_and(|node| node.online == online) =>
                {
                    Ok(())
                }
                Ok(_) => Err("not yet".to_owned()),
                Err(status) => Err(status.to_string()),
            }
        })
        .await;
    }

    /// Every recorded change of a rollout so far, oldest first, as (revision, change).
    pub async fn history(&self, name: &str) -> Vec<v1::WatchRolloutResponse> {
        let latest = self.rollout(name).await.revision;
        let request = v1::WatchRolloutRequest { name: name.to_owned(), from_revision: 0, progress: false };
        let mut stream = self.client.rollouts().watch_rollout(request).await.unwrap().into_inner();
        let mut changes = Vec::new();
        while let Ok(Ok(Some(change))) = tokio::time::timeout(Duration::from_secs(10), stream.message()).await
        {
            let last = change.revision >= latest;
            changes.push(change);
            if last {
                break;
            }
        }
        changes
    }

    /// Every state the rollout and its waves were ever in, from its recorded history.
    pub async fn states_seen(&self, name: &str) -> (BTreeSet<State>, BTreeSet<v1::wave::State>) {
        let (mut states, mut waves) = (BTreeSet::new(), BTreeSet::new());
        for change in self.history(name).await {
            if let Some(v1::watch_rollout_response::Change::Rollout(rollout)) = change.change {
                states.insert(rollout.state());
                waves.extend(rollout.waves.iter().map(v1::Wave::state));
            }
        }
        (states, waves)
    }

    /// How often `node` entered `state` in the rollout.
    pub async fn times_entered(&self, name: &str, node: &str, state: v1::UpgradeState) -> usize {
        use v1::watch_rollout_response::Change;
        let wanted = format!("nodes/{node}");
        self.history(name)
            .await
            .iter()
            .filter(|change| change.previous_state() != state)
            .filter(|change| match &change.change {
                Some(Change::Upgrade(upgrade)) => upgrade.node == wanted && upgrade.state() == state,
                _ => false,
            })
            .count()
    }
}

/// The manifest of a release that is one file for every processor.
pub fn manifest(version: &str, sequence: u64, bytes: &[u8]) -> Manifest {
    Manifest {
        format: FORMAT,
        component: COMPONENT.parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { os: "linux".to_owned(), arch: "any".to_owned() },
            sha256: Digest::of(bytes),
            md5: None,
            size: bytes.len() as u64,
            sources: Vec::new(),
            encodings: Vec::new(),
        }],
        fixes: Vec::new(),
        patch: None,
        files: None,
    }
}

fn describe(upgrade: &v1::Upgrade) -> String {
    let reason = upgrade
        .reason
        .as_ref()
        .map_or(String::new(), |reason| format!("{} ({})", reason.message, reason.code));
    format!("{} {:?}: {reason}", upgrade.node, upgrade.state())
}
