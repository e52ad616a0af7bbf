//! Bad agents: releases of the agent that can't do its work, each in a way of its own.
//!
//! Most are the real agent with a last line that has it go wrong (`upfleet_agent::fault`), in its trial or once it has
//! passed that. What can't be executed at all loses what executes it in its own trial.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use upfleet_agent::fault::MARK;

use super::itself;

/// What is wrong with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Ends at once, with exit status 1.
    Exits,
    /// Does nothing at all.
    Hangs,
    /// Is ended by SIGSEGV.
    Segfaults,
    /// Is of another processor, so that nobody can execute it.
    WrongArchitecture,
    /// Lacks a library: the loader ends it.
    LacksLibrary,
    /// Knows no format of state as new as what lies there.
    OlderFormat,
    /// Reaches no controller, though the node does.
    NoConnection,
    /// Is ended by SIGABRT after a while.
    CrashesLater(Duration),
    /// Takes more and more memory: 200 MiB in a second, at most 1 GiB, for at most a minute.
    FillsMemory,
}

impl Bad {
    /// For figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exits => "exits",
            Self::Hangs => "hangs",
            Self::Segfaults => "segfaults",
            Self::WrongArchitecture => "wrong_architecture",
            Self::LacksLibrary => "lacks_library",
            Self::OlderFormat => "older_format",
            Self::NoConnection => "no_connection",
            Self::CrashesLater(_) => "crashes_later",
            Self::FillsMemory => "fills_memory",
        }
    }
}

/// All nine, where the late crash comes after `later`.
pub fn all(later: Duration) -> [Bad; 9] {
    [
        Bad::Exits,
        Bad::Hangs,
        Bad::Segfaults,
        Bad::WrongArchitecture,
        Bad::LacksLibrary,
        Bad::OlderFormat,
        Bad::NoConnection,
        Bad::CrashesLater(later),
        Bad::FillsMemory,
    ]
}

/// Where an agent goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In its trial, so that it is never switched in.
    Trial,
    /// Once it has passed the trial and is the agent.
    Run,
}

/// The bytes of a bad agent, which is one node's: some lose a file of theirs in `dir`, which it makes. `label` gives it a
/// digest of its own.
pub fn bytes(agent: &Path, dir: &Path, bad: Bad, at: Where, label: &str) -> Vec<u8> {
    let fault = |name: &str| faulty(agent, at, name, label);
    match (bad, at) {
        (Bad::Exits, _) => fault("exit"),
        (Bad::Hangs, _) => fault("hang"),
        (Bad::Segfaults, _) => fault("segfault"),
        (Bad::NoConnection, _) => fault("no-connection"),
        (Bad::CrashesLater(_), Where::Trial) => fault("segfault"),
        (Bad::CrashesLater(after), Where::Run) => fault(&format!("later {}", after.as_millis())),
        (Bad::FillsMemory, _) => fault("memory"),
        (Bad::OlderFormat, Where::Run) => fault("older-format"),
        (Bad::OlderFormat, Where::Trial) => {
            let said = r#"{"version":"0.0.9","reads":{"journal":[0,0]},"writes":{"journal":0}}"#;
            format!("#!/bin/sh\n# {label}\necho '{said}'\n").into_bytes()
        }
        (Bad::WrongArchitecture, Where::Trial) => foreign(agent, label),
        (Bad::LacksLibrary, Where::Trial) => without_library(agent, label),
        (Bad::WrongArchitecture, Where::Run) => losing(agent, dir, &foreign(agent, label), label),
        (Bad::LacksLibrary, Where::Run) => losing(agent, dir, &without_library(agent, label), label),
    }
}

/// What the reason says of it once it was put back: one of these. Under systemd the same.
pub fn put_back_for(bad: Bad) -> &'static [&'static str] {
    const ENDED: &str = "ended each time before it had reported";
    const LATE: &str = "did not report to the controller within";
    const UNSTEADY: &str = "did not stay for its soak time";
    match bad {
        Bad::Exits | Bad::Segfaults | Bad::WrongArchitecture | Bad::LacksLibrary => &[ENDED],
        Bad::CrashesLater(_) => &[ENDED, LATE, UNSTEADY],
        Bad::Hangs | Bad::OlderFormat | Bad::NoConnection => &[LATE],
        Bad::FillsMemory => &["MiB of memory, more than the"],
    }
}

/// The real agent with a last line.
fn faulty(agent: &Path, at: Where, name: &str, label: &str) -> Vec<u8> {
    let at = if at == Where::Trial { "trial" } else { "run" };
    let mut bytes = fs::read(agent).unwrap();
    write!(bytes, "\n{label}\n{MARK} {at} {name}\n").unwrap();
    bytes
}

/// The real agent as if for another processor.
fn foreign(agent: &Path, label: &str) -> Vec<u8> {
    /// `EM_S390` and `EM_AARCH64`: neither is what it was built for at the same time.
    const OTHERS: [u16; 2] = [22, 183];
    let mut bytes = fs::read(agent).unwrap();
    let own = u16::from_le_bytes([bytes[18], bytes[19]]);
    let other = OTHERS.into_iter().find(|other| *other != own).unwrap();
    bytes[18..20].copy_from_slice(&other.to_le_bytes());
    bytes.extend(label.as_bytes());
    bytes
}

/// The real agent, which needs a library that nobody has.
fn without_library(agent: &Path, label: &str) -> Vec<u8> {
    const NEEDED: &[u8] = b"libc.so.6\0";
    const MISSING: &[u8] = b"libx.so.9\0";
    let mut bytes = fs::read(agent).unwrap();
    let positions: Vec<usize> =
        (0..bytes.len() - NEEDED.len()).filter(|at| bytes[*at..].starts_with(NEEDED)).collect();
    assert!(!positions.is_empty(), "the agent needs no libc");
    for position in positions {
        bytes[position..position + MISSING.len()].copy_from_slice(MISSING);
    }
    bytes.extend(label.as_bytes());
    bytes
}

/// A program that passes its trial by the real agent, and in that gives what executes it away for `broken`: from then on
/// the kernel says of it what it says of `broken`.
fn losing(agent: &Path, dir: &Path, broken: &[u8], label: &str) -> Vec<u8> {
    let executable = |name: &str| -> PathBuf { dir.join(format!("{label}-{name}")) };
    let (shell, other) = (executable("shell"), executable("broken"));
    fs::create_dir_all(dir).unwrap();
    fs::copy("/bin/sh", &shell).unwrap();
    fs::write(&other, broken).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let (agent, shell, other) = (agent.display(), shell.display(), other.display());
    format!(
        "#!{shell}\n# {label}\nif [ \"$1\" = trial ]; then mv {other} {shell}; exec {agent} \"$@\"; fi\nexit 1\n"
    )
    .into_bytes()
}

/// The agent that bad ones are made of unless a test says otherwise: this build's.
pub fn agent(dir: &Path) -> PathBuf {
    itself::current(dir)
}
