//! `upfleet-agent run`.

use std::{fs::File, io::Read as _, path::Path};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{Done, Exit, Failure, Global, logging};
use crate::{
    run::{self, RunError},
    shim::LIFELINE,
};

#[derive(Debug, Args)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, global: &Global) -> Done {
        logging::begin(global.log);
        follow_lifeline()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // An agent waits most of the time; what is heavy has threads of its own.
            .worker_threads(2)
            .enable_all()
            .build()?;
        let ran = runtime.block_on(run::run(&global.config, CancellationToken::new()));
        // A download's last write may still be on its way to the disk; nothing depends on it.
        runtime.shutdown_background();
        ran.map_err(explain)?;
        Ok(Exit::Done)
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
fn follow_lifeline() -> Result<(), Failure> {
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
