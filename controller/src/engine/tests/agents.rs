//! Agents that do what agents do, through the store as sessions would.

use std::collections::BTreeMap;

use upfleet_domain::{
    digest::Digest,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    order::{DesiredState, Generation, Target},
    reason::Reason,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    report::{ComponentInventory, UpgradeReport},
    rollout::Rollout,
    state::{Base, Layer, ReleaseRef},
    time::Time,
    upgrade::{Phase, UpgradeState},
};

use super::*;
use crate::store::{
    Change, Expected, NodeRecord, NodeState, ReleaseRecord, SessionRecord, sqlite::SqliteStore,
};

/// What becomes of a node's upgrade.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Good,
    Bad,
}

/// What the agents did.
#[derive(Default)]
pub struct Agents {
    down: AtomicUsize,
    most: AtomicUsize,
    swaps: Mutex<BTreeMap<NodeId, Vec<UpgradeId>>>,
    installed: Mutex<BTreeMap<NodeId, ComponentState>>,
    orders: Mutex<Vec<DesiredState>>,
}

impl Agents {
    /// What was ordered, in the order it was obeyed.
    pub fn orders(&self) -> Vec<DesiredState> {
        lock(&self.orders).clone()
    }

    pub fn most_down(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub fn swaps(&self) -> BTreeMap<NodeId, Vec<UpgradeId>> {
        lock(&self.swaps).clone()
    }

    pub fn installed(&self) -> BTreeMap<NodeId, ComponentState> {
        lock(&self.installed).clone()
    }
}

pub struct World {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub rollouts: Rollouts,
    pub agents: Arc<Agents>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn platform() -> Platform {
    Platform { os: "linux".into(), arch: "amd64".into() }
}

fn manifest() -> Manifest {
    let sha256 = Digest::of(b"2.0.0");
    let artifact =
        ArtifactRef { platform: platform(), sha256, md5: None, size: 1, sources: vec![], encodings: vec![] };
    Manifest {
        format: FORMAT,
        component: "web".parse().unwrap(),
        version: "2.0.0".parse().unwrap(),
        sequence: 2,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: Vec::new(),
        patch: None,
        files: None,
    }
}

pub fn old() -> ComponentState {
    ComponentState::unmanaged(Digest::of(b"1.0.0"))
}

pub fn new() -> ComponentState {
    let manifest = manifest();
    ComponentState::release(ReleaseRef {
        component: manifest.component.clone(),
        version: manifest.version.clone(),
        sequence: 2,
        manifest: Digest::of(&manifest.to_bytes()),
        artifact: manifest.artifacts[0].sha256,
    })
}

/// Publishes a release.
pub fn publish(manifest: Manifest) -> Change {
    let bytes = manifest.to_bytes();
    Change::CreateRelease(ReleaseRecord {
        component: manifest.component,
        version: manifest.version,
        sequence: manifest.sequence,
        digest: Digest::of(&bytes),
        manifest: bytes,
        signatures: vec![],
        kind: manifest.kind,
        patch_number: manifest.patch.as_ref().map(|patch| patch.number),
        fixes: manifest.patch.map_or(manifest.fixes, |patch| patch.fixes),
        notes: String::new(),
        artifacts: manifest.artifacts,
        created: Time(1),
        creator: "users/ci".into(),
        yanked: None,
    })
}

fn inventory(current: ComponentState) -> ComponentInventory {
    ComponentInventory {
        component: "web".parse().unwrap(),
        current,
        previous: None,
        kept: vec![],
        kept_digests: vec![],
        running: None,
        healthy: true,
        hold: None,
        drift: None,
        generation: Generation::default(),
        hold_generation: 0,
        upgrade: None,
        upgrade_state: None,
        run_mode: "supervised".into(),
        pid: None,
        changed: None,
        changer: "controller".into(),
        failed: vec![],
        proof: None,
        alarms: Vec::new(),
        patchable: true,
    }
}

fn node(id: &NodeId, current: &ComponentState) -> Vec<Change> {
    let record = NodeRecord {
        id: id.clone(),
        uid: id.to_string(),
        labels: BTreeMap::new(),
        state: NodeState::Active,
        reason: None,
        platform: Some(platform()),
        facts: BTreeMap::new(),
        created: Time(1),
        cert_expires: None,
        session: None,
        last_seen: None,
        revision: 0,
    };
    let session = SessionRecord { instance_id: "i".into(), boot_id: "b".into(), since: Time(1) };
    vec![
        Change::PutNode { node: record, expected: Expected::Absent },
        Change::OpenSession { node: id.clone(), session, platform: Some(platform()), facts: BTreeMap::new() },
        Change::PutComponent { node: id.clone(), inventory: inventory(current.clone()), changed: None },
    ]
}

impl World {
    pub async fn new(fates: &[Fate]) -> Self {
        Self::running(&old(), vec![], fates).await
    }

    /// Nodes that all run `current`, with more releases than the one.
    pub async fn running(current: &ComponentState, releases: Vec<Manifest>, fates: &[Fate]) -> Self {
        // On disk: a store in memory goes with its one connection, which a killed reader takes along.
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path()).await.unwrap());
        let clock = Clock::System;
        let (agents, stop) = (Arc::new(Agents::default()), CancellationToken::new());
        let releases = releases.into_iter().chain([manifest()]).map(publish);
        store.commit(releases.collect()).await.unwrap();
        for (index, fate) in fates.iter().enumerate() {
            let id: NodeId = format!("n{index:02}").parse().unwrap();
            store.commit(node(&id, current)).await.unwrap();
            lock(&agents.installed).insert(id.clone(), current.clone());
            let agent = Agent { store: store.clone(), agents: agents.clone(), id, fate: *fate, sequence: 0 };
            tokio::spawn(stop.clone().run_until_cancelled_owned(agent.run()));
        }
        let rollouts = Rollouts::new(store.clone(), clock.clone());
        Self { store, clock, rollouts, agents, stop, _dir: dir }
    }

