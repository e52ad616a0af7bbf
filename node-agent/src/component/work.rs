//! Performing one step, wherever it belongs: files, process, probes, downloads. One at a time; no decisions.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use upfleet_domain::{
    digest::Digest,
    files::OnLocalChange,
    id::UpgradeId,
    reason::{Reason, ReasonCode},
    release::MAX_ARTIFACT_BYTES,
    state::Layer,
    upgrade::{
        policy::Policy,
        preflight::Facts,
        recover::Found,
        step::{Answer, Failure, Probed, Process, StepKind},
    },
};

use super::{
    Outgoing,
    history::History,
    manifests::Manifests,
    stack::{Asked, View},
    world::World,
};
use crate::{
    crash,
    download::Progress,
    exec::{self, Executor, Lying},
};

/// How many changed files are named at most.
const MAX_CHANGES: usize = 100;

/// What steps are performed with.
pub(super) struct Tools<W> {
    pub(super) state_dir: PathBuf,
    pub(super) executor: Executor,
    pub(super) manifests: Manifests,
    pub(super) history: History,
    pub(super) world: Arc<W>,
    pub(super) policy: Policy,
    pub(super) outgoing: mpsc::Sender<Outgoing>,
    /// Held by the step under way. A step on files can't be stopped in its middle, so the next one waits for
    /// it even after it was left.
    pub(super) gate: Arc<Mutex<()>>,
}

/// Who is told how a step goes.
pub(super) struct Listener {
    pub(super) upgrade: Option<UpgradeId>,
    pub(super) note: Box<dyn Fn(Reason) + Send + Sync>,
}

impl<W: World> Tools<W> {
    /// Performs a step; the crash points lie around it.
    pub(super) async fn perform(&self, kind: &StepKind, listener: &Listener) -> Result<Answer, Failure> {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        crash::point(&crash::step_point(kind.as_str(), "before"));
        let answer = self.dispatch(kind, listener, gate).await;
        crash::point(&crash::step_point(kind.as_str(), "after"));
        answer
    }

    async fn dispatch(
        &self,
        kind: &StepKind,
        listener: &Listener,
        gate: OwnedMutexGuard<()>,
    ) -> Result<Answer, Failure> {
        match kind {
            StepKind::CheckPreflight { digest, manifest, layers, gone, live } => {
                let view = self.view(layers, gone)?;
                self.check((*digest, *manifest), view, *live, gate).await
            }
            StepKind::Fetch { manifest, digest } => self.fetch(manifest, *digest, listener, gate).await,
            StepKind::Trial { digest } => {
                let program = self.executor.place().version(digest);
                self.world.try_out(program).await.map(|()| Answer::Done)
            }
            StepKind::Arm { old, new, soak_ms } => {
                let soak = Duration::from_millis(*soak_ms);
                self.world.arm(*old, *new, soak).await.map(|()| Answer::Done)
            }
            StepKind::Stop => self.world.stop().await.map(|()| Answer::Done),
            StepKind::Start { digest, layers } => {
                self.world.start(*digest, self.view(layers, &[])?).await.map(Answer::Started)
            }
            StepKind::StartBeside { digest, layers } => {
                self.world.start_beside(*digest, self.view(layers, &[])?).await.map(Answer::Started)
            }
            StepKind::Drain => self.world.drain().await.map(|()| Answer::Done),
            StepKind::Dismiss => self.world.dismiss().await.map(|()| Answer::Done),
            StepKind::SwitchStack { layers } | StepKind::SwitchStackBack { layers } => {
                let (view, world) = (self.view(layers, &[])?, Arc::clone(&self.world));
                let switch = move |executor: &Executor| {
                    let set = world.set(&view)?;
                    exec::stack::switch(executor.place(), set.as_ref())
                };
                Ok(self.on_files(gate, switch).await.map(|()| Answer::Done)?)
            }
            StepKind::PatchLive { layers, gone } => {
                self.world.patch_live(self.view(layers, gone)?).await.map(Answer::Proved)
            }
            StepKind::Prove { layers, gone } => {
                self.world.prove(self.view(layers, gone)?).await.map(Answer::Proved)
            }
            StepKind::Reload => self.world.reload().await.map(Answer::Reloaded),
            StepKind::Prune { stacks, .. } => {
                let (kind, stacks, world) = (kind.clone(), stacks.clone(), Arc::clone(&self.world));
                let pruned = self.on_files(gate, move |executor| {
                    world.tidy()?;
                    let in_use = world.in_use();
                    let stacks = exec::stack::prune(executor.place(), &stacks, &in_use);
                    let answer = executor.perform(&kind, None)?;
                    stacks.map(|()| answer)
                });
                Ok(pruned.await?)
            }
            StepKind::Verify { manifest, .. } | StepKind::Stage { manifest, .. } => {
                let (kind, release) = (kind.clone(), self.manifests.load(manifest)?);
                let work = move |executor: &Executor| executor.perform(&kind, Some(release.manifest()));
                Ok(self.on_files(gate, work).await?)
            }
            StepKind::Probe { index, beside } => Ok(Answer::Probed(self.probe(*index, *beside).await)),
            StepKind::Inspect { probe } => self.inspect(*probe, gate).await,
            StepKind::VerifyKept { .. }
            | StepKind::Backup { .. }
            | StepKind::Swap { .. }
            | StepKind::SwapBack { .. }
            | StepKind::Remove { .. } => {
                let kind = kind.clone();
                Ok(self.on_files(gate, move |executor| executor.perform(&kind, None)).await?)
            }
        }
    }

