//! Calls of people and CI jobs: roles, exactly-once, etags, pages, limits, health and metrics.

use rcgen::KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;
use upfleet_api::v1::{
    self, artifact_service_client::ArtifactServiceClient, node_service_client::NodeServiceClient,
    release_service_client::ReleaseServiceClient, user_service_client::UserServiceClient,
};
use upfleet_domain::{
    digest::Digest,
    reason::ReasonCode,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
};

use super::support::{Agent, Controller, code, csr, hello};
use crate::{
    clock::Clock,
    init::{Init, InitError, init},
    store::Page,
};

fn manifest(version: &str, sequence: u64, artifact: &[u8]) -> Vec<u8> {
    Manifest {
        format: FORMAT,
        component: "hello".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { os: "linux".into(), arch: "amd64".into() },
            sha256: Digest::of(artifact),
            md5: None,
            size: artifact.len() as u64,
            sources: vec![],
            encodings: vec![],
        }],
        fixes: Vec::new(),
        patch: None,
        files: None,
    }
    .to_bytes()
}

fn upload(bytes: &[u8], offset: u64) -> Vec<v1::UploadArtifactRequest> {
    use v1::upload_artifact_request::Part;
    let start =
        v1::UploadStart { digest: Some((&Digest::of(bytes)).into()), size_bytes: bytes.len() as u64, offset };
    let rest = bytes[usize::try_from(offset).unwrap()..].to_vec();
    [Part::Start(start), Part::Data(rest.into()), Part::Commit(v1::UploadCommit {})]
        .map(|part| v1::UploadArtifactRequest { part: Some(part) })
        .into()
}

#[tokio::test]
async fn roles_decide_who_may_call_what() {
    let controller = Controller::start().await;
    let viewer = controller.channel(&controller.user("anna", v1::Role::Viewer).await).await;
    let publisher = controller.channel(&controller.user("ci@build", v1::Role::Publisher).await).await;
    let node = controller.channel(&controller.enroll("web-01").await).await;

    let caller = UserServiceClient::new(viewer.clone()).get_caller(v1::GetCallerRequest {}).await;
    let caller = caller.unwrap().into_inner();
    assert_eq!((caller.name.as_str(), caller.role()), ("users/anna", v1::Role::Viewer));
    assert_eq!(caller.key_exchange, "X25519MLKEM768");
    let list = v1::ListNodesRequest::default;
    NodeServiceClient::new(viewer.clone()).list_nodes(list()).await.unwrap();
    let cordon = v1::CordonNodeRequest { name: "nodes/web-01".into(), ..Default::default() };
    for channel in [viewer, publisher.clone(), node.clone()] {
        let refused = NodeServiceClient::new(channel).cordon_node(cordon.clone()).await;
        assert_eq!(code(refused), ReasonCode::PermissionDenied);
    }
    let refused = NodeServiceClient::new(node).list_nodes(list()).await;
    assert_eq!(code(refused), ReasonCode::PermissionDenied, "a node reads no other");
    let refused = UserServiceClient::new(publisher).list_users(v1::ListUsersRequest::default()).await;
    assert_eq!(code(refused), ReasonCode::PermissionDenied);
    let anna = controller.admin.clone();
    assert!(Agent::open(&controller, &anna, hello("a")).await.is_err(), "an admin is no node");
}

#[tokio::test]
async fn a_revoked_user_is_thrown_out() {
    let controller = Controller::start().await;
    let identity = controller.user("anna", v1::Role::Viewer).await;
    let mut anna = NodeServiceClient::new(controller.channel(&identity).await);
    let watch = anna.watch_nodes(v1::WatchNodesRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    assert!(watch.next().await.unwrap().unwrap().initial_done);
    let revoke = v1::RevokeUserRequest { name: "users/anna".into(), ..Default::default() };
    let revoked = controller.users().await.revoke_user(revoke).await.unwrap().into_inner();
    assert_eq!(revoked.users.len(), 1);
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), watch.next()).await;
    assert!(matches!(end, Ok(None | Some(Err(_)))), "{end:?}");
}

