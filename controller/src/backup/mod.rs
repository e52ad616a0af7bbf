//! Backup and restore of a controller's data directory.
//!
//! A backup can be taken beside a running controller. A restored controller is behind its fleet: so restoring
//! raises the epoch, and leaves every rollout that was under way paused, until a person has looked.

mod archive;
#[cfg(test)]
mod tests;

use std::{
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use upfleet_domain::{
    id::RolloutId,
    rollout::{event::Event, machine::Machine},
    time::Time,
};

use crate::store::{
    AuditRecord, Change, Expected, Page, RolloutRecord, Store, StoreError,
    sqlite::{self, SqliteStore},
};

const DATABASE: &str = sqlite::FILE;
const CONFIGURATION: &str = "controller.toml";
/// Where a restore unpacks, in the data directory so that all is one rename away.
const STAGING: &str = ".restoring";
/// Directories that are backed up file by file.
const DIRECTORIES: [&str; 2] = ["ca", "tls"];

/// A failed backup or restore. The operator's to solve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is no controller's data.
    #[error("`{}` holds no controller's data", path.display())]
    NoData {
        /// The directory.
        path: PathBuf,
    },
    /// A restore would replace something.
    #[error("`{}` is not empty; --force replaces what is there", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The file is no backup.
    #[error("`{}` is no backup", path.display())]
    NotABackup {
        /// The file.
        path: PathBuf,
    },
    /// The backup is not whole; nothing was restored.
    #[error("backup `{}` is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The store's database said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk refused.
    #[error("could not {operation} `{}`", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a backup or restore gives.
pub type Result<T, E = BackupError> = std::result::Result<T, E>;

fn io(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BackupError {
    move |source| BackupError::Io { operation, path: path.to_owned(), source }
}

/// A finished backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its length in bytes.
    pub size: u64,
    /// How many artifacts are in it.
    pub artifacts: usize,
}

/// A finished restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The epoch from now on.
    pub epoch: u64,
    /// The rollouts that were under way; they are PAUSED now, HALTED where they were being cancelled, or
    /// AWAITING_APPROVAL where they were about to start by themselves.
    pub paused: Vec<RolloutId>,
    /// How many artifacts came from the backup.
    pub artifacts: usize,
    /// Where what was there before lies now.
    pub replaced: Option<PathBuf>,
}

/// Backs a data directory up into one file, also while its controller runs.
///
/// The file holds the CA's key: whoever can read it can take the fleet over. Only its owner can.
///
/// # Errors
/// [`BackupError::NoData`], or what the disk or the database refuses. `out` is whole or as it was.
pub async fn backup(data: &Path, out: &Path, with_artifacts: bool) -> Result<Backup> {
    let database = sqlite::path(data);
    if !database.exists() {
        return Err(BackupError::NoData { path: data.to_owned() });
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".upfleet-backup-").tempdir_in(parent);
    let aside = aside.map_err(io("create a directory in", parent))?;
    let snapshot = aside.path().join(DATABASE);
    // The artifacts are listed after the snapshot: those that it names were there before.
    sqlite::snapshot(&database, &snapshot).await?;
    let (data, out) = (data.to_owned(), out.to_owned());
    let packed = tokio::task::spawn_blocking(move || pack(&data, &snapshot, &out, with_artifacts));
    packed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn pack(data: &Path, snapshot: &Path, out: &Path, with_artifacts: bool) -> Result<Backup> {
    let mut writer = archive::Writer::create(out)?;
    writer.add(DATABASE, snapshot)?;
    let configuration = data.join(CONFIGURATION);
    if configuration.exists() {
        writer.add(CONFIGURATION, &configuration)?;
    }
    for directory in DIRECTORIES {
        for (name, path) in files(&data.join(directory))? {
            writer.add(&format!("{directory}/{name}"), &path)?;
        }
    }
    let mut artifacts = 0;
    if with_artifacts {
        for (name, path) in files(&data.join("artifacts"))? {
            writer.add(&format!("artifacts/{name}"), &path)?;
            artifacts += 1;
        }
    }
    Ok(Backup { size: writer.finish()?, artifacts })
}

/// The plain files of a directory by name; none where it is not there. Temporary ones begin with a dot.
fn files(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io("list", directory))? {
        let path = entry.map_err(io("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_file() && !name.is_empty() && !name.starts_with('.') {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Restores a backup into a data directory whose controller does not run.
///
/// The epoch is raised, so that no order from before is mistaken for one of now, and rollouts that were under
/// way come up paused with `RESTORED_FROM_BACKUP`. Artifacts that are there stay.
///
/// # Errors
/// [`BackupError::NotEmpty`] without `force`; [`BackupError::NotABackup`] or [`BackupError::Damaged`], and then
/// nothing was changed; or what the disk or the database refuses.
pub async fn restore(input: &Path, data: &Path, force: bool, now: Time) -> Result<Restored> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data);
    made.map_err(io("create", data))?;
    let _lock = sqlite::lock(data)?;
    let occupied = occupants(data)?;
    if !occupied.is_empty() && !force {
        return Err(BackupError::NotEmpty { path: data.to_owned() });
    }
    let staging = data.join(STAGING);
    // What an interrupted restore left is worth nothing.
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(io("remove", &staging))?;
    }
    DirBuilder::new().mode(0o700).create(&staging).map_err(io("create", &staging))?;
    let restored = stage_and_place(input, data, &staging, &occupied, now).await;
    let removed = std::fs::remove_dir_all(&staging).map_err(io("remove", &staging));
    let restored = restored?;
    removed?;
    Ok(restored)
}

async fn stage_and_place(
    input: &Path,
    data: &Path,
    staging: &Path,
    occupied: &[PathBuf],
    now: Time,
) -> Result<Restored> {
    let (from, into) = (input.to_owned(), staging.to_owned());
    let names = tokio::task::spawn_blocking(move || archive::unpack(&from, &into));
    let names = names.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    if !names.iter().any(|name| name == DATABASE) {
        return Err(BackupError::NotABackup { path: input.to_owned() });
    }
    let (epoch, paused) = settle(&staging.join(DATABASE), now).await?;
    let replaced = move_away(data, occupied, now)?;
    // The database comes last: a directory without one was not restored to the end.
    let (database, rest): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name == DATABASE);
    let artifacts = rest.iter().filter(|name| name.starts_with("artifacts/")).count();
    for name in rest.iter().chain(&database) {
        place(staging, data, name)?;
    }
    Ok(Restored { epoch, paused, artifacts, replaced })
}

