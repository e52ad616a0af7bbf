//! What only SQLite can get wrong: files, locks, a full disk, versions.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use upfleet_domain::id::NodeId;

use sqlx::migrate::Migrator;

use super::{
    schema::{known_format, migrations},
    *,
};
use crate::store::{Change, Expected, NodeRecord, NodeState, Page, Store};

fn put(id: &str) -> Change {
    let node = NodeRecord {
        id: id.parse().unwrap(),
        uid: "u".into(),
        labels: [("padding".to_owned(), "x".repeat(2000))].into(),
        state: NodeState::Active,
        reason: None,
        platform: None,
        facts: Default::default(),
        created: Default::default(),
        cert_expires: None,
        session: None,
        last_seen: None,
        revision: 0,
    };
    Change::PutNode { node, expected: Expected::Absent }
}

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

async fn count(store: &SqliteStore) -> usize {
    store.nodes(&|_| true, &Page::ALL).await.unwrap().rows.len()
}

#[tokio::test]
async fn reopening_sees_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    store.commit(vec![put("a")]).await.unwrap();
    let meta = store.meta().await.unwrap();
    // No orderly close: what was answered is durable by itself.
    drop(store);
    let store = reopen(dir.path()).await;
    assert!(store.node(&id("a")).await.unwrap().is_some());
    assert_eq!(store.meta().await.unwrap(), meta);
    assert_eq!(meta.format, known_format());
    let mode = std::fs::metadata(path(dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Opens once the store that was dropped has let go.
async fn reopen(dir: &Path) -> SqliteStore {
    for _ in 0..1000 {
        match SqliteStore::open(dir).await {
            Err(StoreError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other.unwrap(),
        }
    }
    panic!("the store stayed locked");
}

#[tokio::test]
async fn two_controllers_never_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let second = SqliteStore::open(dir.path()).await.err().unwrap();
    assert!(second.to_string().contains("another controller"), "{second}");
    store.close().await;
    let closed = store.commit(vec![put("a")]).await.unwrap_err();
    assert!(matches!(closed, StoreError::Unavailable { .. }), "{closed}");
    drop(store);
    SqliteStore::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let insert = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                  VALUES (9999, 'novel', TRUE, x'00', 0)";
    sqlx::query(insert).execute(&store.writer).await.unwrap();
    store.close().await;
    drop(store);
    let error = SqliteStore::open(dir.path()).await.err().unwrap();
    let reason = error.reason().unwrap();
    assert_eq!(reason.code, upfleet_domain::reason::ReasonCode::StateTooNew);
    assert!(reason.message().contains("format 9999"), "{reason}");
}

/// A later version may add to the store what this one can do without; it has to say so of each of its formats.
#[tokio::test]
async fn a_later_format_that_says_so_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    store.commit(vec![put("a")]).await.unwrap();
    let known = i64::from(known_format());
    let later = async |format: i64, readable_from: i64| {
        let insert = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                      VALUES ($1, 'novel', TRUE, x'00', 0)";
        sqlx::query(insert).bind(format).execute(&store.writer).await.unwrap();
        let insert = "INSERT INTO meta (key, value) VALUES ($1, $2)";
        let key = format!("readable_from.{format}");
        sqlx::query(insert).bind(key).bind(readable_from.to_string()).execute(&store.writer).await.unwrap();
    };
    later(known + 1, known).await;
    sqlx::query("ALTER TABLE node ADD COLUMN novelty TEXT").execute(&store.writer).await.unwrap();
    let other = SqliteStore::open_unlocked(&path(dir.path())).await.unwrap();
    other.commit(vec![put("b")]).await.unwrap();
    assert_eq!(count(&other).await, 2);
    assert_eq!(i64::from(other.meta().await.unwrap().format), known + 1);
    other.close().await;

    later(known + 2, known + 1).await;
    let refused = SqliteStore::open_unlocked(&path(dir.path())).await.err().unwrap();
    assert!(matches!(refused, StoreError::TooNew { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("start the newer version again") && text.contains("upfleet restore"), "{text}");
}

/// SQLite answers "full" when it may not grow: the same error as on a full disk.
#[tokio::test]
async fn a_full_disk_leaves_nothing_half_written_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    store.commit(vec![put("a")]).await.unwrap();
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
    let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
    sqlx::query(limit).execute(&store.writer).await.unwrap();
    let mut notices = store.subscribe();
    let batch: Vec<Change> = (0..200).map(|n| put(&format!("n-{n}"))).collect();
    let error = store.commit(batch.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_eq!(count(&store).await, 1);
    assert!(notices.try_recv().is_err(), "nothing was written, nothing is told");
    sqlx::query("PRAGMA max_page_count = 1000000").execute(&store.writer).await.unwrap();
    store.commit(batch).await.unwrap();
    assert_eq!(count(&store).await, 201);
}

/// A full disk makes SQLite undo the whole transaction: what waits behind the batch that met it is not written either,
/// since its caller is told so.
#[tokio::test]
async fn a_full_disk_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
    let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
    sqlx::query(limit).execute(&store.writer).await.unwrap();
    let large: Vec<Change> = (0..200).map(|n| put(&format!("n-{n}"))).collect();
    let (mut answers, group) = (Vec::new(), [vec![put("a")], large, vec![put("b")], vec![put("c")]]);
    // On one thread the writer sees them all at once.
    for changes in group {
        let (answer, answered) = tokio::sync::oneshot::channel();
        assert!(store.queue.try_send(writer::Job::Batch { changes, answer }).is_ok());
        answers.push(answered);
    }
    for answered in answers {
        let told = answered.await.unwrap();
        assert!(matches!(told, Err(StoreError::Unavailable { .. })), "{told:?}");
    }
    assert_eq!(count(&store).await, 0, "they were told that nothing was written");
    store.commit(vec![put("b")]).await.unwrap();
}

#[tokio::test]
async fn a_locked_database_is_unavailable_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(dir.path());
    let store = SqliteStore::open_with(&file, None, Duration::from_millis(20)).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&file);
    let other = pool(1).connect_with(options).await.unwrap();
    let mut held = other.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *held).await.unwrap();
    let error = store.commit(vec![put("a")]).await.unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    assert_eq!(count(&store).await, 0, "readers go on");
    sqlx::query("ROLLBACK").execute(&mut *held).await.unwrap();
    store.commit(vec![put("a")]).await.unwrap();
}

