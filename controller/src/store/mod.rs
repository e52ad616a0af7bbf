//! The store: all that the controller knows.
//!
//! Nothing else is the truth: sessions, the engine and watches follow the store by [`Notice`]s and read it
//! again after a restart. There is one way to write, [`Store::commit`]: a batch of [`Change`]s, each with
//! its precondition, written whole or not at all. The trait speaks domain types only; it must not know the
//! wire, and nothing outside an implementation may know SQL.

mod change;
#[cfg(test)]
pub(crate) mod contract;
mod error;
mod notice;
mod page;
mod records;
mod report;
pub mod sqlite;

use async_trait::async_trait;
use tokio::sync::broadcast;
use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, NodeId, RolloutId, UpgradeId, Version},
    jvm::Jvm,
    release::Kind,
    rollout::{NodeUpgrade, Plan, State},
    upgrade::UpgradeState,
};

#[cfg(test)]
pub(crate) use contract::fixtures;

pub use change::{Change, Committed, Expected, ReportOutcome};
pub use error::{Conflict, StoreError};
pub use notice::Notice;
pub use page::{DEFAULT_PAGE, MAX_PAGE, Page, Rows};
pub use records::*;

/// What a read or write gives.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Chooses nodes; runs on rows as they are read.
pub type NodeFilter<'a> = &'a (dyn Fn(&NodeRecord) -> bool + Send + Sync);

