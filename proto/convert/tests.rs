//! What is sent arrives: each domain value goes to the wire's bytes and back unchanged.

use std::time::Duration;

use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message;
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    id::{ComponentId, RolloutId, UpgradeId, Version},
    jvm::{ClassProof, Mechanism, Proof, Standing},
    order::{DesiredState, Generation, HoldOrder, Target},
    patch::MAX_NUMBER,
    reason::{Reason, ReasonCode},
    release::Platform,
    report::{ComponentInventory, UpgradeReport},
    state::{Base, ComponentState, Layer, ReleaseRef},
    time::Time,
    upgrade::{Evidence, Outcome, Phase, UpgradeState, interruption::Interruption},
};

use super::{ManifestBytes, Order, upgrade_state};
use crate::v1;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn component() -> impl Strategy<Value = ComponentId> {
    "[a-z][a-z0-9._-]{0,20}".prop_map(|text| ComponentId::new(text).unwrap())
}

fn upgrade() -> impl Strategy<Value = UpgradeId> {
    "[a-z][a-z0-9._-]{0,40}".prop_map(|text| UpgradeId::new(text).unwrap())
}

fn release() -> impl Strategy<Value = ReleaseRef> {
    let version = "[0-9][0-9.+a-z]{0,10}".prop_map(|text| Version::new(text).unwrap());
    (component(), version, any::<u64>(), digest(), digest()).prop_map(
        |(component, version, sequence, manifest, artifact)| ReleaseRef {
            component,
            version,
            sequence,
            manifest,
            artifact,
        },
    )
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let layer = (1..=MAX_NUMBER, release(), any::<bool>(), vec(1..=MAX_NUMBER, 0..3));
    let layer =
        layer.prop_map(|(number, release, retired, contains)| Layer { number, release, retired, contains });
    vec(layer, 0..3)
}

fn state() -> impl Strategy<Value = ComponentState> {
    let base = prop_oneof![
        Just(Base::Absent),
        release().prop_map(Base::Release),
        digest().prop_map(|digest| Base::Unmanaged { digest }),
    ];
    (base, layers()).prop_map(|(base, layers)| ComponentState { base, layers })
}

fn time() -> impl Strategy<Value = Time> {
    (-1_000_000_000_000_i64..10_000_000_000_000).prop_map(Time)
}

fn reason() -> impl Strategy<Value = Reason> {
    let metadata = proptest::collection::btree_map("[a-z]{1,5}", ".{0,20}", 0..3);
    let code =
        select(ReasonCode::ALL).prop_filter("made from unknown codes only", |c| *c != ReasonCode::Other);
    (code, metadata, option::of(time()), option::of(time())).prop_map(|(code, metadata, since, deadline)| {
        Reason { metadata, since, deadline, ..Reason::new(code) }
    })
}

fn any_state() -> impl Strategy<Value = UpgradeState> {
    prop_oneof![
        select(Phase::ALL).prop_map(UpgradeState::Active),
        select(Outcome::ALL).prop_map(UpgradeState::Ended)
    ]
}

fn generation() -> impl Strategy<Value = Generation> {
    any::<(u64, u64)>().prop_map(|(epoch, number)| Generation { epoch, number })
}

fn order() -> impl Strategy<Value = Order> {
    let manifest = (vec(any::<u8>(), 0..50), vec(vec(any::<u8>(), 0..9), 0..3))
        .prop_map(|(bytes, signatures)| ManifestBytes { bytes, signatures });
    let target = prop_oneof![
        (release(), manifest).prop_map(|(release, bytes)| (Target::Install(release), Some(bytes))),
        state().prop_map(|state| (Target::Restore(state), None)),
        state().prop_map(|state| (Target::Stack(state.base), None)),
        Just((Target::Stay, None)),
    ];
    let hold = (any::<bool>(), any::<u64>(), ".{0,9}", ".{0,9}")
        .prop_map(|(hold, generation, message, actor)| HoldOrder { hold, generation, message, actor });
    let rollout = option::of("r-[a-z0-9]{6}".prop_map(|text| RolloutId::new(text).unwrap()));
    let steering =
        (rollout, option::of(upgrade()), option::of(select(Phase::ALL)), option::of(time()), layers());
    let rest =
        (any::<(bool, bool, bool)>(), option::of(0_u64..1_000_000), ".{0,9}", ".{0,9}", option::of(hold));
    (component(), generation(), target, steering, rest).prop_map(
        |(component, generation, (target, manifest), steering, rest)| {
            let (rollout, upgrade, hold_before, not_after, layers) = steering;
            let ((allow_downgrade, allow_failed_digest, live), soak, trace, actor, hold) = rest;
            let soak = soak.map(Duration::from_millis);
            let desired = DesiredState {
                component,
                generation,
                rollout,
                upgrade,
                target,
                layers,
                live,
                hold_before,
                not_after,
                allow_downgrade,
                allow_failed_digest,
                soak,
                trace,
                actor,
            };
            let layers = (0..desired.layers.len())
                .map(|n| ManifestBytes { bytes: vec![7; n], signatures: vec![vec![8]; n] });
            Order { layers: layers.collect(), desired, manifest, hold }
        },
    )
}

