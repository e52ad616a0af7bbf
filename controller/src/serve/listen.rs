//! The gRPC listeners with their limits.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use upfleet_api::v1::{
    agent_service_server::AgentServiceServer, artifact_service_server::ArtifactServiceServer,
    enrollment_service_server::EnrollmentServiceServer, node_service_server::NodeServiceServer,
    patch_service_server::PatchServiceServer, release_service_server::ReleaseServiceServer,
    rollout_service_server::RolloutServiceServer, user_service_server::UserServiceServer,
};

use crate::{
    api::{Api, Enrollment, RolloutApi, Uncopied},
    auth::AuthLayer,
    engine::Rollouts,
    ops::Operations,
    tls::{Door, incoming},
};

/// The largest message of a call, in bytes.
const MESSAGE: usize = 1024 * 1024;
/// The largest message of an agent: a Hello with what many JVMs say of their stacks, or the JVMs of a node.
const AGENT_MESSAGE: usize = 4 * 1024 * 1024;
/// The largest message that carries bytes: a piece of 1 MiB, or a manifest of 1 MiB with its signatures.
const CONTENT_MESSAGE: usize = 2 * 1024 * 1024;
/// The largest message on the enrollment listener.
const ENROLL_MESSAGE: usize = 64 * 1024;
/// Streams at once over one connection.
pub(super) const STREAMS: u32 = 16;
/// A peer that is silent so long is asked for a sign of life …
const KEEPALIVE: Duration = Duration::from_secs(9);
/// … and has so long to give it: a dead one is found within 30 seconds. Where one direction only is cut, the peer's
/// own question still arrives and begins the silence anew, so that its interval counts, too: 9 + 9 + 8.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
/// The largest header list, in bytes.
pub(super) const HEADERS: u32 = 16 * 1024;
/// Streams that were reset before they were served; more is an attack.
pub(super) const PENDING_RESETS: usize = 20;
/// A piece of an artifact fits one frame; the windows hold several.
const FRAME: u32 = 1024 * 1024;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How long a call on the enrollment listener may take.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);

/// What both listeners need to let somebody in.
pub(super) struct Doors {
    pub(super) api: Door,
    pub(super) enroll: Door,
}

fn bounded() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
}

/// Artifacts, whose downloads skip the general encoder.
fn artifacts(api: &Api) -> Uncopied {
    let general = ArtifactServiceServer::new(api.clone()).max_decoding_message_size(CONTENT_MESSAGE);
    Uncopied::new(general, api.clone())
}

/// What a lane for artifacts' bytes serves. All else is the main listener's alone: some of it must take turns, which it
/// does within one set of services.
pub(super) fn lane_services(operations: Operations) -> Routes {
    Routes::new(artifacts(&Api(operations)))
}

/// All services of the main listener; made once.
fn services(operations: Operations) -> Routes {
    let rollouts = Rollouts::new(operations.store.clone(), operations.clock.clone());
    let rollouts = rollouts.gated(operations.sessions.gate());
    let rollouts = RolloutApi::new(rollouts, Some(operations.sessions.clone()));
    let api = Api(operations);
    let (reporter, health) = tonic_health::server::health_reporter();
    // An empty name stands for the whole server, which the reporter says serves from the start.
    drop(reporter);
    let mut routes = Routes::builder();
    routes
        .add_service(AgentServiceServer::new(api.clone()).max_decoding_message_size(AGENT_MESSAGE))
        .add_service(artifacts(&api))
        .add_service(NodeServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE))
        .add_service(PatchServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE))
        .add_service(ReleaseServiceServer::new(api.clone()).max_decoding_message_size(CONTENT_MESSAGE))
        .add_service(RolloutServiceServer::new(rollouts).max_decoding_message_size(MESSAGE))
        .add_service(UserServiceServer::new(api).max_decoding_message_size(MESSAGE))
        .add_service(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(upfleet_api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1().expect("the descriptors were made by the build"));
    routes.add_service(reflection().build_v1alpha().expect("the descriptors were made by the build"));
    routes.routes()
}

/// Serves people, CI jobs and agents until `stop`.
pub(super) async fn api(listener: TcpListener, door: Door, operations: Operations, stop: CancellationToken) {
    let connections = incoming(listener, door, stop.clone());
    let server = bounded()
        .max_frame_size(FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(AuthLayer)
        .add_routes(services(operations))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "the main listener ended");
    }
}

/// Serves nodes that have no certificate yet until `stop`.
pub(super) async fn enroll(
    listener: TcpListener,
    door: Door,
    operations: Operations,
    stop: CancellationToken,
) {
    let connections = incoming(listener, door, stop.clone());
    let service = EnrollmentServiceServer::new(Enrollment(operations));
    let server = bounded()
        .timeout(ENROLL_TIMEOUT)
        .add_service(service.max_decoding_message_size(ENROLL_MESSAGE))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "the enrollment listener ended");
    }
}