#[tokio::test]
async fn an_artifact_and_its_release_are_published() {
    let controller = Controller::start().await;
    let identity = controller.user("ci", v1::Role::Publisher).await;
    let channel = controller.channel(&identity).await;
    let mut artifacts = ArtifactServiceClient::new(channel.clone());
    let mut releases = ReleaseServiceClient::new(channel);
    let bytes = b"#!/bin/sh\nexec sleep 1\n";
    let request = |dry| v1::CreateReleaseRequest {
        manifest: manifest("1.0.0", 1, bytes).into(),
        validate_only: dry,
        ..Default::default()
    };
    assert_eq!(code(releases.create_release(request(false)).await), ReasonCode::ArtifactMissing);

    let mut broken = upload(bytes, 0);
    broken.truncate(2);
    assert!(artifacts.upload_artifact(tokio_stream::iter(broken)).await.is_err());
    let ask = v1::GetArtifactUploadRequest { digest: Some((&Digest::of(bytes)).into()) };
    let at = artifacts.get_artifact_upload(ask).await.unwrap().into_inner();
    assert!(at.artifact.is_none());
    let done = artifacts.upload_artifact(tokio_stream::iter(upload(bytes, at.offset))).await.unwrap();
    assert_eq!(done.into_inner().artifact.unwrap().creator, "users/ci");

    releases.create_release(request(true)).await.unwrap();
    let list = v1::ListReleasesRequest::default();
    assert!(releases.list_releases(list.clone()).await.unwrap().into_inner().releases.is_empty());
    let created = releases.create_release(request(false)).await.unwrap().into_inner().release.unwrap();
    assert_eq!(created.name, "releases/hello@1.0.0");
    assert_eq!(created.manifest, manifest("1.0.0", 1, bytes), "verbatim");
    let taken = v1::CreateReleaseRequest { manifest: manifest("1.0.1", 1, bytes).into(), ..request(false) };
    assert_eq!(code(releases.create_release(taken).await), ReasonCode::SequenceTaken);
    let name = format!("artifacts/{}", Digest::of(bytes));
    let delete = artifacts.delete_artifact(v1::DeleteArtifactRequest { name }).await;
    assert_eq!(code(delete), ReasonCode::ArtifactInUse);

    let range = v1::DownloadArtifactRequest {
        digest: Some((&Digest::of(bytes)).into()),
        offset: 2,
        limit: 7,
        ..Default::default()
    };
    let mut pieces = artifacts.download_artifact(range).await.unwrap().into_inner();
    let piece = pieces.message().await.unwrap().unwrap();
    assert_eq!((piece.offset, &piece.data[..], piece.size_bytes), (2, &bytes[2..9], bytes.len() as u64));
    assert!(pieces.message().await.unwrap().is_none());

    let once = v1::CreateReleaseRequest {
        manifest: manifest("1.1.0", 2, bytes).into(),
        request_id: "6f0c2a52-6f0e-4a51-9b6a-0d8cc9e6a003".into(),
        ..Default::default()
    };
    let first = releases.create_release(once.clone()).await.unwrap().into_inner();
    assert_eq!(releases.create_release(once).await.unwrap().into_inner(), first);

    let yank = v1::YankReleaseRequest {
        name: "releases/hello@1.0.0".into(),
        message: "leaks".into(),
        ..Default::default()
    };
    let yanked = releases.yank_release(yank).await.unwrap().into_inner().release.unwrap();
    assert_eq!(yanked.yank_message, "leaks");
}

#[tokio::test]
async fn the_same_request_id_gives_the_first_answer() {
    let controller = Controller::start().await;
    let key = KeyPair::generate().unwrap();
    let request = v1::IssueUserCertificateRequest {
        name: "users/anna".into(),
        role: v1::Role::Viewer.into(),
        csr_der: csr(&key).into(),
        request_id: "6f0c2a52-6f0e-4a51-9b6a-0d8cc9e6a001".into(),
        ..Default::default()
    };
    let mut users = controller.users().await;
    let first = users.issue_user_certificate(request.clone()).await.unwrap().into_inner();
    let again = users.issue_user_certificate(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = v1::IssueUserCertificateRequest { role: v1::Role::Admin.into(), ..request.clone() };
    assert_eq!(code(users.issue_user_certificate(other).await), ReasonCode::RequestIdReused);
    let bad = v1::IssueUserCertificateRequest { request_id: "7".into(), ..request };
    assert_eq!(code(users.issue_user_certificate(bad).await), ReasonCode::InvalidArgument);

    let token = v1::CreateEnrollmentTokenRequest {
        request_id: "6f0c2a52-6f0e-4a51-9b6a-0d8cc9e6a002".into(),
        ..Default::default()
    };
    let mut nodes = controller.nodes().await;
    let first = nodes.create_enrollment_token(token.clone()).await.unwrap().into_inner();
    let again = nodes.create_enrollment_token(token).await.unwrap().into_inner();
    assert_eq!(first.token, again.token);
    assert!(!first.secret.is_empty() && again.secret.is_empty(), "a secret is shown once");
}

#[tokio::test]
async fn labels_are_changed_under_an_etag_and_recorded() {
    let controller = Controller::start().await;
    controller.enroll("web-01").await;
    let mut nodes = controller.nodes().await;
    let get = v1::GetNodeRequest { name: "nodes/web-01".into() };
    let mut node = nodes.get_node(get).await.unwrap().into_inner().node.unwrap();
    node.labels.insert("env".into(), "prod".into());
    let update = |node: &v1::Node| v1::UpdateNodeRequest {
        node: Some(node.clone()),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["labels".into()] }),
    };
    nodes.update_node(update(&node)).await.unwrap();
    assert_eq!(code(nodes.update_node(update(&node)).await), ReasonCode::EtagMismatch);
    let mut wrong = update(&node);
    wrong.update_mask.as_mut().unwrap().paths.push("state".into());
    assert_eq!(code(nodes.update_node(wrong).await), ReasonCode::InvalidArgument);

    let list = |selector: &str| v1::ListNodesRequest { selector: selector.into(), ..Default::default() };
    assert_eq!(nodes.list_nodes(list("env=prod")).await.unwrap().into_inner().nodes.len(), 1);
    assert_eq!(nodes.list_nodes(list("env=dev")).await.unwrap().into_inner().nodes.len(), 0);
    assert_eq!(code(nodes.list_nodes(list("env=")).await), ReasonCode::InvalidArgument);

    let store = &controller.running.operations.store;
    let audit = store.audit(Some("nodes/web-01"), &Page::ALL).await.unwrap().rows;
    let entry = audit.iter().find(|entry| entry.action == "node.label").unwrap();
    assert_eq!(entry.actor, "users/root");
    assert_eq!((&entry.before["labels"]["env"], &entry.after["labels"]["env"]), (&().into(), &"prod".into()));
}

