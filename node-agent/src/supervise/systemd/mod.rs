//! Components that run as systemd units: the agent asks systemd's manager over D-Bus, and orders nothing of it but to
//! start, stop and reload the one unit that the node's operator has named.
//!
//! Units are never enabled, disabled, masked or written; of a patched JVM alone there is a drop-in. What systemd knows is
//! systemd's: who restarts the process, how long it may take to end, where its output goes. A bus on which nobody answers
//! says nothing of the process: what is known of that is asked of the kernel then.
//!
//! The bus is a Unix socket; there is no network here.

mod bus;
mod drop_in;
mod job;
mod manager;
mod process;
mod proxy;
mod state;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    release::Kind,
};

use super::{Fault, Launch, ProcessInfo, ProcessStateInfo};
use crate::{
    config::{ComponentConfig, RunMode},
    processes::executable_path,
};
use bus::{Bus, Trouble};
use drop_in::DropIn;
pub(super) use manager::Manager;
use process::Processes;
pub(crate) use process::STACK;
use state::{Settings, Standing};

/// How long a bus that does not answer is waited for before a change.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same before a question that nothing has been changed for yet.
const QUESTION: Duration = Duration::from_secs(5);
/// The wait before a bus that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// The unit of one component.
#[derive(Debug)]
pub(super) struct Unit {
    name: String,
    path: PathBuf,
    kind: Kind,
    /// The variable that options for a JVM go to, where it takes patches.
    variable: Option<String>,
    /// How long a job may take, and how long the process may take to end at most.
    limit: Duration,
    stop_timeout: Duration,
    bus: Bus,
    processes: Arc<Processes>,
    drop_in: DropIn,
    /// What the unit's probe saw last: the process, and how often systemd had restarted it.
    probed: Mutex<Option<(u32, u32)>>,
}

impl Unit {
    /// The unit of a component, where it has one. `program` checks stacks.
    pub(super) fn of(
        state_dir: &Path,
        config: &ComponentConfig,
        program: &Path,
        address: Option<&str>,
    ) -> Option<Self> {
        let run = &config.run;
        let name = run.unit.clone().filter(|_| run.mode == RunMode::Systemd)?;
        let drop_in = DropIn::new(&run.drop_in_dir, &name, &config.name, &config.path, program);
        Some(Self {
            name,
            path: config.path.clone(),
            kind: config.kind,
            variable: config.jvm.as_ref().map(|jvm| jvm.options_variable.clone()),
            limit: config.timeouts.activate,
            stop_timeout: run.stop_timeout,
            bus: address.map_or_else(Bus::default, Bus::at),
            processes: Arc::new(Processes::new(state_dir, config)),
            drop_in,
            probed: Mutex::default(),
        })
    }

    /// How the process stands, also where systemd can't be asked.
    pub(super) async fn process(&self) -> ProcessStateInfo {
        match self.standing().await {
            Ok(standing) => self.state(&standing).await,
            Err(trouble) => self.without_systemd(&trouble).await,
        }
    }

    /// The process where its unit is active and systemd has not had to restart it; else what is wrong. A bus on which
    /// nobody answers takes nothing back that was said of a process which still runs.
    ///
    /// # Errors
    /// A sentence for people.
    pub(super) async fn active(&self) -> Result<u32, String> {
        let standing = match self.standing().await {
            Ok(standing) => standing,
            Err(trouble) => {
                let probed = self.remembered();
                let last = self.last().await.map(|info| info.pid);
                return match last.filter(|pid| probed.is_some_and(|(known, _)| known == *pid)) {
                    Some(pid) => Ok(pid),
                    None => Err(self.unreachable(&trouble).to_string()),
                };
            }
        };
        let before = self.remembered().filter(|(pid, _)| *pid != 0);
        let (pid, restarts) = (standing.main_pid, standing.restarts);
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some((pid, restarts));
        if !standing.is_up() || pid == 0 {
            return Err(standing.describe(&self.name));
        }
        match before {
            Some((_, known)) if restarts > known => {
                Err(format!("systemd has restarted unit {} {restarts} times", self.name))
            }
            _ => Ok(pid),
        }
    }

    fn remembered(&self) -> Option<(u32, u32)> {
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether systemd can run the component by this unit. Changes nothing.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) async fn ready(&self) -> Result<(), Fault> {
        let until = Instant::now() + QUESTION;
        let (standing, settings) = loop {
            let asked = async { Ok((self.standing().await?, state::settings(&self.bus, &self.name).await?)) };
            match asked.await {
                Ok(found) => break found,
                Err(trouble @ Trouble::Bus(_)) if Instant::now() < until => self.wait(&trouble).await,
                Err(trouble) => return Err(self.fault(&trouble, "ask about", ReasonCode::UnitUnfit)),
            }
        };
        self.loadable(&standing)?;
        self.fits(&standing, &settings).await
    }

