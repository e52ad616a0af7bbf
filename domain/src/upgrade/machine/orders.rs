//! Orders, holds, and which order is taken up next.

use super::{Machine, report::Ended};
use crate::{
    id::ComponentId,
    order::{DesiredState, HoldOrder},
    reason::{Reason, ReasonCode},
    release::Kind,
    time::Time,
    upgrade::{
        Outcome, Phase,
        admit::{self, Admission},
        event::{Effect, Offer},
        record::{Accepted, Passage},
    },
};

impl Machine {
    pub(super) fn order(&mut self, offer: &Offer, now: Time) {
        let desired = &offer.desired;
        let admission = match admit::admit(&self.record, &self.policy, offer) {
            Ok(admission) => admission,
            Err(reason) => {
                self.effects.push(Effect::Answer(Err(reason)));
                return;
            }
        };
        self.record.generation = desired.generation;
        self.effects.push(Effect::Answer(Ok(desired.generation)));
        match admission {
            Admission::Known | Admission::NoChange => {}
            Admission::Stay => self.stay(desired, now),
            Admission::Continue => self.go_on(desired, now),
            Admission::Begin(accepted) => self.queue(*accepted, now),
        }
    }

    /// A newer order: what waits is superseded, what is under way ends if it can still end unnoticed.
    fn queue(&mut self, accepted: Accepted, now: Time) {
        if let Some(waiting) = self.record.next.replace(accepted) {
            let reason = Reason::new(ReasonCode::SupersededByOrder);
            self.report_end(Ended::unbegun(&waiting), Outcome::Superseded, reason, now);
        }
        if self.untouched() {
            self.end(Outcome::Superseded, Reason::new(ReasonCode::SupersededByOrder), now);
        }
    }

    /// A person cancels: what is not finished is undone.
    fn stay(&mut self, desired: &DesiredState, now: Time) {
        let cancelled = || Reason::new(ReasonCode::CancelledByOrder);
        let of_passage = self.record.passage.as_ref().and_then(|passage| passage.order.upgrade.clone());
        let named = desired.upgrade.clone();
        let mut answered = named.is_none() || named == of_passage;
        // A local rollback is the will of a person at the node; the controller does not undo it.
        if let Some(waiting) = self.record.next.take_if(|waiting| waiting.upgrade.is_some()) {
            answered = answered || waiting.upgrade == named;
            self.report_end(Ended::unbegun(&waiting), Outcome::Cancelled, cancelled(), now);
        }
        answered = answered || named.as_ref().is_some_and(|named| self.record.ended.contains(named));
        if !answered {
            // It never came here; the controller still waits for its end.
            let ended = Ended::unknown(named, desired.generation);
            self.report_end(ended, Outcome::Cancelled, cancelled(), now);
        }
        self.cancel(cancelled(), now);
    }

    /// Ends what is under way: unnoticed where nothing is touched, else by putting the old state back. What is
    /// decided stands.
    pub(super) fn cancel(&mut self, reason: Reason, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        if passage.order.upgrade.is_none() {
            // A local rollback under way, which stands like one that waits.
        } else if self.untouched() {
            self.end(Outcome::Cancelled, reason, now);
        } else if passage.end.is_none() && passage.phase != Phase::RollingBack {
            let why = Reason::new(ReasonCode::CancelledAfterSwitch).with("from", &passage.from);
            self.roll_back(why, false, now);
        }
    }

    pub(super) fn untouched(&self) -> bool {
        let passage = self.record.passage.as_ref();
        passage.is_some_and(|passage| passage.end.is_none() && passage.phase < Phase::Activating)
    }

    /// A further order for the same upgrade: it may go on, or has to wait elsewhere.
    fn go_on(&mut self, desired: &DesiredState, now: Time) {
        // The guard of a new agent counts with the soak time that it was set for.
        let guarded = self.policy.kind == Kind::Agent && !self.untouched();
        let steer = |order: &mut Accepted, guarded: bool| {
            order.generation = desired.generation;
            order.hold_before = desired.hold_before;
            order.not_after = desired.not_after;
            if !guarded {
                order.soak = desired.soak;
            }
        };
        if let Some(waiting) = self.record.next.as_mut().filter(|order| order.upgrade == desired.upgrade) {
            steer(waiting, false);
            return;
        }
        let Some(passage) = &mut self.record.passage else { return };
        steer(&mut passage.order, guarded);
        let held = passage.held;
        if let Some(phase) = held.filter(|_| held != desired.hold_before && passage.end.is_none()) {
            passage.held = None;
            self.enter(phase, now);
        }
    }

    pub(super) fn hold(&mut self, order: &HoldOrder, now: Time) {
        if order.generation <= self.record.hold_generation {
            return;
        }
        self.record.hold_generation = order.generation;
        let held = || {
            let reason = Reason::new(ReasonCode::HeldByOperator).since(now);
            reason.with("actor", &order.actor).with("message", &order.message)
        };
        self.record.hold = order.hold.then(held);
        self.effects.push(Effect::Inventory);
    }

    /// Takes up the order that waits, if nothing is under way.
    pub(super) fn begin_next(&mut self, now: Time) {
        if !self.ready || self.record.passage.is_some() {
            return;
        }
        let Some(order) = self.record.next.take() else { return };
        self.abort();
        let refused = match order.upgrade {
            Some(_) => admit::permit(&self.record, &self.policy, &order).err(),
            None => None,
        };
        if let Some(reason) = refused {
            self.report_end(Ended::unbegun(&order), Outcome::Refused, reason, now);
            return;
        }
        self.record.passage = Some(Passage {
            from: self.record.current.clone(),
            ran: self.record.started,
            phase: Phase::Pending,
            since: now,
            deadline: now,
            reason: Reason::new(ReasonCode::WaitingForAgent),
            doing: None,
            held: None,
            touched: false,
            reached: false,
            beside: false,
            handed_over: false,
            no_handover: None,
            stopped: None,
            down_ms: None,
            back: None,
            end: None,
            evidence: None,
            proof: None,
            reload: None,
            sequence: 0,
            tries: 0,
            order,
        });
        self.mark(Phase::Pending, Reason::new(ReasonCode::WaitingForAgent), now);
        self.pending(now);
    }

    /// Pending: expired, waiting for another component, or ready for the checks.
    pub(super) fn pending(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        if passage.order.not_after.is_some_and(|limit| limit <= now) || passage.deadline <= now {
            self.expire(now);
        } else if self.policy.exclusive_with.is_empty() || self.claimed {
            self.enter(Phase::Preflight, now);
        } else {
            self.effects.push(Effect::Claim { take: false });
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        let Some(passage) = &mut self.record.passage else { return };
        let reason = Reason::new(ReasonCode::DeadlinePassed);
        passage.end = Some(crate::upgrade::record::End { outcome: Outcome::Expired, reason });
        self.finish(now);
    }

    pub(super) fn claim_answered(&mut self, answer: Result<(), ComponentId>, now: Time) {
        let pending = |passage: &Passage| passage.phase == Phase::Pending && passage.end.is_none();
        let waits = self.record.passage.as_ref().is_some_and(pending);
        match answer {
            Ok(()) if self.record.passage.is_none() => self.effects.push(Effect::Release),
            Ok(()) => {
                self.claimed = true;
                if waits {
                    self.enter(Phase::Preflight, now);
                }
            }
            Err(component) if waits => {
                let reason = Reason::new(ReasonCode::WaitingForExclusive).with("component", component);
                if self.record.passage.as_ref().is_some_and(|passage| passage.reason != reason) {
                    self.say(reason, now);
                }
            }
            Err(_) => {}
        }
    }
}
