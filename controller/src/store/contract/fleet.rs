//! Nodes, sessions, components and desired states.

use std::{collections::BTreeMap, sync::Arc};

use upfleet_domain::{
    digest::Digest,
    order::{Generation, HoldOrder},
    reason::{Reason, ReasonCode},
    release::Platform,
    state::ComponentState,
    time::Time,
};

use super::fixtures::*;
use crate::store::*;

pub async fn nodes_are_guarded_by_revision(store: Arc<dyn Store>) {
    store.commit(vec![put_node("a")]).await.unwrap();
    let mut read = store.node(&node_id("a")).await.unwrap().unwrap();
    assert_eq!(read.revision, 1);
    read.state = NodeState::Cordoned;
    let put = |expected| vec![Change::PutNode { node: read.clone(), expected }];
    store.commit(put(Expected::Revision(1))).await.unwrap();
    assert!(store.commit(put(Expected::Revision(1))).await.unwrap_err().is_stale());
    let read = store.node(&node_id("a")).await.unwrap().unwrap();
    assert_eq!((read.state, read.revision), (NodeState::Cordoned, 2));
    let gone = vec![Change::PutNode { node: node("b"), expected: Expected::Revision(1) }];
    let error = store.commit(gone).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Missing { .. })), "{error}");
}

fn open(instance: &str, since: i64) -> Change {
    Change::OpenSession {
        node: node_id("a"),
        session: SessionRecord { instance_id: instance.into(), boot_id: "b".into(), since: Time(since) },
        platform: Some(Platform { os: "linux".into(), arch: "arm64".into() }),
        facts: BTreeMap::from([("kernel".to_owned(), "6".to_owned())]),
    }
}

fn close(instance: &str, time: i64) -> Change {
    Change::CloseSession { node: node_id("a"), instance_id: instance.into(), time: Time(time) }
}

pub async fn sessions_displace_and_close_only_themselves(store: Arc<dyn Store>) {
    store.commit(vec![put_node("a"), open("one", 10), open("two", 20), close("one", 30)]).await.unwrap();
    let read = store.node(&node_id("a")).await.unwrap().unwrap();
    assert_eq!(read.session.as_ref().unwrap().instance_id, "two");
    assert_eq!((read.last_seen, read.revision), (Some(Time(20)), 1), "a session is no change of the node");
    assert_eq!(read.platform.unwrap().arch, "arm64");
    let seen = Change::SeeNodes(vec![(node_id("a"), Time(40)), (node_id("a"), Time(35))]);
    store.commit(vec![seen]).await.unwrap();
    assert_eq!(store.node(&node_id("a")).await.unwrap().unwrap().last_seen, Some(Time(40)));
    store.commit(vec![put_node("b"), Change::CloseAllSessions]).await.unwrap();
    assert!(!store.node(&node_id("a")).await.unwrap().unwrap().online());
}

pub async fn nodes_are_paged_by_name(store: Arc<dyn Store>) {
    let ids: Vec<String> = (0..1300).map(|n| format!("n-{n:04}")).collect();
    store.commit(ids.iter().map(|id| put_node(id)).collect()).await.unwrap();
    let odd = |node: &NodeRecord| node.id.as_str().ends_with(['1', '3', '5', '7', '9']);
    let mut page = Page::first(300);
    let (mut read, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let rows = store.nodes(&odd, &page).await.unwrap();
        sizes.push(rows.rows.len());
        read.extend(rows.rows.into_iter().map(|node| node.id.to_string()));
        let Some(next) = rows.next else { break };
        page.after = Some(next);
    }
    assert_eq!(sizes, [300, 300, 50]);
    assert_eq!(read, ids.into_iter().skip(1).step_by(2).collect::<Vec<_>>());
}

pub async fn who_changed_a_component_stays_known(store: Arc<dyn Store>) {
    let one = ComponentState::unmanaged(Digest::of(b"one"));
    let put = |current: &ComponentState, healthy, changed| {
        let mut inventory = inventory(current.clone());
        inventory.healthy = healthy;
        vec![Change::PutComponent { node: node_id("a"), inventory, changed }]
    };
    let by = Some(("users/anna".to_owned(), Some(rollout_id("r"))));
    store.commit(vec![put_node("a")]).await.unwrap();
    store.commit(put(&one, true, by)).await.unwrap();
    store.commit(put(&one, false, None)).await.unwrap();
    store.commit(put(&one, false, None)).await.unwrap();
    let read = store.components(&node_id("a")).await.unwrap().remove(0);
    assert_eq!(
        (read.changed_by.as_str(), read.rollout, read.revision),
        ("users/anna", Some(rollout_id("r")), 2)
    );
    store.commit(put(&ComponentState::absent(), true, None)).await.unwrap();
    let read = store.components_named(&"web".parse().unwrap()).await.unwrap().remove(0);
    assert_eq!((read.changed_by.as_str(), read.rollout), ("controller", None));
    let none = Change::KeepComponents { node: node_id("a"), components: vec![] };
    store.commit(vec![none]).await.unwrap();
    assert_eq!(store.components(&node_id("a")).await.unwrap(), vec![]);
}

pub async fn generations_only_grow(store: Arc<dyn Store>) {
    let put = |epoch, number| {
        vec![Change::PutDesired { node: node_id("a"), desired: desired(epoch, number, None) }]
    };
    store.commit(vec![put_node("a")]).await.unwrap();
    for (epoch, number, fits) in
        [(1, 1, true), (1, 1, false), (1, 3, true), (1, 2, false), (2, 1, true), (1, 9, false)]
    {
        let outcome = store.commit(put(epoch, number)).await;
        assert_eq!(outcome.is_ok(), fits, "{epoch}/{number}: {outcome:?}");
    }
    let ack = |number| Change::Acknowledge {
        node: node_id("a"),
        component: "web".parse().unwrap(),
        generation: Generation { epoch: 2, number },
        hold_generation: 4,
    };
    store.commit(vec![ack(1), ack(0)]).await.unwrap();
    let read = store.desired(&node_id("a")).await.unwrap().remove(0);
    assert_eq!((read.generation(), read.acked), (Generation { epoch: 2, number: 1 }, read.generation()));
    assert_eq!(read.hold_acked, 4);
    let hold = |generation| Change::PutHold {
        node: node_id("a"),
        component: "web".parse().unwrap(),
        hold: HoldOrder { hold: true, generation, message: String::new(), actor: "users/anna".into() },
    };
    store.commit(vec![hold(1)]).await.unwrap();
    assert!(store.commit(vec![hold(1)]).await.unwrap_err().is_stale());
    let refuse = Change::Refuse {
        node: node_id("a"),
        component: "web".parse().unwrap(),
        generation: Generation { epoch: 1, number: 3 },
        reason: Reason::new(ReasonCode::FailedDigest),
        time: Time(1),
    };
    store.commit(vec![refuse]).await.unwrap();
    let read = store.desired_named(&"web".parse().unwrap()).await.unwrap().remove(0);
    assert_eq!(read.nack, None, "a late refusal of an older order means nothing");
}

pub async fn rows_need_their_node(store: Arc<dyn Store>) {
    let changes = [
        Change::PutDesired { node: node_id("x"), desired: desired(1, 1, None) },
        Change::PutComponent {
            node: node_id("x"),
            inventory: inventory(ComponentState::absent()),
            changed: None,
        },
        open("one", 1),
    ];
    for change in changes {
        let error = store.commit(vec![change]).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Missing { what: "node", .. })), "{error:?}");
    }
}