    /// Stops the unit. One that is at rest stays so.
    ///
    /// # Errors
    /// [`ReasonCode::StopFailed`], or why systemd can't be asked to.
    pub(super) async fn stop(&self) -> Result<(), Fault> {
        let mut until = None;
        loop {
            match self.stop_once().await {
                Err(trouble @ Trouble::Bus(_)) if self.goes_on(&mut until) => self.wait(&trouble).await,
                Err(trouble) => return Err(self.fault(&trouble, "stop", ReasonCode::StopFailed)),
                Ok(answer) => return answer,
            }
        }
    }

    async fn stop_once(&self) -> Result<Result<(), Fault>, Trouble> {
        let standing = self.standing().await?;
        if standing.main_pid == 0 && (standing.is_at_rest() || standing.load == "not-found") {
            return Ok(Ok(()));
        }
        let result = self.run_stop(&standing).await?;
        let after = self.standing().await?;
        // A connection to the unit's socket may have started it again at once: then it is another process.
        let is_other = after.main_pid == 0 || after.main_pid != standing.main_pid;
        if after.is_at_rest() || (is_other && result.as_deref() == Some("done")) {
            return Ok(Ok(()));
        }
        let problem = match result {
            Some(result) => format!("systemd's job ended with \"{result}\"; {}", after.describe(&self.name)),
            None => format!("{}, even after SIGKILL to all its processes", after.describe(&self.name)),
        };
        Ok(Err(Fault::new(ReasonCode::StopFailed, problem)))
    }

    /// Starts the unit with what `launch` says, or says that just this runs.
    ///
    /// # Errors
    /// [`ReasonCode::StartFailed`] where the process does not come up, [`ReasonCode::UnitUnfit`] where it is not the
    /// component's, or why systemd can't be asked to.
    pub(super) async fn start(&self, launch: &Launch) -> Result<ProcessInfo, Fault> {
        let changed = self.put_drop_in(launch).await?;
        let mut until = None;
        loop {
            match self.start_once(launch, changed).await {
                Err(trouble @ Trouble::Bus(_)) if self.goes_on(&mut until) => self.wait(&trouble).await,
                Err(trouble) => return Err(self.fault(&trouble, "start", ReasonCode::StartFailed)),
                Ok(answer) => return answer,
            }
        }
    }

    async fn start_once(
        &self,
        launch: &Launch,
        changed: bool,
    ) -> Result<Result<ProcessInfo, Fault>, Trouble> {
        let manager = self.bus.manager().await?;
        if changed {
            manager.reload().await?;
        }
        let standing = self.standing().await?;
        if let Err(fault) = self.loadable(&standing) {
            return Ok(Err(fault));
        }
        if let ProcessStateInfo::Running(info) = self.state(&standing).await
            && self.is(&info, launch)
        {
            return Ok(Ok(info));
        }
        // Starts of an earlier version that fell over don't count against this one.
        match manager.reset_failed_unit(&self.name).await.map_err(Trouble::from) {
            Err(trouble @ Trouble::Bus(_)) => return Err(trouble),
            Ok(()) | Err(Trouble::Refused { .. }) => {}
        }
        // What this process's predecessor was restarted says nothing of it.
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let result = self.run_start(&standing).await?;
        self.started(launch, result).await
    }

    /// Lets the next start of the unit use `launch`; what runs stays, and is from now on said to be of that stack.
    ///
    /// # Errors
    /// Where the drop-in can't be written, or systemd can't be asked to read it.
    pub(super) async fn replace(&self, launch: &Launch) -> Result<ProcessInfo, Fault> {
        let changed = self.put_drop_in(launch).await?;
        let mut until = None;
        let standing = loop {
            let reread = async {
                if changed {
                    self.bus.manager().await?.reload().await?;
                }
                self.standing().await
            };
            match reread.await {
                Ok(standing) => break standing,
                Err(trouble @ Trouble::Bus(_)) if self.goes_on(&mut until) => self.wait(&trouble).await,
                Err(trouble) => return Err(self.fault(&trouble, "reload", ReasonCode::StartFailed)),
            }
        };
        let (processes, stack, pid) = (Arc::clone(&self.processes), launch.stack, standing.main_pid);
        blocking(move || processes.brought_to(pid, stack)).await;
        match self.state(&standing).await {
            ProcessStateInfo::Running(info) => Ok(info),
            other => Err(Fault::new(ReasonCode::StartFailed, other.up().err().unwrap_or_default())),
        }
    }

