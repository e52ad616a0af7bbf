//! What `/proc` says of one process that may be a JVM. Reads only; what can't be read is absent.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
};

/// The longest command line or environment that is looked at, in bytes.
const MAX_WORDS: u64 = 4 << 20;
/// The bit of SIGQUIT in the masks of `/proc/PID/status`.
const SIGQUIT: u64 = 1 << 2;

/// What `/proc/PID/status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// Its pid in its own namespace.
    pub inner_pid: u32,
    /// Whether that namespace is not the reader's.
    pub inner: bool,
    /// Whether it catches SIGQUIT; one that does not would be killed by it.
    pub catches_quit: bool,
}

/// Reads `/proc/PID/status`.
///
/// # Errors
/// Where there is no such process, or it can't be understood.
pub fn status(pid: u32) -> io::Result<Status> {
    let bytes = fs::read(format!("/proc/{pid}/status"))?;
    parse_status(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable status"))
}

fn parse_status(text: &str) -> Option<Status> {
    let field = |name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace()))
    };
    // Real, effective, saved, file system.
    let effective = |name| field(name)?.nth(1)?.parse().ok();
    // Kernels before 4.1 don't say; there the outer pid is as good as any.
    let pids: Vec<u32> =
        field("NSpid").or_else(|| field("Pid"))?.filter_map(|pid| pid.parse().ok()).collect();
    Some(Status {
        uid: effective("Uid")?,
        gid: effective("Gid")?,
        inner_pid: *pids.last()?,
        inner: pids.len() > 1,
        catches_quit: u64::from_str_radix(field("SigCgt")?.next()?, 16).ok()? & SIGQUIT != 0,
    })
}

/// Which virtual machine a process has mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// HotSpot or one of its kin, with the path of its `libjvm.so` as the kernel shows it.
    HotSpot(String),
    /// Eclipse OpenJ9, which attaches in another way.
    OpenJ9(String),
}

impl Mapped {
    /// Where the library lies, as the kernel shows it.
    #[must_use]
    pub fn library(&self) -> &str {
        let (Self::HotSpot(path) | Self::OpenJ9(path)) = self;
        path
    }
}

/// The virtual machine that a process has mapped; `None` also where its maps can't be read.
#[must_use]
pub fn mapped(pid: u32) -> Option<Mapped> {
    let maps = File::open(format!("/proc/{pid}/maps")).ok()?;
    find_library(BufReader::with_capacity(1 << 16, maps))
}

fn find_library(mut maps: impl BufRead) -> Option<Mapped> {
    let mut hotspot = None;
    let mut line = Vec::new();
    while maps.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if let Some(path) = library_path(&line) {
            let name = path.rsplit('/').next().unwrap_or_default();
            if name.starts_with("libj9vm") {
                return Some(Mapped::OpenJ9(path));
            }
            // OpenJ9 has a libjvm.so as well, which forwards; so the rest is read before it is HotSpot.
            if name == "libjvm.so" {
                hotspot = Some(path);
            }
        }
        line.clear();
    }
    hotspot.map(Mapped::HotSpot)
}

/// The path of a line of `maps`, where it is of interest.
fn library_path(line: &[u8]) -> Option<String> {
    let start = line.iter().position(|byte| *byte == b'/')?;
    let path = line.get(start..)?.trim_ascii_end();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let wanted = path.ends_with(b"/libjvm.so") || path.windows(8).any(|part| part == b"/libj9vm");
    wanted.then(|| unescape(&String::from_utf8_lossy(path)))
}

/// The kernel writes a line feed within a path as `\012`.
fn unescape(path: &str) -> String {
    path.replace("\\012", "\n")
}

/// The words of its command line, the program's own name first; empty for threads of the kernel.
#[must_use]
pub fn command_line(pid: u32) -> Vec<String> {
    words(&format!("/proc/{pid}/cmdline"))
}

