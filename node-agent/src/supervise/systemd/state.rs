//! How a unit stands, and how that is said to people. Asks only; orders nothing.

use std::time::Duration;

use super::{
    bus::{Bus, Trouble},
    proxy::{ServiceProxy, UnitProxy},
};

/// The longest span that is believed; systemd says "for ever" by the largest number.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A unit at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub(super) load: String,
    /// `active`, `activating`, `deactivating`, `reloading`, `inactive`, `failed`.
    pub(super) active: String,
    /// `running`, `dead`, `auto-restart` and so on.
    pub(super) sub: String,
    /// `success`, `exit-code`, `signal`, `start-limit-hit`, `timeout` and so on.
    pub(super) result: String,
    /// The main process; 0 where there is none.
    pub(super) main_pid: u32,
    /// How often systemd has restarted it by itself since it was started last.
    pub(super) restarts: u32,
    /// How the last main process ended: 0 where none has, else the kernel's `CLD_*`, with its status or signal.
    pub(super) exit: (i32, i32),
    /// How long it may take to end before systemd kills it.
    pub(super) stop_timeout: Duration,
    /// The job under way, 0 for none.
    pub(super) job: u32,
    /// The commands of `ExecStart=`, each the program and its arguments.
    pub(super) commands: Vec<Vec<String>>,
}

/// What a unit's file says, as far as it matters before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// `simple`, `notify`, `oneshot` and so on.
    pub(super) kind: String,
    /// `Environment=`, each `NAME=value`.
    pub(super) environment: Vec<String>,
    /// `EnvironmentFile=`.
    pub(super) environment_files: Vec<String>,
    /// Whether the files have changed since systemd read them.
    pub(super) outdated: bool,
}

/// Asks how the unit stands.
pub(super) async fn standing(bus: &Bus, name: &str) -> Result<Standing, Trouble> {
    let (unit, service) = bus.unit(name).await?;
    Ok(gather(&unit, &service).await?)
}

async fn gather(unit: &UnitProxy<'_>, service: &ServiceProxy<'_>) -> zbus::Result<Standing> {
    let (load, active, sub, job) =
        tokio::try_join!(unit.load_state(), unit.active_state(), unit.sub_state(), unit.job())?;
    let (result, main_pid, restarts, code, status, stop, commands) = tokio::try_join!(
        service.result(),
        service.main_pid(),
        service.n_restarts(),
        service.exec_main_code(),
        service.exec_main_status(),
        service.timeout_stop_u_sec(),
        service.exec_start(),
    )?;
    let words = |(program, mut words, ..): super::proxy::Command| {
        match words.first_mut() {
            Some(first) => *first = program,
            None => words.push(program),
        }
        words
    };
    let stop_timeout = Duration::from_micros(stop).min(LONGEST);
    Ok(Standing {
        load,
        active,
        sub,
        result,
        main_pid,
        restarts,
        exit: (code, status),
        stop_timeout,
        job: job.0,
        commands: commands.into_iter().map(words).collect(),
    })
}

/// Asks what the unit's file says.
pub(super) async fn settings(bus: &Bus, name: &str) -> Result<Settings, Trouble> {
    let (unit, service) = bus.unit(name).await?;
    let (outdated, kind, environment, files) = tokio::try_join!(
        unit.need_daemon_reload(),
        service.kind(),
        service.environment(),
        service.environment_files(),
    )?;
    Ok(Settings {
        kind,
        environment,
        environment_files: files.into_iter().map(|(path, _)| path).collect(),
        outdated,
    })
}

impl Standing {
    /// Neither runs nor is about to.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed") && self.job == 0
    }

    /// Up; one that is told to read its configuration again is so meanwhile.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing")
    }

    /// How the last main process ended, e.g. `exit status 1`.
    pub(super) fn exit_text(&self) -> Option<String> {
        /// The kernel's numbers for the ways in which a child ends.
        const EXITED: i32 = 1;
        const KILLED: i32 = 2;
        const DUMPED: i32 = 3;
        match self.exit {
            (EXITED, status) => Some(format!("exit status {status}")),
            (KILLED | DUMPED, signal) => Some(format!("signal {signal}")),
            _ => None,
        }
    }

    /// How it stands, e.g. `unit shop.service is failed (start-limit-hit), its process ended with exit status 1`.
    pub(super) fn describe(&self, unit: &str) -> String {
        if self.load != "loaded" {
            return format!("unit {unit} is {}", self.load);
        }
        let detail = match self.result.as_str() {
            "success" | "" => &self.sub,
            result => result,
        };
        let state = format!("unit {unit} is {} ({detail})", self.active);
        match self.exit_text().filter(|_| self.main_pid == 0) {
            Some(exit) => format!("{state}, its process ended with {exit}"),
            None => state,
        }
    }

    /// The same behind "the process ended with", which is how an end of a process is told.
    pub(super) fn as_exit(&self, unit: &str) -> String {
        let exit = self.exit_text().unwrap_or_else(|| "nothing to be seen of it".to_owned());
        let detail = if self.result == "success" { &self.sub } else { &self.result };
        format!("{exit} (unit {unit} is {}: {detail})", self.active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_unit_is_a_sentence() {
        let failed = Standing {
            load: "loaded".into(),
            active: "failed".into(),
            sub: "failed".into(),
            result: "start-limit-hit".into(),
            main_pid: 0,
            restarts: 5,
            exit: (1, 3),
            stop_timeout: Duration::from_secs(90),
            job: 0,
            commands: Vec::new(),
        };
        assert!(failed.is_at_rest());
        let text = "unit a.service is failed (start-limit-hit), its process ended with exit status 3";
        assert_eq!(failed.describe("a.service"), text);
        let stopped = Standing {
            active: "inactive".into(),
            sub: "dead".into(),
            result: "success".into(),
            exit: (2, 15),
            ..failed.clone()
        };
        assert_eq!(stopped.as_exit("a.service"), "signal 15 (unit a.service is inactive: dead)");
        let missing = Standing { load: "not-found".into(), ..failed };
        assert_eq!(missing.describe("a.service"), "unit a.service is not-found");
    }
}