    /// What the operator has in the variable that options for the JVM go to; nothing for a component without patches.
    ///
    /// # Errors
    /// Where systemd can't be asked: starting without the operator's options would be another program.
    pub(super) async fn own_options(&self) -> Result<Option<(String, String)>, Fault> {
        let Some(variable) = self.variable.clone() else { return Ok(None) };
        let mut until = None;
        let settings = loop {
            match self.fresh_settings().await {
                Ok(settings) => break settings,
                Err(trouble @ Trouble::Bus(_)) if self.goes_on(&mut until) => self.wait(&trouble).await,
                Err(trouble) => return Err(self.fault(&trouble, "reload", ReasonCode::UnitUnfit)),
            }
        };
        let (drop_in, name) = (self.drop_in.clone(), variable.clone());
        let own = blocking(move || drop_in.own(&name, &settings.environment)).await.flatten();
        Ok(own.map(|own| (variable, own)))
    }

    /// What the unit's file says, with a drop-in that was written and not read yet, by an agent that was killed then.
    async fn fresh_settings(&self) -> Result<Settings, Trouble> {
        let settings = state::settings(&self.bus, &self.name).await?;
        if !settings.outdated {
            return Ok(settings);
        }
        self.bus.manager().await?.reload().await?;
        state::settings(&self.bus, &self.name).await
    }

    /// What can be said of the unit without reading its journal, and how to read that.
    pub(super) async fn evidence(&self) -> Vec<String> {
        let standing = match self.standing().await {
            Ok(standing) => standing.describe(&self.name),
            Err(trouble) => self.unreachable(&trouble).to_string(),
        };
        vec![standing, format!("its output: journalctl -u {} -n 50", self.name)]
    }

    // ---- looking -----------------------------------------------------------------------------------------

    async fn standing(&self) -> Result<Standing, Trouble> {
        let asked = state::standing(&self.bus, &self.name).await;
        if let Err(Trouble::Bus(_)) = &asked {
            self.bus.forget().await;
        }
        asked
    }

    async fn state(&self, standing: &Standing) -> ProcessStateInfo {
        let (processes, pid, restarts) = (Arc::clone(&self.processes), standing.main_pid, standing.restarts);
        let named = self.is_named(standing);
        let info = match pid {
            0 => None,
            pid => blocking(move || processes.look(pid, restarts, named)).await.flatten(),
        };
        match (info, standing.active.as_str()) {
            (Some(info), "deactivating") => ProcessStateInfo::Stopping(info),
            (Some(info), _) => ProcessStateInfo::Running(info),
            (None, _) => ProcessStateInfo::Down {
                exit: standing.as_exit(&self.name),
                problem: standing.describe(&self.name),
            },
        }
    }

    /// Whether the unit's file says that it runs the component.
    fn is_named(&self, standing: &Standing) -> bool {
        let path = self.path.to_string_lossy();
        standing.commands.iter().any(|command| process::names(command, &path))
    }

    async fn last(&self) -> Option<ProcessInfo> {
        let processes = Arc::clone(&self.processes);
        blocking(move || processes.last()).await.flatten()
    }

    async fn without_systemd(&self, trouble: &Trouble) -> ProcessStateInfo {
        match self.last().await {
            Some(info) => ProcessStateInfo::Running(info),
            None => ProcessStateInfo::Down {
                exit: format!("an unknown exit; {}", self.unreachable(trouble)),
                problem: self.unreachable(trouble).to_string(),
            },
        }
    }

    fn loadable(&self, standing: &Standing) -> Result<(), Fault> {
        let about = |code| Fault { reason: Reason::new(code).with("unit", &self.name) };
        match standing.load.as_str() {
            "loaded" => Ok(()),
            "not-found" => Err(about(ReasonCode::UnitNotFound)),
            "masked" => Err(about(ReasonCode::UnitMasked)),
            other => Err(self.unfit(&format!("systemd says that its file is bad ({other})"))),
        }
    }

