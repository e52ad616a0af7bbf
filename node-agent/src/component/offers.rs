//! From an order as it came to an offer that the machine can judge: manifests verified, and durable before it is asked.

use upfleet_domain::{
    order::{DesiredState, Target},
    reason::{Reason, ReasonCode},
    release::{Kind, Platform, VerifiedRelease},
    state::{Layer, ReleaseRef},
    upgrade::event::{Offer, Offered, OfferedLayer},
};

use super::{ManifestBytes, manifests::Manifests};

/// What came with an order, beside the order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Brought {
    /// The manifest of what it installs.
    pub(crate) manifest: Option<ManifestBytes>,
    /// The manifests of its layers, in their order. One that is missing or empty is looked for on the node.
    pub(crate) layers: Vec<ManifestBytes>,
}

impl Brought {
    /// Whether anything came that may have to be tidied away.
    pub(super) fn any(&self) -> bool {
        self.manifest.is_some() || !self.layers.is_empty()
    }
}

/// Verifies what came, and makes it durable: an order that is accepted can be carried out without the controller.
pub(super) fn read(
    manifests: &Manifests,
    platform: &Platform,
    desired: DesiredState,
    brought: Brought,
) -> Offer {
    let release = match &desired.target {
        Target::Install(ordered) => {
            let verified = verify(manifests, ordered, brought.manifest);
            Some(verified.map(|release| offered(&release, ordered, platform)))
        }
        _ => None,
    };
    let mut manifests_of = brought.layers.into_iter();
    let layer = |layer: &Layer| {
        let manifest = manifests_of.next().filter(|manifest| !manifest.bytes.is_empty());
        read_layer(manifests, platform, layer, manifest)
    };
    let layers = match desired.target {
        Target::Install(_) | Target::Stack(_) => desired.layers.iter().map(layer).collect(),
        Target::Restore(_) | Target::Stay => Ok(Vec::new()),
    };
    Offer { desired, release, layers }
}

fn read_layer(
    manifests: &Manifests,
    platform: &Platform,
    layer: &Layer,
    manifest: Option<ManifestBytes>,
) -> Result<OfferedLayer, Reason> {
    let release = verify(manifests, &layer.release, manifest)?;
    let kind = release.manifest().kind;
    let no_patch = || Reason::new(ReasonCode::KindUnsupported).with("kind", kind.as_str());
    let patch = release.manifest().patch.clone().filter(|_| kind == Kind::Patch).ok_or_else(no_patch)?;
    Ok(OfferedLayer { layer: layer.clone(), offered: offered(&release, &layer.release, platform), patch })
}

fn verify(
    manifests: &Manifests,
    ordered: &ReleaseRef,
    manifest: Option<ManifestBytes>,
) -> Result<VerifiedRelease, Reason> {
    match manifest {
        Some(manifest) => VerifiedRelease::parse(&manifest.bytes, ordered.manifest, &manifest.signatures)
            .and_then(|release| manifests.store(&ordered.manifest, &manifest).map(|()| release)),
        None => manifests.load(&ordered.manifest),
    }
}

fn offered(release: &VerifiedRelease, ordered: &ReleaseRef, platform: &Platform) -> Offered {
    let (reference, unfit) = match release.reference(platform) {
        Ok(reference) => (reference, None),
        // What is of another component is said before what is for another platform.
        Err(reason) => {
            let component = release.manifest().component.clone();
            (ReleaseRef { component, ..ordered.clone() }, Some(reason))
        }
    };
    let artifact = release.manifest().artifact_for(platform);
    Offered {
        release: reference,
        kind: release.manifest().kind,
        size: artifact.map_or(0, |artifact| artifact.size),
        unfit,
    }
}