fn proof() -> impl Strategy<Value = Proof> {
    let mechanisms = select(&[
        Mechanism::JavaAgent,
        Mechanism::ClassPath,
        Mechanism::PathingJar,
        Mechanism::PropertiesLauncher,
        Mechanism::PatchModule,
        Mechanism::Live,
    ]);
    let standings = select(&[Standing::Armed, Standing::Proved, Standing::Old]);
    let texts = (".{0,9}", ".{0,9}", option::of(".{1,9}"), ".{0,9}");
    let class = (texts, any::<u32>(), standings, option::of(digest()), digest(), mechanisms.clone());
    let class = class.prop_map(|(texts, number, standing, original, expected, mechanism)| {
        let (class, loader, source, problem) = texts;
        ClassProof { class, number, standing, loader, source, original, expected, mechanism, problem }
    });
    // Those that run old code go first; see the conversion.
    let classes = vec(class, 0..3).prop_map(|mut classes| {
        classes.sort_by_key(|class: &ClassProof| class.standing != Standing::Old);
        classes
    });
    (any::<u32>(), mechanisms, classes, vec(reason(), 0..3), time())
        .prop_map(|(pid, mechanism, classes, alarms, time)| Proof { pid, mechanism, classes, alarms, time })
}

fn report() -> impl Strategy<Value = UpgradeReport> {
    let evidence = (".{0,9}", vec(".{0,9}", 0..3), vec(".{0,9}", 0..3))
        .prop_map(|(exit, lines, probe_results)| Evidence { exit, lines, probe_results });
    let states = (option::of(state()), option::of(state()), option::of(digest()), option::of(evidence));
    let interruption = (any::<bool>(), 0..1_u64 << 40, option::of(reason()))
        .prop_map(|(handed_over, down_ms, why)| Interruption { handed_over, down_ms, why });
    let states = (states, option::of(proof()), option::of(".{1,9}"), option::of(interruption));
    (upgrade(), component(), 1_u64.., generation(), any_state(), reason(), time(), states).prop_map(
        |(upgrade, component, sequence, generation, state, reason, time, states)| {
            let ((from, current, running, evidence), proof, reload, interruption) = states;
            UpgradeReport {
                upgrade,
                component,
                sequence,
                generation,
                state,
                reason,
                time,
                from,
                current,
                running,
                evidence,
                proof,
                reload,
                interruption,
            }
        },
    )
}

fn inventory() -> impl Strategy<Value = ComponentInventory> {
    let states = (state(), option::of(state()), vec(state(), 0..3));
    let digests = (vec(digest(), 0..3), option::of(digest()), vec(digest(), 0..3));
    let reasons = (any::<bool>(), option::of(reason()), option::of(reason()));
    let orders = (generation(), any::<u64>(), option::of(upgrade()), option::of(any_state()));
    let run = ("[a-z]{1,9}", option::of(1_u32..), option::of(time()), "[a-z]{0,9}");
    let stack = (option::of(proof()), vec(reason(), 0..3), any::<bool>());
    (component(), states, digests, reasons, orders, run, stack).prop_map(
        |(component, states, digests, reasons, orders, run, stack)| {
            let (proof, alarms, patchable) = stack;
            let ((current, previous, kept), (kept_digests, running, failed)) = (states, digests);
            let ((healthy, hold, drift), (run_mode, pid, changed, changer)) = (reasons, run);
            let (generation, hold_generation, upgrade, upgrade_state) = orders;
            ComponentInventory {
                component,
                current,
                previous,
                kept,
                kept_digests,
                running,
                healthy,
                hold,
                drift,
                generation,
                hold_generation,
                upgrade,
                upgrade_state,
                run_mode,
                pid,
                changed,
                changer,
                failed,
                proof,
                alarms,
                patchable,
            }
        },
    )
}

