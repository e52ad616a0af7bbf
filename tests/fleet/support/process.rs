//! Programs of the workspace as processes: found beside the test binary, with their output in files.

use std::{
    env,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// The program of that name in the directory that this test was built into.
///
/// # Panics
/// Where it was not built.
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test runs from a file");
    let profile = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo test` without `--test`, or `cargo build` first",
        path.display()
    );
    path
}

/// A process that runs until it is ended.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command` with its output appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the directory is ours");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the file is open"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it is gone.
    pub fn terminate(&mut self) {
        self.ask_to_end();
        let _ = self.child.wait();
    }

    /// SIGTERM.
    pub fn ask_to_end(&mut self) {
        let pid = self.child.id().cast_signed();
        let pid = rustix::process::Pid::from_raw(pid).expect("no process has the number 0");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// The exit status, if it ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// What it wrote, for a failing test's text.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub struct Output {
    /// The exit code; 128 + the signal's number where a signal ended it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    /// The standard output of a command that must succeed.
    pub fn success(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// The same as JSON.
    pub fn json(self) -> serde_json::Value {
        let text = self.success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Output {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
