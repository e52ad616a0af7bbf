//! What a running JVM says is in force of a stack: by its journal, by asking it, or by the files that it holds open.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use upfleet_domain::{
    jvm::{Mechanism, Proof},
    reason::{Reason, ReasonCode},
};

use super::{
    Target, java, lookup,
    report::{self, MOST_BYTES, Report},
    request::{Operation, StackView},
};
use crate::processes;

/// By which means a JVM may be asked.
#[derive(Clone, Debug)]
pub struct Means {
    /// How patches get into it when it starts.
    pub mechanism: Mechanism,
    /// Where it keeps its journal, as the node sees that directory.
    pub journal: Option<PathBuf>,
    /// Whether a Java agent may be loaded into it for the question.
    pub attach: bool,
}

/// What is in force in the JVM of the stack `wanted`. Classes that run old code are in the proof: see
/// [`Proof::old`].
///
/// # Errors
/// `PROOF_MISSING` and the reasons of attaching, where no means gave an answer.
pub async fn prove(target: &Target, wanted: &StackView, means: &Means) -> Result<Proof, Reason> {
    let (pid, mechanism) = (target.pid(), means.mechanism);
    if wanted.effective().is_empty() {
        return Ok(Proof { pid, mechanism, classes: vec![], alarms: vec![], time: report::now() });
    }
    let (reading, asked, how) = (target.clone(), wanted.clone(), means.clone());
    let mut proof = match blocking(move || journal(&reading, &asked, &how)).await? {
        Some(report) => report.into_proof(pid, mechanism),
        None => ask(target, wanted, means).await?,
    };
    let (jvm, asked) = (target.clone(), wanted.clone());
    proof.alarms.extend(blocking(move || Ok(lookup::alarms(&jvm, &asked, mechanism))).await?);
    Ok(proof)
}

/// Files may be large, and a disk slow.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(missing(&error.to_string())))
}

async fn ask(target: &Target, wanted: &StackView, means: &Means) -> Result<Proof, Reason> {
    let by_files = || {
        let (jvm, wanted, mechanism) = (target.clone(), wanted.clone(), means.mechanism);
        blocking(move || lookup::prove(&jvm, &wanted, mechanism))
    };
    if !means.attach || target.obstacle.is_some() {
        return by_files().await;
    }
    match java::ask(target, Operation::Prove, means.mechanism, wanted, None).await {
        Ok(report) => match report.refusals.first() {
            None => {
                report.answers(wanted)?;
                Ok(report.into_proof(target.pid(), means.mechanism))
            }
            Some(refusal) => Err(missing(&format!("the Java agent failed: {}", refusal.fields.join(" ")))),
        },
        Err(reason) => by_files().await.map_err(|_| reason),
    }
}

/// What the JVM's journal says, where it has one that is about this stack.
fn journal(target: &Target, wanted: &StackView, means: &Means) -> Result<Option<Report>, Reason> {
    let Some(dir) = &means.journal else {
        return Ok(None);
    };
    let subject = &target.subject;
    tidy(dir);
    let name = format!("{}-{}.journal", subject.inner_pid, subject.identity.start_time);
    let Some(text) = read(&dir.join(name)) else {
        return Ok(None);
    };
    let report = Report::parse_journal(&text)?;
    if let Some(refusal) = report.refusals.first() {
        return Err(missing(&format!("the Java agent failed at the start: {}", refusal.fields.join(" "))));
    }
    // Classes that load while the agent still writes what holds are in it already or will be in a moment. One that
    // leaves something out is no answer; the JVM can still be asked.
    Ok((report.whole && report.answers(wanted).is_ok()).then_some(report))
}

/// Removes the journals of JVMs that are gone, of which each start leaves one. Told by their start time: their pid may
/// be that of another namespace.
fn tidy(dir: &Path) {
    let starts: BTreeSet<u64> = processes::all().into_values().map(|stat| stat.start_time).collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let start =
            name.to_str().and_then(|name| name.strip_suffix(".journal")?.rsplit_once('-')?.1.parse().ok());
        if start.is_some_and(|start: u64| !starts.contains(&start)) {
            // What can't be removed is no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The JVM's user may write there: no link is followed, nothing is waited for, and nothing endless is read.
fn read(path: &Path) -> Option<String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return None;
    }
    let mut bytes = vec![];
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn missing(problem: &str) -> Reason {
    Reason::new(ReasonCode::ProofMissing).with("problem", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_go_with_their_jvms() {
        let dir = tempfile::tempdir().unwrap();
        let own = processes::stat(std::process::id()).unwrap().start_time;
        let names = [format!("1-{own}.journal"), "1-0.journal".to_owned(), "else".to_owned()];
        for name in &names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        tidy(dir.path());
        let there = names.map(|name| dir.path().join(name).exists());
        assert_eq!(there, [true, false, true]);
    }
}
