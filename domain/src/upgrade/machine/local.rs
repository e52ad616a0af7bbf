//! Orders of a person at the node: a rollback, or a release from a file. The component is held from then on.

use super::{Machine, report::Ended};
use crate::{
    reason::{Reason, ReasonCode},
    state::ComponentState,
    time::Time,
    upgrade::{
        Outcome, admit,
        event::{Effect, Offer},
        record::{Accepted, Goal},
    },
};

impl Machine {
    pub(super) fn local_rollback(&mut self, to: Option<ComponentState>, message: &str, now: Time) {
        let open = self.record.passage.as_ref().is_some_and(|passage| passage.end.is_none());
        let known = |state: &ComponentState| {
            admit::is_kept(&self.record, state) || self.record.current.same_content(state)
        };
        // Whoever names a state gets that one or none: another would be a guess at a bad moment.
        let unknown = match &to {
            Some(state) if !known(state) => Some(state.to_string()),
            None if !open && self.record.kept.is_empty() => Some("an earlier state".to_owned()),
            _ => None,
        };
        if let Some(state) = unknown {
            let reason = Reason::new(ReasonCode::StateNotKept).with("state", state);
            self.effects.push(Effect::Answer(Err(reason)));
            return;
        }
        let why = Reason::new(ReasonCode::LocalRollback).with("message", message);
        self.displace(&why, now);
        // What is under way is undone first, which is all that is asked where no state is named.
        let target = to.or_else(|| self.record.kept.first().filter(|_| !open).cloned());
        self.record.next = target.map(|state| self.local_order(state));
        self.taken_locally(why, now);
    }

    /// A person at the node applies what a file offers: an order like the controller's, but reported to nobody.
    pub(super) fn local_apply(&mut self, offer: &Offer, message: &str, now: Time) {
        let accepted = match admit::admit_local(&self.record, &self.policy, offer) {
            Ok(accepted) => accepted,
            Err(reason) => {
                self.effects.push(Effect::Answer(Err(reason)));
                return;
            }
        };
        let why = Reason::new(ReasonCode::LocalApply).with("message", message);
        self.displace(&why, now);
        self.record.next = Some(accepted);
        self.taken_locally(why, now);
    }

    /// What the controller ordered and has not begun gives way.
    fn displace(&mut self, why: &Reason, now: Time) {
        if let Some(waiting) = self.record.next.take() {
            self.report_end(Ended::unbegun(&waiting), Outcome::Cancelled, why.clone(), now);
        }
    }

    /// What is under way is undone, and the component is held from now on.
    fn taken_locally(&mut self, why: Reason, now: Time) {
        self.cancel(why.clone(), now);
        self.record.hold = Some(why.since(now).with("actor", "the node's operator"));
        self.effects.push(Effect::Answer(Ok(self.record.generation)));
        self.effects.push(Effect::Inventory);
    }

    fn local_order(&self, state: ComponentState) -> Accepted {
        Accepted {
            generation: self.record.generation,
            rollout: None,
            upgrade: None,
            goal: Goal::Restore { state },
            live: false,
            hold_before: None,
            not_after: None,
            soak: None,
            allow_downgrade: true,
            allow_failed_digest: true,
            trace: String::new(),
            actor: "local".to_owned(),
        }
    }
}
