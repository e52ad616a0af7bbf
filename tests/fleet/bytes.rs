//! Artifacts' bytes between a real controller and a real agent: over a line that is cut, and across a kill.

use upfleet_api::v1::rollout::State;
use upfleet_domain::digest::Digest;

use crate::support::{
    Behaviour, Fleet,
    cutter::{Cuts, Cutter, How},
    eventually, padded,
};

/// The line to the controller is cut after every 64 KiB, and the agent is killed in the middle: the upgrade succeeds,
/// and what was fetched before a cut or a kill is not fetched again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_survives_cuts_and_a_kill() {
    let mut fleet = Fleet::default().start().await;
    fleet.nodes[0].kill();
    let file = fleet.dir().join("n1/etc/conf.d/controller.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let address: std::net::SocketAddr = fleet.context().address.parse().unwrap();
    let cuts = Cuts::every(64 * 1024, &[How::Reset, How::Close]);
    let cutter = Cutter::start(address, cuts).await;
    let through = text.replace(&format!(":{}", address.port()), &format!(":{}", cutter.address.port()));
    assert_ne!(through, text, "the controller's address is in {}", file.display());
    std::fs::write(&file, through).unwrap();
    fleet.nodes[0].start();
    let program = padded("1.2.0", Behaviour::Good, 500_000);
    fleet.api.publish("1.2.0", 9, &program).await;
    let name = fleet.api.start(fleet.spec("1.2.0")).await;
    eventually("some cuts", || (cutter.cuts() >= 9).then_some(()));
    fleet.nodes[0].kill();
    let (before, sent) = (cutter.cuts(), cutter.bytes());
    fleet.nodes[0].start();
    fleet.api.reach(&name, State::Succeeded).await;
    assert_eq!(fleet.nodes[0].digest(), Some(Digest::of(&program)));
    // What a connection carries is at most 64 KiB, of which 48 KiB are new once messages are small. After a kill the
    // size is found anew.
    let (cuts, bytes) = (cutter.cuts(), cutter.bytes());
    assert!(cuts < 30, "{before} cuts and {sent} bytes before the kill, {cuts} and {bytes} in the end");
}