/// Readers can't write, whatever the code asks of them.
#[tokio::test]
async fn readers_are_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert!(sqlx::query("DELETE FROM meta").execute(&store.readers).await.is_err());
}

/// A mistake in the writer costs the batches in hand; the next ones are written.
#[tokio::test]
async fn a_writer_that_panics_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    store.probe().await.unwrap();
    assert!(store.queue.send(writer::Job::Panic).await.is_ok());
    // What is in its hand with the panic goes with it.
    while store.queue.capacity() < store.queue.max_capacity() {
        tokio::task::yield_now().await;
    }
    store.commit(vec![put("a")]).await.unwrap();
    store.probe().await.unwrap();
    assert_eq!(count(&store).await, 1);
    store.close().await;
    assert!(store.probe().await.is_err());
}

/// Not ready for as long as nothing of any size can be written; ready by itself after that.
#[tokio::test]
async fn a_full_disk_is_seen_by_the_probe_until_it_has_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
    let limit = || sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
    sqlx::query(limit()).execute(&store.writer).await.unwrap();
    store.probe().await.unwrap();
    let batch: Vec<Change> = (0..200).map(|n| put(&format!("n-{n}"))).collect();
    store.commit(batch.clone()).await.unwrap_err();
    // The writer's next connection meets the same disk.
    sqlx::query(limit()).execute(&store.writer).await.unwrap();
    store.probe().await.unwrap_err();
    sqlx::query("PRAGMA max_page_count = 1000000").execute(&store.writer).await.unwrap();
    store.probe().await.unwrap();
    store.commit(batch).await.unwrap();
}

/// An empty database is never taken for the fleet's, nor is a damaged one.
#[tokio::test]
async fn a_missing_or_damaged_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(dir.path());
    let store = SqliteStore::open(dir.path()).await.unwrap();
    store.commit((0..50).map(|n| put(&format!("n-{n}"))).collect()).await.unwrap();
    store.close().await;
    drop(store);
    let whole = std::fs::read(&file).unwrap();
    let damaged: [(&str, Option<Vec<u8>>); 5] = [
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("zeroed", Some(vec![0; whole.len()])),
        ("cut", Some(whole[..whole.len() / 2].to_vec())),
        ("flipped", Some(whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 4096)).collect())),
    ];
    for (name, bytes) in damaged {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(dir.path().join(format!("{FILE}{suffix}")));
        }
        if let Some(bytes) = &bytes {
            std::fs::write(&file, bytes).unwrap();
        }
        let error = SqliteStore::open_existing(dir.path()).await.err().unwrap_or_else(|| panic!("{name}"));
        assert!(matches!(error, StoreError::Broken { .. }), "{name}: {error:?}");
        assert_eq!(bytes.is_some(), file.exists(), "{name}: nothing is made in its place");
    }
    std::fs::write(&file, whole).unwrap();
    let store = SqliteStore::open_existing(dir.path()).await.unwrap();
    assert_eq!(count(&store).await, 50);
}

/// The document of a row as the first format had it.
async fn first_document(store: &SqliteStore, table: &'static str, later: &[&str]) -> String {
    let select = sqlx::AssertSqlSafe(format!("SELECT doc FROM {table}"));
    let doc: String = sqlx::query_scalar(select).fetch_one(&store.readers).await.unwrap();
    let mut doc: serde_json::Value = serde_json::from_str(&doc).unwrap();
    if let Some(inventory) = doc.get_mut("inventory").and_then(serde_json::Value::as_object_mut) {
        inventory.retain(|key, _| !later.contains(&key.as_str()));
    }
    doc.to_string()
}

