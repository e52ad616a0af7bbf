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
    /// What each patch that is known says it supersedes.
    supersedes: BTreeMap<Digest, Vec<u32>>,
    /// What would bring the fix, as people name it: patches with the bases they are for, and bases.
    offers: Vec<(String, Option<BaseRange>)>,
}

/// How something stands, the patch that has the fix, and what is to be known.
pub(super) type Stands = (Standing, Option<u32>, Option<Reason>);

impl Shelf {
    pub(super) fn new(fix: &str) -> Self {
        let fix = fix.to_owned();
        let (bases, known, patches) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { fix, bases, known, patches, supersedes: BTreeMap::new(), offers: Vec::new() }
    }

    /// Adds a release; that of a patch with its manifest.
    pub(super) fn add(&mut self, head: &ReleaseRecord, has: bool) {
        let Some(number) = head.patch_number else {
            self.bases.insert(head.digest, has);
            if has && head.yanked.is_none() {
                self.offers.push((head.name(), None));
            }
            return;
        };
        self.known.insert(head.digest);
        let Some(spec) = parse_manifest(&head.manifest).ok().and_then(|manifest| manifest.patch) else {
            return;
        };
        self.supersedes.insert(head.digest, spec.supersedes.clone());
        if !has {
            return;
        }
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
            Some((number, patch)) => match Self::doubt(inventory, patch) {
                None => (Standing::Patched, Some(number), None),
                Some(reason) => (Standing::Unproved, Some(number), Some(reason)),
            },
        }
    }

    /// The number of the layer in force that has the fix, and the patch whose classes must be in force for that: its
    /// own, or one that it contains or that retired because of it.
    fn holder(&self, current: &ComponentState) -> Option<(u32, &PatchSpec)> {
        for layer in current.active() {
            if let Some(spec) = self.patches.get(&layer.release.manifest) {
                return Some((layer.number, spec));
            }
        }
        let contained = |layer: &Layer| {
            let gone = self.patches.values().find(|spec| layer.contains.contains(&spec.number))?;
            Some((layer.number, gone))
        };
        if let Some(found) = current.active().find_map(contained) {
            return Some(found);
        }
        let retired = |layer: &Layer| {
            let spec = self.patches.get(&layer.release.manifest).filter(|_| layer.retired)?;
            Some((self.successor(current, layer.number)?, spec))
        };
        current.layers.iter().find_map(retired)
    }

    /// The patch in force that made another retire: the one that says so, or else the next above it.
    fn successor(&self, current: &ComponentState, number: u32) -> Option<u32> {
        let says = |layer: &&Layer| {
            let numbers = self.supersedes.get(&layer.release.manifest);
            numbers.is_some_and(|numbers| numbers.contains(&number))
        };
        let above = || current.active().filter(|layer| layer.number > number);
        let found = above().find(says).or_else(|| above().min_by_key(|layer| layer.number));
        found.map(|layer| layer.number)
    }

    /// Why it is not sure that the classes of a patch are in force. That another patch is said to contain it, or to
    /// supersede it, is not enough: it may ship only some of the classes.
    fn doubt(inventory: &ComponentInventory, patch: &PatchSpec) -> Option<Reason> {
        let proof = match voice(inventory) {
            Ok(proof) => proof,
            Err(reason) => return Some(*reason),
        };
        if let Some(old) = proof.old() {
            return Some(old);
        }
        let named = |class: &str| {
            proof.classes.iter().any(|found| found.class == class && found.number >= patch.number)
        };
        let whole = proof.classes.len() < WHOLE_BELOW;
        let gap = patch.classes.iter().find(|class| whole && !named(&class.name))?;
        Some(missing(format!("it does not name {}", gap.name)))
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

/// What the JVM that runs now says, or why it says nothing that could be relied on.
fn voice(inventory: &ComponentInventory) -> Result<&Proof, Box<Reason>> {
    if let Some(drift) = &inventory.drift {
        return Err(Box::new(drift.clone()));
    }
    // What the last JVM said is kept by the agent; it proves nothing once that has ended.
    let runs = !inventory.has_process() || inventory.pid.is_some();
    let Some(proof) = inventory.proof.as_ref().filter(|_| runs) else {
        return Err(Box::new(missing("it was not asked, or no JVM of the component runs".to_owned())));
    };
    // Nor does it once the JVM could not be asked again.
    match inventory.alarms.iter().find(|alarm| !proof.alarms.contains(alarm)) {
        Some(alarm) => Err(Box::new(alarm.clone())),
        None => Ok(proof),
    }
}

fn missing(problem: String) -> Reason {
    Reason::new(ReasonCode::ProofMissing).with("problem", problem)
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
    voice(inventory).is_ok_and(fine)
}

#[cfg(test)]
mod tests;
