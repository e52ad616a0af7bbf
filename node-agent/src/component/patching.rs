//! The JVM side of one component, as its actor needs it: stacks become views of jars, and work that blocks is done
//! where blocking is allowed. Decides nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use upfleet_domain::{
    digest::Digest,
    jvm::Proof,
    patch::stack::Known,
    reason::{Reason, ReasonCode},
};

use super::stack::{Asked, Patch, View};
use crate::{
    exec::stack::{SetFiles, jar_name},
    jvm::{
        patcher::{Change, Patcher},
        request::{LayerView, StackView},
    },
    processes,
    supervise::Launch,
};

/// What a component with `[component.jvm]` has. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Patching(Arc<Patcher>);

impl Patching {
    pub(super) fn new(patcher: Patcher) -> Self {
        Self(Arc::new(patcher))
    }

    /// Whether a stack gets into the JVM, with what deserves a look.
    pub(super) async fn fit(&self, asked: Asked, process: Option<u32>) -> Result<Vec<Reason>, Reason> {
        let own = self.clone();
        blocking(move || {
            let Asked { stack, base, file, live } = asked;
            let known: Known = stack
                .layers
                .iter()
                .chain(&stack.gone)
                .map(|patch| (patch.layer.release.manifest, patch.spec.clone()))
                .collect();
            let (layers, view) = (stack.recorded(), own.view(&stack));
            let process = match own.0.find(process) {
                Ok(pid) => Some(pid),
                // What can't be proved afterwards is better not begun.
                Err(reason) if live || reason.code == ReasonCode::ProofMissing => return Err(reason),
                Err(_) => process,
            };
            own.0.fit(&Change {
                layers: &layers,
                view: &view,
                known: &known,
                base: base.as_ref(),
                file: file.as_deref(),
                live,
                process,
            })
        })
        .await
    }

    /// The files of a stack. Blocks.
    pub(super) fn set(&self, stack: &View) -> Result<Option<SetFiles>, Reason> {
        self.0.set(&stack.recorded(), &self.view(stack))
    }

    /// `base` with a stack that was switched to.
    pub(super) async fn launch(&self, base: Launch, stack: &View) -> Result<Launch, Reason> {
        let (own, layers) = (self.clone(), stack.recorded());
        blocking(move || own.0.launch(base, &layers)).await
    }

    /// Brings the running JVM to a stack.
    pub(super) async fn live(&self, stack: View, process: Option<u32>) -> Result<Proof, Reason> {
        let own = self.clone();
        let (pid, view) = blocking(move || Ok((own.0.find(process)?, own.view(&stack)))).await?;
        self.0.live(pid, &view).await
    }

    /// What the running JVM says of a stack; `None` where no JVM runs.
    pub(super) async fn prove(&self, stack: View, process: Option<u32>) -> Result<Option<Proof>, Reason> {
        let own = self.clone();
        match blocking(move || Ok((own.0.find(process)?, own.view(&stack)))).await {
            Ok((pid, view)) => self.0.prove(pid, &view).await.map(Some),
            Err(reason) if reason.code == ReasonCode::JvmGone => Ok(None),
            Err(reason) => Err(reason),
        }
    }

    /// The stack with its jars: those of the set that is in force where it has them, since their names end in `.jar`
    /// and the JVM's user may read them.
    fn view(&self, stack: &View) -> StackView {
        let stacks = self.0.place().stacks();
        let current = std::fs::read_link(self.0.place().current_stack()).ok().map(|name| stacks.join(name));
        let jar = |patch: &Patch| -> PathBuf {
            let name = jar_name(patch.layer.number, &patch.layer.release.artifact);
            let of_set = current.as_ref().map(|set| set.join(name)).filter(|path| path.exists());
            of_set.unwrap_or_else(|| patch.jar.clone())
        };
        let layer = |patch: &Patch| LayerView {
            number: patch.layer.number,
            jar: jar(patch),
            sha256: patch.layer.release.artifact,
            spec: patch.spec.clone(),
            retired: patch.layer.retired,
        };
        StackView {
            set: stack.digest().unwrap_or_else(|| Digest::of(b"")),
            layers: stack.layers.iter().map(layer).collect(),
            gone: stack.gone.iter().map(layer).collect(),
        }
    }

    /// Files of stack sets that any process has open or was started with: they stay. Blocks.
    pub(super) fn in_use(&self) -> Vec<PathBuf> {
        let stacks = self.0.place().stacks();
        // Not the component's JVM alone: it may have several, or none yet below a script that was told of a set.
        processes::all().into_keys().flat_map(|pid| used_by(pid, &stacks)).collect()
    }
}

fn used_by(pid: u32, stacks: &Path) -> Vec<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mut used: Vec<PathBuf> = open.filter(|path| path.starts_with(stacks)).collect();
    let told =
        ["cmdline", "environ"].map(|file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
    let prefix = format!("{}/", stacks.display());
    for text in told.iter().map(|bytes| String::from_utf8_lossy(bytes)) {
        for (at, _) in text.match_indices(&prefix) {
            let rest = &text[at + prefix.len()..];
            let name = rest.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default();
            if !name.is_empty() {
                used.push(stacks.join(name).join("used"));
            }
        }
    }
    used
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let reason = Reason::new(ReasonCode::StageFailed).with("operation", "work on");
        Err(reason.with("path", "the component's JVM").with("problem", error))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_set_that_any_process_was_told_of_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let stacks = dir.path().join("stacks");
        let told = format!("{}/0a1b/java.args", stacks.display());
        // It reads from this test until it is ended. Once it has said something, the kernel shows its arguments.
        let mut child = Command::new("sh")
            .args(["-c", "echo; read x", &told])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let used = used_by(child.id(), &stacks);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(used, [stacks.join("0a1b/used")]);
    }
}
