//! Releases, artifacts, quarantines, certificates and tokens.

use std::sync::Arc;

use upfleet_domain::{digest::Digest, time::Time};

use super::fixtures::*;
use crate::store::*;

fn yank() -> Yank {
    Yank { time: Time(9), actor: "users/anna".into(), message: "bad".into() }
}

pub async fn releases_take_a_version_and_a_sequence(store: Arc<dyn Store>) {
    let create = |version, sequence| vec![Change::CreateRelease(release(version, sequence))];
    for (version, sequence) in [("1.0", 1), ("1.2", 20), ("1.1", 10)] {
        store.commit(create(version, sequence)).await.unwrap();
    }
    let error = store.commit(create("1.0", 30)).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Exists { .. })), "{error}");
    let error = store.commit(create("1.3", 20)).await.unwrap_err();
    let taken = matches!(&error, StoreError::Conflict(Conflict::SequenceTaken { version, .. }) if version.as_str() == "1.2");
    assert!(taken, "{error}");
    let web = "web".parse().unwrap();
    let first = store.releases(Some(&web), None, &Page::first(2)).await.unwrap();
    let versions: Vec<&str> = first.rows.iter().map(|release| release.version.as_str()).collect();
    assert_eq!(versions, ["1.2", "1.1"]);
    let rest = store.releases(None, None, &Page { after: first.next, limit: 2 }).await.unwrap();
    assert_eq!(rest.rows, vec![release("1.0", 1)]);
    let change =
        Change::YankRelease { component: web.clone(), version: "1.0".parse().unwrap(), yank: yank() };
    store.commit(vec![change]).await.unwrap();
    let read = store.release(&web, &"1.0".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((read.yanked.is_some(), read.manifest), (true, release("1.0", 1).manifest));
    assert!(store.release_by_manifest(&read.digest).await.unwrap().is_some());
}

pub async fn artifacts_in_use_stay(store: Arc<dyn Store>) {
    let (used, free) = (artifact(b"1.0"), artifact(b"free"));
    let put = [&used, &free].map(|record| Change::PutArtifact(record.clone())).to_vec();
    store.commit(put.clone()).await.unwrap();
    store.commit(put).await.unwrap();
    store.commit(vec![Change::CreateRelease(release("1.0", 1))]).await.unwrap();
    let error = store.commit(vec![Change::DeleteArtifact(used.digest)]).await.unwrap_err();
    let by = matches!(&error, StoreError::Conflict(Conflict::InUse { by, .. }) if by == &["web@1.0"]);
    assert!(by, "{error:?}");
    store.commit(vec![Change::DeleteArtifact(free.digest)]).await.unwrap();
    let late = vec![Change::CreateRelease(release("1.1", 2)), Change::NeedArtifact(free.digest)];
    let error = store.commit(late).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict(Conflict::Missing { .. })), "{error:?}");
    assert!(store.release(&"web".parse().unwrap(), &"1.1".parse().unwrap()).await.unwrap().is_none());
    store.commit(vec![Change::NeedArtifact(used.digest)]).await.unwrap();
    assert_eq!(store.artifacts(&Page::ALL).await.unwrap().rows, vec![used.clone()]);
    assert_eq!(store.artifact(&used.digest).await.unwrap(), Some(used));
}

pub async fn quarantines_collect_and_lift(store: Arc<dyn Store>) {
    let digest = Digest::of(b"bad");
    let failure = |node| DigestFailure {
        digest,
        node: node_id(node),
        component: "web".parse().unwrap(),
        rollout: rollout_id("r"),
        time: Time(1),
    };
    let put = |nodes: &[&str], renew| vec![Change::Quarantine { record: quarantine(nodes), renew }];
    store
        .commit(["a", "b", "a"].map(|node| Change::RecordDigestFailure(failure(node))).to_vec())
        .await
        .unwrap();
    assert_eq!(store.digest_failures(&digest).await.unwrap().len(), 2);
    store.commit(put(&["a"], false)).await.unwrap();
    store.commit(put(&["b"], false)).await.unwrap();
    assert_eq!(store.quarantine(&digest).await.unwrap().unwrap(), quarantine(&["a", "b"]));
    store.commit(vec![Change::LiftQuarantine { digest, lift: yank() }]).await.unwrap();
    assert_eq!(store.digest_failures(&digest).await.unwrap(), vec![]);
    store.commit(put(&["c"], false)).await.unwrap();
    assert!(store.quarantine(&digest).await.unwrap().unwrap().lifted.is_some());
    store.commit(put(&["c"], true)).await.unwrap();
    assert_eq!(store.quarantine(&digest).await.unwrap().unwrap(), quarantine(&["c"]));
}

