//! One module per row of docs/performance.md: its arguments, and a run that gives a report.
//!
//! Each builds the runtimes it needs itself, as the shape of a runtime is part of what some of them measure.

pub mod bed;
pub mod handover;
pub mod herd;
pub mod p1;
pub mod p10;
pub mod p11;
pub mod p12;
pub mod p2;
pub mod p3;
pub mod p4;
pub mod p5;
pub mod p6;
pub mod p8;
pub mod simulate;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// What all rows get.
#[derive(Clone, Debug)]
pub struct Bench {
    bin_dir: PathBuf,
}

impl Bench {
    /// With the programs in `bin_dir`, or those beside this executable.
    ///
    /// # Errors
    /// Where this executable's place is not known.
    pub fn new(bin_dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let beside = || -> anyhow::Result<PathBuf> {
            let own = std::env::current_exe().context("could not find this executable")?;
            let mut directory = own.parent().map(Path::to_owned).unwrap_or_default();
            // Tests lie one directory deeper.
            if directory.ends_with("deps") {
                directory.pop();
            }
            Ok(directory)
        };
        Ok(Self { bin_dir: bin_dir.map_or_else(beside, Ok)? })
    }

    /// The path of one of our programs, e.g. `upfleet`.
    ///
    /// # Errors
    /// Where it was not built.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.bin_dir.join(name);
        anyhow::ensure!(
            path.exists(),
            "{} is missing: `cargo build --release` makes it, or name its directory with --bin-dir",
            path.display()
        );
        Ok(path)
    }

    /// Whether the programs are release builds, as far as their directory tells.
    #[must_use]
    pub fn is_release(&self) -> bool {
        self.bin_dir.ends_with("release")
    }
}

/// The program of another project in the path, e.g. `nats-server`.
///
/// # Errors
/// Where it is not installed.
pub fn peer(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("`{name}` is not installed: `.ci/tools bench` installs the peers"))
}
