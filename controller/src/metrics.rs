//! What Prometheus reads. No node names as labels: their number has no bound.
//!
//! Most is counted from the store when it is asked for, so that nothing here can differ from the truth.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    ops::Operations,
    store::{NodeRecord, Page, StoreError},
    tls::Live,
    version::VERSION,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    state: String,
    online: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ComponentLabel {
    component: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RoleLabel {
    role: String,
}

/// The page that is scraped.
///
/// # Errors
/// Where the store can't be read.
pub async fn page(operations: &Operations, live: &Live, server_expires: i64) -> Result<String, StoreError> {
    let mut registry = Registry::with_prefix("upfleet");
    let version = vec![("version", VERSION)];
    registry.register("build", "The controller's version", Info::new(version));

    let nodes = Family::<NodeLabels, Gauge>::default();
    for ((state, online), count) in count_nodes(operations).await? {
        nodes.get_or_create(&NodeLabels { state, online: online.to_string() }).set(count);
    }
    registry.register("nodes", "Nodes by state, and whether their agent is connected", nodes);

    let rollouts = Family::<StateLabel, Gauge>::default();
    for rollout in operations.store.rollouts(None, &[], &Page::ALL).await?.rows {
        rollouts.get_or_create(&StateLabel { state: rollout.rollout.state.to_string() }).inc();
    }
    registry.register("rollouts", "Rollouts by state", rollouts);

    stacks(operations, &mut registry).await?;

    let gauge = |value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    registry.register("agent_streams", "Open sessions of agents", gauge(operations.sessions.count()));
    registry.register("connections", "Open TLS connections", gauge(live.count()));
    let sent = ConstCounter::new(operations.downloaded.load(Ordering::Relaxed));
    registry.register_with_unit("download", "Artifact bytes sent", Unit::Bytes, sent);

    let expiry = Family::<RoleLabel, Gauge>::default();
    expiry.get_or_create(&RoleLabel { role: "controller".to_owned() }).set(server_expires);
    registry.register_with_unit("cert_expiry_timestamp", "When a certificate expires", Unit::Seconds, expiry);

    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    Ok(text)
}

/// What runs that should not, by component.
async fn stacks(operations: &Operations, registry: &mut Registry) -> Result<(), StoreError> {
    let (drifted, alarmed) = (Family::<ComponentLabel, Gauge>::default(), Family::default());
    let old: Family<ComponentLabel, Gauge> = Family::default();
    for count in operations.store.component_counts().await? {
        let label = ComponentLabel { component: count.component };
        let set = |family: &Family<ComponentLabel, Gauge>, value: u64| {
            family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&drifted, count.drifted);
        set(&alarmed, count.alarmed);
        set(&old, count.old_classes);
    }
    registry.register("components_drifted", "Nodes where something else runs than was recorded", drifted);
    registry.register("components_alarmed", "Nodes where something deserves a look", alarmed);
    registry.register("classes_old", "Patched classes that run old code, over all nodes", old);
    Ok(())
}

async fn count_nodes(operations: &Operations) -> Result<BTreeMap<(String, bool), i64>, StoreError> {
    // Counted as rows are read: none is kept.
    let counts = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
    let count = |node: &NodeRecord| {
        let key = (node.state.as_str().to_owned(), node.online());
        let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *counts.entry(key).or_insert(0) += 1;
        false
    };
    operations.store.nodes(&count, &Page::ALL).await?;
    let counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(counts.clone())
}