pub async fn certificates_are_revoked_for_good(store: Arc<dyn Store>) {
    let anna = || Subject::User { id: "anna".parse().unwrap(), role: Role::Admin };
    let node = || Subject::Node(node_id("a"));
    let records = [certificate("01", anna()), certificate("02", anna()), certificate("03", node())];
    store.commit(records.map(Change::CreateCertificate).to_vec()).await.unwrap();
    let again = vec![Change::CreateCertificate(certificate("01", node()))];
    assert!(matches!(store.commit(again).await, Err(StoreError::Conflict(Conflict::Exists { .. }))));
    let revoke =
        |time| Change::RevokeCertificates { serials: vec!["01".into(), "99".into()], time: Time(time) };
    let suspend = |suspended| Change::SuspendNodeCertificates { node: node_id("a"), suspended };
    store.commit(vec![revoke(7), revoke(8), suspend(true)]).await.unwrap();
    assert_eq!(store.certificate("01").await.unwrap().unwrap().revoked, Some(Time(7)));
    assert_eq!(store.refused_serials(Time(50)).await.unwrap(), ["01", "03"]);
    assert_eq!(store.refused_serials(Time(100)).await.unwrap(), Vec::<String>::new());
    store.commit(vec![suspend(false)]).await.unwrap();
    assert_eq!(store.refused_serials(Time(50)).await.unwrap(), ["01"]);
    let node_gone = vec![
        Change::CreateCertificate(certificate("04", Subject::Node(node_id("b")))),
        Change::RevokeNodeCertificates { node: node_id("b"), time: Time(9) },
    ];
    store.commit(node_gone).await.unwrap();
    assert_eq!(store.refused_serials(Time(50)).await.unwrap(), ["01", "04"]);
    assert_eq!(store.certificates("user", Some("anna"), &Page::ALL).await.unwrap().rows.len(), 2);
    assert_eq!(
        store.certificates("node", Some("a"), &Page::ALL).await.unwrap().rows,
        vec![certificate("03", node())]
    );
}

pub async fn one_of_many_uses_a_token(store: Arc<dyn Store>) {
    store.commit(vec![Change::CreateToken(token("t", None))]).await.unwrap();
    let mut agents = tokio::task::JoinSet::new();
    for agent in 0..16 {
        let (store, node) = (store.clone(), format!("n-{agent}"));
        agents.spawn(async move {
            store.commit(vec![use_token("t", b"secret", &node, 2), put_node(&node)]).await.is_ok()
        });
    }
    let won = agents.join_all().await.into_iter().filter(|won| *won).count();
    let nodes = store.nodes(&|_| true, &Page::ALL).await.unwrap().rows;
    assert_eq!((won, nodes.len()), (1, 1));
    assert_eq!(store.token("t").await.unwrap().unwrap().used_by, Some(nodes[0].id.clone()));
    assert_eq!(store.tokens(&Page::ALL).await.unwrap().rows, vec![]);
}

pub async fn a_token_is_good_for_what_it_says(store: Arc<dyn Store>) {
    store.commit(vec![Change::CreateToken(token("t", Some("a")))]).await.unwrap();
    let bad = [
        use_token("u", b"secret", "a", 2),
        use_token("t", b"guess", "a", 2),
        use_token("t", b"secret", "b", 2),
        use_token("t", b"secret", "a", 100),
    ];
    for change in bad {
        let error = store.commit(vec![change]).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Token { .. })), "{error:?}");
    }
    store.commit(vec![use_token("t", b"secret", "a", 2)]).await.unwrap();
    store.commit(vec![Change::RevokeToken { id: "t".into() }]).await.unwrap();
    assert!(store.commit(vec![Change::RevokeToken { id: "t".into() }]).await.is_err());
}
