//! Patches over the wire: releases, orders with their layers, what is changed on a node itself, JVMs, history, and
//! questions to the whole fleet.

use tonic::transport::Channel;
use upfleet_api::{
    convert,
    v1::{self, patch_service_client::PatchServiceClient, rollout_service_client::RolloutServiceClient},
};
use upfleet_domain::{
    digest::Digest,
    order::{DesiredState, Generation, Target},
    patch::{BaseRange, Fix, Live, PatchSpec, PatchedClass},
    reason::ReasonCode,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    state::{Base, ComponentState, Layer, ReleaseRef},
};
use v1::session_request::Message as In;

use super::support::{Agent, Controller, code, component, hello};
use crate::store::{Change, Page};

fn binary(version: &str, sequence: u64) -> Manifest {
    let artifact = ArtifactRef {
        platform: Platform { os: "linux".into(), arch: "any".into() },
        sha256: Digest::of(version.as_bytes()),
        md5: None,
        size: 1,
        // Its bytes are of no concern here.
        sources: vec!["https://example.org/x".into()],
        encodings: vec![],
    };
    Manifest {
        format: FORMAT,
        component: "hello".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: vec![],
        patch: None,
        files: None,
    }
}

fn fixes(ids: &[&str]) -> Vec<Fix> {
    ids.iter().map(|id| Fix { id: (*id).into(), text: "what was wrong".into() }).collect()
}

fn patch(number: u32) -> Manifest {
    let version = format!("p{number}");
    let class = PatchedClass {
        name: format!("com.acme.C{number}"),
        accepts: vec![Digest::of(b"base")],
        parent: Some(Digest::of(b"base")),
        patched: Digest::of(version.as_bytes()),
        major: 52,
    };
    let spec = PatchSpec {
        number,
        base: BaseRange { to_sequence: Some(1), ..BaseRange::default() },
        fixes: fixes(&[&format!("FIX-{number}")]),
        classes: vec![class],
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    };
    Manifest { kind: Kind::Patch, patch: Some(spec), ..binary(&version, u64::from(number)) }
}

fn reference(manifest: &Manifest) -> ReleaseRef {
    ReleaseRef {
        component: manifest.component.clone(),
        version: manifest.version.clone(),
        sequence: manifest.sequence,
        manifest: Digest::of(&manifest.to_bytes()),
        artifact: manifest.artifacts[0].sha256,
    }
}

fn layer(manifest: &Manifest) -> Layer {
    let number = manifest.patch.as_ref().unwrap().number;
    Layer { number, release: reference(manifest), retired: false, contains: vec![] }
}

fn state(base: &Manifest, layers: &[&Manifest]) -> ComponentState {
    let layers = layers.iter().map(|manifest| layer(manifest)).collect();
    ComponentState { base: Base::Release(reference(base)), layers }
}

fn runs(state: &ComponentState) -> v1::ComponentInventory {
    let running_digest = state.artifact().as_ref().map(Into::into);
    v1::ComponentInventory {
        current: Some(state.into()),
        patchable: true,
        running_digest,
        ..component("hello")
    }
}

fn proved(state: &ComponentState, standing: v1::Standing) -> v1::ComponentInventory {
    let class = |layer: &Layer| v1::ClassProof {
        class_name: format!("com.acme.C{}", layer.number),
        number: layer.number,
        standing: standing.into(),
        expected_digest: Some((&layer.release.artifact).into()),
        mechanism: v1::Mechanism::JavaAgent.into(),
        ..Default::default()
    };
    let proof = v1::StackProof {
        pid: 7,
        mechanism: v1::Mechanism::JavaAgent.into(),
        classes: state.layers.iter().map(class).collect(),
        alarms: vec![],
        time: Some(pbjson_types::Timestamp { seconds: 9, nanos: 0 }),
    };
    v1::ComponentInventory { proof: Some(proof), pid: 7, ..runs(state) }
}

async fn publish(controller: &Controller, manifests: &[Manifest]) {
    let mut releases = controller.releases().await;
    for manifest in manifests {
        let manifest = manifest.to_bytes().into();
        let request = v1::CreateReleaseRequest { manifest, ..Default::default() };
        releases.create_release(request).await.unwrap();
    }
}

async fn connect(controller: &Controller, name: &str, inventory: v1::ComponentInventory) -> Agent {
    let identity = controller.enroll(name).await;
    let greeting = v1::Hello { components: vec![inventory], ..hello(name) };
    Agent::open(controller, &identity, greeting).await.unwrap()
}

