//! Artifacts' bytes on lanes of their own: the same gate, the same cuts, and readers that take nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};
use upfleet_api::{
    BULK_ALPN,
    v1::{
        self, artifact_service_client::ArtifactServiceClient, node_service_client::NodeServiceClient,
        rollout_service_client::RolloutServiceClient,
    },
};
use upfleet_domain::{digest::Digest, reason::ReasonCode};

use super::support::{Controller, Identity, code};
use crate::{
    blobs::PIECE,
    testing::{channel_of, client_config_with, tls_connect},
};

const SIZE: usize = 5 * PIECE + 17;

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|index| (index * 31 % 251) as u8).collect()
}

/// A controller that holds [`bytes`].
async fn stocked() -> Controller {
    use v1::upload_artifact_request::Part;
    let controller = Controller::start().await;
    let (bytes, mut artifacts) = (bytes(), artifacts(&controller, &controller.admin, false).await);
    let digest = Some((&Digest::of(&bytes)).into());
    let mut parts = vec![Part::Start(v1::UploadStart { digest, size_bytes: SIZE as u64, offset: 0 })];
    parts.extend(bytes.chunks(PIECE).map(|piece| Part::Data(piece.to_vec().into())));
    parts.push(Part::Commit(v1::UploadCommit {}));
    let parts: Vec<_> =
        parts.into_iter().map(|part| v1::UploadArtifactRequest { part: Some(part) }).collect();
    artifacts.upload_artifact(tokio_stream::iter(parts)).await.unwrap();
    controller
}

async fn connect(controller: &Controller, who: &Identity, bulk: bool, endpoint: Endpoint) -> Channel {
    let mut config = client_config_with(&controller.ca, Some(who.shown()));
    if bulk {
        Arc::get_mut(&mut config).unwrap().alpn_protocols.insert(0, BULK_ALPN.to_vec());
    }
    channel_of(endpoint, controller.running.endpoints.api, config).await.unwrap()
}

async fn artifacts(controller: &Controller, who: &Identity, bulk: bool) -> ArtifactServiceClient<Channel> {
    let channel = connect(controller, who, bulk, Endpoint::from_static("http://controller")).await;
    ArtifactServiceClient::new(channel).max_decoding_message_size(2 * PIECE)
}

fn request() -> v1::DownloadArtifactRequest {
    let digest = Some((&Digest::of(&bytes())).into());
    v1::DownloadArtifactRequest { digest, ..Default::default() }
}

async fn download(client: &mut ArtifactServiceClient<Channel>) -> Streaming<v1::DownloadArtifactResponse> {
    client.download_artifact(request()).await.unwrap().into_inner()
}

async fn read(mut stream: Streaming<v1::DownloadArtifactResponse>) -> Vec<u8> {
    let mut got = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!((message.offset, message.size_bytes), (got.len() as u64, SIZE as u64));
        got.extend(message.data);
    }
    got
}

#[tokio::test]
async fn a_lane_gives_the_same_bytes_to_the_same_people() {
    let controller = stocked().await;
    let config = client_config_with(&controller.ca, Some(controller.admin.shown()));
    let mut wishing = (*config).clone();
    wishing.alpn_protocols = vec![BULK_ALPN.to_vec(), b"h2".to_vec()];
    for (config, agreed) in [(config, &b"h2"[..]), (Arc::new(wishing), BULK_ALPN)] {
        let connection = tls_connect(controller.running.endpoints.api, config).await.unwrap();
        assert_eq!(connection.get_ref().1.alpn_protocol(), Some(agreed));
    }
    for bulk in [false, true] {
        let mut client = artifacts(&controller, &controller.admin, bulk).await;
        let whole = download(&mut client).await;
        assert_eq!(read(whole).await, bytes());
        let missing = v1::DownloadArtifactRequest {
            digest: Some((&Digest::of(b"nowhere")).into()),
            ..Default::default()
        };
        assert_eq!(code(client.download_artifact(missing).await), ReasonCode::NotFound);
        let node = controller.enroll(&format!("web-{bulk}")).await;
        let list = v1::ListArtifactsRequest::default();
        let refused = artifacts(&controller, &node, bulk).await.list_artifacts(list).await;
        assert_eq!(code(refused), ReasonCode::PermissionDenied);
    }
}

