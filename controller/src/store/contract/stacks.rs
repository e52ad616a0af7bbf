//! Patch releases, JVMs, history, and questions to the whole fleet.

use std::sync::Arc;

use upfleet_domain::{
    digest::Digest,
    id::NodeId,
    jvm::{Attachable, ClassProof, Jvm, Mechanism, Proof, Standing},
    order::Generation,
    patch::Fix,
    reason::{Reason, ReasonCode},
    release::Kind,
    report::ComponentInventory,
    state::ComponentState,
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

use super::fixtures::*;
use crate::store::*;

fn patch(version: &str, sequence: u64, number: u32) -> ReleaseRecord {
    let fixes = vec![Fix { id: format!("FIX-{number}"), text: "text".into() }];
    ReleaseRecord { kind: Kind::Patch, patch_number: Some(number), fixes, ..release(version, sequence) }
}

pub async fn a_patch_number_is_of_one_release(store: Arc<dyn Store>) {
    let create = |record: ReleaseRecord| vec![Change::CreateRelease(record)];
    store.commit(create(release("1.0", 1))).await.unwrap();
    store.commit(create(patch("p1", 1, 1))).await.expect("a patch's sequence is none of a base's");
    store.commit(create(patch("p2", 2, 2))).await.unwrap();
    let error = store.commit(create(patch("p2b", 3, 2))).await.unwrap_err();
    let StoreError::Conflict(conflict) = &error else { panic!("{error:?}") };
    let reason = conflict.reason();
    assert_eq!((reason.code, reason.metadata["release"].as_str()), (ReasonCode::NumberTaken, "web@p2"));
    let error = store.commit(create(patch("p3", 2, 3))).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::SequenceTaken { .. })), "{error}");
    let other = ReleaseRecord { component: "api".parse().unwrap(), ..patch("p2-api", 2, 2) };
    store.commit(create(other)).await.expect("another component counts for itself");

    let web = "web".parse().unwrap();
    let names = |rows: Vec<ReleaseRecord>| rows.iter().map(ReleaseRecord::name).collect::<Vec<_>>();
    let patches = store.releases(Some(&web), Some(Kind::Patch), &Page::ALL).await.unwrap().rows;
    assert_eq!(patches[0].manifest, patch("p2", 2, 2).manifest);
    assert_eq!(names(patches), ["web@p2", "web@p1"]);
    let binaries = store.releases(None, Some(Kind::Binary), &Page::ALL).await.unwrap().rows;
    assert_eq!(names(binaries), ["web@1.0"]);
    let heads = store.release_heads(None).await.unwrap();
    assert_eq!(heads.len(), 4);
    assert!(heads.iter().all(|head| head.manifest.is_empty()));
    assert_eq!(store.release_heads(Some(&web)).await.unwrap()[0].fixes[0].id, "FIX-2");
}

/// The inventory that says so as well comes later, and may not come before the next plan is made.
pub async fn the_end_of_an_upgrade_says_what_runs(store: Arc<dyn Store>) {
    let before = ComponentState::unmanaged(Digest::of(b"before"));
    let known = |changed, number| ComponentInventory {
        changed,
        generation: Generation { epoch: 1, number },
        ..inventory(before.clone())
    };
    let ended = UpgradeState::Ended(Outcome::Succeeded);
    // Each reports at 50, as of generation 1, that nothing is installed any more.
    let told = [
        ("a", known(Some(Time(40)), 1), true),
        ("b", known(Some(Time(60)), 1), false),
        ("c", known(None, 2), false),
    ];
    for (position, (node, inventory, newer)) in told.into_iter().enumerate() {
        let (upgrade_id, rollout) = (format!("u-{node}"), format!("r-{node}"));
        let upgrades = vec![upgrade(node, position, Some(&upgrade_id))];
        store
            .commit(vec![put_node(node), put(node, inventory), create(&rollout, 10, upgrades)])
            .await
            .unwrap();
        store
            .commit(vec![report(node, &upgrade_id, 1, UpgradeState::Active(Phase::Fetching))])
            .await
            .unwrap();
        assert_eq!(store.components(&node_id(node)).await.unwrap()[0].inventory.current, before);
        store.commit(vec![report(node, &upgrade_id, 2, ended)]).await.unwrap();
        let current = store.components(&node_id(node)).await.unwrap().remove(0).inventory.current;
        assert_eq!(current == ComponentState::absent(), newer, "{node}");
    }
}

