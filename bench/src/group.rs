//! What a whole group of processes costs: this program with all that it has waited for, and every process whose command
//! line names a directory. A process that ends takes nothing away, as its parent is charged with it.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// The CPU time so far of this program, of the children it has waited for, and of all processes that name `dir` in
/// their command line, with theirs.
#[must_use]
pub fn cpu(dir: &Path) -> Duration {
    let own = ticks(std::process::id()).unwrap_or(0);
    let others: u64 = members(dir).into_iter().filter_map(ticks).sum();
    Duration::from_secs_f64((own + others) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The processes that name `dir` in their command line, without this one.
#[must_use]
pub fn members(dir: &Path) -> Vec<u32> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let names_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && line.windows(wanted.len()).any(|part| part == wanted)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(names_it).collect()
}

/// The processes whose parent it is and that have not ended.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| standing(*pid).is_some_and(|(state, of)| state != "Z" && of == parent)).collect()
}

/// Whether a process is there and has not ended.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    standing(pid).is_some_and(|(state, _)| state != "Z")
}

/// A process's state and its parent.
fn standing(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// Kills what a peer's commands have left running. Only for a directory that was made for this run.
pub fn kill(dir: &Path) {
    for pid in members(dir) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// CPU time in ticks, with that of children that were waited for.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold blanks and parentheses of its own.
    let fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(4);
    fields.map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_group_is_found_charged_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep").arg("1000").arg0_in(dir.path()).spawn().unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while members(dir.path()) != [sleep.id()] && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(members(dir.path()), [sleep.id()]);
        assert!(children(std::process::id()).contains(&sleep.id()) && is_alive(sleep.id()));
        kill(dir.path());
        assert!(!sleep.wait().unwrap().success());
        assert!(members(dir.path()).is_empty() && !is_alive(sleep.id()));
    }

    #[test]
    fn a_child_that_was_waited_for_is_charged() {
        let nowhere = Path::new("/nowhere/at/all");
        let before = cpu(nowhere);
        let spin = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", spin]).status().unwrap().success());
        assert!(cpu(nowhere) > before);
    }

    trait InDirectory {
        fn arg0_in(&mut self, dir: &Path) -> &mut Self;
    }

    impl InDirectory for Command {
        fn arg0_in(&mut self, dir: &Path) -> &mut Self {
            std::os::unix::process::CommandExt::arg0(self, dir.join("sleep"))
        }
    }
}