/// Raises the epoch, ends sessions, forgets orders, and pauses what was under way, all in one batch.
///
/// Orders from before are forgotten, because one that was on its way when the backup was taken would go out now;
/// whoever resumes a rollout has it order anew.
async fn settle(database: &Path, now: Time) -> Result<(u64, Vec<RolloutId>)> {
    let store = SqliteStore::open_unlocked(database).await?;
    let meta = store.meta().await?;
    let mut changes =
        vec![Change::RaiseEpoch { from: meta.epoch }, Change::CloseAllSessions, Change::ForgetOrders];
    let mut paused = Vec::new();
    for record in store.open_rollouts().await? {
        // The engine would start a revert by itself; whatever else is planned waits for a person anyway.
        if record.rollout.is_open() || record.rollout.reverts.is_some() {
            paused.extend(pause(&store, record, now, &mut changes).await?);
        }
    }
    let names: Vec<&str> = paused.iter().map(RolloutId::as_str).collect();
    changes.push(Change::Audit(AuditRecord {
        sequence: 0,
        actor: "local".to_owned(),
        request_id: String::new(),
        action: "controller.restore".to_owned(),
        object: "controller".to_owned(),
        before: serde_json::json!({ "epoch": meta.epoch }),
        after: serde_json::json!({ "epoch": meta.epoch + 1, "paused": names }),
        time: now,
    }));
    store.commit(changes).await?;
    store.close().await;
    // Only the one file is put in place: what was written must be in it, not in the log beside it.
    let log = database.with_file_name(format!("{DATABASE}-wal"));
    if log.metadata().is_ok_and(|meta| meta.len() > 0) {
        return Err(io("complete", &log)(std::io::Error::other("it was not taken into the database")));
    }
    Ok((meta.epoch + 1, paused))
}

/// Lets the rollout's machine know of the restore, and adds what follows to the batch. Returns the rollout's id
/// where it changed its state.
async fn pause(
    store: &SqliteStore,
    mut record: RolloutRecord,
    now: Time,
    changes: &mut Vec<Change>,
) -> Result<Option<RolloutId>> {
    let id = record.rollout.id.clone();
    let rows = store.upgrades(&id, &[], &Page::ALL).await?.rows;
    let upgrades = rows.into_iter().map(|upgrade| (upgrade.node.clone(), upgrade)).collect();
    let before = record.rollout.state;
    let machine = Machine { rollout: record.rollout, upgrades };
    let (mut machine, outcomes) = machine.step(Event::Restored, now);
    let outcomes = outcomes.expect("a machine refuses commands only, and this is none");
    for node in outcomes.upgrades.into_keys() {
        if let Some(upgrade) = machine.upgrades.remove(&node) {
            let (rollout, upgrade) = (id.clone(), Box::new(upgrade));
            changes.push(Change::PutUpgrade { rollout, upgrade, expected: Expected::Any, time: now });
        }
    }
    let changed = machine.rollout.state != before;
    record.rollout = machine.rollout;
    if outcomes.rollout {
        let rollout = Box::new(record);
        changes.push(Change::PutRollout { rollout, expected: Expected::Any, time: now });
    }
    Ok(changed.then_some(id))
}

/// What lies in a data directory and would be replaced. Artifacts stay: their names say what they are.
fn occupants(data: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data).map_err(io("list", data))? {
        let path = entry.map_err(io("list", data))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stays =
            [sqlite::LOCK, STAGING, "artifacts", "run"].contains(&name) || name.starts_with("replaced-");
        if !stays {
            found.push(path);
        }
    }
    Ok(found)
}

/// Moves what is there aside, the database first; nothing is deleted.
fn move_away(data: &Path, occupied: &[PathBuf], now: Time) -> Result<Option<PathBuf>> {
    if occupied.is_empty() {
        return Ok(None);
    }
    let aside = data.join(format!("replaced-{now}"));
    DirBuilder::new().recursive(true).mode(0o700).create(&aside).map_err(io("create", &aside))?;
    let database = |path: &&PathBuf| path.file_name().is_some_and(|name| name == DATABASE);
    let (first, rest): (Vec<&PathBuf>, Vec<&PathBuf>) = occupied.iter().partition(database);
    for path in first.into_iter().chain(rest) {
        let target = aside.join(path.file_name().unwrap_or_default());
        std::fs::rename(path, &target).map_err(io("move", path))?;
    }
    sync(data)?;
    Ok(Some(aside))
}

fn place(staging: &Path, data: &Path, name: &str) -> Result<()> {
    let (from, to) = (staging.join(name), data.join(name));
    let parent = to.parent().unwrap_or(data);
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io("create", parent))?;
    std::fs::rename(&from, &to).map_err(io("move", &from))?;
    sync(parent)
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(io("sync", directory))
}
