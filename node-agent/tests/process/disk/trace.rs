//! One thread of a child under `strace`: its system calls are written down, and one of them fails or is its last.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::lab::{Ended, Waiting};

/// The calls that change something on a disk, and those that begin or end a change.
const CALLS: &[&str] = &[
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "splice",
    "ftruncate",
    "truncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "open",
    "openat",
    "openat2",
    "creat",
    "close",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "lchown",
    "fchown",
    "fchownat",
    "setxattr",
    "fsetxattr",
    "removexattr",
    "utimensat",
    "flock",
];

/// Which of a child's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    /// The one that does everything but work on files.
    Mind,
    /// The one that works on files.
    Hands,
}

/// One call of a thread: the `n`th of that name since it began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// By whom.
    pub thread: Thread,
    /// Which.
    pub call: String,
    /// The how-manieth of that name, from 1.
    pub n: usize,
}

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before it is carried out.
    Kill,
    /// It is not carried out and fails with this error.
    Error(&'static str),
}

/// Whether a thread can be traced here; says so where not.
pub fn possible(test: &str) -> bool {
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let traced = Strace::attach(sleeper.id().cast_signed(), &dir.path().join("log"), None);
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    let Err(reason) = traced.map(Strace::wait) else { return true };
    let mut error = std::io::stderr().lock();
    let _ = writeln!(error, "skipped: {test}: {reason}");
    false
}

struct Strace(Child);

impl Strace {
    fn attach(tid: i32, log: &Path, inject: Option<String>) -> Result<Self, String> {
        let calls: Vec<String> = CALLS.iter().map(|call| format!("?{call}")).collect();
        let mut command = Command::new("strace");
        command.args(["-y", "-s", "0", "-e", "signal=none", "-e", &format!("trace={}", calls.join(","))]);
        command.arg("-o").arg(log).args(["-p", &tid.to_string()]);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("no strace: {error}"))?;
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        match said.find(|line| line.contains("attached") || line.contains("attach:")) {
            Some(line) if line.contains("attached") => {
                // It says more when the process ends, and must not wait for a reader.
                std::thread::spawn(move || said.for_each(drop));
                Ok(Self(child))
            }
            said => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("strace can't attach: {}", said.unwrap_or_default()))
            }
        }
    }

    fn wait(mut self) {
        let _ = self.0.wait();
    }
}

/// Lets a child go on with both its threads written down, and at one call a fault. Returns how it ended and what is
/// known of its calls.
pub fn run(child: Waiting, dir: &Path, at: Option<(&Site, Fault)>) -> (Ended, Log) {
    let logs = tempfile::tempdir().unwrap();
    let traced: Vec<(Thread, PathBuf, Strace)> = [(Thread::Mind, child.mind), (Thread::Hands, child.hands)]
        .into_iter()
        .map(|(thread, tid)| {
            let inject = at.filter(|(site, _)| site.thread == thread).map(|(site, fault)| match fault {
                Fault::Kill => format!("{}:signal=KILL:when={}", site.call, site.n),
                Fault::Error(error) => format!("{}:error={error}:when={}", site.call, site.n),
            });
            let log = logs.path().join(format!("{thread:?}"));
            let strace = Strace::attach(tid, &log, inject).unwrap();
            (thread, log, strace)
        })
        .collect();
    let ended = child.finish();
    let mut all = Log::default();
    for (thread, log, strace) in traced {
        strace.wait();
        all.read(thread, &std::fs::read_to_string(log).unwrap_or_default(), dir);
    }
    (ended, all)
}

/// What a child's threads called.
#[derive(Debug, Default)]
pub struct Log {
    /// Calls that change something below the directory, in each thread's order.
    pub sites: Vec<Site>,
    /// The calls that were made to fail below the directory.
    pub injected: Vec<String>,
}

impl Log {
    fn read(&mut self, thread: Thread, text: &str, dir: &Path) {
        let (dir, mut counts, mut written) = (dir.display().to_string(), BTreeMap::new(), BTreeSet::new());
        for line in text.lines() {
            let Some((call, rest)) = line.split_once('(').filter(|(call, _)| CALLS.contains(call)) else {
                continue;
            };
            let n: &mut usize = counts.entry(call.to_owned()).or_default();
            *n += 1;
            if !line.contains(&dir) {
                continue;
            }
            if line.ends_with("(INJECTED)") {
                self.injected.push(line.to_owned());
            }
            let changes = match call {
                "open" | "openat" | "openat2" => {
                    let writes =
                        ["O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC"].iter().any(|flag| rest.contains(flag));
                    if let (true, Some((_, fd))) = (writes, rest.rsplit_once("= ")) {
                        written.insert(fd.to_owned());
                    }
                    writes
                }
                // Only of what was written can anything be lost.
                "close" => rest.split_once(')').is_some_and(|(fd, _)| written.contains(fd)),
                _ => true,
            };
            if changes {
                self.sites.push(Site { thread, call: call.to_owned(), n: *n });
            }
        }
    }
}
