//! `upfleet-agent apply`, the agent's side: a bundle is read and checked, its bytes are laid aside, and what it asks of
//! one component is offered to that component's actor, which judges it like any order.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, BufReader},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use upfleet_domain::{
    bundle::{BundleError, Reader},
    digest::Digest,
    id::ComponentId,
    order::{DesiredState, Generation, Target},
    patch::{
        PatchSpec,
        stack::{self, Carry, Ground, Known, NewBase, StackChange},
    },
    reason::{Reason, ReasonCode},
    release::{Kind, Platform, VerifiedRelease},
    state::{Base, ComponentState, Layer, ReleaseRef},
};

use crate::component::{Handles, ManifestBytes, known_releases};

/// What a person at the node asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    /// The bundle.
    pub file: PathBuf,
    /// Which component, where the bundle is for several.
    pub component: Option<ComponentId>,
    /// Fixes that a new base may lose.
    pub waive: Vec<String>,
    /// Why, with who.
    pub message: String,
}

/// Reads the bundle and offers it. Returns the component and what it will run, once that is recorded.
pub(super) async fn apply(
    handles: &Handles,
    state_dir: &Path,
    platform: &Platform,
    wish: Wish,
) -> Result<(ComponentId, ComponentState), Reason> {
    let aside = state_dir.join("apply").join(uuid::Uuid::new_v4().to_string());
    let (file, wanted, to, platform) =
        (wish.file.clone(), wish.component.clone(), aside.clone(), platform.clone());
    let unpacked = tokio::task::spawn_blocking(move || unpack(&file, wanted.as_ref(), &to, &platform)).await;
    let unpacked = unpacked.unwrap_or_else(|_| Err(Reason::new(ReasonCode::AgentEnding)));
    let applied = match unpacked {
        Ok(unpacked) => offer(handles, state_dir, unpacked, &wish).await,
        Err(reason) => Err(reason),
    };
    // The actor has its own copy by now, or never will; what can't be removed is removed with the next one.
    let _ = std::fs::remove_dir_all(state_dir.join("apply"));
    applied
}

/// A release of the bundle that is for the component.
struct Release {
    verified: VerifiedRelease,
    reference: ReleaseRef,
    manifest: ManifestBytes,
}

struct Unpacked {
    component: ComponentId,
    releases: Vec<Release>,
    artifacts: Vec<(Digest, PathBuf)>,
}

