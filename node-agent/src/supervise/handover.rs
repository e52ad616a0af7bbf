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
            match call(&self.inner.dir, Op::Both, ANSWER).await {
                Ok(Body::Both(both)) => return Ok(both),
                // An older shim, or one that is late or gone: what is asked of every shim says which.
                Ok(_) | Err(_) => {}
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
            Ok(Body::Both(Both { beside: Some(ProcessStateInfo::Running(info)), .. })) => Ok(info),
            Ok(Body::Both(Both { beside: Some(state), .. })) => {
                let problem = state.up().err().unwrap_or_else(|| "it does not run".to_owned());
                Err(Fault::new(ReasonCode::StartFailed, problem))
            }
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
