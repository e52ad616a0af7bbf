//! Stack sets: what a JVM needs to start with patches in force, in one directory per stack that never changes.
//!
//! A set lies in the component's store as `stacks/<name>/` and is named by the SHA-256 of its `stack.json`, which
//! names every other file with its own. `stacks/current` is a symbolic link to the set in force; exchanging it by a
//! rename is the one switch. No link: the application alone. A file that somebody else puts there is on no path,
//! because every path is written out jar by jar.

mod build;
mod read;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    digest::Digest,
    jvm::Mechanism,
    reason::{Reason, ReasonCode},
    state::Layer,
};

pub use build::switch;
pub use read::{Current, current, missing, named};

use super::{
    Place,
    files::{failed, sync_dir},
};

/// The description in each set.
const STACK: &str = "stack.json";
/// The link to the set in force.
const CURRENT: &str = "current";
/// The link to a set as it will lie beside it, kept in the set: switching links it, and takes no space.
const LINK: &str = "link";
/// What stands for the set's own directory where its files are hashed: its name follows from those hashes.
const OWN: &str = "{set}";
/// The format of [`Description`].
const FORMAT: u32 = 1;

/// A file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFile {
    /// Its name in the set's directory.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

/// What is in a file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes. They may name the set's directory.
    Bytes(Vec<u8>),
    /// An artifact among the component's versions; the file is a link to it.
    Version(Digest),
}

/// A set that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFiles {
    /// Its directory.
    pub dir: PathBuf,
    /// The stack, highest number first, retired layers as well.
    pub layers: Vec<Layer>,
    /// How patches get into the JVM.
    pub mechanism: Mechanism,
    /// Its files.
    pub files: Vec<SetFile>,
    description: Vec<u8>,
}

/// `stack.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    format: u32,
    mechanism: Mechanism,
    layers: Vec<Layer>,
    files: Vec<Listed>,
}

/// A file as [`Description`] has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    name: String,
    /// Of its bytes, with [`OWN`] where they name the set's directory.
    sha256: Digest,
}

impl SetFiles {
    /// A set in `place`. `files` makes the files for a set that lies in the directory it is given.
    ///
    /// # Errors
    /// What `files` says.
    pub fn new(
        place: &Place,
        layers: &[Layer],
        mechanism: Mechanism,
        files: impl Fn(&Path) -> Result<Vec<SetFile>, Reason>,
    ) -> Result<Self, Reason> {
        let listed = |file: &SetFile| Listed {
            name: file.name.clone(),
            sha256: match &file.content {
                Content::Bytes(bytes) => Digest::of(bytes),
                Content::Version(digest) => *digest,
            },
        };
        let files_of = files(Path::new(OWN))?.iter().map(listed).collect();
        let description = Description { format: FORMAT, mechanism, layers: layers.to_vec(), files: files_of };
        let description =
            serde_json::to_vec_pretty(&description).expect("it has string keys and finite numbers");
        let dir = place.stacks().join(Digest::of(&description).to_string());
        let files = files(&dir)?;
        Ok(Self { dir, layers: layers.to_vec(), mechanism, files, description })
    }
}

/// The name of a patch's jar in a set.
#[must_use]
pub fn jar_name(number: u32, artifact: &Digest) -> String {
    format!("{number:06}-{}.jar", artifact.short())
}

impl Place {
    /// Where the stack sets lie.
    #[must_use]
    pub fn stacks(&self) -> PathBuf {
        self.store.join("stacks")
    }

    /// The set that is in force, for people's own scripts.
    #[must_use]
    pub fn current_stack(&self) -> PathBuf {
        self.stacks().join(CURRENT)
    }

    /// Where JVMs say what they loaded.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.store.join("journal")
    }
}

/// The stack that the next start uses, highest number first; empty where there is none.
///
/// # Errors
/// [`ReasonCode::StackDamaged`] where its files are not what they were.
pub fn layers(place: &Place) -> Result<Vec<Layer>, Reason> {
    Ok(current(place)?.map(|current| current.layers).unwrap_or_default())
}

/// Removes sets that nothing names: neither the link, nor a kept stack, nor a process by its files.
///
/// # Errors
/// Where the directory can't be read or written.
pub fn prune(place: &Place, kept: &[Vec<Layer>], in_use: &[PathBuf]) -> Result<(), Reason> {
    let stacks = place.stacks();
    let pruned = || -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&stacks) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let linked = std::fs::read_link(place.current_stack()).ok().map(|name| stacks.join(name));
        for entry in entries {
            let path = entry?.path();
            let named = linked.as_ref() == Some(&path)
                || path == place.current_stack()
                || in_use.iter().any(|file| file.starts_with(&path))
                || read::description(&path).is_ok_and(|found| kept.contains(&found.layers));
            if named {
                continue;
            }
            // A set is nothing without its description, so that half a removal leaves no set.
            let _ = std::fs::remove_file(path.join(STACK));
            match std::fs::symlink_metadata(&path)?.is_dir() {
                true => std::fs::remove_dir_all(&path)?,
                false => std::fs::remove_file(&path)?,
            }
        }
        sync_dir(&stacks)
    };
    pruned().map_err(failed(ReasonCode::StageFailed, "remove old stacks from", &stacks))
}
