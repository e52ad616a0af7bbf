//! The component's process: starting it so that what runs is known by digest, and ending it with all that
//! it started.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Read},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, Rlimit, Signal, kill_process_group, prlimit};
use sha2::{Digest as _, Sha256};
use upfleet_domain::{digest::Digest, time::Time};

use super::{
    notify::Notify,
    output::Output,
    pass,
    protocol::{ErrorCode, ProcessInfo, ProtocolError},
    reaper::Reaper,
    sockets::Sockets,
    spec::{Input, Launch},
    tree::{self, Main},
};
use crate::processes::{FileId, Identity, as_pid, descendants, executable, stat};

/// How often a launch is repeated when the file is replaced in its midst.
const LAUNCHES: u32 = 5;
/// How often, and how long apart, the kernel is asked which file a new child executes.
const LOOKS: u32 = 100;
const LOOK: std::time::Duration = std::time::Duration::from_millis(1);
/// How much sooner than its shim the kernel ends a component's process where memory runs out, of 1000.
const OOM_SCORE: i32 = 200;
/// The stack of a helper thread; a shim stays small.
pub const STACK: usize = 128 * 1024;

/// What a process is started with, beside its launch.
pub struct Hands<'a> {
    /// Collects it.
    pub reaper: &'a Reaper,
    /// Where its output goes.
    pub output: &'a Arc<Output>,
    /// Which launch its lines belong to.
    pub number: u64,
    /// Those of its launch are open.
    pub sockets: &'a Sockets,
    /// The shim's directory.
    pub dir: &'a Path,
    /// The shim's other processes.
    pub others: &'a [Main],
}

/// A process that was started.
pub struct Child {
    /// What is told about it.
    pub info: ProcessInfo,
    /// Since when, by the clock that nobody sets.
    pub started: Instant,
    /// The executed file, where it is the component's.
    pub file: Option<FileId>,
    /// Which launch its lines belong to.
    pub number: u64,
    /// What it says of itself.
    pub notify: Option<Notify>,
}

/// The wall clock.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::default().after(since)
}

/// SHA-256 of what can be read from `file`.
///
/// # Errors
/// Where reading fails.
pub fn hash(mut file: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest(hasher.finalize().into())),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What tells that a file was neither replaced nor written to.
type Stamp = (FileId, u64, i64, i64);

fn stamp(metadata: &fs::Metadata) -> Stamp {
    (FileId::of(metadata), metadata.size(), metadata.ctime(), metadata.ctime_nsec())
}

/// Starts the process.
///
/// # Errors
/// What to answer: the file is not the expected one, or can't be executed.
pub fn spawn(launch: &Launch, hands: &Hands<'_>) -> Result<Child, ProtocolError> {
    if !launch.cwd.is_dir() {
        return Err(failed(format!("the working directory `{}` does not exist", launch.cwd.display())));
    }
    for _ in 0..LAUNCHES {
        let (digest, before) = measure(&launch.file)?;
        if let Some(expected) = launch.expect
            && expected != digest
        {
            let message = format!("`{}` has SHA-256 {digest}, not {expected}", launch.file.display());
            return Err(ProtocolError { code: ErrorCode::DigestMismatch, message, versions: Vec::new() });
        }
        let inputs = measure_inputs(&launch.inputs)?;
        let Executed { identity, file, notify } = execute(launch, hands)?;
        let same = |path: &Path, before: Stamp| fs::metadata(path).is_ok_and(|now| stamp(&now) == before);
        let unchanged = same(&launch.file, before) || file.is_some_and(|file| file == before.0);
        let inputs_unchanged =
            launch.inputs.iter().zip(inputs).all(|(input, before)| same(&input.path, before));
        if !unchanged || !inputs_unchanged {
            // Which bytes were executed can't be said: a file was replaced between hash and exec.
            let main = Main { pid: identity.pid, start_time: identity.start_time };
            let _ = identity.signal(Signal::KILL);
            tree::kill(main, hands.others, Duration::from_secs(5));
            continue;
        }
        let exact = file == Some(before.0);
        let Identity { boot_id, pid, start_time } = identity;
        let info = ProcessInfo {
            pid,
            start_time,
            boot_id,
            digest,
            exact,
            stack: launch.stack,
            since: now(),
            restarts: 0,
            sockets: launch.sockets.iter().map(|socket| socket.name.clone()).collect(),
            notified: None,
        };
        let (file, number) = (exact.then_some(before.0), hands.number);
        return Ok(Child { info, started: Instant::now(), file, number, notify });
    }
    Err(failed(format!("`{}` is replaced again and again", launch.file.display())))
}

fn failed(message: String) -> ProtocolError {
    ProtocolError { code: ErrorCode::StartFailed, message, versions: Vec::new() }
}

fn measure(path: &Path) -> Result<(Digest, Stamp), ProtocolError> {
    let read = || {
        let file = File::open(path)?;
        let before = stamp(&file.metadata()?);
        Ok((hash(&file)?, before))
    };
    read().map_err(|error: io::Error| failed(format!("could not read `{}`: {error}", path.display())))
}

/// Looks whether all that the process is started from is what it should be.
fn measure_inputs(inputs: &[Input]) -> Result<Vec<Stamp>, ProtocolError> {
    let measured = |input: &Input| {
        let (digest, stamp) = measure(&input.path)?;
        if digest == input.digest {
            return Ok(stamp);
        }
        let message = format!("`{}` has SHA-256 {digest}, not {}", input.path.display(), input.digest);
        Err(ProtocolError { code: ErrorCode::DigestMismatch, message, versions: Vec::new() })
    };
    inputs.iter().map(measured).collect()
}

