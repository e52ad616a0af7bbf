//! systemd's jobs: asking for one, and waiting until it is over. Its end is told by a signal; whoever missed that (the bus
//! was restarted) sees it in the unit's state.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::StreamExt as _;
use upfleet_domain::{reason::ReasonCode, release::Kind};
use zbus::OwnedObjectPath;

use super::{
    Fault, Launch, ProcessInfo, ProcessStateInfo, Unit,
    bus::Trouble,
    proxy::{JobRemovedStream, ManagerProxy},
    state::Standing,
};

/// How often the unit is looked at while a job is under way.
const LOOK: Duration = Duration::from_millis(100);
/// What systemd may take beyond the unit's own time to kill what has not ended.
const KILLS: Duration = Duration::from_secs(5);
/// How long the processes may take to end that were killed.
const KILLED: Duration = Duration::from_secs(10);
/// How long a process may take until it executes the component: systemd itself forks first, and a script may come first.
const SETTLE: Duration = Duration::from_secs(5);
/// What systemd does with jobs that are in the way.
const MODE: &str = "replace";

/// How waiting for a job ended.
enum Waited {
    /// The job is over, with systemd's word for how.
    Over(String),
    /// What was wanted of it is so already.
    Enough,
    /// It takes too long.
    Late,
}

/// A job and the signals that may tell of its end.
struct Job<'a> {
    path: OwnedObjectPath,
    ends: &'a mut JobRemovedStream,
}

impl Unit {
    /// Has systemd stop the unit, and has what is left killed where it does not end. `None` where that was needed and
    /// was of no use.
    pub(super) async fn run_stop(&self, before: &Standing) -> Result<Option<String>, Trouble> {
        let manager = self.bus.manager().await?;
        let mut ends = manager.receive_job_removed().await?;
        let path = manager.stop_unit(&self.name, MODE).await?;
        let mut job = Job { path, ends: &mut ends };
        // systemd kills by itself when the unit's own time is up; the agent does where that is never, or too late.
        let patience = self.stop_timeout.max(before.stop_timeout.saturating_add(KILLS).min(self.limit));
        let at_rest = |standing: &Standing| standing.is_at_rest();
        match self.wait_for(&mut job, Instant::now() + patience, at_rest).await? {
            Waited::Over(result) => return Ok(Some(result)),
            Waited::Enough => return Ok(Some("done".to_owned())),
            Waited::Late => {}
        }
        tracing::warn!(unit = self.name, "does not end in time and is killed");
        kill(&manager, &self.name).await?;
        Ok(match self.wait_for(&mut job, Instant::now() + KILLED, at_rest).await? {
            Waited::Over(result) => Some(result),
            Waited::Enough => Some("done".to_owned()),
            Waited::Late => None,
        })
    }

    /// Has systemd start the unit, and waits until it has a process, is up, or is not going to be.
    pub(super) async fn run_start(&self, before: &Standing) -> Result<Option<String>, Trouble> {
        let manager = self.bus.manager().await?;
        let mut ends = manager.receive_job_removed().await?;
        let path = match before.is_at_rest() {
            true => manager.start_unit(&self.name, MODE).await?,
            // Something runs that should not: somebody was faster, or an answer was lost.
            false => manager.restart_unit(&self.name, MODE).await?,
        };
        let mut job = Job { path, ends: &mut ends };
        let (old, until) = (before.main_pid, Instant::now() + self.limit);
        // A process that says when it is ready may take its time: that is watched by the probes.
        let begun = move |standing: &Standing| {
            let own = standing.main_pid != 0 && standing.main_pid != old;
            own && standing.active == "activating" && standing.sub == "start"
        };
        Ok(match self.wait_for(&mut job, until, begun).await? {
            Waited::Over(result) => Some(result),
            Waited::Enough => Some("done".to_owned()),
            Waited::Late => None,
        })
    }

    /// What has come of a start.
    pub(super) async fn started(
        &self,
        launch: &Launch,
        result: Option<String>,
    ) -> Result<Result<ProcessInfo, Fault>, Trouble> {
        let until = Instant::now() + SETTLE;
        loop {
            let standing = self.standing().await?;
            let state = self.state(&standing).await;
            match state {
                ProcessStateInfo::Running(info) if self.is(&info, launch) => return Ok(Ok(info)),
                ProcessStateInfo::Running(info) if Instant::now() > until => {
                    let actual = format!(
                        "its process {} runs {}, which is not `{}` of this release",
                        info.pid,
                        info.digest,
                        self.path.display()
                    );
                    return Ok(Err(self.unfit(&actual)));
                }
                ProcessStateInfo::Running(_) => {}
                _ if standing.main_pid != 0 && Instant::now() < until => {}
                _ => return Ok(Err(self.not_started(&standing, result.as_deref()))),
            }
            sleep(LOOK).await;
        }
    }

    fn not_started(&self, standing: &Standing, result: Option<&str>) -> Fault {
        let state = standing.describe(&self.name);
        let problem = match result {
            None => format!("no answer within {}; {state}", humantime::format_duration(self.limit)),
            Some("done") => state,
            Some(result) => format!("systemd's job ended with \"{result}\"; {state}"),
        };
        Fault::new(ReasonCode::StartFailed, format!("{problem}; see journalctl -u {}", self.name))
    }

    /// Whether a process is the one that `launch` starts.
    pub(super) fn is(&self, info: &ProcessInfo, launch: &Launch) -> bool {
        let bytes = self.kind == Kind::Files || launch.expect.is_none_or(|expected| expected == info.digest);
        bytes && info.stack == launch.stack
    }

    async fn wait_for(
        &self,
        job: &mut Job<'_>,
        until: Instant,
        enough: impl Fn(&Standing) -> bool,
    ) -> Result<Waited, Trouble> {
        while Instant::now() < until {
            let end = timeout_at(until.min(Instant::now() + LOOK), self.end_of(job)).await;
            if let Ok(result) = end {
                return Ok(Waited::Over(result?));
            }
            let standing = self.standing().await?;
            if enough(&standing) {
                return Ok(Waited::Enough);
            }
        }
        Ok(Waited::Late)
    }

    async fn end_of(&self, job: &mut Job<'_>) -> Result<String, Trouble> {
        while let Some(signal) = job.ends.next().await {
            let end = signal.args()?;
            if end.job().as_str() == job.path.as_str() {
                return Ok(end.result().to_string());
            }
        }
        Err(Trouble::Bus("the connection to the system bus broke".to_owned()))
    }
}

async fn kill(manager: &ManagerProxy<'_>, unit: &str) -> Result<(), Trouble> {
    match manager.kill_unit(unit, "all", Signal::KILL.as_raw()).await.map_err(Trouble::from) {
        // Nothing was left to kill.
        Ok(()) | Err(Trouble::Refused { .. }) => Ok(()),
        Err(trouble) => Err(trouble),
    }
}
