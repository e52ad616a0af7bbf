//! Which of a shim's descendants belong to which of its processes, while more than one runs.
//!
//! A process belongs to the one that it descends from. What was left to the shim by its parent's end is told by its
//! group or session, by the mark in its environment, and by its age: nobody's child is older than its parent. What
//! can't be told is left alone until a single process is left, and ends with that.

use std::{collections::BTreeMap, fs, time::Duration};

use super::{child::kill_all, pass::MARK, protocol::ProcessInfo};
use crate::processes::{self, Identity, Stat, stat};

/// One of the shim's processes: its id and when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Main {
    /// The process id.
    pub pid: u32,
    /// In clock ticks since the boot.
    pub start_time: u64,
}

impl Main {
    /// Of a process that was started.
    #[must_use]
    pub fn of(info: &ProcessInfo) -> Self {
        Self { pid: info.pid, start_time: info.start_time }
    }
}

/// Kills what belongs to `owner`, and itself. `others` are the shim's other processes, which stay with all they have
/// started. Answers whether nothing is left.
pub fn kill(owner: Main, others: &[Main], limit: Duration) -> bool {
    kill_all(limit, || members(std::process::id(), owner, others))
}

fn members(shim: u32, owner: Main, others: &[Main]) -> Vec<Identity> {
    let Ok(boot_id) = processes::boot_id() else { return Vec::new() };
    let all = processes::all();
    let mains: Vec<Main> = std::iter::once(owner).chain(others.iter().copied()).collect();
    let belongs = |pid: u32| of(pid, shim, &mains, &all) == Some(owner.pid);
    let running = all.iter().filter(|(pid, stat)| stat.is_running() && belongs(**pid));
    running
        .map(|(pid, stat)| Identity { boot_id: boot_id.clone(), pid: *pid, start_time: stat.start_time })
        .collect()
}

/// To which of `mains` the process belongs, as far as it can be told.
fn of(pid: u32, shim: u32, mains: &[Main], all: &BTreeMap<u32, Stat>) -> Option<u32> {
    let mut at = pid;
    // No chain of parents is longer than there are processes; a loop would be a torn picture of `/proc`.
    for _ in 0..=all.len() {
        let stat = all.get(&at)?;
        if mains.iter().any(|main| main.pid == at && main.start_time == stat.start_time) {
            return Some(at);
        }
        if stat.parent == shim {
            return of_orphan(at, stat, mains);
        }
        at = stat.parent;
    }
    None
}

/// A child of the shim's that is none of its processes: somebody's orphan.
fn of_orphan(pid: u32, stat: &Stat, mains: &[Main]) -> Option<u32> {
    if let [only] = mains {
        return Some(only.pid);
    }
    let leads = |main: &&Main| main.pid == stat.group || main.pid == stat.session;
    if let Some(main) = mains.iter().find(leads) {
        return Some(main.pid);
    }
    let marked = marked(pid);
    if let Some(main) = mains.iter().find(|main| Some(main.pid) == marked) {
        return Some(main.pid);
    }
    let mut older = mains.iter().filter(|main| main.start_time <= stat.start_time);
    match (older.next(), older.next()) {
        (Some(only), None) => Some(only.pid),
        _ => None,
    }
}

/// What the environment of a process says it was started by.
fn marked(pid: u32) -> Option<u32> {
    variable(pid, MARK)?.parse().ok()
}

/// A variable of the environment that a process was started with.
#[must_use]
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |variable: &[u8]| {
        let text = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(text).ok().map(str::to_owned)
    };
    environment.split(|byte| *byte == 0).find_map(value)
}

/// Whether `pid` is the process `main` or descends from it, or is in its group: who may speak for it.
#[must_use]
pub fn speaks_for(pid: u32, main: u32) -> bool {
    /// Longer chains of parents are nobody's.
    const MOST: usize = 64;
    let mut at = pid;
    for _ in 0..MOST {
        if at == main {
            return true;
        }
        match stat(at) {
            Ok(stat) if stat.group == main => return true,
            Ok(stat) if stat.parent > 1 => at = stat.parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: u32, group: u32, start_time: u64) -> Stat {
        Stat { state: 'S', parent, group, session: 1, start_time }
    }

    #[test]
    fn each_process_belongs_to_the_one_that_started_it() {
        let all = BTreeMap::from([
            (1, process(0, 1, 0)),
            (10, process(1, 10, 5)),
            (20, process(1, 20, 50)),
            (11, process(10, 10, 6)),
            (12, process(11, 12, 60)),
            (21, process(20, 20, 61)),
            // Orphans: of a group, older than the second process, and younger than both.
            (13, process(1, 10, 70)),
            (14, process(1, 14, 20)),
            (4_000_000, process(1, 4_000_000, 90)),
        ]);
        let mains = [Main { pid: 10, start_time: 5 }, Main { pid: 20, start_time: 50 }];
        let owner = |pid: u32, mains: &[Main]| of(pid, 1, mains, &all);
        for (pid, expected) in [
            (10, Some(10)),
            (11, Some(10)),
            (12, Some(10)),
            (20, Some(20)),
            (21, Some(20)),
            (13, Some(10)),
            (14, Some(10)),
            (4_000_000, None),
        ] {
            assert_eq!(owner(pid, &mains), expected, "{pid}");
        }
        assert_eq!(owner(4_000_000, &mains[..1]), Some(10), "one process alone owns every orphan");
    }

    #[test]
    fn a_process_speaks_for_itself_and_its_parents() {
        let own = std::process::id();
        assert!(speaks_for(own, own));
        assert!(speaks_for(own, stat(own).unwrap().parent));
        assert!(!speaks_for(1, own));
        assert!(!speaks_for(own, 4_000_000));
    }
}