/// Goes through the wire's bytes, not only its types.
fn there_and_back<D, W>(value: &D) -> D
where
    W: for<'a> From<&'a D> + Message + Default,
    D: TryFrom<W, Error = Reason>,
{
    let bytes = W::from(value).encode_to_vec();
    D::try_from(W::decode(bytes.as_slice()).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn orders_arrive(order in order()) {
        prop_assert_eq!(&there_and_back::<_, v1::DesiredState>(&order), &order);
    }

    #[test]
    fn reports_arrive(report in report()) {
        prop_assert_eq!(&there_and_back::<_, v1::UpgradeReport>(&report), &report);
    }

    #[test]
    fn inventories_arrive(inventory in inventory()) {
        prop_assert_eq!(&there_and_back::<_, v1::ComponentInventory>(&inventory), &inventory);
    }

    #[test]
    fn times_and_spans_arrive(at in time(), millis in any::<u32>()) {
        prop_assert_eq!(super::time(&super::timestamp(at)), at);
        let span = Duration::from_millis(millis.into());
        prop_assert_eq!(super::span(&super::duration(span), "x").unwrap(), span);
    }
}

#[test]
fn small_things_arrive() {
    let md5 = Md5Digest([7; 16]);
    assert_eq!(there_and_back::<_, v1::Digest>(&md5), md5);
    let platform = Platform { os: "linux".into(), arch: "amd64".into() };
    assert_eq!(there_and_back::<_, v1::Platform>(&platform), platform);
}

#[test]
fn every_state_of_an_upgrade_is_on_the_wire() {
    let active = Phase::ALL.iter().map(|phase| UpgradeState::Active(*phase));
    for state in active.chain(Outcome::ALL.iter().map(|outcome| UpgradeState::Ended(*outcome))) {
        assert_eq!(upgrade_state(v1::UpgradeState::from(state).into(), "state"), Ok(state));
    }
    assert!(upgrade_state(0, "state").is_err());
    assert!(upgrade_state(999, "state").is_err());
}

#[test]
fn a_reason_of_a_later_version_keeps_its_sentence() {
    let wire = v1::Reason { code: "NOVEL".into(), message: "something new".into(), ..Default::default() };
    let reason = Reason::try_from(wire).unwrap();
    assert_eq!(reason.code, ReasonCode::Other);
    assert_eq!(reason.message(), "something new");
    assert_eq!(reason.metadata["code"], "NOVEL");
}

#[test]
fn what_is_wrong_is_named_by_its_path() {
    let check = |wire: v1::ComponentInventory, path: &str| {
        let reason = ComponentInventory::try_from(wire).unwrap_err();
        assert_eq!(reason.code, ReasonCode::InvalidArgument);
        assert_eq!(reason.metadata["field"], path);
    };
    let good = || v1::ComponentInventory {
        component: "web".into(),
        current: Some((&ComponentState::absent()).into()),
        ..Default::default()
    };
    check(v1::ComponentInventory { component: "../x".into(), ..good() }, "component");
    check(v1::ComponentInventory { current: None, ..good() }, "current");
    let no_base = v1::ComponentState::default();
    check(v1::ComponentInventory { kept: vec![no_base], ..good() }, "kept[0].base");
    let md5 = v1::Digest::from(&Md5Digest([0; 16]));
    check(v1::ComponentInventory { running_digest: Some(md5), ..good() }, "running_digest.algorithm");
    let mut release = v1::ReleaseRef::from(&ReleaseRef {
        component: "web".parse().unwrap(),
        version: "1".parse().unwrap(),
        sequence: 1,
        manifest: Digest([0; 32]),
        artifact: Digest([0; 32]),
    });
    release.manifest_digest.as_mut().unwrap().value = vec![1].into();
    let base = Some(v1::component_state::Base::Release(release));
    let current = Some(v1::ComponentState { base, layers: vec![] });
    check(v1::ComponentInventory { current, ..good() }, "current.release.manifest_digest.value");
}
