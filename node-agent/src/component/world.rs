//! What an actor needs of the world beside files: bytes from elsewhere, a process, probes. A trait, so that tests
//! can stand in for it; `Node` is the real one.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use upfleet_domain::{
    digest::Digest,
    jvm::Proof,
    reason::{Reason, ReasonCode},
    release::ArtifactRef,
    upgrade::{
        Evidence,
        recover::Reverted,
        step::{Failure, Process},
    },
};

use super::{
    patching::Patching,
    stack::{Asked, View},
};
use crate::{
    config::{ComponentConfig, ProbeConfig, ProbeKind, RunMode},
    download::{FetchRequest, Fetcher, Progress},
    exec::stack::SetFiles,
    jvm::patcher::Patcher,
    probe::{self, ProbeContext},
    reload::{self, ReloadContext},
    supervise::{Fault, Launch, ProcessInfo, ProcessStateInfo, Supervisor},
};

/// How many of the last lines of output are evidence.
const EVIDENCE_LINES: usize = 200;
/// How much of each of them.
const EVIDENCE_COLUMNS: usize = 500;
/// How much of all of them together, as the journal writes them: a record has to fit into the space that is kept for it.
const EVIDENCE_BYTES: usize = 48 * 1024;

/// The last lines of output as evidence, within its bounds.
#[must_use]
pub fn evident(lines: Vec<String>) -> Vec<String> {
    let short = |line: String| line.chars().take(EVIDENCE_COLUMNS).collect::<String>();
    let written = |line: &String| serde_json::to_string(line).map_or(0, |text| text.len() + 1);
    let mut room = EVIDENCE_BYTES;
    let newest = lines.into_iter().rev().take(EVIDENCE_LINES).map(short);
    let mut kept: Vec<String> = newest
        .take_while(|line| {
            let fits = written(line) <= room;
            room = room.saturating_sub(written(line));
            fits
        })
        .collect();
    kept.reverse();
    kept
}

/// What tells how a fetch goes.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// The world of one component beside its files.
pub trait World: Send + Sync + 'static {
    /// Gets an artifact's bytes into `part`. Dropping the future cancels; what is there stays.
    fn fetch(
        &self,
        artifact: ArtifactRef,
        part: PathBuf,
        on: OnProgress<'_>,
    ) -> impl Future<Output = Result<(), Reason>> + Send;
    /// Starts the process from a file of that digest and with that stack, or says that it runs already.
    fn start(&self, digest: Digest, stack: View) -> impl Future<Output = Result<Process, Failure>> + Send;
    /// Ends the process.
    fn stop(&self) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Lets what ran before a reboot run again, for a component of which nothing else is known.
    fn revive(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
    /// What runs.
    fn process(&self) -> impl Future<Output = Process> + Send;
    /// Starts a process beside the one that runs, or says that it stands there already.
    fn start_beside(
        &self,
        digest: Digest,
        stack: View,
    ) -> impl Future<Output = Result<Process, Failure>> + Send {
        let _ = (digest, stack);
        async {
            let reason = Reason::new(ReasonCode::HandoverUnavailable);
            Err(reason.with("problem", "the component has no sockets of the agent's").into())
        }
    }
    /// Lets the process beside take the place of the one that runs, which finishes and ends.
    fn drain(&self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }
    /// Ends the process beside the one that runs.
    fn dismiss(&self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }
    /// What stands beside what runs, where anything does.
    fn beside(&self) -> impl Future<Output = Option<Process>> + Send {
        async { None }
    }
    /// Tells whoever uses the component's files that they have changed, and says what was answered.
    fn reload(&self) -> impl Future<Output = Result<String, Failure>> + Send;
    /// Whether a process that was asked to finish has not ended yet.
    fn draining(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }
    /// Runs a probe once, of what runs or of what stands beside it.
    fn probe(&self, index: usize, beside: bool) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether what runs the component can be asked to start and stop it. Changes nothing.
    fn ready(&self) -> impl Future<Output = Result<(), Reason>> + Send {
        async { Ok(()) }
    }
    /// What the process left behind.
    fn evidence(&self) -> impl Future<Output = Evidence> + Send;
    /// The last lines of output.
    fn tail(&self, lines: usize) -> impl Future<Output = Vec<String>> + Send;

    /// Has a new agent in `program` show that it can do its work here.
    fn try_out(&self, program: PathBuf) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = program;
        async { Err(not_itself().into()) }
    }
    /// Has a guard watch the switch from the agent `old` to the agent `new`.
    fn arm(
        &self,
        old: Digest,
        new: Digest,
        soak: Duration,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (old, new, soak);
        async { Err(not_itself().into()) }
    }
    /// Whether a guard watches.
    fn watched(&self) -> bool {
        false
    }
    /// What a guard has taken out of its place again.
    fn reverted(&self) -> Option<Reverted> {
        None
    }
    /// The upgrade is over, whatever came of it: what only it needed can go. Blocks.
    ///
    /// # Errors
    /// Where it can't be removed.
    fn tidy(&self) -> Result<(), Reason> {
        Ok(())
    }

    /// Whether a stack would get into the component's JVM, with what deserves a look. Nothing is touched.
    fn fit(&self, asked: Asked) -> impl Future<Output = Result<Vec<Reason>, Reason>> + Send {
        async move { if asked.stack.layers.is_empty() { Ok(Vec::new()) } else { Err(unpatchable()) } }
    }
    /// The files that put a stack in force; `None` where nothing is to be in force. Blocks.
    ///
    /// # Errors
    /// Why it can't be put in force.
    fn set(&self, stack: &View) -> Result<Option<SetFiles>, Reason> {
        if stack.layers.is_empty() { Ok(None) } else { Err(unpatchable()) }
    }
    /// Files of stacks that what runs makes use of, though another stack may be in force. Blocks.
    fn in_use(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    /// Brings the running JVM to exactly this stack, all classes or none, and lets its next start use it too. `None`
    /// where there is no JVM.
    fn patch_live(&self, stack: View) -> impl Future<Output = Result<Option<Proof>, Failure>> + Send {
        let _ = stack;
        async { Err(unpatchable().into()) }
    }
    /// Asks the running JVM which classes are in force. `None` where there is none.
    fn prove(&self, stack: View) -> impl Future<Output = Result<Option<Proof>, Failure>> + Send {
        let _ = stack;
        async { Ok(None) }
    }
}

