//! A backup is whole or none, and a restored controller waits for a person.

use std::os::unix::fs::PermissionsExt;

use upfleet_domain::{
    digest::Digest,
    reason::ReasonCode,
    rollout::{State, Told},
};

use super::*;
use crate::store::{Page, fixtures};

struct Fixture {
    dir: tempfile::TempDir,
    store: SqliteStore,
}

impl Fixture {
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("fleet.backup")
    }
}

const ARTIFACT: &[u8] = b"program";

/// A controller with one rollout in each state that matters, and one artifact.
async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for part in ["ca", "tls", "artifacts/incoming", "run"] {
        std::fs::create_dir_all(data.join(part)).unwrap();
    }
    std::fs::write(data.join("ca/ca.key"), "key").unwrap();
    std::fs::write(data.join("tls/server.crt"), "certificate").unwrap();
    std::fs::write(data.join(CONFIGURATION), "x = 1").unwrap();
    std::fs::write(data.join("artifacts").join(Digest::of(ARTIFACT).to_string()), ARTIFACT).unwrap();
    std::fs::write(data.join("artifacts/incoming/torn.part"), "to").unwrap();
    let store = SqliteStore::open(&data).await.unwrap();
    let states = [State::Running, State::Cancelling, State::Halted, State::Reverting, State::Succeeded];
    let order = Change::PutDesired { node: fixtures::node_id("a"), desired: fixtures::desired(1, 1, None) };
    let mut changes = vec![fixtures::put_node("a"), order];
    for (n, state) in states.into_iter().enumerate() {
        let id = format!("r-{n}");
        let mut row = fixtures::upgrade("a", 0, Some(&format!("u-{n}")));
        row.told = Told::Go;
        changes.push(fixtures::create(&id, n as i64, vec![row]));
        let mut record = fixtures::rollout(&id, n as i64);
        record.rollout.state = state;
        changes.push(Change::PutRollout { rollout: record.into(), expected: Expected::Any, time: Time(5) });
    }
    store.commit(changes).await.unwrap();
    Fixture { dir, store }
}

async fn states(store: &SqliteStore) -> Vec<State> {
    let rows = store.rollouts(None, &[], &Page::ALL).await.unwrap().rows;
    rows.iter().rev().map(|row| row.rollout.state).collect()
}

#[tokio::test]
async fn a_restored_controller_waits_for_a_person() {
    let fixture = fixture().await;
    let leftover = fixture.dir.path().join("fleet.backup.part");
    std::fs::write(&leftover, "for all to read").unwrap();
    std::fs::set_permissions(&leftover, PermissionsExt::from_mode(0o666)).unwrap();
    let made = backup(&fixture.data(), &fixture.out(), true).await.unwrap();
    assert_eq!(made.artifacts, 1);
    let meta = fixture.out().metadata().unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (made.size, 0o600));
    // What comes after the backup is gone with the restore.
    fixture.store.commit(vec![fixtures::put_node("late")]).await.unwrap();

    let data = fixture.dir.path().join("other/data");
    let restored = restore(&fixture.out(), &data, false, Time(70)).await.unwrap();
    assert_eq!((restored.epoch, restored.artifacts, restored.replaced), (2, 1, None));
    let paused: Vec<&str> = restored.paused.iter().map(RolloutId::as_str).collect();
    assert_eq!(paused, ["r-0", "r-1", "r-3"]);
    let store = SqliteStore::open(&data).await.unwrap();
    assert_eq!(store.meta().await.unwrap().epoch, 2);
    assert_eq!(store.meta().await.unwrap().cluster_id, fixture.store.meta().await.unwrap().cluster_id);
    let wanted = [State::Paused, State::Halted, State::Halted, State::Halted, State::Succeeded];
    assert_eq!(states(&store).await, wanted);
    let record = store.rollout(&"r-0".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(record.rollout.reason.code, ReasonCode::RestoredFromBackup);
    assert_eq!((record.rollout.revision, record.epoch), (4, 2));
    let row = store.upgrade(&record.rollout.id, &fixtures::node_id("a")).await.unwrap().unwrap();
    assert_eq!(row.told, Told::Hold, "whoever resumes tells it again");
    assert!(store.node(&"late".parse().unwrap()).await.unwrap().is_none());
    let desired = store.desired(&"a".parse().unwrap()).await.unwrap().remove(0);
    assert_eq!(desired.desired, None, "an order that was on its way does not go out now");
    assert_eq!(store.audit(None, &Page::ALL).await.unwrap().rows[0].action, "controller.restore");
    for (name, content) in [("ca/ca.key", "key"), ("tls/server.crt", "certificate"), (CONFIGURATION, "x = 1")]
    {
        assert_eq!(std::fs::read_to_string(data.join(name)).unwrap(), content);
    }
    let artifact = data.join("artifacts").join(Digest::of(ARTIFACT).to_string());
    assert_eq!(std::fs::read(artifact).unwrap(), ARTIFACT);
    assert!(!data.join(STAGING).exists());
}