async fn rollouts(controller: &Controller) -> RolloutServiceClient<Channel> {
    RolloutServiceClient::new(controller.channel(&controller.admin).await)
}

async fn patches(controller: &Controller) -> PatchServiceClient<Channel> {
    PatchServiceClient::new(controller.channel(&controller.admin).await)
}

fn wish(change: v1::rollout_spec::Change, dry: bool) -> v1::CreateRolloutRequest {
    let wave = v1::WaveSpec {
        size: Some(v1::NodeCount { value: Some(v1::node_count::Value::Percent(100)) }),
        ..Default::default()
    };
    let policy = v1::RolloutPolicy { waves: vec![wave], ..Default::default() };
    let spec = v1::RolloutSpec {
        component: "hello".into(),
        selector: "*".into(),
        change: Some(change),
        policy: Some(policy),
        seed: 0,
    };
    v1::CreateRolloutRequest { spec: Some(spec), validate_only: dry, ..Default::default() }
}

fn apply(names: &[&str]) -> v1::StackChange {
    let apply = names.iter().map(|name| format!("releases/hello@{name}")).collect();
    v1::StackChange { apply, ..Default::default() }
}

fn stack(change: v1::StackChange) -> v1::rollout_spec::Change {
    v1::rollout_spec::Change::Stack(change)
}

#[tokio::test]
async fn a_patch_release_is_checked_listed_by_kind_and_shown_with_its_fixes() {
    let controller = Controller::start().await;
    publish(&controller, &[binary("1.0.0", 1), patch(1)]).await;
    let mut releases = controller.releases().await;
    let mut create = async |manifest: Manifest, validate_only| {
        let manifest = manifest.to_bytes().into();
        releases
            .create_release(v1::CreateReleaseRequest { manifest, validate_only, ..Default::default() })
            .await
    };
    let other = Manifest { version: "p1-again".parse().unwrap(), sequence: 9, ..patch(1) };
    for dry in [true, false] {
        assert_eq!(code(create(other.clone(), dry).await), ReasonCode::NumberTaken);
    }
    let bare = Manifest { patch: None, ..patch(2) };
    assert_eq!(code(create(bare, true).await), ReasonCode::ManifestInvalid);
    let list = |kind: &str| v1::ListReleasesRequest { kind: kind.into(), ..Default::default() };
    let found = releases.list_releases(list("patch")).await.unwrap().into_inner().releases;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].patch_number, found[0].fixes[0].id.as_str()), (1, "FIX-1"));
    assert_eq!(found[0].name, "releases/hello@p1");
    assert_eq!(releases.list_releases(list("")).await.unwrap().into_inner().releases.len(), 2);
    assert_eq!(code(releases.list_releases(list("jar")).await), ReasonCode::InvalidArgument);
}

#[tokio::test]
async fn a_stack_is_ordered_with_the_manifests_of_all_its_layers() {
    let controller = Controller::start().await;
    let (base, one, two) = (binary("1.0.0", 1), patch(1), patch(2));
    publish(&controller, &[base.clone(), one.clone(), two.clone()]).await;
    let mut agent = connect(&controller, "web-01", runs(&state(&base, &[&one]))).await;
    let mut client = rollouts(&controller).await;
    let dry = client.create_rollout(wish(stack(apply(&["p2"])), true)).await.unwrap().into_inner();
    let planned = dry.plan.unwrap().upgrades.remove(0).to.unwrap();
    assert_eq!(planned.layers.iter().map(|layer| layer.number).collect::<Vec<_>>(), [2, 1]);

    let live = v1::StackChange { live: true, ..apply(&["p2"]) };
    let rollout = client.create_rollout(wish(stack(live), false)).await.unwrap().into_inner().rollout;
    let name = rollout.unwrap().name;
    client.start_rollout(v1::StartRolloutRequest { name, ..Default::default() }).await.unwrap();
    let order = agent.order().await;
    assert!(order.live);
    assert!(matches!(order.target, Some(v1::desired_state::Target::Stack(_))));
    let sent: Vec<_> = order.layers.iter().map(|offer| offer.manifest.to_vec()).collect();
    assert_eq!(sent, [two.to_bytes(), one.to_bytes()], "verbatim, newest first");

    let proof = proved(&state(&base, &[&two, &one]), v1::Standing::Proved).proof;
    let report = v1::UpgradeReport {
        upgrade: order.upgrade.clone(),
        component: "hello".into(),
        sequence: 1,
        state: v1::UpgradeState::Succeeded.into(),
        reason: Some(v1::Reason { code: "PATCH_PROVED".into(), ..Default::default() }),
        event_time: Some(pbjson_types::Timestamp { seconds: 1, nanos: 0 }),
        current: Some((&state(&base, &[&two, &one])).into()),
        generation: order.generation,
        epoch: order.epoch,
        proof,
        reload: "ok".into(),
        ..Default::default()
    };
    agent.say(In::Report(report)).await;
    let parent = dry_parent(&mut client).await;
    let list = v1::ListUpgradesRequest { parent, ..Default::default() };
    for _ in 0..500 {
        let row = client.list_upgrades(list.clone()).await.unwrap().into_inner().upgrades.remove(0);
        if row.state() == v1::UpgradeState::Succeeded {
            assert_eq!(row.proof.unwrap().classes.len(), 2);
            assert_eq!(row.reload, "ok");
            return;
        }
    }
    panic!("the report was not recorded");
}

