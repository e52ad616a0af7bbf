//! The machine under random sequences of orders, faults, crashes and silence.

use proptest::prelude::*;

use super::node::{Node, digest, install, offer, with_patches};
use crate::{
    order::{HoldOrder, Target},
    reason::ReasonCode,
    state::stack_digest,
    upgrade::{
        Outcome, Phase,
        event::{Event, Offer},
        policy::Policy,
        record::Passage,
    },
};

#[derive(Clone, Debug)]
enum Act {
    Install { raise: u64, n: u8, allow: bool, hold: Option<usize>, patches: u8 },
    Patch { patches: u8, live: bool },
    Continue,
    Cancel,
    Restore(usize),
    Local,
    Hold(bool),
    Answer(u8),
    Fault(usize),
    Advance,
    Crash,
    Look,
    Sick(u8),
    Damage(u8),
    Old(bool),
    Fall,
    FallBeside,
    Ack,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => (0..3u64, 1..6u8, any::<bool>(), proptest::option::of(0..8usize), 0..8u8)
            .prop_map(|(raise, n, allow, hold, patches)| Act::Install { raise, n, allow, hold, patches }),
        3 => (0..8u8, any::<bool>()).prop_map(|(patches, live)| Act::Patch { patches, live }),
        1 => Just(Act::Fall),
        1 => Just(Act::FallBeside),
        1 => (1..4u8).prop_map(|n| Act::Sick(n + 50)),
        1 => (1..4u8).prop_map(|n| Act::Damage(n + 50)),
        1 => any::<bool>().prop_map(Act::Old),
        1 => Just(Act::Continue),
        1 => Just(Act::Cancel),
        1 => (0..3usize).prop_map(Act::Restore),
        1 => Just(Act::Local),
        1 => any::<bool>().prop_map(Act::Hold),
        12 => (1..6u8).prop_map(Act::Answer),
        1 => (0..FAULTY.len()).prop_map(Act::Fault),
        6 => Just(Act::Advance),
        2 => Just(Act::Crash),
        1 => Just(Act::Look),
        1 => (1..6u8).prop_map(Act::Sick),
        1 => (1..6u8).prop_map(Act::Damage),
        1 => Just(Act::Ack),
    ];
    proptest::collection::vec(act, 1..60)
}

const FAULTY: [&str; 16] = [
    "start beside",
    "drain",
    "dismiss",
    "check",
    "fetch",
    "verify",
    "stage",
    "back up",
    "switch",
    "stop",
    "start",
    "put back",
    "switch the stack",
    "put the stack back",
    "patch live",
    "prove",
];

/// The patches of a mask, highest first.
fn patches(mask: u8) -> Vec<u8> {
    (1..4).rev().filter(|n| mask & (1 << (n - 1)) != 0).collect()
}

/// What a random run remembers to compare with.
#[derive(Default)]
struct Ledger {
    number: u64,
    upgrades: u64,
    cancelled: Vec<String>,
    latest: String,
}

impl Ledger {
    /// The next order of a new upgrade.
    fn offer(&mut self, target: Target) -> Offer {
        self.number += 1;
        offer(self.number, &format!("r{}", self.upgrades), target)
    }

    /// Sends it; where it is taken, its upgrade is the latest.
    fn begin(&mut self, node: &mut Node, order: Offer) {
        node.send(Event::Order(Box::new(order)));
        if node.answers.last().unwrap().is_ok() {
            self.latest = format!("r{}", self.upgrades);
            self.upgrades += 1;
        }
    }
}

