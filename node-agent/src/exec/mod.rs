//! Executors: one step each on the files of one component. Idempotent; they decide nothing and know no network.
//!
//! Beside a component's path, on the same file system, lies its store, `.upfleet/<component>/`: `incoming/` for
//! bytes on their way, `versions/<digest>` for what can be put in place. Switching is a hard link and a rename,
//! so that it takes no space and is never half done; of a directory, it is one rename of a link or one exchange of two
//! names (`directory`). Every write follows one order: temporary file, metadata,
//! fsync, hash read back from the disk, rename, fsync of the directory.

pub mod archive;
mod backup;
mod directory;
mod files;
pub mod jar;
mod look;
mod meta;
mod offered;
pub mod patch_jar;
mod prune;
mod record;
mod remove;
pub mod stack;
mod stage;
mod swap;
#[cfg(test)]
mod tests;
mod tree;
mod verify;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

pub use directory::{DirectoryRules, unpacked};
pub(crate) use files::failed;
pub use files::hash_file;
pub use look::Looked;
pub use meta::FirstInstall;
pub(crate) use meta::number as owner_number;
pub use offered::offer;
use upfleet_domain::{
    digest::Digest,
    files::Changes,
    id::ComponentId,
    reason::{Reason, ReasonCode},
    release::{Kind, Manifest},
    upgrade::{
        preflight::Elf,
        step::{Answer, StepKind},
    },
};

use crate::config::ComponentConfig;

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

    /// The component's file or directory.
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

    /// Where the records of a directory's versions are.
    fn trees(&self) -> PathBuf {
        self.store.join("trees")
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
    sort: Sort,
}

/// What the component is on the disk. Decided once, by its kind.
#[derive(Clone, Debug)]
enum Sort {
    File {
        first: FirstInstall,
        /// What was hashed last of the installed file, by what the kernel says of it: looking often is then cheap.
        known: Arc<Mutex<Option<look::Known>>>,
    },
    Directory(directory::Directory),
}

impl Executor {
    /// An executor for the file at `place`. `first` is what a first install's file is given.
    #[must_use]
    pub fn new(place: Place, first: FirstInstall) -> Self {
        Self { place, sort: Sort::File { first, known: Arc::default() } }
    }

    /// An executor for the directory at `place`.
    #[must_use]
    pub fn of_directory(place: Place, rules: DirectoryRules) -> Self {
        Self { sort: Sort::Directory(directory::Directory::new(place.clone(), rules)), place }
    }

    /// The executor that a component's configuration asks for.
    #[must_use]
    pub fn of(config: &ComponentConfig) -> Self {
        let place = Place::new(&config.name, &config.path);
        let (owner, group) = (config.owner.clone(), config.group.clone());
        let first = FirstInstall { mode: config.mode.0, owner, group };
        if config.kind != Kind::Files {
            return Self::new(place, first);
        }
        let swap = config.files.unwrap_or_default().swap;
        let executes = config.run.command.first().is_some_and(|program| program.starts_with("{path}"));
        Self::of_directory(place, DirectoryRules { swap, first, executes })
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
        let is_patch = release.is_some_and(|release| release.kind == Kind::Patch);
        let first = match &self.sort {
            // A patch's jar lies among the versions as a file, whatever it patches.
            Sort::Directory(directory) if is_patch => directory.first(),
            Sort::Directory(directory) => return directory.perform(step, release),
            Sort::File { first, .. } => first,
        };
        match step {
            StepKind::Verify { digest, .. } => {
                let elf = verify::fetched(place, digest)?;
                match release.and_then(|release| release.patch.as_ref()) {
                    Some(patch) => verify::patch(place, digest, patch).map(|()| Answer::Verified(None)),
                    None => Ok(Answer::Verified(elf)),
                }
            }
            StepKind::Stage { digest, .. } => stage::stage(place, first, digest, is_patch).map(done),
            StepKind::VerifyKept { digest } => verify::kept(place, digest).map(done),
            StepKind::Backup { digest } => backup::back_up(place, digest).map(done),
            StepKind::Swap { digest } | StepKind::SwapBack { digest } => {
                swap::put_in_place(place, digest).map(done)
            }
            StepKind::Remove { digest } => remove::remove(place, *digest).map(done),
            StepKind::Prune { keep, .. } => prune::prune(place, keep).map(done),
            _ => Err(no_step(step, place)),
        }
    }

    /// Makes the store's directories, for whoever puts bytes into [`Place::part`].
    ///
    /// # Errors
    /// Where the disk or its permissions do not allow it.
    pub fn prepare(&self) -> Result<(), Reason> {
        if let Sort::Directory(directory) = &self.sort {
            return directory.prepare();
        }
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
        match &self.sort {
            Sort::File { known, .. } => look::inspect(&self.place, known),
            Sort::Directory(directory) => directory.inspect(),
        }
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
        match &self.sort {
            Sort::File { .. } => look::look(&self.place, wanted, runs),
            Sort::Directory(directory) => directory.look(wanted, runs),
        }
    }

    /// Whether a version lies here and is what its name says, so that it need not be fetched.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        match &self.sort {
            Sort::File { .. } => hash_file(&self.place.version(digest)).is_ok_and(|found| found == *digest),
            Sort::Directory(directory) => directory.has(digest),
        }
    }
}

fn no_step(step: &StepKind, place: &Place) -> Reason {
    Reason::new(ReasonCode::StageFailed)
        .with("operation", step.as_str())
        .with("path", place.path.display())
        .with("problem", "that is no step on files")
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
