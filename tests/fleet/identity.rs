//! Who may connect, and how soon one who no longer may is gone.

use std::{
    fs,
    time::{Duration, Instant},
};

use tonic::Code;
use upfleet_api::v1;
use upfleet_controller::cli::config::{Config, Context};

use crate::support::{Api, Fleet, TestFleet, eventually, eventually_async};

/// What the promise allows.
const CUT: Duration = Duration::from_secs(5);

/// Issues a certificate through the command line, and connects with it.
async fn issue(fleet: &TestFleet, name: &str, role: &str) -> Api {
    let dir = fleet.dir().join(format!("user-{name}"));
    fs::create_dir(&dir).unwrap();
    let mut command = fleet.cli_command(&["user", "issue", name, "--role", role, "--ttl", "1h"]);
    crate::support::run(command.current_dir(&dir)).success();
    let file = |end: &str| dir.join(format!("{name}.{end}"));
    Api::connect(&Context { cert: file("crt"), key: file("key"), ..fleet.context().clone() }).await
}

#[tokio::test]
async fn a_revoked_user_is_cut_while_watching() {
    let fleet = Fleet::default().start().await;
    let viewer = issue(&fleet, "eve", "viewer").await;
    let request = v1::WatchNodesRequest { selector: String::new() };
    let mut watch = viewer.client.nodes().watch_nodes(request).await.unwrap().into_inner();
    watch.message().await.unwrap();
    fleet.cli(&["user", "revoke", "eve", "--yes"]).success();
    let began = Instant::now();
    let end = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    };
    let _ = tokio::time::timeout(CUT, end).await.expect("the stream ends within 5 s");
    assert!(began.elapsed() <= CUT);
    let request = v1::GetNodeRequest { name: "nodes/n1".to_owned() };
    assert!(viewer.client.nodes().get_node(request).await.is_err(), "and stays out");
}

#[tokio::test]
async fn a_viewer_may_not_change_anything() {
    let fleet = Fleet::default().start().await;
    let viewer = issue(&fleet, "vic", "viewer").await;
    assert_eq!(viewer.create(fleet.spec("1.1.0")).await.unwrap_err().code(), Code::PermissionDenied);
    let request = v1::CordonNodeRequest { name: "nodes/n1".to_owned(), ..Default::default() };
    assert_eq!(viewer.client.nodes().cordon_node(request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(viewer.node("n1").await.name, "nodes/n1");
}

#[tokio::test]
async fn a_retired_node_is_cut_and_stays_out() {
    let fleet = Fleet::default().start().await;
    fleet.cli(&["node", "retire", "n1", "--yes", "--message", "sold"]).success();
    let began = Instant::now();
    fleet.api.reach_online("n1", false).await;
    assert!(began.elapsed() <= CUT, "{:?}", began.elapsed());
    // Its component goes on: trouble with the controller touches nothing.
    assert!(fleet.node("n1").running().is_some());
}

#[tokio::test]
async fn a_token_is_good_once() {
    let mut fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    let token = fleet.token().await;
    fleet.add_node("n1", None).await;
    let (first, second) = (fleet.prepare("a", "a"), fleet.prepare("b", "b"));
    first.enroll(&token).success();
    assert_ne!(second.enroll(&token).code, 0);
    let names = fleet.cli(&["node", "list", "-o", "json"]).success();
    assert!(names.contains("nodes/a") && !names.contains("nodes/b"), "{names}");
}

#[tokio::test]
async fn two_agents_with_one_key_are_both_cut_and_suspended() {
    let fleet = Fleet::default().start().await;
    // A copy of the whole node, as a cloned disk would be.
    let original = fleet.dir().join("n1");
    let clone = fleet.dir().join("clone");
    let copied = std::process::Command::new("cp").arg("-r").arg(&original).arg(&clone).status().unwrap();
    assert!(copied.success());
    let config = fs::read_to_string(original.join("etc/agent.toml")).unwrap();
    let mut copy = fleet.prepare("clone", "n1");
    fs::write(clone.join("etc/agent.toml"), config.replace("/n1/", "/clone/")).unwrap();
    fs::remove_dir_all(clone.join("run")).unwrap();
    fs::create_dir(clone.join("run")).unwrap();
    copy.start();
    eventually_async("the node to be suspended", || async {
        let node = fleet.api.node("n1").await;
        let code = node.reason.as_ref().map(|reason| reason.code.clone()).unwrap_or_default();
        if node.state() == v1::node::State::Suspended && code == "CLONE_SUSPECTED" {
            Ok(())
        } else {
            Err(format!("{:?} {code}", node.state()))
        }
    })
    .await;
    let began = Instant::now();
    fleet.api.reach_online("n1", false).await;
    assert!(began.elapsed() <= CUT, "both are cut: {:?}", began.elapsed());
    copy.kill();
    // The copy is found; a person lets the original in again.
    fleet.cli(&["node", "uncordon", "n1"]).success();
    fleet.api.reach_online("n1", true).await;
    assert_eq!(fleet.api.node("n1").await.state(), v1::node::State::Active);
}

#[tokio::test]
async fn without_a_certificate_there_is_no_door() {
    let fleet = Fleet::default().start().await;
    // Another fleet's admin is nobody here.
    let other = Fleet { nodes: 0, releases: Vec::new(), ..Fleet::default() }.start().await;
    let path = fleet.dir().join("foreign.toml");
    let text = format!(
        "current = \"x\"\n[contexts.x]\naddress = {:?}\nserver_name = {:?}\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        fleet.context().address,
        fleet.context().server_name,
        fleet.context().ca,
        other.context().cert,
        other.context().key,
    );
    fs::write(&path, text).unwrap();
    assert!(Config::load_from(path.clone()).is_ok());
    let mut command = fleet.cli_command(&["node", "list"]);
    let output = crate::support::run(command.env("UPFLEET_CONFIG", &path));
    assert!([69, 77].contains(&output.code), "{output:?}");
    // Nothing in the fleet noticed.
    eventually("the component to run", || fleet.node("n1").running());
}
