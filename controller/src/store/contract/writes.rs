//! Batches: atomic, grouped, exactly once, and heard of afterwards.

use std::{sync::Arc, time::Duration};

use upfleet_domain::id::NodeId;

use super::fixtures::*;
use crate::store::*;

pub async fn a_batch_is_written_whole_or_not_at_all(store: Arc<dyn Store>) {
    let batch = vec![put_node("a"), audit("node.enroll"), put_node("b"), put_node("a")];
    let error = store.commit(batch).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Exists { what: "node", .. })), "{error}");
    assert_eq!(store.node(&node_id("a")).await.unwrap(), None);
    assert_eq!(store.node(&node_id("b")).await.unwrap(), None);
    assert_eq!(store.audit(None, &Page::ALL).await.unwrap().rows, vec![]);
    store.commit(vec![put_node("a"), put_node("b")]).await.unwrap();
    assert!(store.node(&node_id("b")).await.unwrap().is_some());
}

/// 32 writers, 20 batches each; every second batch fails after it has written something.
pub async fn many_writers_share_commits_and_stay_atomic(store: Arc<dyn Store>) {
    store.commit(vec![put_node("taken")]).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..32 {
        let store = store.clone();
        writers.spawn(async move {
            for turn in 0..20 {
                let id = format!("n-{writer:02}-{turn:02}");
                let mut batch = vec![put_node(&id), audit(&id)];
                if turn % 2 == 1 {
                    batch.push(put_node("taken"));
                }
                let outcome = store.commit(batch).await;
                assert_eq!(outcome.is_ok(), turn % 2 == 0, "{id}: {outcome:?}");
                // What was answered can be read at once.
                assert_eq!(store.node(&node_id(&id)).await.unwrap().is_some(), turn % 2 == 0);
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let nodes = store.nodes(&|node| node.id.as_str() != "taken", &Page::ALL).await.unwrap();
    assert_eq!(nodes.rows.len(), 32 * 10);
    let audit = store.audit(None, &Page::ALL).await.unwrap().rows;
    let sequences: Vec<u64> = audit.iter().rev().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=320).collect::<Vec<_>>());
}

pub async fn a_request_is_carried_out_once(store: Arc<dyn Store>) {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..16 {
        let store = store.clone();
        let node = format!("n-{caller}");
        let batch = vec![put_node(&node), request("r1", b"body", node.as_bytes())];
        callers.spawn(async move { store.commit(batch).await.unwrap().replayed });
    }
    let answers = callers.join_all().await;
    let nodes = store.nodes(&|_| true, &Page::ALL).await.unwrap().rows;
    assert_eq!(nodes.len(), 1, "sixteen callers, one node");
    let first = nodes[0].id.as_str().as_bytes().to_vec();
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 1);
    assert!(answers.iter().flatten().all(|answer| *answer == first), "all others get the first answer");
    assert_eq!(store.request("users/anna", "r1").await.unwrap().unwrap().response, first);
    assert_eq!(store.request("users/bert", "r1").await.unwrap(), None);
    store.commit(vec![Change::PruneRequests { before: upfleet_domain::time::Time(4) }]).await.unwrap();
    assert_eq!(store.request("users/anna", "r1").await.unwrap(), None);
}

pub async fn a_request_id_with_another_body_is_refused(store: Arc<dyn Store>) {
    store.commit(vec![put_node("a"), request("r1", b"body", b"answer")]).await.unwrap();
    let error = store.commit(vec![put_node("b"), request("r1", b"other", b"answer")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::RequestReused { .. })), "{error}");
    assert_eq!(store.node(&node_id("b")).await.unwrap(), None);
}

pub async fn notices_come_after_the_commit(store: Arc<dyn Store>) {
    let mut notices = store.subscribe();
    store.commit(vec![put_node("a"), put_node("a")]).await.unwrap_err();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for turn in 0..20 {
                store.commit(vec![put_node(&format!("n-{turn:02}")), audit("x")]).await.unwrap();
            }
        }
    });
    for turn in 0..20 {
        let notice = tokio::time::timeout(Duration::from_secs(20), notices.recv()).await.unwrap().unwrap();
        let id: NodeId = format!("n-{turn:02}").parse().unwrap();
        assert_eq!(notice, Notice::Node { id: id.clone() }, "a failed batch gives no notice");
        assert!(store.node(&id).await.unwrap().is_some(), "what was told of can be read");
    }
    writer.await.unwrap();
}

pub async fn the_audit_says_who_and_what(store: Arc<dyn Store>) {
    store.commit(vec![audit("one"), audit("two")]).await.unwrap();
    store.commit(vec![audit("three")]).await.unwrap();
    let page = store.audit(Some("nodes/a"), &Page::first(2)).await.unwrap();
    let actions = |rows: &[AuditRecord]| rows.iter().map(|row| row.action.clone()).collect::<Vec<_>>();
    assert_eq!(actions(&page.rows), ["three", "two"]);
    assert_eq!(page.rows[0].after, serde_json::json!({"labels": {}}));
    let rest = store.audit(Some("nodes/a"), &Page { after: page.next, limit: 2 }).await.unwrap();
    assert_eq!((actions(&rest.rows), rest.next), (vec!["one".to_owned()], None));
    assert_eq!(store.audit(Some("nodes/b"), &Page::ALL).await.unwrap().rows, vec![]);
}

pub async fn the_epoch_is_raised_by_one(store: Arc<dyn Store>) {
    assert_eq!(store.meta().await.unwrap().epoch, 1);
    store.commit(vec![Change::RaiseEpoch { from: 1 }]).await.unwrap();
    assert!(store.commit(vec![Change::RaiseEpoch { from: 1 }]).await.unwrap_err().is_stale());
    assert_eq!(store.meta().await.unwrap().epoch, 2);
    store.commit(vec![create("r", 1, vec![])]).await.unwrap();
    assert_eq!(store.rollout(&rollout_id("r")).await.unwrap().unwrap().epoch, 2);
}
