//! Executors: one step each on the files of one component. Idempotent; they decide nothing and know no network.
//!
//! Beside a component's path, on the same file system, lies its store, `.upfleet/<component>/`: `incoming/` for
//! bytes on their way, `versions/<digest>` for what can be put in place. Switching is a hard link and a rename,
//! so that it takes no space and is never half done. Every write follows one order: temporary file, metadata,
//! fsync, hash read back from the disk, rename, fsync of the directory.

mod backup;
mod files;
pub mod jar;
mod look;
mod meta;
mod offered;
pub mod patch_jar;
mod prune;
mod remove;
pub mod stack;
mod stage;
mod swap;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

pub use files::hash_file;
pub use look::Looked;
pub use meta::FirstInstall;
pub use offered::offer;
use upfleet_domain::{
    digest::Digest,
    files::Changes,
    id::ComponentId,
    reason::{Reason, ReasonCode},
    release::Manifest,
    upgrade::{
        preflight::Elf,
        step::{Answer, StepKind},
    },
};

/// Where a component and its store lie.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    parent: PathBuf,
    store: PathBuf,
    temporary: PathBuf,
}

impl Place {
    /// The place of a component whose file is `path`, an absolute path that names a file.
    #[must_use]
    pub fn new(component: &ComponentId, path: &Path) -> Self {
        let parent = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self {
            path: path.to_owned(),
            store: parent.join(".upfleet").join(component.as_str()),
            temporary: parent.join(format!(".{name}.upfleet-tmp")),
            parent,
        }
    }

    /// The component's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bytes of an artifact arrive.
    #[must_use]
    pub fn part(&self, digest: &Digest) -> PathBuf {
        self.incoming().join(format!("{digest}.part"))
    }

    /// Where a version is kept.
    #[must_use]
    pub fn version(&self, digest: &Digest) -> PathBuf {
        self.versions().join(digest.to_string())
    }

    fn incoming(&self) -> PathBuf {
        self.store.join("incoming")
    }

    fn offered(&self) -> PathBuf {
        self.store.join("offered")
    }

    fn versions(&self) -> PathBuf {
        self.store.join("versions")
    }
}

/// What lies there, by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lying {
    /// What is installed; of a directory that somebody changed, the digest of what it is now.
    pub installed: Option<Digest>,
    /// What is kept, by name; it is hashed again before it is used.
    pub kept: Vec<Digest>,
    /// What differs in an installed directory from the version that was put there.
    pub changes: Changes,
}

/// Performs the steps that concern a component's files.
#[derive(Clone, Debug)]
pub struct Executor {
    place: Place,
    first: FirstInstall,
    /// What was hashed last of the installed file, by what the kernel says of it: looking often is then cheap.
    known: Arc<Mutex<Option<look::Known>>>,
}

impl Executor {
    /// An executor for `place`. `first` is what a first install's file is given.
    #[must_use]
    pub fn new(place: Place, first: FirstInstall) -> Self {
        Self { place, first, known: Arc::default() }
    }

    /// Where the component lies.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Performs a step on the disk. Blocks. `release` is the manifest that the step names, where it names one.
    ///
    /// # Errors
    /// Why it could not be done. What was there before is there still.
    pub fn perform(&self, step: &StepKind, release: Option<&Manifest>) -> Result<Answer, Reason> {
        let place = &self.place;
        match step {
            StepKind::Verify { digest, .. } => {
                let elf = verify::fetched(place, digest)?;
                match release.and_then(|release| release.patch.as_ref()) {
                    Some(patch) => verify::patch(place, digest, patch).map(|()| Answer::Verified(None)),
                    None => Ok(Answer::Verified(elf)),
                }
            }
            StepKind::Stage { digest, .. } => stage::stage(place, &self.first, digest).map(done),
            StepKind::VerifyKept { digest } => verify::kept(place, digest).map(done),
            StepKind::Backup { digest } => backup::back_up(place, digest).map(done),
            StepKind::Swap { digest } | StepKind::SwapBack { digest } => {
                swap::put_in_place(place, digest).map(done)
            }
            StepKind::Remove { digest } => remove::remove(place, *digest).map(done),
            StepKind::Prune { keep, .. } => prune::prune(place, keep).map(done),
            StepKind::CheckPreflight { .. }
            | StepKind::Fetch { .. }
            | StepKind::SwitchStack { .. }
            | StepKind::SwitchStackBack { .. }
            | StepKind::PatchLive { .. }
            | StepKind::Prove { .. }
            | StepKind::Reload
            | StepKind::Stop
            | StepKind::Start { .. }
            | StepKind::Probe { .. }
            | StepKind::Inspect { .. } => Err(Reason::new(ReasonCode::StageFailed)
                .with("operation", step.as_str())
                .with("path", place.path.display())
                .with("problem", "that is no step on files")),
        }
    }

    /// Makes the store's directories, for whoever puts bytes into [`Place::part`].
    ///
    /// # Errors
    /// Where the disk or its permissions do not allow it.
    pub fn prepare(&self) -> Result<(), Reason> {
        files::make_store(&self.place).map_err(files::failed(
            ReasonCode::StageFailed,
            "create",
            &self.place.store,
        ))
    }

    /// What lies there: installed and kept versions by digest.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn inspect(&self) -> Result<Lying, Reason> {
        look::inspect(&self.place, &self.known)
    }

    /// Moves bytes that were offered with [`offer`] to where fetched ones arrive. Says whether there were any.
    ///
    /// # Errors
    /// Where they can't be moved.
    pub fn take_offered(&self, digest: &Digest) -> Result<bool, Reason> {
        offered::take(&self.place, digest)
    }

    /// Removes what was offered and not used.
    pub fn forget_offered(&self) {
        offered::forget(&self.place);
    }

    /// What a check before an upgrade wants to know of the disk. `wanted` is all that has to lie there.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn look(&self, wanted: &[Digest], runs: bool) -> Result<Looked, Reason> {
        look::look(&self.place, wanted, runs)
    }

    /// Whether a version lies here and is what its name says, so that it need not be fetched.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        hash_file(&self.place.version(digest)).is_ok_and(|found| found == *digest)
    }
}

fn done((): ()) -> Answer {
    Answer::Done
}

/// The first bytes of a file as an ELF header, if it is one.
fn elf(path: &Path) -> std::io::Result<Option<Elf>> {
    use std::io::Read as _;
    let mut head = Vec::new();
    files::open(path)?.take(64).read_to_end(&mut head)?;
    Ok(Elf::parse(&head))
}
