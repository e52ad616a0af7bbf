//! Other programs as processes that end with what holds them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::usage::{self, Usage};

/// How long a program may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// Between two looks whether something is so.
const LOOK: Duration = Duration::from_millis(10);

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Program {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("could not start `{name}`"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        usage::of(self.pid())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until `ready` gives something.
    ///
    /// # Errors
    /// Where the program ends before, or half a minute passes; with the last lines it wrote.
    pub fn wait_for<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let until = Instant::now() + READY;
        loop {
            if let Some(found) = ready() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("`{}` ended with {status} before {what}:\n{}", self.name, self.tail());
            }
            anyhow::ensure!(Instant::now() < until, "`{}`: no {what} in time:\n{}", self.name, self.tail());
            std::thread::sleep(LOOK);
        }
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end and gives what it wrote to standard output.
///
/// # Errors
/// Where it can't be started or does not succeed; with what it wrote.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("could not run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}