#[tokio::test]
async fn what_is_there_is_replaced_on_demand_only_and_never_under_a_controller() {
    let fixture = fixture().await;
    let data = fixture.data();
    backup(&data, &fixture.out(), false).await.unwrap();
    let running = restore(&fixture.out(), &data, true, Time(70)).await.unwrap_err();
    assert!(running.to_string().contains("another controller"), "{running}");
    fixture.store.commit(vec![fixtures::put_node("late")]).await.unwrap();
    let Fixture { dir, store } = fixture;
    store.close().await;
    drop(store);
    let out = dir.path().join("fleet.backup");
    let full = restore(&out, &data, false, Time(70)).await.unwrap_err();
    assert!(matches!(full, BackupError::NotEmpty { .. }), "{full}");
    let restored = restore(&out, &data, true, Time(70)).await.unwrap();
    assert!(restored.replaced.unwrap().join(DATABASE).exists(), "the old one is kept");
    assert!(data.join("artifacts").join(Digest::of(ARTIFACT).to_string()).exists(), "artifacts stay");
    let store = SqliteStore::open(&data).await.unwrap();
    assert!(store.node(&"late".parse().unwrap()).await.unwrap().is_none());
    assert!(store.node(&"a".parse().unwrap()).await.unwrap().is_some());
}

/// The bytes with their first `from` replaced.
fn swap(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[tokio::test]
async fn a_damaged_backup_restores_nothing() {
    let fixture = fixture().await;
    backup(&fixture.data(), &fixture.out(), true).await.unwrap();
    let good = std::fs::read(fixture.out()).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let escape = swap(&good, "\"path\":\"ca/ca.key\"", "\"path\":\"../../../x\"");
    let newer = swap(&good, "\"format\":1", "\"format\":2");
    let cases: [(&str, Vec<u8>); 7] = [
        ("flipped in the database", flipped(5000)),
        ("flipped in the end", flipped(good.len() - 10)),
        ("cut", good[..good.len() / 2].to_vec()),
        ("cut before the end", good[..good.len() - 20].to_vec()),
        ("another file", b"hello\n".to_vec()),
        ("a path that leaves", escape),
        ("a newer format", newer),
    ];
    for (what, bytes) in cases {
        let file = fixture.dir.path().join("bad.backup");
        std::fs::write(&file, bytes).unwrap();
        let data = fixture.dir.path().join("empty");
        let error = restore(&file, &data, false, Time(70)).await.unwrap_err();
        let told = matches!(
            error,
            BackupError::Damaged { .. }
                | BackupError::NotABackup { .. }
                | BackupError::Store(StoreError::TooNew { .. })
        );
        assert!(told, "{what}: {error:?}");
        assert_eq!(occupants(&data).unwrap(), Vec::<PathBuf>::new(), "{what}");
        assert!(!data.join(STAGING).exists(), "{what}");
    }
}

#[tokio::test]
async fn nothing_to_back_up_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = backup(dir.path(), &dir.path().join("out"), false).await.unwrap_err();
    assert!(matches!(error, BackupError::NoData { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_revert_that_was_about_to_start_waits_for_a_person() {
    let fixture = fixture().await;
    let mut record = fixtures::rollout("r-back", 9);
    (record.rollout.state, record.rollout.reverts) = (State::Planned, Some(fixtures::rollout_id("r-0")));
    let put = Change::PutRollout { rollout: record.into(), expected: Expected::Any, time: Time(5) };
    fixture.store.commit(vec![fixtures::create("r-back", 9, vec![]), put]).await.unwrap();
    backup(&fixture.data(), &fixture.out(), false).await.unwrap();
    let data = fixture.dir.path().join("other");
    restore(&fixture.out(), &data, false, Time(70)).await.unwrap();
    let store = SqliteStore::open(&data).await.unwrap();
    let rollout = store.rollout(&"r-back".parse().unwrap()).await.unwrap().unwrap().rollout;
    assert_eq!(rollout.state, State::AwaitingApproval);
    assert_eq!(rollout.reason.code, ReasonCode::AwaitingApproval);
}