    /// Runs `work` where blocking is allowed. The gate opens when it is done, whether or not anybody waits.
    async fn on_files<T: Send + 'static>(
        &self,
        gate: OwnedMutexGuard<()>,
        work: impl FnOnce(&Executor) -> Result<T, Reason> + Send + 'static,
    ) -> Result<T, Reason> {
        let executor = self.executor.clone();
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&executor);
            drop(gate);
            result
        });
        task.await.unwrap_or_else(|error| {
            let reason = Reason::new(ReasonCode::StageFailed).with("operation", "work on");
            Err(reason.with("path", "the component's files").with("problem", error))
        })
    }

    /// A stack with what its manifests say.
    fn view(&self, layers: &[Layer], gone: &[Layer]) -> Result<View, Reason> {
        self.manifests.view(layers, gone, |digest| self.executor.place().version(digest))
    }

    async fn check(
        &self,
        (digest, manifest): (Option<Digest>, Option<Digest>),
        view: View,
        live: bool,
        gate: OwnedMutexGuard<()>,
    ) -> Result<Answer, Failure> {
        let runs = self.policy.supervised;
        let active = view.layers.iter().filter(|patch| !patch.layer.retired);
        let layers = active.map(|patch| patch.layer.release.artifact);
        let wanted: Vec<Digest> = digest.into_iter().chain(layers).collect();
        let looked =
            self.on_files(gate, move |executor| Ok((executor.look(&wanted, runs)?, in_force(executor))));
        let (looked, (layers, damage)) = looked.await?;
        let release = manifest.and_then(|manifest| self.manifests.load(&manifest).ok());
        let refuses = release.as_ref().is_none_or(|release| {
            let files = release.manifest().files.as_ref();
            files.is_none_or(|files| files.on_local_change == OnLocalChange::Refuse)
        });
        let changes = if refuses { looked.changes.list(MAX_CHANGES) } else { Vec::new() };
        let files = release.as_ref().and_then(|release| release.manifest().files.as_ref());
        // What lies there unpacked has its room.
        let files = files.filter(|_| looked.fetched < MAX_ARTIFACT_BYTES);
        let unpacked = files.map_or(0, exec::unpacked);
        let base = release.and_then(|release| release.reference(&self.policy.platform).ok());
        let file = digest.filter(|_| looked.installed != digest);
        let file = file.map(|digest| self.executor.place().version(&digest));
        let stack = match &file {
            // Asked again when the base has come.
            Some(file) if !file.exists() => Ok(Vec::new()),
            _ if view.layers.is_empty() && view.gone.is_empty() => Ok(Vec::new()),
            _ => self.world.fit(Asked { stack: view, base, file, live }).await,
        };
        let forbidden = match looked.forbidden {
            Some(reason) => Some(reason),
            None => self.world.ready().await.err(),
        };
        let process = self.world.process().await;
        let baseline = match &process {
            Process::NotRun if runs => None,
            Process::Down { exit } => Some(Err(format!("its process ended with {exit}"))),
            Process::NotRun | Process::Running { .. } => self.health().await,
        };
        Ok(Answer::Preflight(Facts {
            installed: looked.installed,
            installed_size: looked.installed_size,
            process,
            path: self.executor.place().path().display().to_string(),
            available: looked.available,
            fetched: looked.fetched,
            links: looked.links,
            unpacked,
            forbidden,
            layers,
            damage,
            stack,
            changes,
            baseline,
        }))
    }

    /// What the probes say now; each may fail once and be asked again.
    async fn health(&self) -> Option<Result<(), String>> {
        let mut problem = None;
        for (index, probe) in self.policy.probes.iter().enumerate() {
            let mut result = self.world.probe(index, false).await;
            if result.is_err() && probe.failures > 1 {
                tokio::time::sleep(probe.interval).await;
                result = self.world.probe(index, false).await;
            }
            match result {
                Ok(()) if self.policy.any_probe => return Some(Ok(())),
                Ok(()) => {}
                Err(text) => problem = Some(text),
            }
        }
        let answer = problem.map_or(Ok(()), Err);
        (!self.policy.probes.is_empty()).then_some(answer)
    }

    async fn fetch(
        &self,
        manifest: &Digest,
        digest: Digest,
        listener: &Listener,
        gate: OwnedMutexGuard<()>,
    ) -> Result<Answer, Failure> {
        let has = self.on_files(gate, move |executor| {
            executor.prepare()?;
            Ok(executor.has(&digest) || executor.take_offered(&digest)?)
        });
        if has.await? {
            return Ok(Answer::Done);
        }
        let release = self.manifests.load(manifest)?;
        let artifact = release.manifest().artifact_for(&self.policy.platform).filter(|a| a.sha256 == digest);
        let missing =
            || Reason::new(ReasonCode::UntrustedManifest).with("problem", "it names no such artifact");
        let artifact = artifact.cloned().ok_or_else(missing)?;
        let total = artifact.size;
        let on = |progress| match progress {
            Progress::Bytes(fetched) => {
                let Some(upgrade) = listener.upgrade.clone() else { return };
                // Lost when nobody has room for it.
                let _ = self.outgoing.try_send(Outgoing::Progress { upgrade, fetched, total });
            }
            Progress::Retrying(reason) => (listener.note)(reason),
        };
        let part = self.executor.place().part(&digest);
        self.world.fetch(artifact, part, &on).await?;
        Ok(Answer::Done)
    }

    async fn probe(&self, index: usize, beside: bool) -> Probed {
        let result = self.world.probe(index, beside).await;
        let process = match beside {
            true => self.world.beside().await.unwrap_or(Process::NotRun),
            false => self.world.process().await,
        };
        let draining = !beside && self.policy.handover && self.world.draining().await;
        let down = self.policy.supervised && process.digest().is_none();
        let evidence = if result.is_err() || down { Some(self.world.evidence().await) } else { None };
        Probed { result, process, evidence, draining }
    }

    async fn inspect(&self, probe: bool, gate: OwnedMutexGuard<()>) -> Result<Answer, Failure> {
        let manifests = self.manifests.clone();
        let looked = self.on_files(gate, move |executor| {
            Ok((executor.inspect()?, in_force(executor), manifests.patches()))
        });
        let (Lying { installed, kept, changes }, (layers, damage), patches) = looked.await?;
        let changes = changes.list(MAX_CHANGES);
        let process = self.world.process().await;
        let beside = self.world.beside().await;
        let health = if probe { self.health().await } else { None };
        let (watched, reverted) = (self.world.watched(), self.world.reverted());
        Ok(Answer::Inspected(Found {
            installed,
            layers,
            damage,
            kept,
            patches,
            changes,
            process,
            beside,
            health,
            watched,
            reverted,
        }))
    }
}

/// The stack that the next start uses, and what is wrong with it.
fn in_force(executor: &Executor) -> (Vec<Layer>, Option<Reason>) {
    match exec::stack::layers(executor.place()) {
        Ok(layers) => (layers, None),
        Err(damage) => (Vec::new(), Some(damage)),
    }
}
