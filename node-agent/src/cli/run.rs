//! `upfleet-agent run`.

use std::{fs::File, io::Read as _, path::Path};

use clap::Args;
use rustix::process::{Signal, getppid};
use tokio_util::sync::CancellationToken;

use super::{Done, Exit, Failure, Global, logging};
use crate::{
    fault::{self, When},
    itself::keeper,
    run::{self, RunError},
    shim::LIFELINE,
    supervised::{self, SupervisedError},
};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Keep the agent running, and its upgrades guarded, where no service manager does
    #[arg(long)]
    supervised: bool,
}

impl Run {
    pub(super) fn run(self, global: &Global) -> Done {
        logging::begin(global.log);
        follow_lifeline()?;
        if self.supervised {
            return supervise(global);
        }
        end_with_parent();
        fault::begin(When::Run);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // An agent waits most of the time; what is heavy has threads of its own.
            .worker_threads(2)
            .enable_all()
            .build()?;
        let ran = runtime.block_on(run::run(&global.config, CancellationToken::new()));
        // A download's last write may still be on its way to the disk; nothing depends on it.
        runtime.shutdown_background();
        match ran.map_err(explain)? {
            run::Ended::Asked => Ok(Exit::Done),
            run::Ended::HandsOver => Ok(Exit::HandedOver),
        }
    }
}

/// The parent has one thread: the kernel tells its children when that ends.
fn supervise(global: &Global) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let log = match global.log {
        Some(super::LogFormat::Json) => vec!["--log".to_owned(), "json".to_owned()],
        Some(super::LogFormat::Text) => vec!["--log".to_owned(), "text".to_owned()],
        None => Vec::new(),
    };
    runtime.block_on(supervised::run(&global.config, &log)).map_err(|error| match error {
        SupervisedError::Config(error) => {
            Failure::new(Exit::Usage, error).hint("upfleet-agent check-config shows all mistakes")
        }
        error => Failure::new(Exit::Failed, error),
    })?;
    Ok(Exit::Done)
}

/// An agent that was started by a parent of Upfleet's ends with it: the next one starts its own.
pub(super) fn end_with_parent() {
    let Ok(parent) = std::env::var(keeper::PARENT) else { return };
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    // It may have ended just before.
    let real = getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if real.as_deref() != Some(parent.as_str()) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
    }
}

fn explain(error: RunError) -> Failure {
    match &error {
        RunError::Config(_) => {
            Failure::new(Exit::Usage, error).hint("upfleet-agent check-config shows all mistakes")
        }
        RunError::Identity(_) => {
            Failure::new(Exit::Refused, error).hint("upfleet-agent enroll --token-file FILE")
        }
        RunError::Running { .. } => {
            Failure::new(Exit::Refused, error).hint("upfleet-agent status asks the one that runs")
        }
        _ => Failure::new(Exit::Failed, error),
    }
}

/// In a dev fleet the agent ends with its parent, however that ends: the parent alone holds the other end of
/// a pipe.
pub(super) fn follow_lifeline() -> Result<(), Failure> {
    let Some(fd) = std::env::var_os(LIFELINE) else { return Ok(()) };
    let mut pipe = File::open(Path::new("/proc/self/fd").join(fd))?;
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let mut byte = [0];
        // Nothing is ever written; whatever ends the reading means that the parent is gone.
        while pipe.read(&mut byte).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    })?;
    Ok(())
}
