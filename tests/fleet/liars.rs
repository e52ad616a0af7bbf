//! Sources that lie and proxies in between: what a node does then, and what a person at the command line is told.

use upfleet_api::v1::{self, UpgradeState, rollout::State};
use upfleet_domain::digest::Digest;

use crate::support::{
    Behaviour, Fleet, TestFleet, manifest,
    mirror::{Authority, Mirror, Proxy, Source, Tunnel},
    padded,
};

const SIZE: usize = 300_000;

/// One node that runs 1.0.0 and trusts the mirror.
async fn fleet() -> TestFleet {
    Fleet { releases: Vec::new(), ..Fleet::default() }.start().await
}

/// Lets the node fetch as these keys of `[fetch]` say.
async fn configure(fleet: &mut TestFleet, keys: &str) {
    let node = fleet.node_mut("n1");
    node.kill();
    node.configure("", keys);
    fleet.api.reach_online("n1", false).await;
    fleet.node_mut("n1").start();
    fleet.api.reach_online("n1", true).await;
}

/// Publishes a release whose bytes are `bytes` and lie at `url` only.
async fn publish_at(fleet: &TestFleet, version: &str, sequence: u64, bytes: &[u8], url: &str) {
    let mut manifest = manifest(version, sequence, bytes);
    manifest.artifacts[0].sources = vec![url.to_owned()];
    fleet.api.publish_manifest(&manifest).await.unwrap();
}

/// Rolls `version` out, which must end in `state`; returns the reason and what the command line shows of it.
async fn fails(fleet: &TestFleet, version: &str, state: UpgradeState) -> (v1::Reason, String) {
    let rollout = fleet.api.start(fleet.spec(version)).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", state).await;
    fleet.api.reach(&rollout, State::Halted).await;
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    let shown = fleet.cli(&["rollout", "show", &id]).success();
    fleet.cli(&["rollout", "cancel", &id, "--yes"]);
    fleet.api.reach(&rollout, State::Cancelled).await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0"], "what ran goes on, untouched");
    assert!(fleet.node("n1").running().is_some());
    assert_eq!(fleet.node("n1").leftovers(), Vec::<std::path::PathBuf>::new());
    (upgrade.reason.unwrap(), shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lies_changes_nothing_and_is_told() {
    let mut fleet = fleet().await;
    let authority = Authority::new(fleet.dir());
    configure(&mut fleet, &format!("extra_ca = {:?}", authority.file)).await;
    let right = |version: &str| padded(version, Behaviour::Good, SIZE);
    let cut = |version: &str| right(version)[..100_000].to_vec();
    let mut flipped = right("1.1.3");
    flipped[SIZE / 2] ^= 1;
    let longer = [right("1.1.4"), vec![b'x'; 1000]].concat();
    let lies = [
        ("1.1.1", Source::Gives(cut("1.1.1")), "WRONG_COPY", Some(cut("1.1.1"))),
        ("1.1.2", Source::GivesUnsized(cut("1.1.2")), "WRONG_COPY", Some(cut("1.1.2"))),
        ("1.1.3", Source::Gives(flipped.clone()), "DIGEST_MISMATCH", Some(flipped)),
        ("1.1.4", Source::Gives(longer), "SIZE_MISMATCH", None),
        ("1.1.5", Source::Endless, "SIZE_MISMATCH", None),
        ("1.1.6", Source::Redirects("https://169.254.169.254/x".to_owned()), "SOURCE_NOT_ALLOWED", None),
        ("1.1.7", Source::Redirects("http://localhost/x".to_owned()), "SOURCE_NOT_ALLOWED", None),
        ("1.1.8", Source::Says("404 Not Found"), "FETCH_FAILED", None),
    ];
    for (sequence, (version, source, code, got)) in (2..).zip(lies) {
        let mirror = Mirror::start(&authority, version, source).await;
        publish_at(&fleet, version, sequence, &right(version), &mirror.url).await;
        // What the agent's own policy forbids is a refusal; nothing was touched either way.
        let refused = code == "SOURCE_NOT_ALLOWED";
        let state = if refused { UpgradeState::Refused } else { UpgradeState::FailedUnchanged };
        let (reason, shown) = fails(&fleet, version, state).await;
        assert_eq!(reason.code, code, "{version}: {}", reason.message);
        println!("{version}: {}", reason.message);
        assert!(mirror.asked() > 0, "{version}");
        if let Some(got) = got {
            let (expected, actual) = (Digest::of(&right(version)).to_string(), Digest::of(&got).to_string());
            assert!(shown.contains(&expected) && shown.contains(&actual), "{version}: both digests: {shown}");
            if got.len() != right(version).len() {
                let lengths = [got.len(), right(version).len()].map(|length| format!("{length} bytes"));
                assert!(
                    lengths.iter().all(|length| shown.contains(length)),
                    "{version}: both lengths: {shown}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_are_reached_through_a_proxy() {
    let mut fleet = fleet().await;
    let authority = Authority::new(fleet.dir());
    for (sequence, (version, tunnel)) in
        (2..).zip([("1.1.0", Tunnel::Whole), ("1.2.0", Tunnel::Cut(100_000)), ("1.3.0", Tunnel::Refused)])
    {
        let bytes = padded(version, Behaviour::Good, SIZE);
        let mirror = Mirror::start(&authority, version, Source::Gives(bytes.clone())).await;
        let proxy = Proxy::start(tunnel).await;
        let keys = format!("extra_ca = {:?}\nproxy = {:?}", authority.file, proxy.address);
        configure(&mut fleet, &keys).await;
        if matches!(tunnel, Tunnel::Refused) {
            // A proxy that says no is no end where the controller has the bytes, too.
            fleet.api.upload(&bytes).await;
        }
        publish_at(&fleet, version, sequence, &bytes, &mirror.url).await;
        fleet.install(version).await;
        assert!(proxy.tunnels() > 0, "{tunnel:?}: it went by the proxy");
        match tunnel {
            Tunnel::Whole => assert_eq!((proxy.tunnels(), mirror.asked()), (1, 1)),
            Tunnel::Cut(_) => assert!(mirror.asked() > 1, "it was resumed"),
            Tunnel::Refused => assert_eq!(mirror.asked(), 0, "nothing goes past the proxy"),
        }
    }
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.1.0", "1.2.0", "1.3.0"]);
}