    async fn fits(&self, standing: &Standing, settings: &Settings) -> Result<(), Fault> {
        if settings.kind == "oneshot" {
            return Err(self
                .unfit("it is of Type=oneshot, which leaves no process to watch; use Type=exec or notify"));
        }
        if let Some(variable) = &self.variable
            && let Some(file) = self.sets(variable, &settings.environment_files).await
        {
            let text = format!(
                "`{file}` sets {variable}, which overrides what patches need; move it to Environment="
            );
            return Err(self.unfit(&text));
        }
        if let Some(error) = unreadable(standing.main_pid) {
            let reason = Reason::new(ReasonCode::UnitNotPermitted).with("unit", &self.name);
            let problem = format!("/proc/{}/exe: {error}", standing.main_pid);
            return Err(Fault {
                reason: reason.with("operation", "look at the process of").with("problem", problem),
            });
        }
        let path = self.path.to_string_lossy();
        if self.is_named(standing) || self.kind == Kind::Files {
            return Ok(());
        }
        let (processes, pid) = (Arc::clone(&self.processes), standing.main_pid);
        // A script between the unit and the component is seen by what it runs.
        let other = pid != 0 && !blocking(move || processes.is_component(pid)).await.unwrap_or(true);
        let commands: Vec<String> = standing.commands.iter().map(|command| command.join(" ")).collect();
        match other {
            true => Err(self.unfit(&format!("ExecStart=`{}` does not run `{path}`", commands.join("; ")))),
            false => {
                tracing::info!(unit = self.name, %path, "the unit's ExecStart= does not name the component");
                Ok(())
            }
        }
    }

    /// The first of the environment files that sets a variable.
    async fn sets(&self, variable: &str, files: &[String]) -> Option<String> {
        let (prefix, files) = (format!("{variable}="), files.to_vec());
        blocking(move || {
            let sets = |file: &String| {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.lines().any(|line| line.trim_start().starts_with(&prefix))
            };
            files.into_iter().find(sets)
        })
        .await
        .flatten()
    }

    // ---- saying ------------------------------------------------------------------------------------------

    fn unfit(&self, problem: &str) -> Fault {
        let reason = Reason::new(ReasonCode::UnitUnfit).with("unit", &self.name);
        Fault { reason: reason.with("problem", problem) }
    }

    fn unreachable(&self, trouble: &Trouble) -> Reason {
        Reason::new(ReasonCode::UnitUnreachable).with("unit", &self.name).with("problem", trouble)
    }

    /// Why it was not done; `code` where nothing more is known than that systemd said no.
    fn fault(&self, trouble: &Trouble, operation: &str, code: ReasonCode) -> Fault {
        let about = |code| Reason::new(code).with("unit", &self.name);
        let reason = match trouble {
            Trouble::Bus(_) => self.unreachable(trouble),
            Trouble::Refused { name, .. } => match name.rsplit('.').next().unwrap_or_default() {
                "NoSuchUnit" => about(ReasonCode::UnitNotFound),
                "UnitMasked" => about(ReasonCode::UnitMasked),
                "AccessDenied" | "InteractiveAuthorizationRequired" | "AuthFailed" => {
                    about(ReasonCode::UnitNotPermitted).with("operation", operation).with("problem", trouble)
                }
                "LoadFailed" | "BadUnitSetting" => self.unfit(&trouble.to_string()).reason,
                _ => about(code).with("problem", trouble),
            },
        };
        Fault { reason }
    }

    /// How long systemd is waited for before it is said that it does not answer: not for the whole of a phase.
    /// Whether a bus on which nobody answers is asked again. Patience begins with the trouble: a unit may take long to
    /// stop before the bus goes away.
    fn goes_on(&self, until: &mut Option<Instant>) -> bool {
        Instant::now() < *until.get_or_insert_with(|| Instant::now() + PATIENCE.min(self.limit / 2))
    }

    async fn wait(&self, trouble: &Trouble) {
        tracing::debug!(unit = self.name, %trouble, "systemd is asked again");
        self.bus.forget().await;
        sleep(AGAIN).await;
    }

    async fn put_drop_in(&self, launch: &Launch) -> Result<bool, Fault> {
        let Some(variable) = self.variable.clone() else { return Ok(false) };
        let own = self.own_options().await?.map(|(_, own)| own).unwrap_or_default();
        let (drop_in, launch) = (self.drop_in.clone(), launch.clone());
        let written = blocking(move || drop_in.put(&launch, &variable, &own)).await;
        written.unwrap_or_else(|| Err(std::io::ErrorKind::Interrupted.into())).map_err(|error| {
            let path = self.drop_in.path();
            let reason = Reason::new(ReasonCode::StageFailed).with("operation", "write");
            Fault { reason: reason.with("path", path.display()).with("problem", error) }
        })
    }
}

/// Why the kernel does not show what a process executes: it is another user's, and what runs could never be proved.
fn unreadable(pid: u32) -> Option<std::io::Error> {
    let error = std::fs::metadata(executable_path(pid)).err()?;
    (pid != 0 && error.kind() == std::io::ErrorKind::PermissionDenied).then_some(error)
}

/// Runs `work` where blocking is allowed; `None` where it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