fn unpack(
    path: &Path,
    wanted: Option<&ComponentId>,
    aside: &Path,
    platform: &Platform,
) -> Result<Unpacked, Reason> {
    let at = |operation: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| {
            Reason::new(ReasonCode::StageFailed)
                .with("operation", operation)
                .with("path", path)
                .with("problem", error)
        }
    };
    // Without O_NONBLOCK a named pipe would be waited for.
    let options = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(options.cast_signed()).open(path);
    let file = file.map_err(at("open", path))?;
    if !file.metadata().map_err(at("read", path))?.is_file() {
        return Err(at("read", path)(io::Error::other("it is no plain file")));
    }
    let refused = |error: BundleError| match error {
        BundleError::Refused(reason) => reason,
        BundleError::Io(error) => at("copy from", path)(error),
        _ => at("copy from", path)(io::Error::other(error)),
    };
    let mut reader = Reader::open(BufReader::with_capacity(128 * 1024, file)).map_err(refused)?;
    let component = chosen(&reader, wanted)?;
    let mut releases = Vec::new();
    for brought in reader.releases().iter().filter(|brought| brought.manifest.component == component) {
        let digest = Digest::of(&brought.bytes);
        let verified = VerifiedRelease::parse(&brought.bytes, digest, &brought.signatures)?;
        let reference = verified.reference(platform)?;
        let manifest = ManifestBytes { bytes: brought.bytes.clone(), signatures: brought.signatures.clone() };
        releases.push(Release { verified, reference, manifest });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(aside).map_err(at("create", aside))?;
    let mut artifacts = Vec::new();
    loop {
        let needed = reader
            .upcoming()
            .filter(|piece| releases.iter().any(|release| release.reference.artifact == piece.sha256));
        let read = match needed {
            None => reader.artifact(&mut io::sink()),
            Some(piece) => {
                let path = aside.join(piece.sha256.to_string());
                let mut file = create(&path).map_err(at("create", &path))?;
                artifacts.push((piece.sha256, path));
                reader.artifact(&mut file)
            }
        };
        if read.map_err(refused)?.is_none() {
            return Ok(Unpacked { component, releases, artifacts });
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The component that the bundle is for.
fn chosen<R: io::Read>(reader: &Reader<R>, wanted: Option<&ComponentId>) -> Result<ComponentId, Reason> {
    let mut names: Vec<&ComponentId> =
        reader.releases().iter().map(|brought| &brought.manifest.component).collect();
    names.sort();
    names.dedup();
    let invalid = |problem: String| {
        Err(Reason::new(ReasonCode::InvalidArgument).with("field", "component").with("problem", problem))
    };
    let all = || names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (wanted, &names[..]) {
        (Some(wanted), _) if names.contains(&wanted) => Ok(wanted.clone()),
        (Some(wanted), _) => invalid(format!("the file has nothing for {wanted}, but for {}", all())),
        (None, [only]) => Ok((*only).clone()),
        (None, _) => invalid(format!("the file is for several, say which: {}", all())),
    }
}

async fn offer(
    handles: &Handles,
    state_dir: &Path,
    unpacked: Unpacked,
    wish: &Wish,
) -> Result<(ComponentId, ComponentState), Reason> {
    let Unpacked { component, releases, artifacts } = unpacked;
    let handle = handles.get(&component)?;
    let current = handle.snapshot().await?.inventory.current;
    let known = known_releases(state_dir, &component);
    let plan = plan(&current, &releases, &known, &wish.waive)?;
    let state = ComponentState {
        base: match &plan.target {
            Target::Install(release) => Base::Release(release.clone()),
            _ => current.base,
        },
        layers: plan.layers.clone(),
    };
    let bytes = |release: &ReleaseRef| {
        let found = releases.iter().find(|found| found.reference.manifest == release.manifest);
        found.map(|found| found.manifest.clone())
    };
    let manifest = match &plan.target {
        Target::Install(release) => bytes(release),
        _ => None,
    };
    // One that is not in the file is on the node already.
    let layers = plan.layers.iter().map(|layer| bytes(&layer.release).unwrap_or_default()).collect();
    let desired = DesiredState {
        component: component.clone(),
        generation: Generation::default(),
        rollout: None,
        upgrade: None,
        target: plan.target,
        layers: plan.layers,
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: true,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: "local".to_owned(),
    };
    tracing::warn!(%component, to = %state, message = wish.message, "apply ordered on the node");
    handle.apply(desired, manifest, layers, artifacts, wish.message.clone()).await?;
    Ok((component, state))
}

struct Plan {
    target: Target,
    layers: Vec<Layer>,
}

/// What the bundle's releases make of what runs now: a new base with its patches, or more patches on the base.
fn plan(
    current: &ComponentState,
    releases: &[Release],
    on_node: &[VerifiedRelease],
    waive: &[String],
) -> Result<Plan, Reason> {
    let mut known: Known = BTreeMap::new();
    let described = |release: &VerifiedRelease| -> Option<(Digest, PatchSpec)> {
        Some((release.digest(), release.manifest().patch.clone()?))
    };
    known.extend(on_node.iter().filter_map(described));
    known.extend(releases.iter().filter_map(|release| described(&release.verified)));
    let is_patch = |release: &&Release| release.verified.manifest().kind == Kind::Patch;
    let patches: Vec<ReleaseRef> =
        releases.iter().filter(is_patch).map(|release| release.reference.clone()).collect();
    let bases: Vec<&Release> = releases.iter().filter(|release| !is_patch(release)).collect();
    let installed =
        |base: &Release| matches!(&current.base, Base::Release(r) if r.manifest == base.reference.manifest);
    let base = match bases[..] {
        [] => None,
        // What runs already need not be installed: its patches go on it.
        [base] if installed(base) && !patches.is_empty() => None,
        [base] => Some(base),
        _ => {
            let problem = "the file has more than one base release of the component";
            return Err(Reason::new(ReasonCode::InvalidArgument)
                .with("field", "file")
                .with("problem", problem));
        }
    };
    let Some(base) = base else {
        let ground = match &current.base {
            Base::Release(release) => Ground { base: Some(release), java: None },
            Base::Absent | Base::Unmanaged { .. } => Ground::default(),
        };
        let change = StackChange { apply: patches, ..Default::default() };
        let changed = stack::change(&current.layers, &change, &known, &ground)?;
        return Ok(Plan { target: Target::Stack(current.base.clone()), layers: changed.layers });
    };
    let carry = if patches.is_empty() { Carry::Valid } else { Carry::Named(patches) };
    let fixes = &base.verified.manifest().fixes;
    let new = NewBase { release: &base.reference, fixes, java: None };
    let changed = stack::for_new_base(&current.layers, &new, &carry, waive, &known)?;
    Ok(Plan { target: Target::Install(base.reference.clone()), layers: changed.layers })
}

#[cfg(test)]
mod tests;