#[tokio::test]
async fn pages_follow_each_other_within_one_query() {
    let controller = Controller::start().await;
    for name in ["a", "b", "c"] {
        controller.enroll(name).await;
    }
    let mut nodes = controller.nodes().await;
    let mut request = v1::ListNodesRequest { page_size: 2, ..Default::default() };
    let first = nodes.list_nodes(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.nodes.len(), 2);
    request.page_token = first.next_page_token;
    let second = nodes.list_nodes(request.clone()).await.unwrap().into_inner();
    assert_eq!((second.nodes.len(), second.next_page_token.as_str()), (1, ""));
    request.selector = "name=a".into();
    assert_eq!(code(nodes.list_nodes(request).await), ReasonCode::InvalidArgument);
}

#[tokio::test]
async fn a_message_beyond_its_limit_is_refused() {
    let controller = Controller::start().await;
    let mut releases = controller.releases().await;
    let huge = v1::CreateReleaseRequest { manifest: vec![b' '; 3 << 20].into(), ..Default::default() };
    let status = releases.create_release(huge).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
}

async fn http(controller: &Controller, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(controller.running.endpoints.metrics).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn health_and_metrics_are_there_for_machines() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let drift = v1::Reason { code: "CLASS_OLD".into(), ..Default::default() };
    let mut greeting = hello("a");
    greeting.components[0].drift = Some(drift);
    let _agent = Agent::open(&controller, &identity, greeting).await.unwrap();
    assert!(http(&controller, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(http(&controller, "/readyz").await.starts_with("HTTP/1.1 200"));
    let page = http(&controller, "/metrics").await;
    assert!(page.contains("upfleet_build_info{version="), "{page}");
    assert!(page.contains("upfleet_nodes{state=\"ACTIVE\",online=\"true\"} 1"), "{page}");
    assert!(page.contains("upfleet_agent_streams 1"), "{page}");
    assert!(page.contains("upfleet_components_drifted{component=\"hello\"} 1"), "{page}");
    assert!(page.contains("upfleet_classes_old{component=\"hello\"} 0"), "{page}");
    assert!(!page.contains("web-01"), "no node is named");
}

#[tokio::test]
async fn a_controller_stops_and_starts_where_it_stood() {
    let Controller { dir, running, admin, ca } = Controller::start().await;
    let written = dir.path().join("data/run/endpoints.json");
    assert!(written.exists());
    running.stop().await;
    assert!(!written.exists());
    let running = super::super::start(&super::support::options(&dir), Clock::System).await.unwrap();
    let again = Controller { dir, running, admin, ca };
    again.nodes().await.list_nodes(v1::ListNodesRequest::default()).await.unwrap();

    let wanted = Init {
        names: vec!["localhost".into()],
        data: super::support::options(&again.dir).data,
        admin: "root".parse().unwrap(),
    };
    let refused = init(&wanted, &Clock::System).await;
    assert!(matches!(refused, Err(InitError::Exists { .. })), "an existing fleet's keys are not touched");
}

#[tokio::test]
async fn stopping_does_not_wait_for_watchers() {
    let controller = Controller::start().await;
    let mut nodes = controller.nodes().await;
    let mut watch = nodes.watch_nodes(v1::WatchNodesRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().initial_done);
    let stopped = controller.running.stop();
    let (_, end) = tokio::join!(stopped, watch.message());
    assert!(matches!(end, Ok(None)), "ended in good order: {end:?}");
}
