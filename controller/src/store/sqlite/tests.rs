//! What only SQLite can get wrong: files, locks, a full disk, versions.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use upfleet_domain::id::NodeId;

use super::*;
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
