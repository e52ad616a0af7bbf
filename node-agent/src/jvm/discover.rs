//! Every JVM of the node, component or not, as `/proc` shows it. Looks only: nothing is sent to any process, and
//! what can't be read is passed over.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::FileType,
    process::{getegid, geteuid},
};
use upfleet_domain::{
    jvm::{Attachable, Jvm},
    time::Time,
};

use super::{
    attach::{Failure, handshake::is_young},
    helper::{self, Subject, Task},
    namespace::{Links, Root, kind, look},
    process::{self, Mapped, Status},
    started::{Started, VARIABLES},
};
use crate::processes::{self, Identity, Stat};

/// The most that is read of a file that a JVM was told to read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How long reading such a file as another user may take.
const READING: Duration = Duration::from_secs(5);

/// All JVMs that run on this node, by pid. `components` maps each component that is supervised to its process; a
/// JVM belongs to a component whose process it is or descends from. Blocks for some milliseconds.
#[must_use]
pub fn inventory(components: &BTreeMap<String, u32>) -> Vec<Jvm> {
    inventory_with(components, &helper::own_program())
}

/// As [`inventory`], with another program that provides the helper.
#[must_use]
pub fn inventory_with(components: &BTreeMap<String, u32>, program: &Path) -> Vec<Jvm> {
    let all = processes::all();
    let running = all.iter().filter(|(_, stat)| stat.is_running());
    let found = running.filter_map(|(pid, stat)| Some((look_at(*pid, program)?, stat.parent)));
    let mut found: Vec<Jvm> =
        found.filter(|(jvm, parent)| !process::is_copy(jvm.pid, *parent)).map(|(jvm, _)| jvm).collect();
    for jvm in &mut found {
        jvm.component = component_of(jvm.pid, &all, components);
    }
    found
}

/// The JVM with this pid, where it is one.
#[must_use]
pub fn find(pid: u32) -> Option<Jvm> {
    look_at(pid, &helper::own_program())
}

fn component_of(pid: u32, all: &BTreeMap<u32, Stat>, components: &BTreeMap<String, u32>) -> Option<String> {
    let mut at = pid;
    // A process that ends meanwhile may leave a circle; more generations than processes there are not.
    for _ in 0..=all.len() {
        if let Some((name, _)) = components.iter().find(|(_, process)| **process == at) {
            return Some(name.clone());
        }
        at = all.get(&at)?.parent;
    }
    None
}

fn look_at(pid: u32, program: &Path) -> Option<Jvm> {
    let mapped = process::mapped(pid);
    if mapped.is_none() && !process::is_launcher(pid) {
        return None;
    }
    let jvm = Seen::new(pid, mapped, program)?;
    let found = jvm.describe();
    // All of it was of one process.
    jvm.subject.identity.is_running().then_some(found)
}

/// What was read of one JVM.
pub struct Seen<'a> {
    /// Who it is.
    pub subject: Subject,
    /// How it was started.
    pub started: Started,
    status: Status,
    mapped: Option<Mapped>,
    root: Option<Root>,
    home: Home,
    program: &'a Path,
}

impl<'a> Seen<'a> {
    /// Reads it; `None` where it is gone.
    #[must_use]
    pub fn new(pid: u32, mapped: Option<Mapped>, program: &'a Path) -> Option<Self> {
        let identity = Identity::of(pid).ok()?;
        let status = process::status(pid).ok()?;
        let root = Root::of(pid).ok();
        let home =
            mapped.as_ref().map(|mapped| Home::of(pid, mapped.library(), root.as_ref())).unwrap_or_default();
        let subject = Subject {
            identity,
            uid: status.uid,
            gid: status.gid,
            inner_pid: status.inner_pid,
            no_signals: None,
        };
        let started = Started::new(&[], &BTreeMap::new(), None, &|_| None);
        let mut seen = Self { subject, started, status, mapped, root, home, program };
        let (command, variables) = (process::command_line(pid), process::variables(pid, &VARIABLES));
        seen.started = Started::new(&command, &variables, seen.home.feature(), &|path| seen.file(path));
        seen.subject.no_signals = seen.started.takes_no_signals();
        Some(seen)
    }

