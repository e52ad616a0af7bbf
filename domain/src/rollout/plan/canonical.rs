//! The canonical form of a plan, of which its digest is taken.
//!
//! Fields are prefixed by their length, so that no two plans have the same form. What changes from minute to
//! minute without changing what the plan does (who is connected, who was left out) is not in it.

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    rollout::{PlannedUpgrade, Spec},
    state::{Base, ComponentState},
};

/// Raised when the form changes, so that an old digest never stands for a new plan.
const FORM: &str = "upfleet-plan-2";

pub(super) fn digest(spec: &Spec, upgrades: &[PlannedUpgrade], max_unavailable: usize) -> Digest {
    let mut form = Form(Sha256::new());
    form.text(FORM);
    form.bytes(&serde_json::to_vec(spec).expect("a spec is plain data with string keys"));
    form.number(max_unavailable as u64);
    form.number(upgrades.len() as u64);
    for upgrade in upgrades {
        form.text(upgrade.node.as_str());
        form.number(upgrade.wave as u64);
        form.state(&upgrade.from);
        form.state(&upgrade.to);
    }
    Digest(form.0.finalize().into())
}

struct Form(Sha256);

impl Form {
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn state(&mut self, state: &ComponentState) {
        match &state.base {
            Base::Absent => self.number(0),
            Base::Release(release) => {
                self.number(1);
                self.text(release.version.as_str());
                self.bytes(&release.manifest.0);
                self.bytes(&release.artifact.0);
            }
            Base::Unmanaged { digest } => {
                self.number(2);
                self.bytes(&digest.0);
            }
        }
        self.number(state.layers.len() as u64);
        for layer in &state.layers {
            self.number(u64::from(layer.number));
            self.bytes(&layer.release.manifest.0);
            self.bytes(&layer.release.artifact.0);
            self.number(u64::from(layer.retired));
            self.number(layer.contains.len() as u64);
            layer.contains.iter().for_each(|number| self.number(u64::from(*number)));
        }
    }
}
