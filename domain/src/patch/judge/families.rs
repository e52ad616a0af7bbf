//! Whole families: a class and its inner classes come from one compilation, or not at all.

use super::Application;
use crate::{
    patch::{PatchSpec, PatchedClass, family, stack::Known},
    reason::{Reason, ReasonCode},
    state::Layer,
};

/// Each family of which a patch ships a part is shipped whole, as far as the application has it.
pub(super) fn whole(
    spec: &PatchSpec,
    layers: &[Layer],
    known: &Known,
    application: &Application,
) -> Result<(), Reason> {
    for class in &spec.classes {
        let outer = family(&class.name);
        // Members stand side by side in the map: `Order`, `Order$1`, `Order$Line`.
        let members = application.classes.range(outer.to_owned()..).map(|(name, _)| name);
        for member in members.take_while(|name| name.starts_with(outer)) {
            if family(member) != outer || covers(spec, member) || hidden(spec, class, layers, known) {
                continue;
            }
            return Err(Reason::new(ReasonCode::SplitFamily)
                .with("number", spec.number)
                .with("class", &class.name)
                .with("missing", member)
                .with("other", "the application"));
        }
    }
    Ok(())
}

fn covers(spec: &PatchSpec, name: &str) -> bool {
    spec.class(name).is_some() || spec.removed.iter().any(|gone| gone == name)
}

/// A patch above ships the whole family: what this one lacks does not matter.
fn hidden(spec: &PatchSpec, class: &PatchedClass, layers: &[Layer], known: &Known) -> bool {
    let outer = family(&class.name);
    layers
        .iter()
        .filter(|layer| layer.number > spec.number && !layer.retired)
        .filter_map(|layer| known.get(&layer.release.manifest))
        .any(|upper| {
            spec.classes.iter().filter(|own| family(&own.name) == outer).all(|own| covers(upper, &own.name))
        })
}