/// The first format, with what a fleet had in it, is brought to the newest in place.
#[tokio::test]
async fn the_first_format_is_brought_to_the_newest_in_place() {
    use crate::store::fixtures;
    use upfleet_domain::{
        reason::{Reason, ReasonCode},
        state::ComponentState,
    };
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SqliteStore::open(other.path()).await.unwrap();
    let drift = Some(Reason::new(ReasonCode::Drifted));
    let inventory =
        upfleet_domain::report::ComponentInventory { drift, ..fixtures::inventory(ComponentState::absent()) };
    let component = inventory.component.to_string();
    let told = Change::PutComponent { node: id("a"), inventory, changed: None };
    now.commit(vec![put("a"), told]).await.unwrap();
    let node_doc = first_document(&now, "node", &[]).await;
    let component_doc = first_document(&now, "component", &["proof", "alarms", "patchable"]).await;

    let options = SqliteConnectOptions::new().filename(path(dir.path())).create_if_missing(true);
    let first = pool(1).connect_with(options).await.unwrap();
    let only = migrations().iter().filter(|migration| migration.version == 1).cloned().collect();
    Migrator::with_migrations(only).run(&first).await.unwrap();
    let meta = "INSERT INTO meta (key, value) VALUES ('epoch', '4'), ('cluster_id', 'c')";
    sqlx::query(meta).execute(&first).await.unwrap();
    let node = "INSERT INTO node (id, revision, doc) VALUES ('a', 1, $1)";
    sqlx::query(node).bind(node_doc).execute(&first).await.unwrap();
    let row = "INSERT INTO component (node, component, revision, doc) VALUES ('a', $1, 1, $2)";
    sqlx::query(row).bind(component).bind(component_doc).execute(&first).await.unwrap();
    first.close().await;

    let store = SqliteStore::open_existing(dir.path()).await.unwrap();
    let meta = store.meta().await.unwrap();
    assert_eq!((meta.epoch, meta.cluster_id.as_str(), meta.format), (4, "c", known_format()));
    let components = store.components(&id("a")).await.unwrap();
    assert!(components[0].inventory.drift.is_some() && components[0].inventory.alarms.is_empty());
    let counts = store.component_counts().await.unwrap();
    assert_eq!(counts.iter().map(|count| count.drifted).sum::<u64>(), 1, "what was drifted is counted");
    store.commit(vec![put("b")]).await.unwrap();
    assert_eq!(count(&store).await, 2);
}

/// What many agents say at once goes into the store as one: each gets the answer that it would have got alone.
#[tokio::test]
async fn words_of_many_agents_are_answered_one_by_one() {
    use crate::store::{ReportOutcome, fixtures};
    use upfleet_domain::{
        order::Generation,
        upgrade::{Phase, UpgradeState},
    };
    const NODES: usize = 300;
    let store = std::sync::Arc::new(SqliteStore::memory().await.unwrap());
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n:03}")).collect();
    let put: Vec<Change> = names.iter().map(|name| fixtures::put_node(name)).collect();
    store.commit(put).await.unwrap();
    let row = |(at, name): (usize, &String)| fixtures::upgrade(name, at, Some(&format!("u-{name}")));
    let rows = names.iter().enumerate().map(row).collect();
    store.commit(vec![fixtures::create("r-1", 0, rows)]).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let mut say = |change: Change| {
        let store = store.clone();
        tasks.spawn(async move { store.commit(vec![change]).await });
    };
    let ack = |node: &str| Change::Acknowledge {
        node: node.parse().unwrap(),
        component: "web".parse().unwrap(),
        generation: Generation { epoch: 1, number: 1 },
        hold_generation: 0,
    };
    for name in &names {
        say(ack(name));
        let fetching = UpgradeState::Active(Phase::Fetching);
        say(fixtures::report(name, &format!("u-{name}"), 1, fetching));
        say(fixtures::report(name, &format!("u-{name}"), 1, fetching));
    }
    // One of them is wrong, and spoils nothing.
    say(ack("nobody"));
    let (mut recorded, mut duplicate, mut failed) = (0, 0, 0);
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            Ok(committed) => match committed.reports.first() {
                Some((_, 1, ReportOutcome::Recorded)) => recorded += 1,
                Some((_, 1, ReportOutcome::Duplicate)) => duplicate += 1,
                Some(other) => panic!("{other:?}"),
                None => {}
            },
            Err(error) => {
                assert!(error.to_string().contains("nobody"), "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!((recorded, duplicate, failed), (NODES, NODES, 1));
    let rollout = "r-1".parse().unwrap();
    let events = store.events(&rollout, 0, 10_000).await.unwrap();
    let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (1..=NODES as u64 + 1).collect::<Vec<_>>());
    for name in &names {
        let desired = store.desired(&id(name)).await.unwrap();
        assert_eq!(desired[0].acked, Generation { epoch: 1, number: 1 }, "{name}");
        let row = store.upgrade(&rollout, &id(name)).await.unwrap().unwrap();
        assert_eq!((row.sequence, row.state.as_str()), (1, "FETCHING"), "{name}");
    }
}
