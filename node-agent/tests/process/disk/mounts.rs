//! File systems for tests, in a mount namespace and a process namespace of their own: whatever becomes of a test, its
//! mounts and processes go with it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

const INSIDE: &str = "UPFLEET_INSIDE";

/// Runs a test again in namespaces of its own, with this more in its environment. `true` there; outside, `false` once that has ended, or where it is not
/// possible, which is said.
pub fn isolated(test: &str, tools: &[&str], own: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let skip = |reason: &str| {
        let mut error = std::io::stderr().lock();
        let _ = writeln!(error, "skipped: {test}: {reason}");
        false
    };
    let unshare = |program: &[&str]| {
        let mut command = Command::new("unshare");
        // The shell takes care of processes whose parents are gone.
        command.args(["-m", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", "\"$@\"; exit $?", "sh"]);
        command.args(program).env(INSIDE, "1");
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        command
    };
    for tool in tools {
        let found = unshare(&["sh", "-c", &format!("command -v {tool}")]).output();
        match found {
            Ok(output) if output.status.success() => {}
            Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare") => {
                return skip("no namespaces can be made here");
            }
            Ok(_) => return skip(&format!("no {tool}")),
            Err(error) => return skip(&format!("no unshare: {error}")),
        }
    }
    let mut command = unshare(&[]);
    command.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        test,
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    let status = command.envs(own.iter().copied()).status().unwrap();
    assert!(status.success(), "{test} in its namespaces: {status}");
    false
}

/// Runs a program and expects that it succeeds.
pub fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Mounts a file system in memory of that many bytes.
pub fn memory(at: &Path, bytes: u64) {
    std::fs::create_dir_all(at).unwrap();
    run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes},mode=0755"), "none", at.to_str().unwrap()]);
}

/// Mounts it again with other options.
pub fn again(at: &Path, options: &str) {
    run("mount", &["-o", &format!("remount,{options}"), at.to_str().unwrap()]);
}

/// Bytes in use, and free.
pub fn space(at: &Path) -> (u64, u64) {
    let space = rustix::fs::statvfs(at).unwrap();
    ((space.f_blocks - space.f_bfree) * space.f_frsize, space.f_bavail * space.f_frsize)
}

/// The file systems that are tried.
pub const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Makes an empty file system in a file.
pub fn make(kind: &str, image: &Path) {
    let megabytes = match kind {
        "ext4" => 64,
        "btrfs" => 160,
        // The least that its maker allows.
        _ => 300,
    };
    std::fs::File::create(image).unwrap().set_len(megabytes << 20).unwrap();
    let image = image.to_str().unwrap();
    match kind {
        // Nothing is reserved for root: full is full.
        "ext4" => run("mkfs.ext4", &["-q", "-m", "0", image]),
        "btrfs" => run("mkfs.btrfs", &["-q", "-M", image]),
        _ => run("mkfs.xfs", &["-q", image]),
    }
}

/// A mounted image, until it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts an image.
    pub fn at(kind: &str, image: &Path, at: &Path) -> Self {
        // A copy has the same identity as what it was copied from, which one file system minds.
        let options = if kind == "xfs" { "loop,nouuid" } else { "loop" };
        run("mount", &["-t", kind, "-o", options, image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.0.to_str().unwrap();
        for _ in 0..200 {
            if Command::new("umount").arg(at).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = Command::new("umount").args(["-l", at]).status();
    }
}
