//! The gRPC probe: `grpc.health.v1.Health/Check` over plaintext HTTP/2.

use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{ProbeFailure, question};
use crate::config::ProbeKind;

/// Asks the server at `address` for `service`.
pub async fn probe(address: &str, service: &str) -> Result<(), ProbeFailure> {
    let kind = ProbeKind::Grpc { address: address.to_owned(), service: service.to_owned() };
    let fail = |problem: String| ProbeFailure::new(format!("{}: {problem}", question(&kind)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| fail(chain(&error)))?;
    let channel = endpoint.connect().await.map_err(|error| fail(chain(&error)))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel)
        .check(request)
        .await
        .map_err(|state| fail(format!("{:?}: {}", state.code(), state.message())))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(fail(other.as_str_name().to_owned())),
    }
}

/// An error with its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