fn not_itself() -> Reason {
    Reason::new(ReasonCode::AgentUnguarded).with("problem", "the component is not the agent itself")
}

fn unpatchable() -> Reason {
    let reason = Reason::new(ReasonCode::NotPatchable).with("component", "the component");
    reason.with("problem", "its configuration does not say how its JVM is started")
}

/// The real one.
#[derive(Debug)]
pub struct Node {
    config: ComponentConfig,
    probes: Vec<ProbeConfig>,
    supervisor: Supervisor,
    patching: Option<Patching>,
    fetcher: Fetcher,
}

impl Node {
    /// For a component of the agent whose state is in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path, config: &ComponentConfig, fetcher: Fetcher) -> Self {
        let patching = Patcher::new(state_dir, config).map(Patching::new);
        // A shim runs on the very file this agent runs on, also when that was replaced by a newer one.
        let program = Path::new("/proc/self/exe");
        let supervisor = Supervisor::build(state_dir, config, program, None);
        Self::from_parts(config, supervisor, patching, fetcher)
    }

    /// Like [`Node::new`], with helpers started from `program`, and with another supervisor than the usual one.
    #[must_use]
    pub fn with_supervisor(
        state_dir: &Path,
        config: &ComponentConfig,
        fetcher: Fetcher,
        program: &Path,
        supervisor: Supervisor,
    ) -> Self {
        let patcher = Patcher::new(state_dir, config).map(|patcher| patcher.with_helper(program));
        Self::from_parts(config, supervisor, patcher.map(Patching::new), fetcher)
    }

    fn from_parts(
        config: &ComponentConfig,
        supervisor: Supervisor,
        patching: Option<Patching>,
        fetcher: Fetcher,
    ) -> Self {
        Self { config: config.clone(), probes: super::policy::probes(config), supervisor, patching, fetcher }
    }

    /// The pid of the process, or why there is none.
    async fn up(&self) -> Result<u32, String> {
        match self.supervisor.process().await {
            Ok(state) => state.up(),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// The pid of the process that a probe is about, and whether it has said that it is ready; or why not.
    async fn asked(&self, beside: bool) -> (Result<u32, String>, Result<(), String>) {
        let state = match beside {
            false => self.supervisor.process().await,
            true => self
                .supervisor
                .both()
                .await
                .map(|both| both.beside.unwrap_or(ProcessStateInfo::Stopped { last_exit: None })),
        };
        match state {
            Ok(state) => {
                let ready = state.running().map_or_else(|| state.up().map(drop), ProcessInfo::ready);
                (state.up(), ready)
            }
            Err(fault) => (Err(fault.to_string()), Err(fault.to_string())),
        }
    }

    async fn launch(&self, digest: Digest, stack: &View) -> Result<Launch, Reason> {
        let mut base = Launch::of(&self.config, Some(digest));
        // Options for a JVM are added to what the unit's operator has there.
        base.env.extend(self.supervisor.own_options().await.map_err(|fault| fault.reason)?);
        match &self.patching {
            Some(patching) => patching.launch(base, stack).await,
            None if stack.layers.is_empty() => Ok(base),
            None => Err(unpatchable()),
        }
    }

    /// The pid of the supervised process. Where the agent runs none, whoever asks finds the JVM by its path.
    async fn supervised(&self) -> Result<Option<u32>, Reason> {
        if self.config.run.mode == RunMode::None {
            return Ok(None);
        }
        let gone = |problem: String| {
            let reason = Reason::new(ReasonCode::JvmGone).with("component", &self.config.name);
            reason.with("problem", problem)
        };
        self.up().await.map(Some).map_err(gone)
    }

    async fn failure(&self, reason: Reason) -> Failure {
        Failure { reason, evidence: Some(Box::new(self.evidence().await)) }
    }
}

/// A process as the machine knows it.
fn as_process(state: Result<ProcessStateInfo, Fault>) -> Process {
    match state {
        Ok(ProcessStateInfo::Running(info) | ProcessStateInfo::Stopping(info)) => {
            Process::Running { pid: info.pid, digest: info.digest, stack: info.stack }
        }
        // A shim that does not answer is no process; starting one is idempotent and finds what is left.
        Err(_) | Ok(ProcessStateInfo::NotRun | ProcessStateInfo::Stopped { last_exit: None }) => {
            Process::NotRun
        }
        Ok(ProcessStateInfo::Down { exit, .. }) => Process::Down { exit },
        Ok(state) => {
            let exit = state.last_exit().map(ToString::to_string);
            Process::Down { exit: exit.unwrap_or_else(|| "an unknown exit".to_owned()) }
        }
    }
}

impl World for Node {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, on: OnProgress<'_>) -> Result<(), Reason> {
        let request = FetchRequest { artifact, part_path: part, deadline: None };
        self.fetcher.fetch(request, on).await.map(drop)
    }

    async fn start(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        let launch = self.launch(digest, &stack).await?;
        match self.supervisor.start(&launch).await {
            Ok(info) => Ok(Process::Running { pid: info.pid, digest: info.digest, stack: info.stack }),
            Err(fault) => Err(self.failure(fault.reason).await),
        }
    }

    async fn stop(&self) -> Result<(), Failure> {
        match self.supervisor.stop().await {
            Ok(()) => Ok(()),
            Err(fault) => Err(self.failure(fault.reason).await),
        }
    }

    async fn start_beside(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        let launch = self.launch(digest, &stack).await?;
        match self.supervisor.start_beside(&launch).await {
            Ok(info) => Ok(Process::Running { pid: info.pid, digest: info.digest, stack: info.stack }),
            Err(fault) if fault.reason.code == ReasonCode::HandoverUnavailable => Err(fault.reason.into()),
            Err(fault) => Err(self.failure(fault.reason).await),
        }
    }

    async fn drain(&self) -> Result<(), Failure> {
        match self.supervisor.drain().await {
            Ok(()) => Ok(()),
            Err(fault) => Err(self.failure(fault.reason).await),
        }
    }

    async fn dismiss(&self) -> Result<(), Failure> {
        match self.supervisor.dismiss().await {
            Ok(()) => Ok(()),
            Err(fault) => Err(self.failure(fault.reason).await),
        }
    }

    async fn beside(&self) -> Option<Process> {
        self.supervisor.both().await.ok()?.beside.map(|state| as_process(Ok(state)))
    }

    async fn revive(&self) {
        if let Err(fault) = self.supervisor.revive().await {
            tracing::error!(component = %self.config.name, reason = %fault.reason, "not running");
        }
    }

    async fn process(&self) -> Process {
        as_process(self.supervisor.process().await)
    }

    async fn reload(&self) -> Result<String, Failure> {
        let Some(reload) = &self.config.reload else { return Ok("nothing is to be told".to_owned()) };
        let context = ReloadContext { path: self.config.path.clone(), process: self.up().await };
        match reload::run(reload, &context).await {
            Ok(answer) => Ok(answer),
            Err(reason) => Err(self.failure(reason).await),
        }
    }

    async fn draining(&self) -> bool {
        // What can't be asked has not said that it is over.
        self.supervisor.both().await.map_or(true, |both| !both.draining.is_empty())
    }

    async fn probe(&self, index: usize, beside: bool) -> Result<(), String> {
        let Some(config) = self.probes.get(index) else { return Ok(()) };
        let (process, ready) = match config.kind {
            ProbeKind::Systemd => (self.supervisor.active().await, Ok(())),
            _ => self.asked(beside).await,
        };
        let context = ProbeContext { path: self.config.path.clone(), process, ready };
        probe::run(config, &context).await.map_err(|failure| failure.text)
    }

    async fn ready(&self) -> Result<(), Reason> {
        self.supervisor.ready().await.map_err(|fault| fault.reason)
    }

    async fn evidence(&self) -> Evidence {
        let exit = match self.process().await {
            Process::Down { exit } => exit,
            Process::Running { .. } => "runs".to_owned(),
            Process::NotRun => "does not run".to_owned(),
        };
        let mut lines = self.supervisor.launch_tail(EVIDENCE_LINES).await;
        // Many programs end their last words with an empty line, which says nothing.
        while lines.last().is_some_and(|line| line.trim().is_empty()) {
            lines.pop();
        }
        let lines = evident(lines);
        Evidence { exit, lines, probe_results: Vec::new() }
    }

    async fn tail(&self, lines: usize) -> Vec<String> {
        self.supervisor.tail(lines).await
    }

    async fn fit(&self, asked: Asked) -> Result<Vec<Reason>, Reason> {
        match &self.patching {
            Some(patching) => patching.fit(asked, self.supervised().await.unwrap_or(None)).await,
            None if asked.stack.layers.is_empty() => Ok(Vec::new()),
            None => Err(unpatchable()),
        }
    }

    fn set(&self, stack: &View) -> Result<Option<SetFiles>, Reason> {
        match &self.patching {
            Some(patching) => patching.set(stack),
            None if stack.layers.is_empty() => Ok(None),
            None => Err(unpatchable()),
        }
    }

    fn in_use(&self) -> Vec<PathBuf> {
        self.patching.as_ref().map(Patching::in_use).unwrap_or_default()
    }

    async fn patch_live(&self, stack: View) -> Result<Option<Proof>, Failure> {
        let Some(patching) = &self.patching else { return Err(unpatchable().into()) };
        let process = self.supervised().await?;
        let proof = match patching.live(stack.clone(), process).await {
            Ok(proof) => proof,
            Err(reason) => return Err(self.failure(reason).await),
        };
        if process.is_some() {
            // The stack is switched to already: only now does a restart by the shim use it, so that a JVM which
            // refuses the patch is restarted as it was.
            let running = self.process().await.digest();
            let launch = self.launch(running.unwrap_or_else(|| Digest::of(b"")), &stack).await?;
            if let Err(fault) = self.supervisor.replace(&launch).await {
                return Err(self.failure(fault.reason).await);
            }
        }
        Ok(Some(proof))
    }

    async fn prove(&self, stack: View) -> Result<Option<Proof>, Failure> {
        let Some(patching) = &self.patching else { return Ok(None) };
        Ok(patching.prove(stack, self.supervised().await?).await?)
    }
}
