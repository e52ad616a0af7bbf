//! The Java side, embedded: what it is, and asking it something in a running JVM.
//!
//! Its sources and how they become the jar are in `node-agent/java`. It is handed over in a directory of the JVM's
//! own; paths in its request are beside the request, so they hold in whatever mount namespace the JVM lives.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use upfleet_domain::{
    jvm::Mechanism,
    reason::{Reason, ReasonCode},
};

use super::{
    Source, Target, Workspace,
    attach::{LIMIT, load},
    report::{MOST_BYTES, Report},
    request::{Operation, Request, StackView},
};

/// The jar, as built from `node-agent/java`.
pub static JAR: &[u8] = include_bytes!("../../java/upfleet-java-agent.jar");
/// The name of the jar wherever it is laid.
pub const JAR_NAME: &str = "upfleet-java-agent.jar";

const REQUEST: &str = "request";
const REPORT: &str = "report";
/// How long a JVM may take beyond what the Java agent itself waits for.
const GRACE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Attaches, asks, and takes the answer. Nothing stays in the JVM's file system.
///
/// # Errors
/// Where the JVM can't be attached to, or does not answer.
pub async fn ask(
    target: &Target,
    operation: Operation,
    mechanism: Mechanism,
    stack: &StackView,
    journal: Option<&Path>,
) -> Result<Report, Reason> {
    let mut files = vec![(JAR_NAME.to_owned(), Source::Bytes(JAR.to_vec()))];
    let mut inside = stack.clone();
    for layer in inside.layers.iter_mut().filter(|layer| !layer.retired) {
        let name = format!("{}.jar", layer.number);
        if operation != Operation::Prove {
            files.push((name.clone(), Source::File(layer.jar.clone())));
        }
        layer.jar = PathBuf::from(name);
    }
    let request = Request {
        operation,
        mechanism,
        agent: Path::new(JAR_NAME),
        report: Some(Path::new(REPORT)),
        journal,
        additions: None,
    };
    files.push((REQUEST.to_owned(), Source::Bytes(request.render(&inside)?.into_bytes())));
    let workspace = Workspace::create(target, files).await?;
    let answer = exchange(target, &workspace).await;
    if let Err(problem) = workspace.remove().await {
        tracing::warn!(pid = target.pid(), %problem, "what the JVM was handed over was not removed");
    }
    answer
}

async fn exchange(target: &Target, workspace: &Workspace) -> Result<Report, Reason> {
    load(target, &workspace.path(JAR_NAME), &workspace.path(REQUEST), LIMIT).await?;
    let begun = Instant::now();
    loop {
        if let Some(bytes) = workspace.read(REPORT, MOST_BYTES).await? {
            let report = Report::parse(&String::from_utf8_lossy(&bytes))?;
            if report.whole {
                return Ok(report);
            }
        }
        if begun.elapsed() > GRACE {
            let problem = "the Java agent did not answer; the JVM's standard error may say why";
            return Err(Reason::new(ReasonCode::ProofMissing).with("problem", problem));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
