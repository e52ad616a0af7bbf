//! Files that become artifacts: their digests, their length, and what they are built for.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use md5::Md5;
use sha2::{Digest as _, Sha256};
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    release::Platform,
};

use super::failure::{Failure, Result};

/// A file, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// MD5 of its bytes.
    pub md5: Md5Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What its first bytes say it is built for; `None` where they say nothing.
    pub platform: Option<Platform>,
}

/// Reads a file whole, once.
pub(crate) fn facts(path: &Path) -> Result<Facts> {
    let file = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let is_jar = path.extension().is_some_and(|extension| extension == "jar");
    let mut facts = read(file).map_err(|error| Failure::io("read", path, &error))?;
    if facts.size == 0 {
        return Err(Failure::usage(format!("`{}` is empty", path.display())));
    }
    if is_jar {
        facts.platform = Some(Platform { os: "linux".to_owned(), arch: "any".to_owned() });
    }
    Ok(facts)
}

/// What `facts` says, of bytes that are at hand.
pub(super) fn of_bytes(bytes: &[u8]) -> Facts {
    read(bytes).expect("bytes at hand can be read")
}

/// SHA-256 and length of a file, which may be empty.
pub(super) fn digest(path: &Path) -> Result<(Digest, u64)> {
    let failed = |error: io::Error| Failure::io("read", path, &error);
    let facts = read(File::open(path).map_err(failed)?).map_err(failed)?;
    Ok((facts.sha256, facts.size))
}

fn read(mut source: impl Read) -> io::Result<Facts> {
    let (mut sha256, mut md5, mut size) = (Sha256::new(), Md5::new(), 0);
    let mut buffer = vec![0; 1024 * 1024];
    let mut head = Vec::new();
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let chunk = &buffer[..count];
        let missing = HEAD.saturating_sub(head.len()).min(count);
        head.extend_from_slice(&chunk[..missing]);
        sha256.update(chunk);
        md5.update(chunk);
        size += count as u64;
    }
    Ok(Facts {
        sha256: Digest(sha256.finalize().into()),
        md5: Md5Digest(md5.finalize().into()),
        size,
        platform: platform(&head),
    })
}

/// So many bytes of an ELF header tell the machine.
const HEAD: usize = 20;

/// What the first bytes of a file say it is built for.
fn platform(head: &[u8]) -> Option<Platform> {
    let linux = |arch: &str| Some(Platform { os: "linux".to_owned(), arch: arch.to_owned() });
    if head.starts_with(b"#!") {
        return linux("any");
    }
    if head.len() < HEAD || !head.starts_with(b"\x7fELF") {
        return None;
    }
    let field = [head[18], head[19]];
    let machine = if head[5] == 2 { u16::from_be_bytes(field) } else { u16::from_le_bytes(field) };
    match machine {
        62 => linux("amd64"),
        183 => linux("arm64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(data: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(b"\x7fELF");
        head[5] = data;
        head[18..20].copy_from_slice(&machine);
        head
    }

    #[test]
    fn the_header_says_what_a_program_is_built_for() {
        let check = |head: &[u8], text: Option<&str>| {
            assert_eq!(platform(head).map(|platform| platform.to_string()).as_deref(), text);
        };
        check(&elf(1, [62, 0]), Some("linux/amd64"));
        check(&elf(1, [183, 0]), Some("linux/arm64"));
        check(&elf(2, [0, 183]), Some("linux/arm64"));
        check(&elf(1, [8, 0]), None);
        check(b"#!/bin/sh\n", Some("linux/any"));
        check(b"PK\x03\x04", None);
        check(b"\x7fELF", None);
    }

    #[test]
    fn digests_and_length_in_one_pass() {
        let facts = read(&b"abc"[..]).unwrap();
        assert_eq!(facts.sha256, Digest::of(b"abc"));
        assert_eq!(facts.md5.to_string(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(facts.size, 3);
    }
}
