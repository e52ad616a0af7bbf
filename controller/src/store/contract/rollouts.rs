//! Rollouts: revisions, events, reports.

use std::sync::Arc;

use upfleet_domain::{
    order::Generation,
    reason::{Reason, ReasonCode},
    rollout::State,
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

use super::fixtures::*;
use crate::store::*;

const FETCHING: UpgradeState = UpgradeState::Active(Phase::Fetching);
const PENDING: UpgradeState = UpgradeState::Active(Phase::Pending);
const SUCCEEDED: UpgradeState = UpgradeState::Ended(Outcome::Succeeded);

async fn revisions(store: &Arc<dyn Store>, id: &str) -> Vec<u64> {
    let events = store.events(&rollout_id(id), 0, 1000).await.unwrap();
    events.iter().map(|event| event.revision).collect()
}

fn put(record: &RolloutRecord, expected: Expected) -> Change {
    Change::PutRollout { rollout: Box::new(record.clone()), expected, time: Time(20) }
}

/// Two rollouts change at once, by engine and by reports: each counts for itself, without gaps.
pub async fn revisions_are_gapless_and_per_rollout(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for id in ["r1", "r2"] {
        let upgrades = (0..8).map(|n| upgrade(&format!("n-{n}"), n, Some(&format!("{id}-u{n}")))).collect();
        store.commit(vec![create(id, 10, upgrades)]).await.unwrap();
        for n in 0..8 {
            let store = store.clone();
            writers.spawn(async move {
                for sequence in 1..=5 {
                    let report = report(&format!("n-{n}"), &format!("{id}-u{n}"), sequence, FETCHING);
                    store.commit(vec![report]).await.unwrap();
                }
            });
        }
        let (store, record) = (store.clone(), rollout(id, 10));
        writers.spawn(async move {
            for _ in 0..5 {
                store.commit(vec![put(&record, Expected::Any), put(&record, Expected::Any)]).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    for id in ["r1", "r2"] {
        assert_eq!(revisions(&store, id).await, (1..=1 + 8 * 5 + 10).collect::<Vec<u64>>());
        let read = store.rollout(&rollout_id(id)).await.unwrap().unwrap();
        assert_eq!((read.rollout.revision, read.version), (51, 11));
        let changed = store.upgrades_changed_since(&rollout_id(id), 40).await.unwrap();
        let all = store.upgrades(&rollout_id(id), &[], &Page::ALL).await.unwrap().rows;
        assert_eq!(changed.len(), all.iter().filter(|upgrade| upgrade.revision > 40).count());
        assert!(changed.is_sorted_by_key(|upgrade| upgrade.revision));
    }
    let after = store.events(&rollout_id("r1"), 48, 2).await.unwrap();
    assert_eq!(after.iter().map(|event| event.revision).collect::<Vec<_>>(), [49, 50], "a watch resumes");
}

pub async fn reports_are_recorded_once_and_in_order(store: Arc<dyn Store>) {
    store.commit(vec![create("r", 10, vec![upgrade("a", 0, Some("u1"))])]).await.unwrap();
    let told = [
        (report("a", "u1", 1, FETCHING), ReportOutcome::Recorded),
        (report("a", "u1", 1, FETCHING), ReportOutcome::Duplicate),
        (report("a", "u1", 3, SUCCEEDED), ReportOutcome::Recorded),
        (report("a", "u1", 2, FETCHING), ReportOutcome::Duplicate),
        (report("b", "u1", 4, FETCHING), ReportOutcome::Foreign),
        (report("a", "u0", 1, FETCHING), ReportOutcome::Unknown),
    ];
    let (changes, wanted): (Vec<Change>, Vec<ReportOutcome>) = told.into_iter().unzip();
    let committed = store.commit(changes).await.unwrap();
    let outcomes: Vec<ReportOutcome> = committed.reports.iter().map(|(_, _, outcome)| *outcome).collect();
    assert_eq!(outcomes, wanted);
    assert_eq!(committed.revisions, [(rollout_id("r"), 3)].into());
    let row = store.upgrade(&rollout_id("r"), &node_id("a")).await.unwrap().unwrap();
    assert_eq!((row.state, row.sequence, row.ended, row.revision), (SUCCEEDED, 3, Some(Time(60)), 3));
    let events = store.events(&rollout_id("r"), 1, 10).await.unwrap();
    let previous: Vec<&EventKind> = events.iter().map(|event| &event.kind).collect();
    let kind = |previous| EventKind::Upgrade { node: node_id("a"), previous: Some(previous) };
    assert_eq!(previous, [&kind(PENDING), &kind(FETCHING)]);
    assert_eq!(events[1].snapshot["state"], "SUCCEEDED");
    assert_eq!(store.upgrade_by_id(&"u1".parse().unwrap()).await.unwrap(), Some((rollout_id("r"), row)));
}

pub async fn an_ended_upgrade_stays_ended_unless_presumed(store: Arc<dyn Store>) {
    let expired = UpgradeState::Ended(Outcome::Expired);
    for (id, presumed, wanted) in [("r1", false, expired), ("r2", true, SUCCEEDED)] {
        let mut row = upgrade("a", 0, Some(id));
        (row.state, row.presumed) = (expired, presumed);
        let changes = vec![create(id, 10, vec![row]), report("a", id, 1, SUCCEEDED)];
        store.commit(changes).await.unwrap();
        let row = store.upgrade(&rollout_id(id), &node_id("a")).await.unwrap().unwrap();
        assert_eq!((row.state, row.presumed, row.current.is_some()), (wanted, false, true), "{id}");
    }
}

pub async fn stale_rollouts_and_upgrades_are_refused(store: Arc<dyn Store>) {
    store.commit(vec![create("r", 10, vec![upgrade("a", 0, Some("u1"))])]).await.unwrap();
    let mut record = store.rollout(&rollout_id("r")).await.unwrap().unwrap();
    let row = store.upgrade(&rollout_id("r"), &node_id("a")).await.unwrap().unwrap();
    assert_eq!((record.version, row.revision), (1, 1));
    // A report between read and write makes the row stale, but not the rollout.
    store.commit(vec![report("a", "u1", 1, FETCHING)]).await.unwrap();
    let put_row = |expected| {
        let (rollout, upgrade) = (rollout_id("r"), Box::new(row.clone()));
        Change::PutUpgrade { rollout, upgrade, expected, time: Time(20) }
    };
    let both = vec![put(&record, Expected::Revision(1)), put_row(Expected::Revision(1))];
    assert!(store.commit(both).await.unwrap_err().is_stale());
    record.rollout.reason = Reason::new(ReasonCode::RolloutRunning);
    store.commit(vec![put(&record, Expected::Revision(1))]).await.unwrap();
    let read = store.rollout(&rollout_id("r")).await.unwrap().unwrap();
    assert_eq!((read.rollout.revision, read.rollout.state_revision), (3, 1), "the same state, the same etag");
    record.rollout.state = State::Running;
    assert!(store.commit(vec![put(&record, Expected::Revision(1))]).await.unwrap_err().is_stale());
    store.commit(vec![put(&record, Expected::Revision(2)), put_row(Expected::Any)]).await.unwrap();
    let read = store.rollout(&rollout_id("r")).await.unwrap().unwrap();
    assert_eq!((read.rollout.revision, read.rollout.state_revision), (5, 4));
    assert_eq!(revisions(&store, "r").await, [1, 2, 3, 4, 5]);
    let error = store.commit(vec![put(&rollout("s", 1), Expected::Any)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Missing { .. })), "{error}");
    let error = store.commit(vec![create("r", 10, vec![])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Exists { .. })), "{error}");
}

pub async fn a_refusal_ends_what_has_not_begun(store: Arc<dyn Store>) {
    let refused = UpgradeState::Ended(Outcome::Refused);
    let cases = [
        ("a", ReasonCode::FailedDigest, None, refused),
        ("b", ReasonCode::StaleGeneration, None, PENDING),
        ("c", ReasonCode::FailedDigest, Some(FETCHING), FETCHING),
    ];
    let rows = cases.iter().enumerate().map(|(n, (node, ..))| upgrade(node, n, Some(&format!("u-{node}"))));
    store.commit(vec![create("r", 10, rows.collect())]).await.unwrap();
    for (node, code, begun, wanted) in cases {
        let upgrade = format!("u-{node}");
        let order = desired(1, 1, Some(&upgrade));
        store
            .commit(vec![put_node(node), Change::PutDesired { node: node_id(node), desired: order }])
            .await
            .unwrap();
        if let Some(state) = begun {
            store.commit(vec![report(node, &upgrade, 1, state)]).await.unwrap();
        }
        let refuse = Change::Refuse {
            node: node_id(node),
            component: "web".parse().unwrap(),
            generation: Generation { epoch: 1, number: 1 },
            reason: Reason::new(code),
            time: Time(70),
        };
        store.commit(vec![refuse]).await.unwrap();
        let row = store.upgrade(&rollout_id("r"), &node_id(node)).await.unwrap().unwrap();
        assert_eq!(row.state, wanted, "{node}");
        assert!(store.desired(&node_id(node)).await.unwrap()[0].nack.is_some());
    }
    let counts = store.upgrade_counts(&rollout_id("r")).await.unwrap();
    assert_eq!(counts, [(PENDING, 1), (FETCHING, 1), (refused, 1)].into());
}

pub async fn lists_are_paged_and_filtered(store: Arc<dyn Store>) {
    let rows = (0..5).map(|n| upgrade(&format!("n-{n}"), 4 - n, Some(&format!("u{n}")))).collect();
    store
        .commit(vec![create("r1", 10, rows), create("r3", 30, vec![]), create("r2", 20, vec![])])
        .await
        .unwrap();
    let mut done = rollout("r2", 20);
    done.rollout.state = State::Cancelled;
    store.commit(vec![put(&done, Expected::Any), report("n-1", "u1", 1, SUCCEEDED)]).await.unwrap();
    let ids = |rows: &[RolloutRecord]| rows.iter().map(|r| r.rollout.id.to_string()).collect::<Vec<_>>();
    let first = store.rollouts(None, &[], &Page::first(2)).await.unwrap();
    assert_eq!(ids(&first.rows), ["r3", "r2"]);
    let rest = store.rollouts(None, &[], &Page { after: first.next, limit: 2 }).await.unwrap();
    assert_eq!((ids(&rest.rows), rest.next), (vec!["r1".to_owned()], None));
    let states = [State::Planned, State::Running];
    let planned = store.rollouts(Some(&"web".parse().unwrap()), &states, &Page::ALL).await.unwrap();
    assert_eq!(ids(&planned.rows), ["r3", "r1"]);
    assert_eq!(ids(&store.open_rollouts().await.unwrap()), ["r1", "r3"]);
    let other = store.rollouts(Some(&"api".parse().unwrap()), &[], &Page::ALL).await.unwrap();
    assert_eq!(other.rows, vec![]);
    let r1 = rollout_id("r1");
    let page = store.upgrades(&r1, &[PENDING], &Page::first(3)).await.unwrap();
    let nodes: Vec<&str> = page.rows.iter().map(|row| row.node.as_str()).collect();
    assert_eq!(nodes, ["n-4", "n-3", "n-2"], "by place, not by name");
    let rest = store.upgrades(&r1, &[PENDING], &Page { after: page.next, limit: 3 }).await.unwrap();
    assert_eq!(rest.rows.iter().map(|row| row.node.as_str()).collect::<Vec<_>>(), ["n-0"]);
    assert_eq!(store.plan(&r1).await.unwrap().unwrap().warnings, ["of r1"]);
}
