//! A real controller: `upfleet serve` as a process of its own in a temporary directory, with its authority, its store
//! on the disk, and an admin's certificate. It ends with what holds it.

use std::{
    fs,
    io::{PipeReader, PipeWriter, pipe},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rustix::io::{FdFlags, fcntl_setfd};
use rustls::ClientConfig;
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    api::{Api, SERVER_NAME},
    child::{self, Program},
    rows::Bench,
    tls,
    usage::Usage,
};

/// Where a controller listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Endpoints {
    /// People and agents.
    pub api: String,
    /// Enrollment.
    pub enroll: String,
    /// Metrics and readiness, without TLS.
    pub metrics: String,
}

/// A pipe whose end ends the processes that watch it, also when this program is killed.
pub(crate) struct Lifeline {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Lifeline {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (reader, writer) = pipe()?;
        // Only the write end keeps things alive, and that stays close-on-exec.
        fcntl_setfd(&reader, FdFlags::empty())?;
        Ok(Self { reader, _writer: writer })
    }

    /// Has a program of ours end with this.
    pub(crate) fn follow(&self, command: &mut Command) {
        command.env("UPFLEET_LIFELINE_FD", self.reader.as_raw_fd().to_string());
    }
}

/// A controller that runs.
pub struct Controller {
    program: Option<Program>,
    endpoints: Endpoints,
    upfleet: PathBuf,
    lifeline: Lifeline,
    // Last, so that it is removed when nothing uses it any more.
    dir: TempDir,
}

impl Controller {
    /// Makes and starts one on ports of its own.
    ///
    /// # Errors
    /// Where `upfleet` is missing or does not start.
    pub fn start(bench: &Bench) -> anyhow::Result<Self> {
        let upfleet = bench.program("upfleet")?;
        let dir = tempfile::Builder::new().prefix("upfleet-bench").tempdir()?;
        let mut init = command(&upfleet, dir.path());
        init.args(["init", "--name", SERVER_NAME, "--name", "127.0.0.1", "--data"])
            .arg(dir.path().join("data"));
        child::run(&mut init)?;
        let lifeline = Lifeline::new()?;
        let anywhere = "127.0.0.1:0".to_owned();
        let anywhere = Endpoints { api: anywhere.clone(), enroll: anywhere.clone(), metrics: anywhere };
        let (program, endpoints) = serve(&upfleet, dir.path(), &anywhere, &lifeline)?;
        Ok(Self { program: Some(program), endpoints, upfleet, lifeline, dir })
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The directory that goes away with it; its data are in `data`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory with `ca.crt`, `user.crt` and `user.key` of its admin.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.dir.path().join("config/contexts/default")
    }

    /// The authority's certificate in PEM.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn ca_pem(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.admin().join("ca.crt"))?)
    }

    /// A TLS configuration as its admin.
    ///
    /// # Errors
    /// Where the files can't be read.
    pub fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        tls::of_context(&self.admin())
    }

    /// Connects as its admin.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn api(&self) -> anyhow::Result<Api> {
        Api::connect(&self.endpoints.api, self.tls()?).await
    }

    /// Its process id.
    ///
    /// # Errors
    /// Where it was killed.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.running().map(Program::pid)
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.running()?.usage()
    }

    fn running(&self) -> anyhow::Result<&Program> {
        self.program.as_ref().ok_or_else(|| anyhow::anyhow!("the controller was killed"))
    }

    /// `upfleet` with its admin's context, for commands.
    #[must_use]
    pub fn cli(&self) -> Command {
        command(&self.upfleet, self.dir.path())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.program = None;
    }

    /// Starts it again where it listened before.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let (program, endpoints) = serve(&self.upfleet, self.dir.path(), &self.endpoints, &self.lifeline)?;
        (self.program, self.endpoints) = (Some(program), endpoints);
        Ok(())
    }
}

fn command(upfleet: &Path, dir: &Path) -> Command {
    let mut command = Command::new(upfleet);
    command
        .env("UPFLEET_CONFIG", dir.join("config/config.toml"))
        .env_remove("UPFLEET_CONTEXT")
        .env("HOME", dir);
    command
}

fn serve(
    upfleet: &Path,
    dir: &Path,
    at: &Endpoints,
    lifeline: &Lifeline,
) -> anyhow::Result<(Program, Endpoints)> {
    let data = dir.join("data");
    let file = data.join("run/endpoints.json");
    let _ = fs::remove_file(&file);
    let mut serve = command(upfleet, dir);
    serve.arg("serve").arg("--data").arg(&data);
    serve.args(["--listen", &at.api, "--listen-enroll", &at.enroll, "--listen-metrics", &at.metrics]);
    lifeline.follow(&mut serve);
    let mut program = Program::start(&mut serve, &dir.join("controller.log"))?;
    let ready = || serde_json::from_slice(&fs::read(&file).ok()?).ok();
    let endpoints: Endpoints = program.wait_for("it listens", ready)?;
    // The context that `init` wrote leads to where it really listens.
    let path = dir.join("config/config.toml");
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text.replace(&format!("{SERVER_NAME}:7443"), &endpoints.api))?;
    Ok((program, endpoints))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_serves_is_killed_and_serves_again() {
        let bench = Bench::new(None).unwrap();
        if bench.program("upfleet").is_err() {
            return crate::skipped(
                "a_controller_serves_is_killed_and_serves_again",
                "`upfleet` is not built",
            );
        }
        let mut controller = Controller::start(&bench).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let token = |controller: &Controller| {
            runtime
                .block_on(async { controller.api().await.unwrap().token(&[("env", "test")]).await.unwrap() })
        };
        assert!(token(&controller).starts_with("upf1."));
        assert!(controller.usage().unwrap().resident > 0);
        let before = controller.endpoints().clone();
        controller.restart().unwrap();
        assert_eq!(*controller.endpoints(), before);
        assert!(token(&controller).starts_with("upf1."));
    }
}
