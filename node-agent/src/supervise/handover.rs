//! The agent's side of a handover: a process beside the current one, the drain, the dismissal.
//!
//! A shim outlives the agent that started it, so it may be one that keeps no sockets. Such a one is replaced when
//! nothing runs, which costs nothing; while something runs, whoever asks is told that there is no handover.

use upfleet_domain::reason::ReasonCode;

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
    /// As [`Supervisor::process`].
    pub async fn both(&self) -> Result<Both, Fault> {
        if self.inner.unit.is_none() && self.inner.mode == RunMode::Supervised {
            // An older shim, or one that is late or gone: what is asked of every shim says which.
            if let Ok(Body::Both(both)) = call(&self.inner.dir, Op::Both, ANSWER).await {
                return Ok(*both);
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
            Err(CallError::Refused(error)) => Err(match error.code {
                ErrorCode::UnknownVersion | ErrorCode::Malformed => {
                    let problem = "the component's shim was started by an older agent, which kept no sockets";
                    Fault::new(ReasonCode::HandoverUnavailable, problem)
                }
                ErrorCode::CantStandBeside => Fault::new(ReasonCode::HandoverUnavailable, error.message),
                _ => Fault::new(ReasonCode::StartFailed, error.message),
            }),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// Makes the process beside the current one, and asks the old one to finish; returns when that has ended. Where
    /// nothing stands beside, nothing happens.
    ///
    /// # Errors
    /// [`ReasonCode::StopFailed`]; [`ReasonCode::ShimUnavailable`].
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
            Err(CallError::Refused(error)) if error.code == ErrorCode::UnknownVersion => Ok(()),
            Err(CallError::Refused(error)) => Err(Fault::new(ReasonCode::StopFailed, error.message)),
            Err(error) => Err(self.unavailable(error)),
        }
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

    /// A shim of version 1 of the protocol, in which a process runs. Answers what it was asked.
    async fn old_shim(listener: UnixListener) -> Vec<String> {
        let mut asked = Vec::new();
        let running = r#"{"v":1,"state":{"state":"running","pid":7,"start_time":1,"boot_id":"b","digest":"DIGEST","exact":true,"since":0,"restarts":0}}"#;
        let running = running.replace("DIGEST", &"0".repeat(64));
        while !asked.contains(&"dismiss".to_owned()) {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let request: serde_json::Value = serde_json::from_str(&line).unwrap();
            asked.push(request["op"].as_str().unwrap().to_owned());
            let answer = match request["v"].as_u64() {
                Some(1) => running.clone(),
                _ => r#"{"v":1,"error":{"code":"unknown_version","message":"?","versions":[1]}}"#.to_owned(),
            };
            stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        asked
    }

    #[tokio::test]
    async fn a_shim_that_keeps_no_sockets_leads_to_stop_and_start() {
        let state = tempfile::tempdir().unwrap();
        let config = "name = \"a\"\npath = \"/opt/a\"\n[run]\nmode = \"supervised\"\nactivate = \"handover\"\n\
                      [[run.socket]]\nname = \"a\"\nlisten = \"/run/a\"";
        let config: ComponentConfig = toml::from_str(config).unwrap();
        let dir = shim_dir(state.path(), &config.name);
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join(crate::shim::protocol::SOCKET)).unwrap();
        let shim = tokio::spawn(old_shim(listener));
        let supervisor = Supervisor::with_program(state.path(), &config, Path::new("/nonexistent"));
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
