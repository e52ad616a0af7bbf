//! What any client may rely on: creations happen once, plans are honoured, what is not built says so.

use tonic::Code;
use upfleet_api::v1::{self, rollout::State};

use crate::support::Fleet;

#[tokio::test]
async fn the_same_request_twice_is_one_rollout() {
    let fleet = Fleet::default().start().await;
    let request = v1::CreateRolloutRequest {
        spec: Some(fleet.spec("1.1.0")),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let create = |request| async { fleet.api.client.rollouts().create_rollout(request).await };
    let first = create(request.clone()).await.unwrap().into_inner().rollout.unwrap();
    let second = create(request.clone()).await.unwrap().into_inner().rollout.unwrap();
    assert_eq!(first.name, second.name);
    // The same id for something else is a mistake of the caller.
    let other = v1::CreateRolloutRequest { message: "another".to_owned(), ..request };
    let status = create(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let reason = upfleet_api::reason::from_status(&status).expect("every error carries its reason");
    assert_eq!(reason.code.as_str(), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_plan_that_drifted_is_refused() {
    let mut fleet = Fleet { nodes: 2, ..Fleet::default() }.start().await;
    let spec = v1::RolloutSpec { seed: 7, ..fleet.spec("1.1.0") };
    let plan = |expected: &str, validate_only| v1::CreateRolloutRequest {
        spec: Some(spec.clone()),
        validate_only,
        expected_plan_digest: expected.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let planned = fleet.api.client.rollouts().create_rollout(plan("", true)).await.unwrap().into_inner();
    assert!(planned.rollout.is_none(), "nothing was stored");
    let digest = planned.plan.unwrap().plan_digest;
    let again = fleet.api.client.rollouts().create_rollout(plan("", true)).await.unwrap().into_inner();
    assert_eq!(again.plan.unwrap().plan_digest, digest, "the same fleet and seed give the same plan");
    // The fleet grows, and the plan is not what the person saw any more.
    let index = fleet.add_node("n3", None).await;
    fleet.nodes[index].start();
    fleet.api.reach_online("n3", true).await;
    let status = fleet.api.client.rollouts().create_rollout(plan(&digest, false)).await.unwrap_err();
    let reason = upfleet_api::reason::from_status(&status).expect("every error carries its reason");
    assert_eq!(reason.code.as_str(), "PLAN_CHANGED");
}

#[tokio::test]
async fn a_stack_that_is_empty_already_is_no_plan() {
    let fleet = Fleet::default().start().await;
    let mut spec = fleet.spec("1.1.0");
    spec.change = Some(v1::rollout_spec::Change::Stack(v1::StackChange { none: true, ..Default::default() }));
    let status = fleet.api.create(spec).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let reason = upfleet_api::reason::from_status(&status).expect("every error carries its reason");
    assert_eq!(reason.code.as_str(), "EMPTY_PLAN");
}

#[tokio::test]
async fn a_yanked_release_is_not_rolled_out() {
    let fleet = Fleet::default().start().await;
    fleet.cli(&["release", "yank", "app@1.1.0", "--yes", "--message", "leaks"]).success();
    let status = fleet.api.create(fleet.spec("1.1.0")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn the_second_listener_answers_from_the_start() {
    let fleet = Fleet::default().start().await;
    for (path, expected) in [("livez", ""), ("readyz", ""), ("metrics", "upfleet_")] {
        let answer = get(&format!("{}/{path}", fleet.metrics())).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert!(answer.contains(expected), "{path}: {answer}");
    }
    let name = fleet.install("1.1.0").await;
    assert_eq!(fleet.api.rollout(&name).await.state(), State::Succeeded);
}

/// A GET over a plain connection.
async fn get(url: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let rest = url.trim_start_matches("http://");
    let (address, path) = rest.split_once('/').unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
