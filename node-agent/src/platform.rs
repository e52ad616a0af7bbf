//! What this node is, and what kind of program a file is: enough to refuse, before anything is touched, what
//! could never run here. Reads headers only, and believes no length they carry.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use upfleet_domain::release::Platform;

/// What this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Operating system and processor, in the words of manifests.
    pub platform: Platform,
    /// The node's own name.
    pub hostname: String,
    /// The kernel's release, e.g. `6.1.0-18-amd64`.
    pub kernel: String,
    /// The C library, e.g. `glibc 2.36` or `musl`; empty where none is found.
    pub libc: String,
}

/// Looks at this node.
#[must_use]
pub fn node_facts() -> NodeFacts {
    let name = rustix::system::uname();
    NodeFacts {
        platform: node_platform(),
        hostname: name.nodename().to_string_lossy().into_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        libc: libc(),
    }
}

/// Operating system and processor of this node.
#[must_use]
pub fn node_platform() -> Platform {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    let arch = match machine.as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        _ => machine,
    };
    Platform { os: "linux".to_owned(), arch }
}

/// Where distributions keep the C library.
const GLIBC: [&str; 5] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
];

fn libc() -> String {
    // The library carries its own banner; asking it in any other way means running something.
    for path in GLIBC {
        let Ok(bytes) = fs::read(path) else { continue };
        let marker = b"GNU C Library";
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker) {
            let line = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 200)]).into_owned();
            let version = line.split("version ").nth(1).unwrap_or_default();
            let version: String = version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            return format!("glibc {}", version.trim_end_matches('.'));
        }
    }
    let musl = fs::read_dir("/lib").ok().into_iter().flatten().filter_map(Result::ok);
    let found = musl.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("ld-musl-"));
    if found { "musl".to_owned() } else { String::new() }
}

/// What a file is, by its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A program for one processor.
    Elf {
        /// In the words of manifests (`amd64`), or `machine-<number>`.
        arch: String,
        /// The dynamic loader it asks for; none for a static program.
        interpreter: Option<PathBuf>,
    },
    /// A text that names its interpreter.
    Script {
        /// The interpreter's path.
        interpreter: PathBuf,
    },
    /// A ZIP archive, such as a jar.
    Zip,
    /// Anything else.
    Other,
}

impl FileKind {
    /// Why a file of this kind can't be executed on a node of `platform`; `None` where nothing is known
    /// against it.
    #[must_use]
    pub fn obstacle(&self, platform: &Platform) -> Option<String> {
        match self {
            Self::Elf { arch, .. } if *arch != platform.arch => {
                Some(format!("the file is a program for {arch}"))
            }
            Self::Elf { interpreter: Some(interpreter), .. } if !interpreter.exists() => Some(format!(
                "the program needs the loader `{}`, which is not on this node",
                interpreter.display()
            )),
            Self::Script { interpreter } if !interpreter.exists() => {
                Some(format!("the script needs `{}`, which is not on this node", interpreter.display()))
            }
            Self::Elf { .. } | Self::Script { .. } | Self::Zip | Self::Other => None,
        }
    }
}

/// Looks at a file's first bytes.
///
/// # Errors
/// Where it can't be read. A damaged header is not an error: the file is then [`FileKind::Other`].
pub fn inspect(path: &Path) -> io::Result<FileKind> {
    let file = File::open(path)?;
    let mut head = Vec::new();
    (&file).take(1024).read_to_end(&mut head)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(elf(&file, &head).unwrap_or(FileKind::Other));
    }
    if head.starts_with(b"PK\x03\x04") {
        return Ok(FileKind::Zip);
    }
    Ok(script(&head).unwrap_or(FileKind::Other))
}

fn script(head: &[u8]) -> Option<FileKind> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let interpreter = PathBuf::from(line.split_whitespace().next()?);
    Some(FileKind::Script { interpreter })
}

/// The numbers of an ELF file, whose width and order its first bytes say.
struct Numbers {
    wide: bool,
    big: bool,
}

impl Numbers {
    fn get(&self, bytes: &[u8], at: usize, length: usize) -> Option<u64> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let push = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if self.big { field.iter().fold(0, push) } else { field.iter().rev().fold(0, push) })
    }

    /// A field that is a word: 8 bytes in wide files, 4 in others, at another place in each.
    fn word(&self, bytes: &[u8], wide_at: usize, narrow_at: usize) -> Option<u64> {
        if self.wide { self.get(bytes, wide_at, 8) } else { self.get(bytes, narrow_at, 4) }
    }
}

