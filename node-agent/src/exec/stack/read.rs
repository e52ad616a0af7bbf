//! Reading a set back: every file against the digest that the set's description has of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use upfleet_domain::{
    digest::Digest,
    jvm::Mechanism,
    reason::{Reason, ReasonCode},
    state::Layer,
};

use super::{Description, FORMAT, OWN, STACK};
use crate::exec::{Place, files::failed};

/// The set that is in force, looked at file by file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its directory.
    pub dir: PathBuf,
    /// How patches get into the JVM.
    pub mechanism: Mechanism,
    /// The stack, highest number first.
    pub layers: Vec<Layer>,
    /// Its files by name, each with the SHA-256 of what is in it.
    pub files: Vec<(String, Digest)>,
}

/// What `stacks/current` leads to; `None` where there is no stack.
///
/// # Errors
/// [`ReasonCode::StackDamaged`] where a file is not what it was.
pub fn current(place: &Place) -> Result<Option<Current>, Reason> {
    let link = place.current_stack();
    match fs::read_link(&link) {
        // A name and no path: nobody leads the agent elsewhere.
        Ok(name) if name.components().count() == 1 && name.file_name().is_some() => {
            verify(&place.stacks().join(name)).map(Some)
        }
        Ok(name) => Err(damaged(&link, &name.display().to_string(), "a set beside it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(ReasonCode::StageFailed, "read", &link)(error)),
    }
}

/// The set of that name, whatever `stacks/current` leads to.
///
/// # Errors
/// [`ReasonCode::StackDamaged`] where a file is not what it was, or there is no such set.
pub fn named(place: &Place, name: &str) -> Result<Current, Reason> {
    let dir = place.stacks().join(name);
    if dir.parent() == Some(&place.stacks()) && dir.file_name().is_some() {
        verify(&dir)
    } else {
        Err(damaged(&place.stacks(), name, "the name of a set"))
    }
}

/// There is no set, though a process is about to be started with one.
#[must_use]
pub fn missing(place: &Place) -> Reason {
    damaged(&place.current_stack(), "nothing", "a set of patches")
}

fn damaged(path: &Path, actual: &str, expected: &str) -> Reason {
    let reason = Reason::new(ReasonCode::StackDamaged).with("path", path.display());
    reason.with("actual", actual).with("expected", expected)
}

/// The description of a set, whose name it must have.
pub(super) fn description(dir: &Path) -> Result<Description, Reason> {
    let path = dir.join(STACK);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let bytes = fs::read(&path).map_err(|error| damaged(&path, &error.to_string(), &name))?;
    let found = Digest::of(&bytes).to_string();
    if found != name {
        return Err(damaged(&path, &found, &name));
    }
    let read: Description =
        serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error.to_string(), &name))?;
    if read.format == FORMAT {
        Ok(read)
    } else {
        Err(damaged(&path, &format!("format {}", read.format), &name))
    }
}

/// A set whose files are all what its description says.
pub(super) fn verify(dir: &Path) -> Result<Current, Reason> {
    let read = description(dir)?;
    let own = dir.to_string_lossy();
    let mut files = Vec::new();
    for file in read.files {
        let path = dir.join(&file.name);
        let expected = file.sha256.to_string();
        let bytes =
            fs::read(&path).map_err(|error| damaged(&path, &format!("nothing: {error}"), &expected))?;
        let (actual, general) = (Digest::of(&bytes), Digest::of(&replace(&bytes, own.as_bytes())));
        if general != file.sha256 {
            return Err(damaged(&path, &actual.to_string(), &expected));
        }
        files.push((file.name, actual));
    }
    Ok(Current { dir: dir.to_owned(), mechanism: read.mechanism, layers: read.layers, files })
}

/// The bytes with [`OWN`] where the set's directory is named.
fn replace(bytes: &[u8], own: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        if rest.starts_with(own) {
            replaced.extend_from_slice(OWN.as_bytes());
            rest = &rest[own.len()..];
        } else {
            replaced.push(rest[0]);
            rest = &rest[1..];
        }
    }
    replaced
}
