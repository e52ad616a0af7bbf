//! Verifying a patch's jar: it holds what its manifest in the release names, byte for byte, and nothing else. Nothing
//! is unpacked or written.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use upfleet_domain::{
    digest::Digest,
    patch::{PatchSpec, class_path_of},
    reason::{Reason, ReasonCode},
};

use super::{
    archive::{self, Limits},
    jar::{Jar, MANIFEST},
};

/// The largest entry, unpacked.
const MAX_ENTRY: u64 = 64 << 20;
/// The most of all entries together, unpacked.
const MAX_TOTAL: u64 = 512 << 20;

/// How many entries a jar may have that are about itself: its manifest, an index, signatures.
const ABOUT_ITSELF: usize = 64;

/// Checks the jar at `path` against what the release says of it.
///
/// # Errors
/// [`ReasonCode::ArchiveHostile`] where two programs could read it differently or it leads elsewhere;
/// [`ReasonCode::PatchInvalid`] with what else is wrong.
pub fn verify(path: &Path, spec: &PatchSpec) -> Result<(), Reason> {
    let files = spec.classes.len() + spec.resources.len() + ABOUT_ITSELF;
    archive::list(path, Limits { files, bytes: MAX_TOTAL })?;
    check(path, spec).map_err(|problem| Reason::new(ReasonCode::PatchInvalid).with("problem", problem))
}

fn check(path: &Path, spec: &PatchSpec) -> Result<(), String> {
    let broken = |error: io::Error| format!("its jar can't be read: {error}");
    let mut jar = Jar::open(path).map_err(broken)?;
    let entries = directory_length(path).map_err(broken)?;
    let names = jar.names();
    if entries != names.len() {
        return Err(format!("its jar has {entries} entries of {} names", names.len()));
    }
    let mut wanted: BTreeMap<String, Digest> =
        spec.classes.iter().map(|class| (class_path_of(&class.name), class.patched)).collect();
    wanted.extend(spec.resources.iter().map(|resource| (resource.name.clone(), resource.digest)));
    let mut total = 0;
    for name in names {
        if let Some(problem) = name_problem(&name) {
            return Err(format!("its jar has `{}`, {problem}", name.escape_default()));
        }
        if name.ends_with('/') {
            continue;
        }
        let bytes = jar.read(&name, MAX_ENTRY.min(MAX_TOTAL - total)).map_err(broken)?;
        total += bytes.len() as u64;
        match wanted.remove(&name) {
            Some(digest) if digest == Digest::of(&bytes) => major(&name, &bytes, spec)?,
            Some(digest) => {
                return Err(format!("`{name}` in its jar has SHA-256 {}, not {digest}", Digest::of(&bytes)));
            }
            None if is_about_the_jar(&name) => {}
            None => return Err(format!("its jar has `{name}`, which its manifest does not name")),
        }
    }
    match wanted.into_keys().next() {
        Some(name) => Err(format!("its jar lacks `{name}`")),
        None => Ok(()),
    }
}

/// A class file says the version that the release says.
fn major(name: &str, bytes: &[u8], spec: &PatchSpec) -> Result<(), String> {
    let Some(class) = spec.classes.iter().find(|class| class_path_of(&class.name) == name) else {
        return Ok(());
    };
    match bytes {
        [0xca, 0xfe, 0xba, 0xbe, _, _, high, low, ..] if u16::from_be_bytes([*high, *low]) == class.major => {
            Ok(())
        }
        _ => Err(format!("`{name}` in its jar is no class file of major version {}", class.major)),
    }
}

/// Manifest and signatures: they belong to the jar, not to the patch.
fn is_about_the_jar(name: &str) -> bool {
    let Some(file) = name.strip_prefix("META-INF/").filter(|file| !file.contains('/')) else { return false };
    let ends = |end: &str| file.len() > end.len() && file.to_ascii_uppercase().ends_with(end);
    name == MANIFEST || [".SF", ".RSA", ".DSA", ".EC"].into_iter().any(ends)
}

/// What is wrong with an entry's name, should anybody unpack it.
fn name_problem(name: &str) -> Option<&'static str> {
    let parts = name.strip_suffix('/').unwrap_or(name);
    if name.len() > 2048 {
        Some("whose name is too long")
    } else if name.starts_with('/') || name.contains('\\') {
        Some("which is no relative path")
    } else if parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("which leaves its directory")
    } else if name.contains(':') || name.chars().any(char::is_control) {
        Some("whose name holds what no name should")
    } else {
        None
    }
}

/// How many entries the directory at the jar's end counts.
fn directory_length(path: &Path) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // The record has 22 bytes and a comment of up to 65535.
    file.seek(SeekFrom::Start(length.saturating_sub(22 + 65_535)))?;
    let mut tail = Vec::new();
    file.take(22 + 65_535).read_to_end(&mut tail)?;
    let at = tail.windows(4).rposition(|window| window == b"PK\x05\x06");
    let count = at
        .and_then(|at| tail.get(at + 10..at + 12))
        .ok_or_else(|| io::Error::other("it has no directory"))?;
    Ok(usize::from(u16::from_le_bytes([count[0], count[1]])))
}

#[cfg(test)]
mod tests;