fn act(node: &mut Node, ledger: &mut Ledger, act: &Act) {
    match act {
        Act::Install { raise, n, allow, hold, patches: mask } => {
            let number = (ledger.number + raise).saturating_sub(1);
            let kept = node.machine.record().generation;
            let name = format!("r{}", ledger.upgrades);
            let mut order = with_patches(install(number, &name, *n), &patches(*mask));
            order.desired.allow_failed_digest = *allow;
            order.desired.hold_before = hold.and_then(|at| Phase::ALL.get(at).copied());
            node.send(Event::Order(Box::new(order)));
            let answer = node.answers.last().unwrap().clone();
            if number < kept.number {
                assert_eq!(answer.unwrap_err().code, ReasonCode::StaleGeneration);
            } else if answer.is_ok() && number > kept.number {
                ledger.upgrades += 1;
                ledger.latest = name;
            }
            ledger.number = ledger.number.max(number);
        }
        Act::Continue if !ledger.latest.is_empty() => {
            ledger.number += 1;
            let order = install(ledger.number, &ledger.latest, 1);
            node.send(Event::Order(Box::new(order)));
        }
        Act::Cancel if !ledger.latest.is_empty() => {
            ledger.number += 1;
            let undecided = |passage: &Passage| passage.end.is_none();
            let record = node.machine.record();
            let open = record.passage.as_ref().is_none_or(undecided);
            if open && node.outcome(&ledger.latest).is_none() {
                ledger.cancelled.push(ledger.latest.clone());
            }
            node.send(Event::Order(Box::new(offer(ledger.number, &ledger.latest, Target::Stay))));
        }
        Act::Restore(index) => {
            if let Some(state) = node.machine.record().kept.get(*index).cloned() {
                let order = ledger.offer(Target::Restore(state));
                ledger.begin(node, order);
            }
        }
        Act::Patch { patches: mask, live } => {
            let base = node.machine.record().current.base.clone();
            let mut order = with_patches(ledger.offer(Target::Stack(base)), &patches(*mask));
            order.desired.live = *live;
            ledger.begin(node, order);
        }
        Act::Fall => node.fall(),
        Act::FallBeside => node.fall_beside(),
        Act::Old(old) => node.old_class = *old,
        Act::Local => node.send(Event::LocalRollback { to: None, message: String::new() }),
        Act::Hold(hold) => {
            let generation = node.machine.record().hold_generation + 1;
            let (message, actor) = (String::new(), String::new());
            node.send(Event::Hold(HoldOrder { hold: *hold, generation, message, actor }));
        }
        Act::Answer(times) => {
            for _ in 0..*times {
                node.answer_one();
            }
        }
        Act::Fault(index) => node.faults.push((FAULTY[*index], ReasonCode::StageFailed)),
        Act::Advance => {
            node.advance();
        }
        Act::Crash => node.crash(),
        Act::Look => node.send(Event::Look),
        Act::Sick(n) => drop(node.unhealthy.insert(digest(*n))),
        Act::Damage(n) => drop(node.damaged.insert(digest(*n))),
        Act::Ack => {
            let record = node.machine.record();
            if let Some(report) = record.outbox.reports().last().cloned() {
                node.send(Event::ReportAcked { upgrade: report.upgrade, sequence: report.sequence });
            }
        }
        Act::Continue | Act::Cancel => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens: lower generations are refused, the table is kept, ends are reported once, a cancel
    /// in time is never followed by success, and everything ends once steps are answered and time passes. With a
    /// handover, too: the simulated node fails where an old process is stopped that was not drained.
    #[test]
    fn any_sequence_keeps_the_rules(sequence in acts(), handover in any::<bool>()) {
        let policy = Policy { patchable: true, live: true, handover, ..Policy::default() };
        let mut node = Node::with(policy, None);
        let mut ledger = Ledger { number: 1, ..Ledger::default() };
        for step in &sequence {
            act(&mut node, &mut ledger, step);
        }
        for _ in 0..3_000 {
            if !node.answer_one() && !node.advance() {
                break;
            }
        }
        prop_assert!(node.machine.record().passage.is_none(), "{:?}", node.machine.record().passage);
        prop_assert!(node.machine.record().next.is_none());
        node.faults.clear();
        node.send(Event::Look);
        while node.answer_one() {}
        prop_assert!(node.beside.is_none(), "something still stands beside: {:?}", node.done);
        // What a restart would use is one whole state that the node has had or was to have.
        if let Some((digest, layers)) = &node.launch && node.outcomes_are_known() {
            let current = &node.machine.record().current;
            let ends: Vec<_> = node.history.iter().map(|end| (end.outcome, end.reason.to_string())).collect();
            prop_assert_eq!(
                (Some(*digest), stack_digest(layers)),
                (current.artifact(), current.stack()),
                "{:?} {:?}",
                node.done,
                ends
            );
        }
        for (upgrade, log) in &node.log {
            prop_assert!(log.last().unwrap().state.outcome().is_some(), "{} has no end", upgrade);
        }
        for upgrade in &ledger.cancelled {
            let outcome = node.outcome(upgrade);
            prop_assert!(outcome != Some(Outcome::Succeeded), "{} succeeded after its cancel", upgrade);
        }
    }

    /// Where nothing ever answers, the deadlines alone lead to an end.
    #[test]
    fn silence_ends_too(answered in 0..40usize, n in 1..4u8) {
        let mut node = Node::settled();
        node.send(Event::Order(Box::new(install(2, "u2", n))));
        for _ in 0..answered {
            if node.outcome("u2").is_none() && !node.answer_one() { node.advance(); }
        }
        node.crash();
        for _ in 0..50 {
            if node.outcome("u2").is_some() { break; }
            node.advance();
        }
        prop_assert!(node.outcome("u2").is_some());
    }
}

/// How many events the long run of repeated orders takes.
const STEPS: u32 = 100_000;

/// What happened in the long run.
#[derive(Debug, Default)]
struct Tally {
    steps: u32,
    new: u32,
    repeated: u32,
    stale: u32,
}

/// 100,000 events in which every order that was ever sent comes again, in any order, between crashes and answers: what
/// is older is refused, what is known changes nothing, and each upgrade ends once.
#[test]
fn repeated_reordered_and_stale_orders_are_carried_out_once() {
    let mut tally = Tally::default();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut roll = move |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    while tally.steps < STEPS {
        let mut node = Node::settled();
        let mut sent: Vec<Offer> = Vec::new();
        for number in 10..70 {
            tally.steps += 1;
            repeat_or_go_on(&mut node, &mut sent, number, &mut roll, &mut tally);
        }
        for _ in 0..3_000 {
            if !node.answer_one() && !node.advance() {
                break;
            }
        }
        assert!(node.machine.record().passage.is_none());
        for (upgrade, log) in &node.log {
            let ends: std::collections::BTreeSet<u64> = log
                .iter()
                .filter(|report| report.state.outcome().is_some())
                .map(|report| report.sequence)
                .collect();
            assert!(ends.len() <= 1, "{upgrade} ended {} times", ends.len());
        }
    }
    println!("figure: repeated_orders {tally:?}, 0 violations");
    assert!(tally.stale > STEPS / 10 && tally.repeated > STEPS / 100, "{tally:?}");
}

fn repeat_or_go_on(
    node: &mut Node,
    sent: &mut Vec<Offer>,
    number: u64,
    roll: &mut impl FnMut(u64) -> u64,
    tally: &mut Tally,
) {
    let before = node.machine.record().generation;
    match roll(12) {
        0 | 1 => {
            let order = install(number, &format!("u{number}"), u8::try_from(1 + roll(5)).unwrap());
            sent.push(order.clone());
            tally.new += 1;
            node.send(Event::Order(Box::new(order)));
        }
        2..=6 if !sent.is_empty() => {
            // The last one more often: that is what a controller does after each connection.
            let last = sent.len() - 1;
            let at = if roll(3) == 0 { last } else { usize::try_from(roll(sent.len() as u64)).unwrap() };
            let order = sent[at].clone();
            let generation = order.desired.generation;
            let upgrade = node.machine.record().passage.as_ref().map(|passage| passage.order.upgrade.clone());
            node.send(Event::Order(Box::new(order)));
            let answer = node.answers.last().unwrap().clone();
            let now = node.machine.record();
            if generation < before {
                tally.stale += 1;
                assert_eq!(answer.unwrap_err().code, ReasonCode::StaleGeneration);
            } else if generation == before {
                tally.repeated += 1;
                assert_eq!(now.passage.as_ref().map(|passage| passage.order.upgrade.clone()), upgrade);
            }
        }
        7 => node.crash(),
        8 => {
            node.advance();
        }
        _ => {
            node.answer_one();
        }
    }
    assert!(node.machine.record().generation >= before, "a generation never goes down");
}
