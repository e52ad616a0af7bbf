//! Transcripts of `upfleet patch stack`, and how changes of stacks read.

use super::*;

pub(in super::super) fn layer(number: u32, retired: bool) -> v1::Layer {
    let version = format!("p{number}");
    let release = v1::ReleaseRef { version, ..Default::default() };
    v1::Layer { number, release: Some(release), retired, contains: Vec::new() }
}

pub(in super::super) fn state(version: &str, layers: &[(u32, bool)]) -> v1::ComponentState {
    let release = v1::ReleaseRef { version: version.into(), ..Default::default() };
    v1::ComponentState {
        base: Some(Base::Release(release)),
        layers: layers.iter().map(|(number, retired)| layer(*number, *retired)).collect(),
    }
}

pub(in super::super) fn release(number: u32, fixes: &[&str]) -> v1::Release {
    v1::Release {
        name: format!("releases/payments@p{number}"),
        kind: "patch".into(),
        patch_number: number,
        fixes: fixes.iter().map(|fix| v1::Fix { id: (*fix).into(), text: String::new() }).collect(),
        ..Default::default()
    }
}

fn class(name: &str, number: u32, standing: S) -> v1::ClassProof {
    v1::ClassProof {
        class_name: name.into(),
        number,
        standing: standing.into(),
        loader: if standing == S::Armed { String::new() } else { "app".into() },
        mechanism: v1::Mechanism::JavaAgent.into(),
        ..Default::default()
    }
}

fn proof(classes: Vec<v1::ClassProof>) -> v1::StackProof {
    v1::StackProof {
        pid: 4242,
        mechanism: v1::Mechanism::JavaAgent.into(),
        classes,
        alarms: Vec::new(),
        time: Some(pbjson_types::Timestamp { seconds: 88, nanos: 0 }),
    }
}

fn component(current: v1::ComponentState, proof: Option<v1::StackProof>) -> v1::NodeComponent {
    v1::NodeComponent {
        component: "payments".into(),
        current: Some(current),
        proof,
        patchable: true,
        ..Default::default()
    }
}

fn node() -> v1::Node {
    v1::Node { name: "nodes/web-01".into(), online: true, ..Default::default() }
}

#[test]
fn a_stack_as_people_see_it() {
    let mut current = state("2.14.1", &[(10, false), (9, false), (8, true)]);
    current.layers[1].contains = vec![7];
    let proof = proof(vec![
        class("com.acme.Order", 10, S::Proved),
        class("com.acme.Cart", 10, S::Armed),
        class("com.acme.Tax", 9, S::Proved),
    ]);
    let releases =
        [release(10, &["CVE-2021-44228", "ACME-12"]), release(9, &["ACME-7"]), release(8, &["ACME-12"])];
    assert_eq!(
        stack_table(&node(), &component(current, Some(proof)), &releases, 100, Paint::PLAIN),
        "\
web-01  payments  2.14.1+patch10,9  java-agent, pid 4242, asked 12s ago
  NUMBER  RELEASE  STATE               FIXES                    PROVED  ARMED  OLD  MECHANISM
  10      p10      active              CVE-2021-44228, ACME-12  1       1      0    java-agent
  9       p9       active, contains 7  ACME-7                   1       0      0    java-agent
  8       p8       retired             ACME-12                  -       -      -    -
  base    2.14.1   installed
"
    );
}

#[test]
fn old_code_is_shown_with_class_and_loader() {
    let mut old = class("com.acme.Order", 10, S::Old);
    old.loader = "org.example.Loader@1b6d3586".into();
    old.problem = "it was loaded before the agent".into();
    let mut component = component(state("2.14.1", &[(10, false)]), Some(proof(vec![old])));
    component.drift = Some(v1::Reason { message: "old code runs".into(), ..Default::default() });
    component.alarms =
        vec![v1::Reason { message: "app.jar on the disk is not the jar".into(), ..Default::default() }];
    let mut away = node();
    away.online = false;
    let text = stack_table(&away, &component, &[], 100, Paint::PLAIN);
    assert_eq!(
        text,
        "\
web-01  payments  2.14.1+patch10  java-agent, pid 4242, asked 12s ago; last seen -
  NUMBER  RELEASE  STATE      FIXES  PROVED  ARMED  OLD  MECHANISM
  10      p10      active            0       0      1    java-agent
  base    2.14.1   installed
  ! com.acme.Order in loader org.example.Loader@1b6d3586 runs old code: it was loaded before the agent
  ! DRIFTED: old code runs
  ! app.jar on the disk is not the jar
"
    );
}