/// The name of the one rollout.
async fn dry_parent(client: &mut RolloutServiceClient<Channel>) -> String {
    let all = client.list_rollouts(v1::ListRolloutsRequest::default()).await.unwrap().into_inner();
    all.rollouts[0].name.clone()
}

#[tokio::test]
async fn a_plan_that_loses_a_fix_is_refused_and_says_on_which_nodes() {
    let controller = Controller::start().await;
    let (base, one) = (binary("1.0.0", 1), patch(1));
    publish(&controller, &[base.clone(), one.clone(), binary("2.0.0", 2)]).await;
    let _agent = connect(&controller, "web-01", runs(&state(&base, &[&one]))).await;
    let mut client = rollouts(&controller).await;
    let release = || "releases/hello@2.0.0".to_owned();
    let install = v1::InstallChange { release: release(), ..Default::default() };
    let refused = client.create_rollout(wish(v1::rollout_spec::Change::Install(install), true)).await;
    assert!(
        refused.as_ref().unwrap_err().message().contains("fix FIX-1 of patch 1 on web-01"),
        "{refused:?}"
    );
    assert_eq!(code(refused), ReasonCode::FixLost);
    let waived = v1::BaseWithStackChange {
        release: release(),
        waive_fixes: vec!["FIX-1".into()],
        ..Default::default()
    };
    let change = v1::rollout_spec::Change::BaseWithStack(waived);
    let plan = client.create_rollout(wish(change, true)).await.unwrap().into_inner().plan.unwrap();
    assert!(plan.upgrades[0].to.as_ref().unwrap().layers.is_empty());
}