fn elf(file: &File, head: &[u8]) -> Option<FileKind> {
    let numbers = Numbers { wide: *head.get(4)? == 2, big: *head.get(5)? == 2 };
    let machine = numbers.get(head, 18, 2)?;
    let arch = match (machine, numbers.wide, numbers.big) {
        (62, true, false) => "amd64".to_owned(),
        (183, true, false) => "arm64".to_owned(),
        (3, ..) => "386".to_owned(),
        (40, ..) => "arm".to_owned(),
        (243, true, _) => "riscv64".to_owned(),
        (21, true, false) => "ppc64le".to_owned(),
        (22, ..) => "s390x".to_owned(),
        _ => format!("machine-{machine}"),
    };
    let table = numbers.word(head, 32, 28)?;
    let (size_at, count_at) = if numbers.wide { (54, 56) } else { (42, 44) };
    let size = numbers.get(head, size_at, 2)?;
    let count = numbers.get(head, count_at, 2)?.min(128);
    let mut interpreter = None;
    for index in 0..count {
        let mut entry = [0; 56];
        let length = if numbers.wide { 56 } else { 32 };
        let at = table.checked_add(index.checked_mul(size)?)?;
        file.read_exact_at(&mut entry[..length], at).ok()?;
        const PT_INTERP: u64 = 3;
        if numbers.get(&entry, 0, 4)? == PT_INTERP {
            let offset = numbers.word(&entry, 8, 4)?;
            let length = usize::try_from(numbers.word(&entry, 32, 16)?.min(4096)).ok()?;
            let mut name = vec![0; length];
            file.read_exact_at(&mut name, offset).ok()?;
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            interpreter = Some(PathBuf::from(String::from_utf8_lossy(&name[..end]).into_owned()));
        }
    }
    Some(FileKind::Elf { arch, interpreter })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inspect_bytes(bytes: &[u8]) -> FileKind {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, bytes).unwrap();
        inspect(&path).unwrap()
    }

    #[test]
    fn this_very_program_runs_here() {
        let kind = inspect(Path::new("/proc/self/exe")).unwrap();
        let platform = node_platform();
        let FileKind::Elf { arch, interpreter } = &kind else { panic!("{kind:?}") };
        assert_eq!(*arch, platform.arch);
        assert!(interpreter.as_ref().is_none_or(|path| path.exists()));
        assert_eq!(kind.obstacle(&platform), None);
    }

    #[test]
    fn another_processor_is_an_obstacle() {
        let mut bytes = fs::read("/proc/self/exe").unwrap();
        bytes[18] = 0xb7;
        if node_platform().arch == "arm64" {
            bytes[18] = 0x3e;
        }
        let kind = inspect_bytes(&bytes);
        assert!(kind.obstacle(&node_platform()).unwrap().contains("is a program for"), "{kind:?}");
    }

    #[test]
    fn a_missing_interpreter_is_an_obstacle() {
        let kind = inspect_bytes(b"#! /opt/none/bin/perl -w\nprint 1;");
        assert_eq!(kind, FileKind::Script { interpreter: "/opt/none/bin/perl".into() });
        assert!(kind.obstacle(&node_platform()).unwrap().contains("/opt/none/bin/perl"));
        let loader =
            FileKind::Elf { arch: node_platform().arch, interpreter: Some("/lib/ld-none.so".into()) };
        assert!(loader.obstacle(&node_platform()).unwrap().contains("/lib/ld-none.so"));
    }

    #[test]
    fn other_files_are_told_apart() {
        assert_eq!(inspect_bytes(b"PK\x03\x04rest"), FileKind::Zip);
        assert_eq!(inspect_bytes(b""), FileKind::Other);
        assert_eq!(inspect_bytes(b"#!\n"), FileKind::Other);
        assert_eq!(inspect_bytes(b"\x7fELF"), FileKind::Other);
        assert_eq!(inspect_bytes(b"hello"), FileKind::Other);
    }

    #[test]
    fn the_node_is_known() {
        let facts = node_facts();
        assert!(!facts.kernel.is_empty() && !facts.hostname.is_empty(), "{facts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_headers_do_no_harm(damage in prop::collection::vec((4_usize..200, any::<u8>()), 1..8)) {
            let mut bytes = fs::read("/bin/sh").unwrap();
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            inspect_bytes(&bytes);
        }
    }
}
