//! Puts the planned nodes in order and into waves.
//!
//! A node's place depends on the seed and its own name only, so that one node more or less reshuffles no other.

use sha2::{Digest as _, Sha256};

use crate::rollout::{PlannedUpgrade, WaveSpec};

/// Sorts by a hash of seed and node.
pub(super) fn order(upgrades: &mut [PlannedUpgrade], seed: u64) {
    upgrades.sort_by_cached_key(|upgrade| {
        let mut hash = Sha256::new();
        hash.update(seed.to_be_bytes());
        hash.update(upgrade.node.as_str());
        let hash: [u8; 32] = hash.finalize().into();
        (hash, upgrade.node.clone())
    });
}

/// Gives each node its wave, in order; the last wave takes the rest. Says which waves stay empty.
pub(super) fn assign(upgrades: &mut [PlannedUpgrade], waves: &[WaveSpec]) -> Vec<String> {
    let total = upgrades.len();
    let mut start = 0;
    let mut empty = Vec::new();
    for (index, wave) in waves.iter().enumerate() {
        let last = index + 1 == waves.len();
        let end = if last { total } else { (start + wave.size.of(total)).min(total) };
        if start == end && total > 0 {
            empty.push(format!("wave {} of {} has no nodes", index + 1, waves.len()));
        }
        upgrades[start..end].iter_mut().for_each(|upgrade| upgrade.wave = index);
        start = end;
    }
    empty
}