/// All that the controller knows. Share it as `Arc<dyn Store>`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a batch whole or not at all, and returns once it is durable.
    ///
    /// Batches of many callers share one write to the disk; each is atomic by itself, and they are applied in
    /// the order they came.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where a precondition did not hold, [`StoreError::Unavailable`] where the disk
    /// or a lock forbids it; nothing of the batch is written then.
    async fn commit(&self, changes: Vec<Change>) -> Result<Committed>;

    /// Hears of changes from now on. Whoever lags reads everything again.
    fn subscribe(&self) -> broadcast::Receiver<Notice>;

    /// What is known about the store itself; also tells whether it can be read.
    async fn meta(&self) -> Result<Meta>;

    /// Whether it can be read and written, by trying both.
    async fn probe(&self) -> Result<()> {
        self.meta().await.map(drop)
    }

    /// One node.
    async fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>>;
    /// Nodes that `filter` chooses, by name; page keys are node names.
    async fn nodes(&self, filter: NodeFilter<'_>, page: &Page) -> Result<Rows<NodeRecord>>;
    /// What a node's components run, by name.
    async fn components(&self, node: &NodeId) -> Result<Vec<ComponentRecord>>;
    /// What one component runs on all nodes that have it, by node.
    async fn components_named(&self, component: &ComponentId) -> Result<Vec<ComponentRecord>>;
    /// Hands over what each component of each node runs, or only one component, by node. None is kept in memory.
    async fn each_component(
        &self,
        component: Option<&ComponentId>,
        visit: &mut (dyn FnMut(ComponentRecord) + Send),
    ) -> Result<()>;
    /// How the nodes that have a component stand, in numbers; by component, and only where there is something to count.
    async fn component_counts(&self) -> Result<Vec<ComponentCount>>;
    /// The JVMs of one node.
    async fn jvms(&self, node: &NodeId) -> Result<Vec<Jvm>>;
    /// Hands over the JVMs of each node from `first` on, by node, until `visit` says that it has enough.
    async fn each_jvms(
        &self,
        first: Option<&NodeId>,
        visit: &mut (dyn FnMut(JvmsRecord) -> bool + Send),
    ) -> Result<()>;
    /// What became of a node's components, newest first; only of one component where given.
    async fn history(
        &self,
        node: &NodeId,
        component: Option<&ComponentId>,
        page: &Page,
    ) -> Result<Rows<HistoryRecord>>;
    /// What a node should run, by component.
    async fn desired(&self, node: &NodeId) -> Result<Vec<DesiredRecord>>;
    /// What one component should run on all nodes that were ever told, by node.
    async fn desired_named(&self, component: &ComponentId) -> Result<Vec<DesiredRecord>>;

    /// One artifact's record.
    async fn artifact(&self, digest: &Digest) -> Result<Option<ArtifactRecord>>;
    /// Artifacts, newest first.
    async fn artifacts(&self, page: &Page) -> Result<Rows<ArtifactRecord>>;
    /// The releases that name an artifact, as `component@version`.
    async fn releases_naming(&self, artifact: &Digest) -> Result<Vec<String>>;
    /// One release, by name.
    async fn release(&self, component: &ComponentId, version: &Version) -> Result<Option<ReleaseRecord>>;
    /// One release, by the SHA-256 of its manifest.
    async fn release_by_manifest(&self, manifest: &Digest) -> Result<Option<ReleaseRecord>>;
    /// Releases, by component and highest sequence first; only of a kind where given.
    async fn releases(
        &self,
        component: Option<&ComponentId>,
        kind: Option<Kind>,
        page: &Page,
    ) -> Result<Rows<ReleaseRecord>>;
    /// All releases without their manifests, only of a component where given.
    async fn release_heads(&self, component: Option<&ComponentId>) -> Result<Vec<ReleaseRecord>>;
    /// A digest's quarantine, also a lifted one.
    async fn quarantine(&self, digest: &Digest) -> Result<Option<QuarantineRecord>>;
    /// Where a digest rolled back since its quarantine was last lifted.
    async fn digest_failures(&self, digest: &Digest) -> Result<Vec<DigestFailure>>;

    /// One certificate, by its serial in lower-case hex.
    async fn certificate(&self, serial: &str) -> Result<Option<CertificateRecord>>;
    /// Certificates of one kind of subject (`node`, `user`, `controller`), newest first; of one subject where
    /// `id` is given.
    async fn certificates(
        &self,
        kind: &str,
        id: Option<&str>,
        page: &Page,
    ) -> Result<Rows<CertificateRecord>>;
    /// The serials that must be cut off: revoked or suspended, and not expired at `now`.
    async fn refused_serials(&self, now: upfleet_domain::time::Time) -> Result<Vec<String>>;
    /// One token.
    async fn token(&self, id: &str) -> Result<Option<TokenRecord>>;
    /// Tokens that are not used up, newest first.
    async fn tokens(&self, page: &Page) -> Result<Rows<TokenRecord>>;

    /// One rollout.
    async fn rollout(&self, id: &RolloutId) -> Result<Option<RolloutRecord>>;
    /// Rollouts, newest first; only of a component where given, only in `states` where not empty.
    async fn rollouts(
        &self,
        component: Option<&ComponentId>,
        states: &[State],
        page: &Page,
    ) -> Result<Rows<RolloutRecord>>;
    /// Rollouts that are not terminal, oldest first.
    async fn open_rollouts(&self) -> Result<Vec<RolloutRecord>>;
    /// A rollout's plan.
    async fn plan(&self, rollout: &RolloutId) -> Result<Option<Plan>>;
    /// A rollout's upgrades by wave and place within it; only in `states` where not empty.
    async fn upgrades(
        &self,
        rollout: &RolloutId,
        states: &[UpgradeState],
        page: &Page,
    ) -> Result<Rows<NodeUpgrade>>;
    /// One node's upgrade in a rollout.
    async fn upgrade(&self, rollout: &RolloutId, node: &NodeId) -> Result<Option<NodeUpgrade>>;
    /// The upgrade whose present attempt has this id.
    async fn upgrade_by_id(&self, id: &UpgradeId) -> Result<Option<(RolloutId, NodeUpgrade)>>;
    /// A rollout's upgrades that changed after a revision, in the order of their changes.
    async fn upgrades_changed_since(&self, rollout: &RolloutId, revision: u64) -> Result<Vec<NodeUpgrade>>;
    /// How many upgrades of a rollout are in which state.
    async fn upgrade_counts(
        &self,
        rollout: &RolloutId,
    ) -> Result<std::collections::BTreeMap<UpgradeState, u32>>;
    /// A rollout's events after a revision, at most `limit`, in order.
    async fn events(&self, rollout: &RolloutId, after: u64, limit: u32) -> Result<Vec<EventRecord>>;

    /// The stored answer to a request.
    async fn request(&self, principal: &str, id: &str) -> Result<Option<RequestRecord>>;
    /// Who changed what, newest first; only of an object where given.
    async fn audit(&self, object: Option<&str>, page: &Page) -> Result<Rows<AuditRecord>>;
}