/// The file that a new child executes. A parent that lent its memory to the child (`vfork`) goes on when the child lets
/// go of it, a moment before the kernel shows the new file in the place of the parent's own.
fn executed(child: u32) -> Option<FileId> {
    let own = executable(std::process::id());
    for _ in 0..LOOKS {
        match executable(child) {
            file if file.is_some() && file == own => std::thread::sleep(LOOK),
            file => return file,
        }
    }
    own
}

/// A process that was just started.
struct Executed {
    identity: Identity,
    /// The file that the kernel shows for it.
    file: Option<FileId>,
    notify: Option<Notify>,
}

/// Executes the command.
fn execute(launch: &Launch, hands: &Hands<'_>) -> Result<Executed, ProtocolError> {
    let program = launch.argv.first().ok_or_else(|| failed("the command is empty".into()))?;
    let cannot = |problem: String| failed(format!("could not execute `{program}`: {problem}"));
    let (mut command, helper) = command(launch, hands).map_err(|error| cannot(error.to_string()))?;
    let mut notify = None;
    if launch.notify {
        let opened = Notify::open(hands.dir);
        let opened = opened.map_err(|error| cannot(format!("no socket for its notifications: {error}")))?;
        command.env("NOTIFY_SOCKET", &opened.name);
        notify = Some(opened);
    }
    let guard = hands.reaper.hold();
    let mut child = spawn_patiently(&mut command).map_err(|error| cannot(error.to_string()))?;
    // With it this process's end of the helper's pipe.
    drop(command);
    let passed = helper.map_or(Ok(()), pass::executed);
    let file = executed(child.id());
    // Nothing is collected while the guard is held, so the pid is this child's even if it has ended already.
    let listening = notify.as_mut().map_or(Ok(()), |notify| notify.listen(child.id()));
    let known = Identity::of(child.id()).and_then(|identity| listening.map(|()| identity));
    bound(child.id(), launch);
    if known.is_err() {
        // Out of descriptors, most likely. What nobody knows must not run.
        let _ = as_pid(child.id()).map(|group| kill_process_group(group, Signal::KILL));
    }
    drop(guard);
    hands.reaper.child_was_born();
    passed.map_err(cannot)?;
    if let Some(pipe) = child.stdout.take() {
        read_in_background(hands, false, pipe);
    }
    if let Some(pipe) = child.stderr.take() {
        read_in_background(hands, true, pipe);
    }
    let identity = known.map_err(|error| failed(format!("could not look at the new process: {error}")))?;
    Ok(Executed { identity, file, notify })
}

/// The command of a launch: with sockets through the helper that passes them.
fn command(launch: &Launch, hands: &Hands<'_>) -> io::Result<(Command, Option<PipeReader>)> {
    let (program, arguments) = launch.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (mut command, helper) = if launch.sockets.is_empty() {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null());
        (command, None)
    } else {
        let sockets = hands.sockets.copies(&launch.sockets)?;
        let (command, helper) = pass::command(&launch.argv, &launch.sockets, sockets)?;
        (command, Some(helper))
    };
    command.envs(&launch.env).current_dir(&launch.cwd).process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok((command, helper))
}

/// Bounds the process's memory where the configuration says so; and where the node runs out of memory, the component is
/// ended before its shim and the agent. Neither is worth a failed start.
fn bound(pid: u32, launch: &Launch) {
    let adjust =
        fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|own| own.trim().parse::<i32>().ok());
    let adjust = adjust.unwrap_or(0).saturating_add(OOM_SCORE).min(1000);
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), adjust.to_string());
    if launch.memory_max > 0 {
        let most = Some(launch.memory_max);
        let _ = prlimit(as_pid(pid), Resource::Data, Rlimit { current: most, maximum: most });
    }
}

/// A file that was just written can be "busy" for a moment, while some other process that is being started
/// still holds a copy of the writer's descriptor.
fn spawn_patiently(command: &mut Command) -> io::Result<std::process::Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn read_in_background(hands: &Hands<'_>, stderr: bool, pipe: impl Read + Send + 'static) {
    let (output, number) = (hands.output, hands.number);
    output.add_reader(number);
    let reader = Arc::clone(output);
    // Without a thread the pipe is closed, which the component sees as an error of its writes.
    let started =
        thread::Builder::new().stack_size(STACK).spawn(move || reader.read_all(number, stderr, pipe));
    if started.is_err() {
        output.read_all(number, stderr, io::empty());
    }
}

/// Signals the process and those it started in its group, if it has not been collected.
pub fn signal_group(info: &ProcessInfo, signal: Signal, reaper: &Reaper) {
    let _guard = reaper.hold();
    if stat(info.pid).is_ok_and(|stat| stat.start_time == info.start_time)
        && let Some(pid) = as_pid(info.pid)
    {
        let _ = kill_process_group(pid, signal);
    }
}

/// Kills all that descends from this shim, which is all that the component has started and nothing else.
/// Answers whether nothing is left.
pub fn kill_descendants(limit: Duration) -> bool {
    kill_all(limit, || descendants(std::process::id()))
}

/// Kills until `find` finds nothing more.
pub fn kill_all(limit: Duration, find: impl Fn() -> Vec<Identity>) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = find();
        if left.is_empty() {
            return true;
        }
        for process in left {
            let _ = process.signal(Signal::KILL);
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}
