//! Signed and sealed packages: what the class-path mechanisms can't get past. The Java agent can.

use super::{Application, PackageFact};
use crate::{
    jvm::Mechanism,
    patch::{PatchSpec, package},
    reason::{Reason, ReasonCode},
};

/// Whether the mechanism puts the patch's jar beside the application's, so that the JVM compares the two.
fn side_by_side(mechanism: Mechanism) -> bool {
    match mechanism {
        Mechanism::ClassPath | Mechanism::PathingJar | Mechanism::PropertiesLauncher => true,
        Mechanism::JavaAgent | Mechanism::PatchModule | Mechanism::Live => false,
    }
}

/// The packages of a patch may be completed by its jar.
pub(super) fn permit(
    spec: &PatchSpec,
    application: &Application,
    mechanism: Mechanism,
) -> Result<(), Reason> {
    if !side_by_side(mechanism) {
        return Ok(());
    }
    let own = application.patch_signers.get(&spec.number).map_or(&[][..], Vec::as_slice);
    for class in &spec.classes {
        for fact in application.packages.get(package(&class.name)).into_iter().flatten() {
            if fact.signers != own {
                return Err(signers(&class.name, fact, own));
            }
            if fact.sealed {
                return Err(Reason::new(ReasonCode::PackageSealed)
                    .with("class", &class.name)
                    .with("jar", &fact.source));
            }
        }
    }
    Ok(())
}

fn signers(class: &str, fact: &PackageFact, own: &[String]) -> Reason {
    let name = |signers: &[String]| match signers.is_empty() {
        true => "nobody".to_owned(),
        false => signers.join(" and "),
    };
    Reason::new(ReasonCode::SignerMismatch)
        .with("class", class)
        .with("signer", name(&fact.signers))
        .with("actual", name(own))
}
