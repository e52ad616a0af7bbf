//! Processes as the kernel shows them in `/proc`, known by (boot id, pid, start time) and never by pid alone.
//!
//! Reads and signals only; who may be signalled is the callers' decision.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process, told from every other one, also from one that got the same pid later or after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// The process id.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot.
    pub start_time: u64,
}

impl Identity {
    /// The process that has `pid` now.
    ///
    /// # Errors
    /// Where there is none, or `/proc` can't be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { boot_id: boot_id()?, pid, start_time: stat(pid)?.start_time })
    }

    /// Whether it still runs; a process that has ended and only waits to be collected does not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
            && stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && stat.is_running())
    }

    /// How long ago it was started; `None` where `/proc` can't be read.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
        let started = Duration::from_millis(millis(self.start_time));
        Some(Duration::try_from_secs_f64(uptime).ok()?.saturating_sub(started))
    }

    /// Sends `signal` to exactly this process; `false` where it is gone.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = as_pid(self.pid) else { return false };
        // The descriptor is opened first: what is checked after it is what the signal will reach.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        self.is_running() && pidfd_send_signal(&pidfd, signal).is_ok()
    }
}

/// The search path that components and probes see unless the configuration says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is passed on of the agent's own environment.
const PASSED_ON: [&str; 3] = ["HOME", "LANG", "TZ"];

/// The small environment that components and exec probes begin with; nothing else of the agent's reaches them.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    let passed_on = PASSED_ON.iter().filter_map(|key| Some(((*key).to_owned(), std::env::var(key).ok()?)));
    passed_on.chain([("PATH".to_owned(), PATH.to_owned())]).collect()
}

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `Z` and so on.
    pub state: char,
    /// The parent's pid.
    pub parent: u32,
    /// The process group.
    pub group: u32,
    /// The session.
    pub session: u32,
    /// Clock ticks since the boot.
    pub start_time: u64,
}

impl Stat {
    /// Neither ended nor being torn down.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Clock ticks as milliseconds.
#[must_use]
pub fn millis(ticks: u64) -> u64 {
    ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)
}

/// A pid as rustix wants it.
#[must_use]
pub fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The kernel's random id of this boot.
///
/// # Errors
/// Where `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What `/proc/<pid>/stat` says.
///
/// # Errors
/// Where there is no such process.
pub fn stat(pid: u32) -> io::Result<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable stat"))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The program's name is in parentheses and may hold any character, parentheses and blanks too.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Every process that is there, running or not.
#[must_use]
pub fn all() -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid).ok()?))).collect()
}

/// The running descendants of `ancestor`, itself left out.
#[must_use]
pub fn descendants(ancestor: u32) -> Vec<Identity> {
    let Ok(boot_id) = boot_id() else { return Vec::new() };
    let all = all();
    let mut known = BTreeSet::from([ancestor]);
    loop {
        let before = known.len();
        known.extend(
            all.iter()
                .filter(|(_, stat)| known.contains(&stat.parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if known.len() == before {
            break;
        }
    }
    known.remove(&ancestor);
    let running =
        known.into_iter().filter_map(|pid| Some((pid, all.get(&pid).filter(|stat| stat.is_running())?)));
    running
        .map(|(pid, stat)| Identity { boot_id: boot_id.clone(), pid, start_time: stat.start_time })
        .collect()
}

/// A file, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// The device.
    pub device: u64,
    /// The inode on it.
    pub inode: u64,
}

impl FileId {
    /// Of what was looked up.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Where the kernel shows the file that a process executes, also when it was replaced or removed since.
#[must_use]
pub fn executable_path(pid: u32) -> String {
    format!("/proc/{pid}/exe")
}

/// The file that a process executes.
#[must_use]
pub fn executable(pid: u32) -> Option<FileId> {
    fs::metadata(executable_path(pid)).ok().as_ref().map(FileId::of)
}

/// Every file that some process executes, as far as that may be known.
#[must_use]
pub fn executables() -> BTreeSet<FileId> {
    all().into_keys().filter_map(executable).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn reads_a_name_full_of_traps() {
        let text = "12 (a) R (b c) S 1 12 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99887 1 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat, Stat { state: 'S', parent: 1, group: 12, session: 7, start_time: 99887 });
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[test]
    fn another_process_with_the_same_pid_is_another_process() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_running());
        assert!(own.age().unwrap() < Duration::from_secs(3600));
        for other in [
            Identity { start_time: own.start_time + 1, ..own.clone() },
            Identity { boot_id: "earlier".into(), ..own.clone() },
        ] {
            assert!(!other.is_running());
            assert!(!other.signal(Signal::KILL), "must not reach this very process");
        }
    }

    #[test]
    fn finds_descendants_and_their_file() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let found = descendants(std::process::id());
        let identity = found.iter().find(|identity| identity.pid == child.id()).expect("the child");
        assert_eq!(executable(child.id()), fs::metadata("/bin/sleep").ok().as_ref().map(FileId::of));
        assert!(identity.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!identity.is_running());
    }
}
