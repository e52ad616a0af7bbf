//! The agent's side of a handover: a process beside the current one, the drain, the dismissal.
//!
//! A shim outlives the agent that started it, so it may be one that keeps no sockets. Such a one is replaced when
//! nothing runs, which costs nothing; while something runs, whoever asks is told that there is no handover.

use std::time::Duration;

use upfleet_domain::reason::{Reason, ReasonCode};

use super::client::{CallError, call};
use super::{ANSWER, Fault, Launch, ProcessInfo, ProcessStateInfo, START, STOP_MARGIN, Supervisor};
use crate::{
    config::RunMode,
    shim::protocol::{Body, Both, ErrorCode, HANDOVER, Op},
};

impl Supervisor {
    /// How the process and the one beside it stand. No shim is started for this.
    ///
    /// # Errors
    /// As [`Supervisor::process`]. A shim that does not answer has not said that nothing stands beside.
    pub async fn both(&self) -> Result<Both, Fault> {
        if self.inner.unit.is_none() && self.inner.mode == RunMode::Supervised {
            match self.ask(Op::Both).await {
                Ok(Body::Both(both)) => return Ok(*both),
                Ok(other) => return Err(self.unavailable(format!("unexpected answer {other:?}"))),
                // Nothing stands beside where nobody could have started it, and nothing outlives its shim.
                Err(CallError::NoShim(_)) => {}
                Err(error) if error.is_of_older_shim() => {}
                Err(error) => return Err(self.unavailable(error)),
            }
        }
        Ok(Both { current: self.process().await?, beside: None, draining: Vec::new() })
    }