fn put(node: &str, inventory: ComponentInventory) -> Change {
    Change::PutComponent { node: node_id(node), inventory, changed: None }
}

fn named(name: &str) -> ComponentInventory {
    ComponentInventory { component: name.parse().unwrap(), ..inventory(ComponentState::absent()) }
}

pub async fn each_component_is_visited_once(store: Arc<dyn Store>) {
    // More than are read at once, with nodes that have two.
    let ids: Vec<String> = (0..400).map(|n| format!("n-{n:03}")).collect();
    let mut changes: Vec<Change> = ids.iter().map(|id| put_node(id)).collect();
    changes.extend(ids.iter().flat_map(|id| [put(id, named("web")), put(id, named("api"))]));
    store.commit(changes).await.unwrap();
    let mut all = Vec::new();
    let mut visit =
        |record: ComponentRecord| all.push((record.node.to_string(), record.component().to_string()));
    store.each_component(None, &mut visit).await.unwrap();
    assert_eq!(all.len(), 800);
    assert!(all.is_sorted());
    let mut some = Vec::new();
    let mut visit = |record: ComponentRecord| some.push(record.node.to_string());
    store.each_component(Some(&"web".parse().unwrap()), &mut visit).await.unwrap();
    assert_eq!(some, ids);
}

fn proof(standings: &[Standing]) -> Proof {
    let class = |standing: &Standing| ClassProof {
        class: "com.acme.Order".into(),
        number: 1,
        standing: *standing,
        loader: "app".into(),
        source: Some("file:/p1.jar".into()),
        original: None,
        expected: Digest::of(b"new"),
        mechanism: Mechanism::JavaAgent,
        problem: String::new(),
    };
    let classes = standings.iter().map(class).collect();
    Proof { pid: 7, mechanism: Mechanism::JavaAgent, classes, alarms: vec![], time: Time(5) }
}

pub async fn what_is_wrong_is_counted(store: Arc<dyn Store>) {
    use Standing::{Armed, Old, Proved};
    store.commit(vec![put_node("a"), put_node("b")]).await.unwrap();
    let drift = Some(Reason::new(ReasonCode::ClassOld));
    let bad = ComponentInventory { drift, proof: Some(proof(&[Old, Old, Proved])), ..named("web") };
    let alarms = vec![Reason::new(ReasonCode::JarReplaced)];
    let odd = ComponentInventory { alarms, proof: Some(proof(&[Armed])), ..named("web") };
    store.commit(vec![put("a", bad.clone()), put("b", odd.clone())]).await.unwrap();
    let expected = ComponentCount { component: "web".into(), drifted: 1, alarmed: 1, old_classes: 2 };
    assert_eq!(store.component_counts().await.unwrap(), vec![expected]);
    let read = store.components(&node_id("b")).await.unwrap().remove(0);
    assert_eq!(read.inventory, odd, "proof and alarms are kept whole");
    store.commit(vec![put("a", named("web")), put("b", named("web"))]).await.unwrap();
    assert_eq!(store.component_counts().await.unwrap(), vec![]);
}

fn jvm(pid: u32) -> Jvm {
    Jvm {
        pid,
        inner_pid: None,
        started: Time(1),
        uid: 1000,
        java_home: "/opt/jdk".into(),
        java_version: "17.0.15".into(),
        vendor: "Debian".into(),
        main: "com.acme.Main".into(),
        class_path: vec!["/srv/log4j-core-2.14.1.jar".into()],
        java_agents: vec![],
        attachable: Attachable::No("it was started with -Xrs".into()),
        container: true,
        component: None,
    }
}

