//! The demo service's versions: one program with different trailers.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::cli::failure::{Failure, Result};

/// The component that a dev fleet upgrades.
pub(super) const COMPONENT: &str = "hello";

/// One version of the demo service. The trailer's format is documented in `demo.rs`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub version: &'static str,
    behaviour: &'static str,
    seconds: &'static str,
    /// What people are told about it.
    pub about: &'static str,
    pub notes: &'static str,
}

/// The version that the nodes begin with.
pub(super) const FIRST: Version =
    Version { version: "1.0.0", behaviour: "good", seconds: "0", about: "good", notes: "the first greeting" };

/// The versions to try.
pub(super) const OTHERS: [Version; 3] = [
    Version { version: "1.1.0", behaviour: "good", seconds: "0", about: "good", notes: "a warmer greeting" },
    Version {
        version: "1.2.0",
        behaviour: "exit",
        seconds: "0",
        about: "crashes",
        notes: "a greeting too far",
    },
    Version {
        version: "1.3.0",
        behaviour: "unhealthy-after",
        seconds: "0.5",
        about: "healthy for half a second, then 503",
        notes: "greetings from a table",
    },
];

impl Version {
    /// Writes the executable of this version.
    pub(super) fn write(&self, program: &[u8], path: &Path) -> Result<()> {
        let write = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?;
            file.write_all(program)?;
            write!(
                file,
                "\nUPFLEET-DEMO-TRAILER\nversion={}\nbehaviour={}\nseconds={}\n",
                self.version, self.behaviour, self.seconds
            )
        };
        write().map_err(|error| Failure::io("write", path, &error))
    }

    /// `hello@1.1.0`.
    pub(super) fn release(&self) -> String {
        format!("{COMPONENT}@{}", self.version)
    }
}

/// An executable that lies beside this one.
pub(super) fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| Failure::io("find", Path::new("upfleet"), &error))?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::usage(format!("`{}` is missing", path.display()))
        .hint("build it beside this executable: cargo build -p upfleet-agent -p upfleet-controller"))
}