#[tokio::test]
async fn what_was_put_on_by_hand_is_recorded_and_left_alone_until_it_is_released() {
    let controller = Controller::start().await;
    let (base, one, strange) = (binary("1.0.0", 1), patch(1), patch(8));
    publish(&controller, &[base.clone(), one.clone()]).await;
    let hold = v1::Reason {
        code: "LOCAL_APPLY".into(),
        metadata: [("message".to_owned(), "site visit".to_owned())].into(),
        ..Default::default()
    };
    let by_hand = v1::ComponentInventory {
        changer: "local".into(),
        change_time: Some(pbjson_types::Timestamp { seconds: 100, nanos: 0 }),
        previous: Some((&state(&base, &[])).into()),
        hold: Some(hold),
        ..runs(&state(&base, &[&strange]))
    };
    // One connection for the record, and the same node again after a person released it.
    let identity = controller.enroll("web-01").await;
    let greeting = |inventory| v1::Hello { components: vec![inventory], ..hello("a") };
    let agent = Agent::open(&controller, &identity, greeting(by_hand.clone())).await.unwrap();
    let mut nodes = controller.nodes().await;
    let get = v1::GetNodeRequest { name: "nodes/web-01".into() };
    let node = nodes.get_node(get).await.unwrap().into_inner().node.unwrap();
    assert_eq!((node.components[0].changer.as_str(), node.components[0].patchable), ("local", true));
    assert_eq!(node.components[0].current.as_ref().unwrap().layers[0].number, 8);
    let ask = v1::ListNodeHistoryRequest { name: "nodes/web-01".into(), ..Default::default() };
    let history = nodes.list_node_history(ask).await.unwrap().into_inner().entries;
    assert_eq!((history.len(), history[0].actor.as_str(), history[0].rollout.as_str()), (1, "local", ""));
    assert_eq!(history[0].reason.as_ref().unwrap().code, "LOCAL_APPLY");

    let mut client = rollouts(&controller).await;
    let mut left_out = async |change| {
        let plan = client.create_rollout(wish(stack(change), true)).await.unwrap().into_inner().plan.unwrap();
        plan.excluded[0].reason.as_ref().unwrap().code.clone()
    };
    assert_eq!(left_out(apply(&["p1"])).await, "LOCAL_APPLY");
    let counts = v1::ListPatchCountsRequest::default();
    let counts = patches(&controller).await.list_patch_counts(counts).await.unwrap().into_inner().counts;
    let shown: Vec<_> = counts.iter().map(|c| (c.release.as_str(), c.active, c.nodes)).collect();
    assert_eq!(shown, [("releases/hello@p8", 1, 1), ("releases/hello@p1", 0, 1)]);

    drop(agent);
    let released = v1::ComponentInventory { hold: None, ..by_hand };
    let mut agent = Agent::open(&controller, &identity, greeting(released)).await.unwrap();
    assert_eq!(left_out(apply(&["p1"])).await, "PATCH_UNKNOWN");
    // An order whose layers the store does not know goes out all the same: its node has their manifests.
    let store = &controller.running.operations.store;
    let epoch = store.meta().await.unwrap().epoch;
    let desired = DesiredState {
        component: "hello".parse().unwrap(),
        generation: Generation { epoch, number: 1 },
        rollout: None,
        upgrade: Some("u-1".parse().unwrap()),
        target: Target::Stack(state(&base, &[]).base),
        layers: vec![layer(&strange), layer(&one)],
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: "users/root".into(),
    };
    let node = "web-01".parse().unwrap();
    store.commit(vec![Change::PutDesired { node, desired }]).await.unwrap();
    let order = agent.order().await;
    assert_eq!((order.layers[0].manifest.len(), &order.layers[1].manifest[..]), (0, &one.to_bytes()[..]));
    let decoded = convert::Order::try_from(order).unwrap();
    assert_eq!(decoded.desired.layers.len(), 2);
    assert!(store.audit(None, &Page::ALL).await.is_ok());
}