#[tokio::test]
async fn a_revoked_reader_is_cut_on_its_lane() {
    let controller = stocked().await;
    let anna = controller.user("anna", v1::Role::Publisher).await;
    let mut client = artifacts(&controller, &anna, true).await;
    let mut stream = download(&mut client).await;
    assert!(stream.message().await.unwrap().is_some());
    let revoke = v1::RevokeUserRequest { name: "users/anna".into(), ..Default::default() };
    controller.users().await.revoke_user(revoke).await.unwrap();
    let cut = timeout(Duration::from_secs(5), async {
        while let Ok(Some(_)) = stream.message().await {}
        // A new call on the same connection fails as well once it is cut.
        while client.list_artifacts(v1::ListArtifactsRequest::default()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    cut.await.expect("cut within 5 s");
}

/// 128 streams that nobody reads, on lanes and off: the memory for all of them is bounded, and whoever does read is
/// served.
#[tokio::test]
async fn readers_that_take_nothing_hold_no_more_than_their_share() {
    let controller = stocked().await;
    let mut idle = Vec::new();
    for node in 0..16 {
        let identity = controller.enroll(&format!("web-{node}")).await;
        let mut client = artifacts(&controller, &identity, node % 2 == 0).await;
        for _ in 0..8 {
            idle.push(download(&mut client).await);
        }
    }
    let mut client = artifacts(&controller, &controller.admin, true).await;
    for _ in 0..3 {
        let stream = download(&mut client).await;
        let got = timeout(Duration::from_secs(60), read(stream)).await.expect("served beside them");
        assert_eq!(got, bytes());
    }
    let held = controller.running.operations.blobs.held();
    assert!(held <= 64 * 1024 * 1024, "{held} bytes are held");
    drop((idle, client));
    crate::testing::eventually("all is given back", || controller.running.operations.blobs.held() == 0).await;
}

/// A node that opens streams and grants none of them a window, over both kinds of connection: it gets no more than its
/// share, and it is cut where others wait for what it holds.
#[tokio::test]
async fn readers_that_grant_no_window_are_bounded_and_cut() {
    let controller = stocked().await;
    let (thief, honest) = (controller.enroll("thief").await, controller.enroll("web-01").await);
    let mut stuck = Vec::new();
    for bulk in [false, true] {
        let endpoint = Endpoint::from_static("http://controller").initial_stream_window_size(0);
        let mut client = ArtifactServiceClient::new(connect(&controller, &thief, bulk, endpoint).await);
        for _ in 0..4 {
            stuck.push(download(&mut client).await);
        }
    }
    let blobs = &controller.running.operations.blobs;
    let held = || blobs.held() >= 8 * 64 * 1024;
    crate::testing::eventually("a piece lies ready for each of them", held).await;
    let mut again = artifacts(&controller, &thief, true).await;
    assert_eq!(code(again.download_artifact(request()).await), ReasonCode::LimitExceeded);
    let whole = download(&mut artifacts(&controller, &honest, true).await).await;
    assert_eq!(read(whole).await, bytes(), "the others have their own share");

    let minute = Duration::from_secs(60);
    assert_eq!((blobs.cut(minute), blobs.cut(Duration::ZERO)), (0, 2), "both connections, and not too soon");
    for mut stream in stuck {
        assert!(timeout(minute, stream.message()).await.expect("cut").is_err());
    }
    crate::testing::eventually("all is given back", || blobs.held() == 0).await;
    assert_eq!(read(download(&mut again).await).await, bytes(), "it may begin anew");
}

/// What must take turns takes them within one set of services: a lane has none of it.
#[tokio::test]
async fn a_lane_serves_artifacts_only() {
    let controller = Controller::start().await;
    let endpoint = Endpoint::from_static("http://controller");
    let lane = connect(&controller, &controller.admin, true, endpoint).await;
    let list = v1::ListRolloutsRequest::default();
    let refused = RolloutServiceClient::new(lane.clone()).list_rollouts(list).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    let list = v1::ListNodesRequest::default();
    let refused = NodeServiceClient::new(lane.clone()).list_nodes(list).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    ArtifactServiceClient::new(lane).list_artifacts(v1::ListArtifactsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn lanes_end_with_the_controller() {
    let controller = stocked().await;
    let mut client = artifacts(&controller, &controller.admin, true).await;
    assert_eq!(read(download(&mut client).await).await, bytes());
    let stopped = timeout(Duration::from_secs(8), controller.running.stop()).await;
    stopped.expect("an idle connection for bytes does not hold it up");
    assert!(client.list_artifacts(v1::ListArtifactsRequest::default()).await.is_err());
}