    /// The text of a file that the JVM was told to read, with the rights of the JVM's own user: its path was
    /// chosen by that user, who must not learn by the agent what it could not read itself.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<String> {
        let path = self.absolute(path)?;
        let own = geteuid().as_raw() == self.subject.uid && getegid().as_raw() == self.subject.gid;
        let bytes = if own {
            self.root.as_ref()?.read(&path, MAX_FILE, Links::Within).ok()?
        } else {
            let task = Task::Show { path, max: MAX_FILE };
            helper::call_blocking(self.program, &self.subject, READING, task, &[]).ok()??
        };
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its root directory, where that may be looked into.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// A path as the JVM sees it; a relative one begins where the JVM works.
    #[must_use]
    pub fn absolute(&self, path: &str) -> Option<String> {
        if path.starts_with('/') {
            return Some(path.to_owned());
        }
        let pid = self.subject.identity.pid;
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        Some(below_root(pid, &cwd.join(path).to_string_lossy()))
    }

    fn describe(&self) -> Jvm {
        let pid = self.subject.identity.pid;
        Jvm {
            pid,
            inner_pid: (self.status.inner_pid != pid).then_some(self.status.inner_pid),
            started: started_at(self.subject.identity.start_time),
            uid: self.subject.uid,
            java_home: self.home.path.clone(),
            java_version: self.home.version.clone(),
            vendor: self.home.vendor.clone(),
            main: self.started.main(),
            class_path: self.started.class_path(),
            java_agents: self.started.agents(),
            attachable: self.obstacle().map_or(Attachable::Yes, Attachable::No),
            container: self.status.inner || process::sees_other_files(pid),
            component: None,
        }
    }

    /// Why it can't be attached to, at the moment or ever.
    fn obstacle(&self) -> Option<String> {
        let ever = match &self.mapped {
            Some(Mapped::OpenJ9(_)) => Some(Failure::OpenJ9),
            _ => self.started.forbids_attaching().map(Failure::Disabled),
        };
        if let Some(failure) = ever {
            return Some(failure.to_string());
        }
        let own = geteuid();
        if !own.is_root() && own.as_raw() != self.subject.uid {
            return Some(format!(
                "it belongs to user {}, and the agent is neither root nor that user",
                self.subject.uid
            ));
        }
        let Some(root) = &self.root else { return Some("its files can't be looked at".to_owned()) };
        let tmp = match root.tmp() {
            Ok(tmp) => tmp,
            Err(error) => return Some(format!("its /tmp can't be used: {error}")),
        };
        let socket = format!(".java_pid{}", self.status.inner_pid);
        let listens = look(tmp.as_fd(), &socket).is_ok_and(|(_, stat)| kind(&stat) == FileType::Socket);
        let pid = self.subject.identity.pid;
        let started = process::has_started(pid) || !is_young(&self.subject);
        match &self.subject.no_signals {
            _ if listens || self.status.catches_quit => None,
            Some(option) if started => Some(Failure::NoSignals(option.clone()).to_string()),
            _ => Some("it does not catch SIGQUIT (yet): it is still starting".to_owned()),
        }
    }
}

/// A path of the kernel's as it is seen from below the process's own root directory.
fn below_root(pid: u32, path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    match process::root_path(pid).filter(|root| root != "/") {
        Some(root) => {
            path.strip_prefix(&root).filter(|rest| rest.starts_with('/')).unwrap_or(path).to_owned()
        }
        None => path.to_owned(),
    }
}

/// When a process started, from clock ticks since the boot.
fn started_at(ticks: u64) -> Time {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted: i64 =
        stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or_default();
    Time(
        booted
            .saturating_mul(1000)
            .saturating_add(i64::try_from(processes::millis(ticks)).unwrap_or(i64::MAX)),
    )
}

/// Where a JDK lies and what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Home {
    path: String,
    version: String,
    vendor: String,
}