fn jvm(pid: u32, version: &str, path: &str, component: &str) -> v1::Jvm {
    v1::Jvm {
        pid,
        start_time: Some(pbjson_types::Timestamp { seconds: 1, nanos: 0 }),
        java_version: version.into(),
        main: "com.acme.Main".into(),
        class_path: vec![path.into()],
        attachable: true,
        component: component.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn jvms_are_listed_by_version_text_and_component_in_pages() {
    let controller = Controller::start().await;
    let base = binary("1.0.0", 1);
    let mut agents = Vec::new();
    for name in ["web-01", "web-02"] {
        let agent = connect(&controller, name, runs(&state(&base, &[]))).await;
        let jvms = vec![
            jvm(20, "17.0.15", "/srv/log4j-core-2.14.1.jar", "hello"),
            jvm(10, "1.8.0_392", "/srv/old.jar", ""),
        ];
        agent.say(In::JvmInventory(v1::JvmInventory { jvms })).await;
        agents.push(agent);
    }
    let mut nodes = controller.nodes().await;
    let mut list = async |request: v1::ListJvmsRequest| nodes.list_jvms(request).await.unwrap().into_inner();
    for _ in 0..500 {
        if list(v1::ListJvmsRequest::default()).await.jvms.len() == 4 {
            break;
        }
    }
    let mut shown = async |request: v1::ListJvmsRequest| {
        let found = list(request).await;
        let show = |found: &v1::NodeJvm| format!("{} {}", found.node, found.jvm.as_ref().unwrap().pid);
        (found.jvms.iter().map(show).collect::<Vec<_>>(), found.next_page_token)
    };
    let all = ["nodes/web-01 10", "nodes/web-01 20", "nodes/web-02 10", "nodes/web-02 20"];
    let (first, token) = shown(v1::ListJvmsRequest { page_size: 3, ..Default::default() }).await;
    assert_eq!(first, all[..3]);
    let next = v1::ListJvmsRequest { page_size: 3, page_token: token, ..Default::default() };
    assert_eq!(shown(next).await, (vec![all[3].to_owned()], String::new()));
    let java = |version: &str| v1::ListJvmsRequest { java_version: version.into(), ..Default::default() };
    assert_eq!(shown(java("17")).await.0, [all[1], all[3]]);
    assert_eq!(shown(java("8")).await.0, [all[0], all[2]]);
    let text = v1::ListJvmsRequest { contains: "log4j-core-2.14".into(), ..Default::default() };
    assert_eq!(shown(text).await.0, [all[1], all[3]]);
    let nobodys =
        v1::ListJvmsRequest { unmanaged: true, selector: "name=web-02".into(), ..Default::default() };
    assert_eq!(shown(nobodys).await.0, [all[2]]);
}

#[tokio::test]
async fn which_nodes_lack_a_fix_is_one_question() {
    let controller = Controller::start().await;
    let (base, one) = (binary("1.0.0", 1), patch(1));
    let fixed = Manifest { fixes: fixes(&["FIX-1"]), ..binary("2.0.0", 2) };
    publish(&controller, &[base.clone(), one.clone(), fixed.clone()]).await;
    let patched = state(&base, &[&one]);
    let unproved = runs(&patched);
    let old = proved(&patched, v1::Standing::Old);
    let mut agents = Vec::new();
    for (name, inventory) in [
        ("a-lacks", runs(&state(&base, &[]))),
        ("b-unproved", unproved),
        ("c-old", old),
        ("d-patched", proved(&patched, v1::Standing::Armed)),
        ("e-base", runs(&state(&fixed, &[]))),
        ("f-unknown", runs(&state(&binary("9.0.0", 9), &[]))),
        ("g-absent", component("hello")),
    ] {
        agents.push(connect(&controller, name, inventory).await);
    }
    let mut client = patches(&controller).await;
    let ask = |states: &[v1::fix_state::State]| v1::ListFixStatesRequest {
        fix: "FIX-1".into(),
        states: states.iter().map(|state| (*state).into()).collect(),
        ..Default::default()
    };
    use v1::fix_state::State::{InBase, Lacks, Patched, Unproved};
    let all = client.list_fix_states(ask(&[])).await.unwrap().into_inner();
    let stands: Vec<_> = all.nodes.iter().map(|n| (n.node.as_str(), n.state(), n.number)).collect();
    assert_eq!(
        stands,
        [
            ("nodes/a-lacks", Lacks, 0),
            ("nodes/b-unproved", Unproved, 1),
            ("nodes/c-old", Unproved, 1),
            ("nodes/d-patched", Patched, 1),
            ("nodes/e-base", InBase, 0),
            ("nodes/f-unknown", Lacks, 0),
        ]
    );
    let counts: Vec<_> = all.counts.iter().map(|(state, count)| (state.as_str(), *count)).collect();
    let mut counts_sorted = counts.clone();
    counts_sorted.sort_unstable();
    assert_eq!(counts_sorted, [("IN_BASE", 1), ("LACKS", 2), ("PATCHED", 1), ("UNPROVED", 2)]);
    let reason = |index: usize| all.nodes[index].reason.as_ref().unwrap();
    assert!(
        reason(0).message.contains("hello@2.0.0 or patch 1 (hello@p1) would bring it"),
        "{}",
        reason(0).message
    );
    assert_eq!((reason(1).code.as_str(), reason(2).code.as_str()), ("PROOF_MISSING", "CLASS_OLD"));
    assert!(reason(5).message.contains("not known here"), "{}", reason(5).message);
    assert!(all.nodes.iter().all(|node| node.online));

    let few = v1::ListFixStatesRequest { page_size: 1, ..ask(&[Lacks]) };
    let first = client.list_fix_states(few.clone()).await.unwrap().into_inner();
    assert_eq!((first.nodes[0].node.as_str(), first.counts.len()), ("nodes/a-lacks", 4));
    let more = v1::ListFixStatesRequest { page_token: first.next_page_token, ..few };
    let second = client.list_fix_states(more).await.unwrap().into_inner();
    assert_eq!((second.nodes[0].node.as_str(), second.next_page_token.as_str()), ("nodes/f-unknown", ""));

    let typo = v1::ListFixStatesRequest { fix: "FIX-l".into(), ..Default::default() };
    assert_eq!(code(client.list_fix_states(typo.clone()).await), ReasonCode::NotFound);
    let named = v1::ListFixStatesRequest { component: "hello".into(), ..typo };
    assert_eq!(client.list_fix_states(named).await.unwrap().into_inner().nodes.len(), 6, "all lack it");

    let count = v1::ListPatchCountsRequest { component: "hello".into(), ..Default::default() };
    let count = client.list_patch_counts(count).await.unwrap().into_inner().counts.remove(0);
    assert_eq!((count.active, count.proved, count.retired, count.nodes), (3, 1, 0, 7));
}
