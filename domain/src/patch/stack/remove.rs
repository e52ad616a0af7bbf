//! Taking patches out of a stack: by number, down to a number, or all.

use std::collections::BTreeSet;

use super::{Known, StackChange, chain, describe, spec};
use crate::{
    patch::PatchSpec,
    reason::{Reason, ReasonCode},
    state::Layer,
};

/// The layers that a change leaves. `retired` is not settled yet.
pub(super) fn remove(current: &[Layer], change: &StackChange, known: &Known) -> Result<Vec<Layer>, Reason> {
    let numbers = numbers(current, change)?;
    let (gone, mut kept): (Vec<Layer>, Vec<Layer>) =
        current.iter().cloned().partition(|layer| numbers.contains(&layer.number));
    let removed = with_specs(&gone, known)?;
    for layer in &mut kept {
        let own = spec(known, &layer.release)?;
        for (below, lower) in &removed {
            if !chain::built_on(own, lower, known) {
                continue;
            }
            if !change.contained {
                return Err(Reason::new(ReasonCode::StackBuiltOn)
                    .with("number", below.number)
                    .with("other", layer.number));
            }
            layer.contains.push(below.number);
            layer.contains.extend(&below.contains);
        }
        layer.contains.sort_unstable_by(|a, b| b.cmp(a));
        layer.contains.dedup();
    }
    Ok(kept)
}

/// Which numbers go.
fn numbers(current: &[Layer], change: &StackChange) -> Result<BTreeSet<u32>, Reason> {
    let present = |number: u32| current.iter().any(|layer| layer.number == number);
    let missing = |number: u32| {
        Reason::new(ReasonCode::NotInStack).with("number", number).with("stack", describe(current))
    };
    let mut numbers: BTreeSet<u32> = change.remove.iter().copied().collect();
    if let Some(number) = numbers.iter().find(|number| !present(**number)) {
        return Err(missing(*number));
    }
    if let Some(number) = change.to_number {
        if number != 0 && !present(number) {
            return Err(missing(number));
        }
        numbers.extend(current.iter().map(|layer| layer.number).filter(|other| *other > number));
    }
    if change.none {
        numbers.extend(current.iter().map(|layer| layer.number));
    }
    Ok(numbers)
}

fn with_specs<'a>(layers: &'a [Layer], known: &'a Known) -> Result<Vec<(&'a Layer, &'a PatchSpec)>, Reason> {
    layers.iter().map(|layer| Ok((layer, spec(known, &layer.release)?))).collect()
}