    /// Waits for a rollout's state.
    pub async fn until(&self, id: &RolloutId, wanted: impl Fn(State) -> bool) -> Rollout {
        let mut notices = self.store.subscribe();
        let reached = async {
            loop {
                let rollout = self.rollouts.rollout(id).await.unwrap();
                if wanted(rollout.state) {
                    return rollout;
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), notices.recv()).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), reached).await {
            Ok(rollout) => rollout,
            Err(_) => panic!("still {:?}", self.rollouts.rollout(id).await),
        }
    }
}

/// What a JVM with these layers says.
fn proof(layers: &[Layer]) -> Proof {
    let class = |layer: &Layer| ClassProof {
        class: format!("com.acme.C{}", layer.number),
        number: layer.number,
        standing: Standing::Proved,
        loader: "app".into(),
        source: None,
        original: None,
        expected: layer.release.artifact,
        mechanism: Mechanism::JavaAgent,
        problem: String::new(),
    };
    let classes = layers.iter().map(class).collect();
    Proof { pid: 7, mechanism: Mechanism::JavaAgent, classes, alarms: vec![], time: Time(1) }
}

struct Agent {
    store: Arc<dyn Store>,
    agents: Arc<Agents>,
    id: NodeId,
    fate: Fate,
    sequence: u64,
}

impl Agent {
    async fn run(mut self) {
        let mut notices = self.store.subscribe();
        let mut seen = Generation::default();
        let mut last = None;
        loop {
            let desired = self.store.desired(&self.id).await.unwrap().pop().and_then(|row| row.desired);
            match desired.filter(|desired| desired.generation > seen) {
                Some(desired) => {
                    seen = desired.generation;
                    if desired.upgrade.is_some() && desired.upgrade != last {
                        last.clone_from(&desired.upgrade);
                        self.obey(&desired).await;
                    }
                }
                None => {
                    let _ = tokio::time::timeout(Duration::from_secs(1), notices.recv()).await;
                }
            }
        }
    }

    async fn obey(&mut self, desired: &DesiredState) {
        self.sequence = 0;
        lock(&self.agents.orders).push(desired.clone());
        let from = lock(&self.agents.installed)[&self.id].clone();
        let to = match &desired.target {
            Target::Install(release) => {
                ComponentState { base: Base::Release(release.clone()), layers: desired.layers.clone() }
            }
            Target::Stack(base) => ComponentState { base: base.clone(), layers: desired.layers.clone() },
            Target::Restore(state) => state.clone(),
            Target::Stay => return self.say(desired, UpgradeState::Ended(Outcome::Cancelled)).await,
        };
        for phase in [Phase::Preflight, Phase::Fetching, Phase::Staged] {
            self.say(desired, UpgradeState::Active(phase)).await;
        }
        let down = self.agents.down.fetch_add(1, Ordering::SeqCst) + 1;
        self.agents.most.fetch_max(down, Ordering::SeqCst);
        let id = desired.upgrade.clone().unwrap();
        lock(&self.agents.swaps).entry(self.id.clone()).or_default().push(id);
        lock(&self.agents.installed).insert(self.id.clone(), to.clone());
        self.say(desired, UpgradeState::Active(Phase::Activating)).await;
        self.say(desired, UpgradeState::Active(Phase::Probing)).await;
        let bad = self.fate == Fate::Bad && !matches!(desired.target, Target::Restore(_));
        if bad {
            self.say(desired, UpgradeState::Active(Phase::RollingBack)).await;
            lock(&self.agents.installed).insert(self.id.clone(), from.clone());
        }
        self.agents.down.fetch_sub(1, Ordering::SeqCst);
        let outcome = if bad { Outcome::RolledBack } else { Outcome::Succeeded };
        let current = lock(&self.agents.installed)[&self.id].clone();
        let mut inventory = inventory(current);
        inventory.kept = vec![from];
        inventory.upgrade.clone_from(&desired.upgrade);
        inventory.upgrade_state = Some(UpgradeState::Ended(outcome));
        inventory.generation = desired.generation;
        let put = Change::PutComponent { node: self.id.clone(), inventory, changed: None };
        self.store.commit(vec![put]).await.unwrap();
        self.say(desired, UpgradeState::Ended(outcome)).await;
    }

    async fn say(&mut self, desired: &DesiredState, state: UpgradeState) {
        self.sequence += 1;
        let report = UpgradeReport {
            upgrade: desired.upgrade.clone().unwrap(),
            component: desired.component.clone(),
            sequence: self.sequence,
            generation: desired.generation,
            state,
            reason: Reason::new(ReasonCode::Checking),
            time: Time(1),
            from: None,
            current: Some(lock(&self.agents.installed)[&self.id].clone()),
            running: None,
            evidence: None,
            proof: state.outcome().map(|_| proof(&desired.layers)),
            reload: None,
            interruption: None,
        };
        let change = Change::RecordReport { node: self.id.clone(), report: Box::new(report), time: Time(1) };
        self.store.commit(vec![change]).await.unwrap();
    }
}
