//! The world of one component as tests have it: real processes and stack sets, bytes from the test, and a JVM's word
//! for its classes taken from what its process was started with.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use upfleet_agent::{
    component::{
        stack::{Asked, View},
        world::{OnProgress, World, evident},
    },
    config::{ComponentConfig, RunMode},
    exec::{
        Place,
        stack::{self, Content, SetFile, SetFiles, jar_name},
    },
    shim::spec::Input,
    supervise::{Launch, ProcessStateInfo, Supervisor},
};
use upfleet_domain::{
    digest::Digest,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    reason::{Reason, ReasonCode},
    release::ArtifactRef,
    state::{Layer, stack_digest},
    time::Time,
    upgrade::{
        Evidence,
        step::{Failure, Process},
    },
};

use super::support::AGENT;

/// The number of the patch whose class never comes into force.
pub const UNLOADABLE: u32 = 9;

/// Set where what a failed process left behind is as long as it may be.
pub const TALKATIVE: &str = "UPFLEET_TALKATIVE";

/// Writes a fetched artifact, piece by piece like the real download.
fn write(part: &Path, bytes: &[u8]) -> Result<(), Reason> {
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part)?;
        bytes.chunks(256 * 1024).try_for_each(|chunk| file.write_all(chunk))?;
        file.sync_all()
    };
    written().map_err(|error| {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let code = if full { ReasonCode::DiskFull } else { ReasonCode::StageFailed };
        let reason = Reason::new(code).with("path", part.display()).with("available", 0);
        reason.with("needed", bytes.len()).with("operation", "write").with("problem", error)
    })
}

/// The real process, probe and stack sets; bytes come from where the test has them, and classes are in force by what
/// the shim says of the process.
pub struct Local {
    config: ComponentConfig,
    place: Place,
    supervisor: Supervisor,
    artifact: fn(&Digest) -> Option<Vec<u8>>,
    on: fn(&str, &Path),
}

impl Local {
    /// The world of the component of `config` whose agent has its state in `state`. `artifact` has the bytes that can be
    /// fetched; `on` is called with `fetched`, `started` or `unhealthy` and the component's path when that happens.
    pub fn new(
        state: &Path,
        config: &ComponentConfig,
        artifact: fn(&Digest) -> Option<Vec<u8>>,
        on: fn(&str, &Path),
    ) -> Self {
        Self {
            place: Place::new(&config.name, &config.path),
            supervisor: Supervisor::with_program(state, config, Path::new(AGENT)),
            config: config.clone(),
            artifact,
            on,
        }
    }

    /// What the configuration says to run, with the stack that lies there.
    fn launch(&self, digest: Digest, view: &View) -> Result<Launch, Reason> {
        let launch = Launch::of(&self.config, Some(digest));
        let current = stack::current(&self.place)?;
        let layers = current.as_ref().map(|current| current.layers.clone()).unwrap_or_default();
        assert_eq!(stack_digest(&layers), view.digest(), "started with a stack that is not in force");
        let Some(current) = current else { return Ok(launch) };
        let input =
            |(name, digest): &(String, Digest)| Input { path: current.dir.join(name), digest: *digest };
        Ok(Launch {
            inputs: current.files.iter().map(input).collect(),
            stack: stack_digest(&current.layers),
            ..launch
        })
    }

    async fn proof(&self, view: &View) -> Option<Proof> {
        let process = self.process().await;
        let old = process.stack() != view.digest();
        let class = |layer: &Layer| ClassProof {
            class: "com.acme.Greeter".to_owned(),
            number: layer.number,
            standing: if old || layer.number == UNLOADABLE { Standing::Old } else { Standing::Proved },
            loader: "app".to_owned(),
            source: None,
            original: None,
            expected: layer.release.artifact,
            mechanism: Mechanism::ClassPath,
            problem: String::new(),
        };
        Some(Proof {
            pid: process.pid()?,
            mechanism: Mechanism::ClassPath,
            classes: view.recorded().iter().map(class).collect(),
            alarms: vec![],
            time: Time(0),
        })
    }
}

impl World for Local {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let bytes = (self.artifact)(&artifact.sha256).expect("the test has what it orders");
        let written = tokio::task::spawn_blocking(move || write(&part, &bytes));
        written.await.expect("writing does not panic")?;
        (self.on)("fetched", &self.config.path);
        Ok(())
    }

    async fn start(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        let started = self.supervisor.start(&self.launch(digest, &stack)?).await;
        (self.on)("started", &self.config.path);
        let info = started.map_err(|fault| Failure::from(fault.reason))?;
        Ok(Process::Running { pid: info.pid, digest: info.digest, stack: info.stack })
    }

    async fn stop(&self) -> Result<(), Failure> {
        self.supervisor.stop().await.map_err(|fault| Failure::from(fault.reason))
    }

    async fn process(&self) -> Process {
        match self.supervisor.process().await {
            Ok(ProcessStateInfo::Running(info)) => {
                Process::Running { pid: info.pid, digest: info.digest, stack: info.stack }
            }
            Ok(state) => match state.last_exit() {
                Some(exit) => Process::Down { exit: exit.to_string() },
                None => Process::NotRun,
            },
            Err(_) => Process::NotRun,
        }
    }

    async fn reload(&self) -> Result<String, Failure> {
        Ok("told".to_owned())
    }

    async fn probe(&self, _: usize, _beside: bool) -> Result<(), String> {
        if self.config.run.mode != RunMode::Supervised {
            let bad = self.config.path.join("bad").exists();
            if bad {
                (self.on)("unhealthy", &self.config.path);
            }
            return if bad { Err("it is bad".to_owned()) } else { Ok(()) };
        }
        self.supervisor.process().await.map_err(|fault| fault.to_string())?.up().map(drop)
    }

    async fn evidence(&self) -> Evidence {
        if std::env::var_os(TALKATIVE).is_none() {
            return Evidence::default();
        }
        let lines = evident(vec!["\u{1b}".repeat(500); 200]);
        Evidence { exit: "it ended".to_owned(), lines, probe_results: vec![] }
    }

    async fn tail(&self, _: usize) -> Vec<String> {
        Vec::new()
    }

    async fn fit(&self, _: Asked) -> Result<Vec<Reason>, Reason> {
        Ok(Vec::new())
    }

    fn set(&self, view: &View) -> Result<Option<SetFiles>, Reason> {
        let layers = view.recorded();
        if stack_digest(&layers).is_none() {
            return Ok(None);
        }
        let files = |dir: &Path| {
            let jar = |layer: &Layer| SetFile {
                name: jar_name(layer.number, &layer.release.artifact),
                content: Content::Version(layer.release.artifact),
            };
            let mut files: Vec<SetFile> = layers.iter().map(jar).collect();
            let arguments = format!("-cp {}\n", dir.display()).into_bytes();
            files.push(SetFile { name: "java.args".to_owned(), content: Content::Bytes(arguments) });
            Ok(files)
        };
        SetFiles::new(&self.place, &layers, Mechanism::ClassPath, files).map(Some)
    }

    async fn patch_live(&self, stack: View) -> Result<Option<Proof>, Failure> {
        let process = self.process().await;
        let Some(digest) = process.digest() else { return Err(Reason::new(ReasonCode::JvmGone).into()) };
        let launch = self.launch(digest, &stack)?;
        self.supervisor.replace(&launch).await.map_err(|fault| Failure::from(fault.reason))?;
        Ok(self.proof(&stack).await)
    }

    async fn prove(&self, stack: View) -> Result<Option<Proof>, Failure> {
        Ok(self.proof(&stack).await)
    }
}
