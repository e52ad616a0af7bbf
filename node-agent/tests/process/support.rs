//! A component in a directory of its own, and waiting for a condition.

use std::{
    fs,
    future::Future,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use upfleet_agent::{
    config::ComponentConfig,
    processes::{Identity, descendants},
    shim::spec::{self, RECORD, Record},
    supervise::{Launch, ProcessStateInfo, Supervisor, shim_dir},
};
use upfleet_domain::digest::Digest;

/// The binary under test.
pub const AGENT: &str = env!("CARGO_BIN_EXE_upfleet-agent");

/// One component; its shim and all it runs end with this value.
pub struct Fixture {
    dir: TempDir,
    /// As it would be read from a file.
    pub config: ComponentConfig,
    /// Under test.
    pub supervisor: Supervisor,
}

impl Fixture {
    /// A component that is run with these further lines of `[run]`.
    pub fn new(run: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("component");
        let text = format!(
            "name = \"c\"\npath = {path:?}\n[run]\nmode = \"supervised\"\nrestart_delay = \"20ms\"\n\
             restart_delay_max = \"100ms\"\nstop_timeout = \"20s\"\n{run}"
        );
        let config: ComponentConfig = toml::from_str(&text).unwrap();
        let supervisor = Supervisor::with_program(dir.path(), &config, Path::new(AGENT));
        Self { dir, config, supervisor }
    }

    /// Makes the supervisor follow a changed configuration.
    pub fn refresh(&mut self) {
        self.supervisor = Supervisor::with_program(self.dir.path(), &self.config, Path::new(AGENT));
    }

    /// A component that is a shell script.
    pub fn script(run: &str, script: &str) -> Self {
        let fixture = Self::new(run);
        fixture.install(format!("#!/bin/sh\n{script}\n").as_bytes());
        fixture
    }

    /// A component that is a copy of `/bin/sleep`, and sleeps.
    pub fn sleeper() -> Self {
        let fixture = Self::new("command = [\"{path}\", \"1000\"]");
        fixture.install(&fs::read("/bin/sleep").unwrap());
        fixture
    }

    /// Puts a new file in the component's place, by rename.
    pub fn install(&self, bytes: &[u8]) -> Digest {
        let new = self.dir.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &self.config.path).unwrap();
        Digest::of(bytes)
    }

    /// What the configuration says to run.
    pub fn launch(&self) -> Launch {
        Launch::of(&self.config, None)
    }

    /// A file in the fixture's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The shim's directory.
    pub fn shim_dir(&self) -> PathBuf {
        shim_dir(self.dir.path(), &self.config.name)
    }

    /// The shim's process.
    pub fn shim(&self) -> Identity {
        self.record().shim.expect("a shim has begun")
    }

    /// What the shim has written down.
    pub fn record(&self) -> Record {
        spec::read(&self.shim_dir().join(RECORD)).unwrap()
    }

    /// Waits for a state of the process.
    pub async fn wait_for(&self, wanted: impl Fn(&ProcessStateInfo) -> bool) -> ProcessStateInfo {
        until("a state of the process", || async {
            self.supervisor.process().await.ok().filter(|state| wanted(state))
        })
        .await
    }

    /// The pid that the component has printed.
    pub async fn printed_pid(&self) -> Identity {
        until("a printed pid", || async {
            let lines = self.supervisor.tail(100).await;
            lines.iter().find_map(|line| Identity::of(line.strip_prefix("pid ")?.parse().ok()?).ok())
        })
        .await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let Ok(record) = spec::read::<Record>(&self.shim_dir().join(RECORD)) else { return };
        if let Some(shim) = record.shim {
            let left = descendants(shim.pid);
            let _ = shim.signal(Signal::KILL);
            for process in left {
                let _ = process.signal(Signal::KILL);
            }
        }
    }
}

/// Polls until there is an answer; fails after a minute.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut poll: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = poll().await {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a process is gone.
pub async fn until_gone(process: &Identity) {
    until("end of the process", || async { (!process.is_running()).then_some(()) }).await;
}