pub async fn jvms_are_replaced_as_a_whole(store: Arc<dyn Store>) {
    let put = |node: &str, jvms| vec![Change::PutJvms { node: node_id(node), jvms }];
    let error = store.commit(put("x", vec![])).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Missing { what: "node", .. })), "{error:?}");
    store.commit(vec![put_node("a"), put_node("b"), put_node("c")]).await.unwrap();
    assert_eq!(store.jvms(&node_id("a")).await.unwrap(), vec![]);
    for (node, pid) in [("a", 1), ("a", 2), ("b", 3), ("c", 4)] {
        store.commit(put(node, vec![jvm(pid)])).await.unwrap();
    }
    assert_eq!(store.jvms(&node_id("a")).await.unwrap(), vec![jvm(2)]);
    let visited = async |first: Option<NodeId>, most: usize| {
        let mut seen = Vec::new();
        let mut visit = |record: JvmsRecord| {
            seen.push(record.jvms[0].pid);
            seen.len() < most
        };
        store.each_jvms(first.as_ref(), &mut visit).await.unwrap();
        seen
    };
    assert_eq!(visited(None, 9).await, [2, 3, 4]);
    assert_eq!(visited(None, 2).await, [2, 3]);
    assert_eq!(visited(Some(node_id("b")), 9).await, [3, 4]);
}

pub async fn history_has_each_attempt_and_each_change_by_hand(store: Arc<dyn Store>) {
    let (one, two) =
        (ComponentState::unmanaged(Digest::of(b"1")), ComponentState::unmanaged(Digest::of(b"2")));
    store.commit(vec![put_node("a"), create("r", 10, vec![upgrade("a", 0, Some("u-1"))])]).await.unwrap();
    let history = async |component: Option<&str>, page: &Page| {
        let component = component.map(|name| name.parse().unwrap());
        store.history(&node_id("a"), component.as_ref(), page).await.unwrap()
    };
    let say = |sequence, state| vec![report("a", "u-1", sequence, state)];
    store.commit(say(1, UpgradeState::Active(Phase::Fetching))).await.unwrap();
    assert!(history(None, &Page::ALL).await.rows.is_empty(), "it has not ended");
    store.commit(say(2, UpgradeState::Ended(Outcome::RolledBack))).await.unwrap();
    let entry = history(None, &Page::ALL).await.rows.remove(0);
    assert_eq!((entry.state, entry.time), (UpgradeState::Ended(Outcome::RolledBack), Time(60)));
    assert_eq!((entry.rollout, entry.actor.as_str()), (Some(rollout_id("r")), "users/anna"));

    // Another attempt does not take the first one's place.
    let mut again = store.upgrade(&rollout_id("r"), &node_id("a")).await.unwrap().unwrap();
    again.id = Some("u-2".parse().unwrap());
    again.state = UpgradeState::Ended(Outcome::Succeeded);
    again.ended = Some(Time(70));
    let (rollout, upgrade) = (rollout_id("r"), Box::new(again));
    let change = Change::PutUpgrade { rollout, upgrade, expected: Expected::Any, time: Time(70) };
    store.commit(vec![change.clone()]).await.unwrap();
    store.commit(vec![change]).await.unwrap();
    assert_eq!(history(None, &Page::ALL).await.rows.len(), 2, "said twice it is one");

    let by_hand = |current: &ComponentState, changed| {
        let hold = Some(Reason::new(ReasonCode::LocalApply).with("message", "site visit"));
        let changer = "local".to_owned();
        put(
            "a",
            ComponentInventory { changed: Some(Time(changed)), changer, hold, ..inventory(current.clone()) },
        )
    };
    store.commit(vec![put("a", inventory(one.clone()))]).await.unwrap();
    for _ in 0..2 {
        store.commit(vec![by_hand(&two, 90)]).await.unwrap();
    }
    let newest = history(Some("web"), &Page::first(1)).await;
    assert_eq!(
        (newest.rows[0].actor.as_str(), &newest.rows[0].reason.code),
        ("local", &ReasonCode::LocalApply)
    );
    assert_eq!((&newest.rows[0].from, &newest.rows[0].to), (&one, &two));
    let rest = history(Some("web"), &Page { after: newest.next, limit: 9 }).await;
    let times: Vec<i64> = rest.rows.iter().map(|entry| entry.time.0).collect();
    assert_eq!(times, [70, 60], "newest first");
    assert!(history(Some("api"), &Page::ALL).await.rows.is_empty());
}