impl Home {
    /// From the library that the JVM has mapped, never from the command line, which may say anything.
    fn of(pid: u32, library: &str, root: Option<&Root>) -> Self {
        let library = below_root(pid, library);
        let candidates = homes(&library);
        let said = candidates.iter().find_map(|home| {
            let path = format!("{}/release", home.display());
            // Whoever maps a library of that name chooses the place; no link leads from there.
            let bytes = root?.read(&path, MAX_FILE, Links::Refused).ok()?;
            Some((home, String::from_utf8_lossy(&bytes).into_owned()))
        });
        let Some((home, release)) = said else {
            let path = candidates.last().map(|home| home.to_string_lossy().into_owned()).unwrap_or_default();
            // Distributions leave the file out of Java 8, which alone has a directory for each processor.
            let version = if is_old_layout(&library) { "1.8.0" } else { "" };
            return Self { path, version: version.to_owned(), vendor: String::new() };
        };
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').chars().filter(|c| !c.is_control()).take(100).collect()
        };
        let path = home.to_string_lossy().into_owned();
        Self { path, version: value("JAVA_VERSION"), vendor: value("IMPLEMENTOR") }
    }

    /// 8, 11, 17 and so on, where it can be told.
    fn feature(&self) -> Option<u16> {
        let version = self.version.strip_prefix("1.").unwrap_or(&self.version);
        version.split(['.', '-', '+', '_']).next()?.parse().ok()
    }
}

/// Directories that may be the JDK of a `libjvm.so`: of `lib/server/`, and for Java 8 of `jre/lib/amd64/server/`.
fn homes(library: &str) -> Vec<PathBuf> {
    let Some(lib) =
        Path::new(library).ancestors().skip(1).find(|dir| dir.file_name().is_some_and(|n| n == "lib"))
    else {
        return Vec::new();
    };
    let Some(home) = lib.parent() else { return Vec::new() };
    let jdk = home.parent().filter(|_| home.file_name().is_some_and(|name| name == "jre"));
    [Some(home), jdk].into_iter().flatten().map(Path::to_owned).collect()
}

fn is_old_layout(library: &str) -> bool {
    let mut dirs =
        Path::new(library).components().rev().skip(2).map(|part| part.as_os_str().to_string_lossy());
    dirs.next().is_some_and(|arch| arch != "lib") && dirs.next().is_some_and(|lib| lib == "lib")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_told_from_the_library() {
        let homes =
            |library| homes(library).iter().map(|home| home.display().to_string()).collect::<Vec<_>>();
        assert_eq!(homes("/opt/jdk/lib/server/libjvm.so"), ["/opt/jdk"]);
        assert_eq!(homes("/opt/jdk8/jre/lib/amd64/server/libjvm.so"), ["/opt/jdk8/jre", "/opt/jdk8"]);
        assert_eq!(homes("/libjvm.so"), Vec::<String>::new());
        assert!(is_old_layout("/opt/jdk8/jre/lib/amd64/server/libjvm.so"));
        assert!(!is_old_layout("/opt/jdk/lib/server/libjvm.so") && !is_old_layout("/libjvm.so"));
    }

    #[test]
    fn a_jvm_belongs_to_the_component_it_descends_from() {
        let stat = |parent| Stat { state: 'S', parent, group: 1, session: 1, start_time: 1 };
        let all = BTreeMap::from([(1, stat(0)), (5, stat(1)), (6, stat(5)), (7, stat(6)), (9, stat(9))]);
        let components = BTreeMap::from([("web".to_owned(), 5)]);
        assert_eq!(component_of(7, &all, &components).as_deref(), Some("web"));
        assert_eq!(component_of(5, &all, &components).as_deref(), Some("web"));
        assert_eq!(component_of(1, &all, &components), None);
        assert_eq!(component_of(9, &all, &components), None, "a circle ends");
    }

    #[test]
    fn this_process_is_no_jvm_and_began_in_the_past() {
        assert_eq!(find(std::process::id()), None);
        let own = Identity::of(std::process::id()).unwrap();
        let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = Time(0).after(epoch).since(started_at(own.start_time));
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}