    /// Starts a process beside the current one. Where just this one stands there already, it is the answer; another
    /// one, of an earlier attempt, is dismissed first.
    ///
    /// # Errors
    /// [`ReasonCode::HandoverUnavailable`] where it has to be stopped and started instead;
    /// [`ReasonCode::StartFailed`]; [`ReasonCode::ShimUnavailable`].
    pub async fn start_beside(&self, launch: &Launch) -> Result<ProcessInfo, Fault> {
        let op = Op::StartBeside { launch: Box::new(launch.clone()) };
        let mut answer = call(&self.inner.dir, op.clone(), START).await;
        if let Err(CallError::Refused(error)) = &answer
            && error.code == ErrorCode::WrongState
        {
            self.dismiss().await?;
            answer = call(&self.inner.dir, op, START).await;
        }
        match answer {
            Ok(Body::Both(both)) => match both.beside {
                Some(ProcessStateInfo::Running(info)) => Ok(info),
                state => {
                    let problem = state.and_then(|state| state.up().err());
                    let problem = problem.unwrap_or_else(|| "it does not run".to_owned());
                    Err(Fault::new(ReasonCode::StartFailed, problem))
                }
            },
            Ok(other) => Err(Fault::new(ReasonCode::StartFailed, format!("it is {other:?}"))),
            Err(error) if error.is_of_older_shim() => {
                let problem = "the component's shim was started by an older agent, which kept no sockets";
                Err(Fault::new(ReasonCode::HandoverUnavailable, problem))
            }
            Err(CallError::Refused(error)) => Err(match error.code {
                ErrorCode::CantStandBeside => Fault::new(ReasonCode::HandoverUnavailable, error.message),
                _ => Fault::new(ReasonCode::StartFailed, error.message),
            }),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// Makes the process beside the current one, and asks the old one to finish. Until that has ended it is among those
    /// that drain, see [`Supervisor::both`]. Where nothing stands beside, nothing happens.
    ///
    /// # Errors
    /// [`ReasonCode::ProcessExited`] where the new process has ended before it could take over, so that the old one
    /// goes on; [`ReasonCode::StopFailed`]; [`ReasonCode::ShimUnavailable`].
    pub async fn drain(&self) -> Result<(), Fault> {
        self.leave(Op::Drain).await
    }

    /// Ends the process beside the current one, which stays as it is.
    ///
    /// # Errors
    /// As [`Supervisor::drain`].
    pub async fn dismiss(&self) -> Result<(), Fault> {
        self.leave(Op::Dismiss).await
    }

    async fn leave(&self, op: Op) -> Result<(), Fault> {
        match call(&self.inner.dir, op, self.inner.drain_timeout + STOP_MARGIN).await {
            // Without a shim that knows it nothing stands beside.
            Ok(_) | Err(CallError::NoShim(_)) => Ok(()),
            Err(error) if error.is_of_older_shim() => Ok(()),
            Err(CallError::Refused(error)) if error.code == ErrorCode::BesideEnded => {
                Err(self.beside_ended().await)
            }
            Err(CallError::Refused(error)) => Err(Fault::new(ReasonCode::StopFailed, error.message)),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// How the process beside ended, which was to take over.
    async fn beside_ended(&self) -> Fault {
        let beside = self.both().await.ok().and_then(|both| both.beside);
        let exit = beside.as_ref().and_then(ProcessStateInfo::last_exit);
        let after =
            exit.map(|exit| humantime::format_duration(Duration::from_millis(exit.ran_ms)).to_string());
        let exit = exit.map_or_else(|| "an unknown exit".to_owned(), ToString::to_string);
        let reason = Reason::new(ReasonCode::ProcessExited).with("exit", exit);
        Fault { reason: reason.with("after", after.as_deref().unwrap_or("an unknown time")) }
    }

    /// Replaces a shim that keeps no sockets, where `launch` needs one that does and nothing runs.
    pub(super) async fn renew_shim(&self, launch: &Launch) -> Result<(), Fault> {
        if !launch.needs_sockets() {
            return Ok(());
        }
        let knows = match call(&self.inner.dir, Op::Hello, ANSWER).await {
            Ok(Body::Hello(hello)) => hello.versions.contains(&HANDOVER),
            _ => true,
        };
        if knows || self.process().await?.running().is_some() {
            return Ok(());
        }
        tracing::info!(component = %self.inner.component, "its shim keeps no sockets and is replaced");
        self.shutdown().await?;
        self.ensure_shim().await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::UnixListener,
    };

    use super::*;
    use crate::{config::ComponentConfig, supervise::shim_dir};

    fn running() -> String {
        let info = r#"{"v":1,"state":{"state":"running","pid":7,"start_time":1,"boot_id":"b","digest":"DIGEST","exact":true,"since":0,"restarts":0}}"#;
        format!("{}\n", info.replace("DIGEST", &"0".repeat(64)))
    }

    /// A shim of version 1 of the protocol, in which a process runs. Answers what it was asked.
    async fn old_shim(listener: UnixListener) -> Vec<String> {
        let mut asked = Vec::new();
        while !asked.contains(&"dismiss".to_owned()) {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let request: serde_json::Value = serde_json::from_str(&line).unwrap();
            asked.push(request["op"].as_str().unwrap().to_owned());
            let answer = match request["v"].as_u64() {
                Some(1) => running(),
                _ => error("unknown_version"),
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    }

    const CONFIG: &str = "name = \"a\"\npath = \"/opt/a\"\n[run]\nmode = \"supervised\"\n\
                          activate = \"handover\"\n[[run.socket]]\nname = \"a\"\nlisten = \"/run/a\"";

    /// The agent's side, its configuration, and where a made-up shim listens.
    fn supervisor(state: &Path) -> (Supervisor, ComponentConfig, UnixListener) {
        let config: ComponentConfig = toml::from_str(CONFIG).unwrap();
        let dir = shim_dir(state, &config.name);
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join(crate::shim::protocol::SOCKET)).unwrap();
        (Supervisor::with_program(state, &config, Path::new("/nonexistent")), config, listener)
    }

    /// A shim that answers one request per connection with the next of `answers`, or hangs up where that is empty.
    /// Answers what it was asked.
    async fn scripted(listener: UnixListener, answers: Vec<String>) -> Vec<serde_json::Value> {
        let mut asked = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            asked.push(serde_json::from_str(&line).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    }

    fn error(code: &str) -> String {
        format!("{{\"v\":1,\"error\":{{\"code\":\"{code}\",\"message\":\"?\"}}}}\n")
    }

    #[tokio::test]
    async fn a_shim_that_is_late_has_not_said_that_nothing_stands_beside() {
        let state = tempfile::tempdir().unwrap();
        let (supervisor, _, listener) = supervisor(state.path());
        let both = r#"{"v":1,"both":{"current":{"state":"not_run"},"beside":{"state":"not_run"}}}"#;
        let answers = [String::new(), String::new(), format!("{both}\n"), String::new(), String::new()];
        let last = format!("{}\n", r#"{"v":1,"state":{"state":"not_run"}}"#);
        let answers = [&answers[..], &[error("storage"), error("unknown_version"), last]].concat();
        let shim = tokio::spawn(scripted(listener, answers));
        let late = supervisor.both().await.unwrap();
        assert_eq!(late.beside, Some(ProcessStateInfo::NotRun), "asked three times");
        let fault = supervisor.both().await.unwrap_err();
        assert_eq!(fault.reason.code, ReasonCode::ShimUnavailable, "{fault}");
        assert_eq!(supervisor.both().await.unwrap().beside, None, "an older one has none");
        let asked: Vec<_> =
            shim.await.unwrap().iter().map(|asked| asked["op"].as_str().unwrap().to_owned()).collect();
        assert_eq!(asked, ["both", "both", "both", "both", "both", "both", "both", "state"]);
    }

    #[tokio::test]
    async fn an_older_shim_takes_what_it_can_of_a_launch() {
        let state = tempfile::tempdir().unwrap();
        let (supervisor, config, listener) = supervisor(state.path());
        let shim = tokio::spawn(scripted(listener, vec![error("unknown_version"), running()]));
        let launch = Launch::of(&config, None);
        assert!(launch.needs_sockets());
        assert_eq!(supervisor.replace(&launch).await.unwrap().pid, 7);
        let asked = shim.await.unwrap();
        assert_eq!((asked[0]["v"].as_u64(), asked[1]["v"].as_u64()), (Some(2), Some(1)));
        assert!(asked[1]["launch"]["sockets"].is_null() && asked[1]["launch"]["notify"].is_null());
        assert_eq!(asked[0]["launch"]["argv"], asked[1]["launch"]["argv"]);
    }

    #[tokio::test]
    async fn a_new_process_that_ended_before_the_drain_is_told_as_that() {
        let state = tempfile::tempdir().unwrap();
        let (supervisor, _, listener) = supervisor(state.path());
        let exit = r#"{"pid":8,"digest":"DIGEST","code":3,"signal":null,"at":0,"ran_ms":1200,"requested":false,"killed":false}"#;
        let exit = exit.replace("DIGEST", &"0".repeat(64));
        let both = format!(
            "{{\"v\":1,\"both\":{{\"current\":{{\"state\":\"not_run\"}},\
             \"beside\":{{\"state\":\"stopped\",\"last_exit\":{exit}}}}}}}\n"
        );
        let shim = tokio::spawn(scripted(listener, vec![error("beside_ended"), both]));
        let fault = supervisor.drain().await.unwrap_err();
        assert_eq!(fault.reason.code, ReasonCode::ProcessExited);
        assert_eq!(fault.reason.message(), "the process ended with exit status 3 after 1s 200ms");
        shim.await.unwrap();
    }

    #[tokio::test]
    async fn a_shim_that_keeps_no_sockets_leads_to_stop_and_start() {
        let state = tempfile::tempdir().unwrap();
        let (supervisor, config, listener) = supervisor(state.path());
        let shim = tokio::spawn(old_shim(listener));
        let both = supervisor.both().await.unwrap();
        assert_eq!((both.current.up(), both.beside), (Ok(7), None));
        let fault = supervisor.start_beside(&Launch::of(&config, None)).await.unwrap_err();
        assert_eq!(fault.reason.code, ReasonCode::HandoverUnavailable);
        assert!(fault.reason.message().contains("older agent"), "{fault}");
        supervisor.drain().await.unwrap();
        supervisor.dismiss().await.unwrap();
        assert_eq!(shim.await.unwrap(), ["both", "state", "start_beside", "drain", "dismiss"]);
    }
}
