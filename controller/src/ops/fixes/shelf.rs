//! The releases of one component with regard to one fix, and how what a node runs stands with it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use upfleet_domain::{
    digest::Digest,
    jvm::{Proof, Standing as ClassStanding},
    patch::{BaseRange, PatchSpec},
    reason::{Reason, ReasonCode},
    release::parse_manifest,
    report::ComponentInventory,
    state::{Base, ComponentState, Layer},
};

use super::Standing;
use crate::store::ReleaseRecord;

/// A proof that has so many classes may have left some out that run the right code.
const WHOLE_BELOW: usize = upfleet_api::convert::jvm::MAX_CLASSES;

/// The releases of one component, as one fix sees them.
pub(super) struct Shelf {
    fix: String,
    /// Manifests of the base releases that are known, with whether they have the fix.
    bases: BTreeMap<Digest, bool>,
    /// Manifests of the patches that are known.
    known: BTreeSet<Digest>,
    /// The patches with the fix, by the manifest's digest.
    patches: BTreeMap<Digest, PatchSpec>,
    /// What would bring the fix, as people name it: patches with the bases they are for, and bases.
    offers: Vec<(String, Option<BaseRange>)>,
}

/// How something stands, the patch that has the fix, and what is to be known.
pub(super) type Stands = (Standing, Option<u32>, Option<Reason>);

impl Shelf {
    pub(super) fn new(fix: &str) -> Self {
        let fix = fix.to_owned();
        let (bases, known, patches) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { fix, bases, known, patches, offers: Vec::new() }
    }

    /// Adds a release; `full` has the manifest of a patch with the fix.
    pub(super) fn add(&mut self, head: &ReleaseRecord, has: bool, full: Option<&ReleaseRecord>) {
        let Some(number) = head.patch_number else {
            self.bases.insert(head.digest, has);
            if has && head.yanked.is_none() {
                self.offers.push((head.name(), None));
            }
            return;
        };
        self.known.insert(head.digest);
        let spec = full.and_then(|full| parse_manifest(&full.manifest).ok()?.patch);
        let Some(spec) = spec.filter(|_| has) else { return };
        if head.yanked.is_none() {
            self.offers.push((format!("patch {number} ({})", head.name()), Some(spec.base.clone())));
        }
        self.patches.insert(head.digest, spec);
    }

    /// How what a node runs stands with the fix.
    pub(super) fn stands(&self, inventory: &ComponentInventory) -> Stands {
        let current = &inventory.current;
        if let Base::Release(release) = &current.base
            && self.bases.get(&release.manifest) == Some(&true)
        {
            return (Standing::InBase, None, None);
        }
        match self.holder(current) {
            None => (Standing::Lacks, None, Some(self.lacks(current))),
            Some((number, classes)) => match self.doubt(inventory, number, classes) {
                None => (Standing::Patched, Some(number), None),
                Some(reason) => (Standing::Unproved, Some(number), Some(reason)),
            },
        }
    }

    /// The layer in force that has the fix, and the patch whose classes must be in force for that, where they can be
    /// told.
    fn holder(&self, current: &ComponentState) -> Option<(u32, Option<&PatchSpec>)> {
        for layer in current.active() {
            if let Some(spec) = self.patches.get(&layer.release.manifest) {
                return Some((layer.number, Some(spec)));
            }
        }
        let contained = |layer: &&Layer| {
            layer.contains.iter().any(|number| self.patches.values().any(|spec| spec.number == *number))
        };
        if let Some(layer) = current.active().find(contained) {
            return Some((layer.number, None));
        }
        // A patch retires only where one above it has its fixes.
        let retired = |layer: &&Layer| layer.retired && self.patches.contains_key(&layer.release.manifest);
        let lower = current.layers.iter().find(retired)?;
        let above = current.active().filter(|layer| layer.number > lower.number).min_by_key(|l| l.number)?;
        Some((above.number, None))
    }

    /// Why it is not sure that the classes of a patch are in force.
    fn doubt(
        &self,
        inventory: &ComponentInventory,
        number: u32,
        classes: Option<&PatchSpec>,
    ) -> Option<Reason> {
        if let Some(drift) = &inventory.drift {
            return Some(drift.clone());
        }
        let missing = |problem: String| Some(Reason::new(ReasonCode::ProofMissing).with("problem", problem));
        let Some(proof) = &inventory.proof else {
            return missing("it was not asked, or no JVM of the component runs".to_owned());
        };
        if let Some(old) = proof.old() {
            return Some(old);
        }
        let named = |class: &str| {
            let ours =
                |found: &&upfleet_domain::jvm::ClassProof| found.class == class && found.number >= number;
            proof.classes.iter().any(|found| ours(&found))
        };
        let whole = proof.classes.len() < WHOLE_BELOW;
        let gap = classes?.classes.iter().find(|class| whole && !named(&class.name))?;
        missing(format!("it does not name {}", gap.name))
    }

    /// Why there is no fix, and what would bring it.
    fn lacks(&self, current: &ComponentState) -> Reason {
        let mut problems = Vec::new();
        let base = match &current.base {
            Base::Release(release) => Some(release),
            Base::Absent | Base::Unmanaged { .. } => None,
        };
        if base.is_none_or(|base| !self.bases.contains_key(&base.manifest)) {
            problems.push("what its base fixes is not known here".to_owned());
        }
        for layer in current.layers.iter().filter(|layer| !self.known.contains(&layer.release.manifest)) {
            problems.push(format!("patch {} was never published here", layer.number));
        }
        let fits = |range: &Option<BaseRange>| match (range, base) {
            (Some(range), Some(base)) => range.contains(&base.version, base.sequence),
            _ => true,
        };
        let offers: Vec<&str> =
            self.offers.iter().filter(|(_, range)| fits(range)).map(|(name, _)| name.as_str()).collect();
        problems.push(match offers.as_slice() {
            [] => "no release for it has the fix".to_owned(),
            offers => format!("{} would bring it", offers.join(" or ")),
        });
        Reason::new(ReasonCode::FixLacking)
            .with("state", current)
            .with("fix", &self.fix)
            .with("problem", problems.join("; "))
    }
}

/// Whether the running JVM says that a patch in force is.
pub(super) fn is_proved(inventory: &ComponentInventory, number: u32) -> bool {
    let fine = |proof: &Proof| {
        let mut own = proof.classes.iter().filter(|class| class.number == number).peekable();
        // All its classes may be those of a patch above it, by now.
        if own.peek().is_none() {
            return proof.count(ClassStanding::Old) == 0;
        }
        own.all(|class| class.standing != ClassStanding::Old)
    };
    inventory.drift.is_none() && inventory.proof.as_ref().is_some_and(fine)
}

#[cfg(test)]
mod tests;
