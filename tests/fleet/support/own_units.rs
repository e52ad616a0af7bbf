//! Nodes whose agent systemd runs: the units of `dist/systemd` as they are, but for where things lie, in a faked manager
//! of the node's own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Node, wait::eventually};
use crate::systemd::fake::FakeSystemd;

/// The agent's unit.
pub const UNIT: &str = "upfleet-agent.service";
/// Its guard's.
pub const GUARD: &str = "upfleet-agent-guard.service";

/// A systemd that keeps a node's agent and its guard.
pub struct Keeper {
    /// The manager.
    pub systemd: FakeSystemd,
    dir: PathBuf,
}

/// What a test's agents are given.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Until when a new one has to have reported.
    pub deadline: Duration,
    /// How long it has to stay so.
    pub soak: Duration,
    /// How much memory it may take, in MiB.
    pub memory: u64,
}

/// Makes the agent of a node, whose files are in `dir`, a component that systemd keeps. `None` where there is no
/// `dbus-daemon`.
pub fn keep(node: &Node, dir: &Path, program: &Path, given: Given) -> Option<Keeper> {
    let systemd = FakeSystemd::start()?;
    let (deadline, memory) = (given.deadline.as_secs(), given.memory);
    node.be_itself(program, &format!("deadline = \"{deadline}s\"\nmemory_max = \"{memory}MiB\""));
    node.soak_itself(&format!("{}ms", given.soak.as_millis()));
    let (lifeline, descriptor) = node.lifeline();
    let shown = dir.display();
    let environment = format!(
        "[Service]\nRestartSec=300ms\nEnvironment=UPFLEET_AGENT_CONFIG={shown}/etc UPFLEET_UNIT={UNIT} RUST_LOG=info \
         {lifeline}={descriptor} DBUS_SYSTEM_BUS_ADDRESS={}\n",
        systemd.address()
    );
    let units = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist/systemd");
    for unit in [UNIT, GUARD] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        let text = text
            .replace("/var/lib/upfleet-agent/bin", &format!("{shown}/bin"))
            .replace("/var/lib/upfleet-agent", &format!("{shown}/state"));
        let drop_ins = systemd.units_dir().join(format!("{unit}.d"));
        fs::create_dir(&drop_ins).unwrap();
        fs::write(drop_ins.join("test.conf"), &environment).unwrap();
        systemd.install(unit, &text);
    }
    let keeper = Keeper { systemd, dir: dir.to_owned() };
    keeper.boots();
    Some(keeper)
}

impl Keeper {
    /// Starts what is enabled, as a boot does. The guard has its condition.
    pub fn boots(&self) {
        assert_eq!(self.systemd.operator_starts(GUARD), "done");
        // Waits for nothing: a bad agent may never be ready.
        self.systemd.begins(UNIT);
    }

    /// The agent's process; 0 where none runs.
    pub fn agent(&self) -> u32 {
        self.systemd.standing(UNIT).main_pid
    }

    /// The marker of an upgrade of the agent.
    pub fn marker(&self) -> PathBuf {
        self.dir.join("state/itself/marker.json")
    }

    /// Waits until nothing is left of an upgrade: no marker, and no guard.
    pub fn settles(&self) {
        eventually("the watch to end", || (!self.marker().exists()).then_some(()));
        eventually("the guard to end", || {
            let standing = self.systemd.standing(GUARD);
            (standing.main_pid == 0 && standing.active == "inactive").then_some(())
        });
    }

    /// The file that the agent's process runs, as a digest would tell it: by its bytes.
    pub fn runs(&self, program: &[u8]) -> bool {
        let executable = format!("/proc/{}/exe", self.agent());
        fs::read(executable).is_ok_and(|bytes| bytes == program)
    }

    /// Ends everything of the node at once: units, shims, components.
    pub fn loses_power(&self) {
        self.systemd.loses_power();
        eventually("the node's processes to be gone", || {
            let left = self.processes();
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            left.is_empty().then_some(())
        });
        // A start that was under way has come too late for the first.
        self.systemd.loses_power();
    }

    /// Every process that has something of the node's as its program, its arguments or its working directory.
    fn processes(&self) -> Vec<Pid> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let own = |pid: &i32| {
            let of = |link: &str| fs::read_link(format!("/proc/{pid}/{link}")).unwrap_or_default();
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let named = String::from_utf8_lossy(&arguments).contains(&*self.dir.to_string_lossy());
            pid.cast_unsigned() != std::process::id()
                && (named || ["exe", "cwd"].iter().any(|link| of(link).starts_with(&self.dir)))
        };
        pids.filter(own).filter_map(Pid::from_raw).collect()
    }

    /// What agent and guard wrote, for a failing test.
    pub fn journal(&self) -> String {
        format!("{}--- guard\n{}", self.systemd.journal(UNIT), self.systemd.journal(GUARD))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.dir.display(), self.journal());
        }
        self.systemd.loses_power();
    }
}