/// What its environment held for `name` when it was started.
#[must_use]
pub fn variables(pid: u32, names: &[&str]) -> BTreeMap<String, String> {
    let words = words(&format!("/proc/{pid}/environ"));
    // Of a name that is there twice, the first counts.
    let pairs = words.iter().rev().filter_map(|word| word.split_once('='));
    pairs
        .filter(|(name, _)| names.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn words(path: &str) -> Vec<String> {
    let mut bytes = Vec::new();
    let Ok(file) = File::open(path) else { return Vec::new() };
    if file.take(MAX_WORDS).read_to_end(&mut bytes).is_err() || bytes.is_empty() {
        return Vec::new();
    }
    let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Whether a HotSpot JVM is through with starting itself: of the threads that it makes for itself, the one for
/// notifications comes last, or, before there was such a one, that for periodic tasks.
#[must_use]
pub fn has_started(pid: u32) -> bool {
    is_complete(&threads(pid))
}

/// Whether it is no JVM of its own but the copy of one that is about to start another program: it has the machine
/// mapped, and its parent's command line, for a moment.
#[must_use]
pub fn is_copy(pid: u32, parent: u32) -> bool {
    is_copied(&threads(pid), &command_line(pid), &command_line(parent)) && mapped(parent).is_some()
}

/// Of all threads a copy has only the one that made it.
fn is_copied(threads: &[String], command: &[String], parents: &[String]) -> bool {
    threads.len() == 1 && command == parents
}

/// The names of its threads, in the order in which they were made.
fn threads(pid: u32) -> Vec<String> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let threads = threads.filter_map(|thread| {
        let thread = thread.ok()?.path();
        let number: u32 = thread.file_name()?.to_str()?.parse().ok()?;
        Some((number, fs::read_to_string(thread.join("comm")).ok()?.trim_end().to_owned()))
    });
    threads.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Later JDKs make the thread for periodic tasks first, well before the one that serves the others.
fn is_complete(threads: &[String]) -> bool {
    let place = |name| threads.iter().position(|thread| thread == name);
    let after_service =
        |name| place("Service Thread").zip(place(name)).is_some_and(|(service, it)| service < it);
    after_service("Notification Th") || after_service("VM Periodic Tas")
}

/// Whether it was started as `java`, which a JVM is before it has mapped its machine.
#[must_use]
pub fn is_launcher(pid: u32) -> bool {
    let Ok(path) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let path = path.to_string_lossy();
    path.strip_suffix(" (deleted)").unwrap_or(&path).rsplit('/').next() == Some("java")
}

/// Whether a process is in another mount namespace than the reader, or has another root directory.
#[must_use]
pub fn sees_other_files(pid: u32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let other =
        namespace(&pid.to_string()).is_some_and(|its| namespace("self").is_some_and(|own| own != its));
    other || root_path(pid).is_some_and(|root| root != "/")
}

/// Its root directory, as the kernel shows it: other than `/` for one in a changed root.
#[must_use]
pub fn root_path(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/root")).ok()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_inner_pid_and_whether_sigquit_is_caught() {
        let text = "Name:\tjava\nPid:\t2444\nUid:\t0\t65534\t0\t0\nGid:\t0\t100\t0\t0\n\
                    NSpid:\t2444\t1\nSigCgt:\t2000000181005ccd\n";
        let expected = Status { uid: 65534, gid: 100, inner_pid: 1, inner: true, catches_quit: true };
        assert_eq!(parse_status(text), Some(expected));
        let reduced = text.replace("5ccd", "1cc8").replace("NSpid:\t2444\t1\n", "");
        let expected = Status { inner_pid: 2444, inner: false, catches_quit: false, ..expected };
        assert_eq!(parse_status(&reduced), Some(expected));
        assert_eq!(parse_status("Uid:\t0"), None);
    }

    #[test]
    fn a_machine_is_found_in_maps_also_when_its_file_is_gone() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 12 /lib/libc.so.6\n\
                    7f10-7f11 r-xp 00000000 08:01 13 /opt/a b/lib/server/libjvm.so (deleted)\n";
        let found = find_library(maps.as_bytes()).unwrap();
        assert_eq!(found, Mapped::HotSpot("/opt/a b/lib/server/libjvm.so".into()));
        let maps = format!("{maps}7f20-7f21 r-xp 00000000 08:01 14 /opt/j9/lib/default/libj9vm29.so\n");
        assert_eq!(
            find_library(maps.as_bytes()),
            Some(Mapped::OpenJ9("/opt/j9/lib/default/libj9vm29.so".into()))
        );
        assert_eq!(find_library("7f00-7f01 r-xp 0 0:0 0 [vdso]\n".as_bytes()), None);
        assert_eq!(find_library("7f00-7f01 r-xp 0 0:0 0 /x/notlibjvm.so\n".as_bytes()), None);
    }

    #[test]
    fn a_machine_has_started_with_the_last_thread_that_it_makes_for_itself() {
        let complete =
            |threads: &[&str]| is_complete(&threads.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert!(
            complete(&["java", "VM Thread", "Signal Dispatch", "Service Thread", "VM Periodic Tas"]),
            "8 and 11"
        );
        assert!(!complete(&["java", "VM Thread", "Signal Dispatch", "Service Thread"]));
        assert!(!complete(&["java", "VM Periodic Tas", "VM Thread", "Service Thread"]), "21 and 25");
        assert!(complete(&["java", "VM Periodic Tas", "VM Thread", "Service Thread", "Notification Th"]));
    }

    #[test]
    fn a_copy_is_told_by_its_one_thread_and_its_parents_words() {
        let (one, two) = (vec!["java".to_owned()], vec!["java".to_owned(), "VM Thread".to_owned()]);
        let (command, other) = (vec!["java".to_owned(), "Main".to_owned()], vec!["sh".to_owned()]);
        assert!(is_copied(&one, &command, &command));
        assert!(!is_copied(&two, &command, &command) && !is_copied(&one, &command, &other));
    }

    #[test]
    fn this_process_is_no_machine() {
        let pid = std::process::id();
        assert_eq!(mapped(pid), None);
        assert!(!is_launcher(pid));
        assert!(!sees_other_files(pid));
        assert!(!status(pid).unwrap().inner);
        assert!(command_line(pid)[0].contains("upfleet"));
        assert_eq!(variables(pid, &["PATH"]).len(), 1);
    }
}