#[test]
fn a_stack_that_nobody_vouches_for_says_so() {
    let text = stack_table(&node(), &component(state("2.14.1", &[(10, false)]), None), &[], 0, Paint::PLAIN);
    assert!(text.contains("the JVM has not said what is in force"), "{text}");
    let text = stack_table(&node(), &component(state("2.14.1", &[]), None), &[], 0, Paint::PLAIN);
    assert!(text.contains("2.14.1  no patches\n"), "{text}");
    let nothing = component(state("2.14.1", &[]), Some(proof(vec![])));
    assert!(stack_table(&node(), &nothing, &[], 0, Paint::PLAIN).contains("2.14.1  no patches\n"));
}

#[test]
fn changes_say_what_retires_and_what_comes_back() {
    let check = |from: &v1::ComponentState, to: &v1::ComponentState, expected: &str| {
        assert_eq!(notes(Some(from), Some(to)), expected);
    };
    let (one, two) = (state("1", &[(9, false)]), state("1", &[(10, false), (9, true)]));
    check(&one, &two, " (9 retires)");
    check(&two, &one, " (9 comes back)");
    check(&one, &one, "");
    let mut contains = state("1", &[(10, false)]);
    contains.layers[0].contains = vec![9];
    check(&state("1", &[(10, false), (9, false)]), &contains, " (9 stays contained in 10)");
}

#[test]
fn orders_and_proofs_in_a_few_words() {
    let order = v1::StackChange {
        apply: vec!["releases/app@p10".into()],
        remove: vec![8],
        live: true,
        ..Default::default()
    };
    assert_eq!(ordered(&order), "+p10 -p8 live");
    assert_eq!(ordered(&v1::StackChange { none: true, ..Default::default() }), "without patches");
    let classes = vec![class("A", 1, S::Proved), class("B", 1, S::Armed), class("C", 1, S::Old)];
    assert_eq!(proof_note(&proof(classes)), "1 proved, 1 armed, 1 OLD, java-agent");
}

#[test]
fn history_keeps_what_was_rolled_back() {
    let entry = |seconds, from, to, state: v1::UpgradeState, why: &str| v1::NodeHistoryEntry {
        component: "payments".into(),
        time: Some(pbjson_types::Timestamp { seconds, nanos: 0 }),
        from: Some(from),
        to: Some(to),
        state: state.into(),
        reason: Some(v1::Reason { message: why.into(), ..Default::default() }),
        rollout: if seconds > 70 { String::new() } else { "rollouts/r-1".into() },
        actor: if seconds > 70 { "local".into() } else { "users/anna".into() },
    };
    use v1::UpgradeState as U;
    let entries = [
        entry(80, state("1", &[(10, false)]), state("1", &[]), U::Succeeded, "healthy"),
        entry(60, state("1", &[]), state("1", &[(10, false)]), U::RolledBack, "a class runs old code"),
    ];
    assert_eq!(
        history_table(&entries, 100, Paint::PLAIN),
        "\
ENDED      COMPONENT  FROM       TO         STATE        BY     ROLLOUT  WHY
00:01:20Z  payments   1+patch10  1          SUCCEEDED    local  -        healthy
00:01:00Z  payments   1          1+patch10  ROLLED_BACK  anna   r-1      a class runs old code
"
    );
}

#[test]
fn a_proof_lists_each_class_in_each_loader() {
    let mut order = class("com.acme.Order", 10, S::Proved);
    order.source = "file:/opt/app.jar".into();
    order.original_digest = Some(v1::Digest { algorithm: 1, value: vec![0xab; 32].into() });
    let upgrade = v1::Upgrade {
        node: "nodes/web-01".into(),
        proof: Some(proof(vec![order, class("com.acme.Cart", 10, S::Armed)])),
        ..Default::default()
    };
    assert_eq!(
        super::proof(&upgrade),
        "
web-01: 1 proved, 1 armed, java-agent, pid 4242
  CLASS           PATCH  STANDS  LOADER  ORIGINAL      MECHANISM   SOURCE
  com.acme.Order  10     proved  app     abababababab  java-agent  file:/opt/app.jar
  com.acme.Cart   10     armed   -                     java-agent
"
    );
    let reloaded = v1::Upgrade { node: "nodes/web-01".into(), reload: "ok".into(), ..Default::default() };
    assert_eq!(super::proof(&reloaded), "\nweb-01: the reload answered: ok\n");
}
