//! How a node joins: trades a single-use token for its first certificate.
//!
//! The key is made here and stays here. The token's secret is sent only to a controller whose authority has
//! the key that the token pins. Nothing of an earlier identity is touched before the new one is granted.

mod config_file;
mod pin;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

pub use config_file::{ConfigFileError, write_controller};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use upfleet_api::{
    reason,
    v1::{EnrollRequest, EnrollResponse, enrollment_service_client::EnrollmentServiceClient},
};
use upfleet_domain::{id::NodeId, reason::Reason, token::EnrollmentToken};

use crate::{
    config::ControllerConfig,
    identity::{EnrollmentDoor, Granted, Identities, Identity, IdentityError, new_key, request_for},
    platform::node_platform,
    transport::tls::{self, ConnectError},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// The controller can't be reached, or is not the one of the token. For the operator.
    #[error("could not reach the controller of the token")]
    Connect(#[source] ConnectError),
    /// It did not answer. For the operator.
    #[error("the controller at `{0}` did not answer within 30 seconds")]
    Silent(String),
    /// It said no, and why.
    #[error("the controller refused to enroll node `{node}`")]
    Refused {
        /// The name that was asked for.
        node: NodeId,
        /// Why not.
        #[source]
        reason: Reason,
    },
    /// It failed without a reason.
    #[error("the controller failed to enroll node `{node}`")]
    Failed {
        /// The name that was asked for.
        node: NodeId,
        /// How.
        #[source]
        status: Box<tonic::Status>,
    },
    /// What it granted is not what belongs together.
    #[error("the controller's answer can't be used: {0}")]
    Answer(String),
    /// The identity can't be kept. For the operator.
    #[error("could not keep the new identity")]
    Identity(#[from] IdentityError),
}

/// The host of `host:port`, without the brackets of an IPv6 address.
#[must_use]
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Joins as `node` and writes the identity below `state_dir`. Returns where the agent's session goes.
///
/// # Errors
/// [`EnrollError`]; nothing was written then.
pub async fn enroll(
    token: &EnrollmentToken,
    node: &NodeId,
    state_dir: &Path,
) -> Result<ControllerConfig, EnrollError> {
    let key = new_key();
    let config =
        pin::pinned_config(token.pin).map_err(|error| EnrollError::Connect(ConnectError::Tls(error)))?;
    let channel =
        tls::connect(&token.address, host_of(&token.address), config).await.map_err(EnrollError::Connect)?;
    let request = EnrollRequest {
        token: token.secret.clone(),
        node: node.to_string(),
        csr_der: request_for(&key).into(),
        platform: Some((&node_platform()).into()),
    };
    let asked = tokio::time::timeout(PATIENCE, EnrollmentServiceClient::new(channel).enroll(request)).await;
    let answer = asked.map_err(|_| EnrollError::Silent(token.address.clone()))?;
    let answer = answer.map_err(|status| refused(node, status))?.into_inner();
    let controller = session_address(token, &answer);
    check_authorities(token, &answer.ca_pem)?;
    let granted = Granted { certificate_pem: answer.certificate_pem, ca_pem: answer.ca_pem };
    let door = EnrollmentDoor { address: token.address.clone() };
    let identity = Identity::new(&key, granted, door)?;
    if identity.node() != node {
        return Err(EnrollError::Answer(format!("the certificate is for node `{}`", identity.node())));
    }
    Identities::create(state_dir, identity)?;
    Ok(controller)
}

fn refused(node: &NodeId, status: tonic::Status) -> EnrollError {
    let node = node.clone();
    match reason::from_status(&status) {
        Some(reason) => EnrollError::Refused { node, reason },
        None => EnrollError::Failed { node, status: Box::new(status) },
    }
}

/// The authorities to trust from now on must hold the pinned one: else the next connection would fail.
fn check_authorities(token: &EnrollmentToken, ca_pem: &str) -> Result<(), EnrollError> {
    let pinned = CertificateDer::pem_slice_iter(ca_pem.as_bytes())
        .filter_map(Result::ok)
        .any(|certificate| pin::has_key(&certificate, token.pin));
    if pinned { Ok(()) } else { Err(EnrollError::Answer("it does not hold the pinned authority".to_owned())) }
}

/// Where the controller says; on the host that was just reached where it names none of its own.
fn session_address(token: &EnrollmentToken, answer: &EnrollResponse) -> ControllerConfig {
    let host = token.address.rsplit_once(':').map_or("", |(host, _)| host);
    let address = match answer.controller_address.rsplit_once(':') {
        Some(("" | "0.0.0.0" | "[::]", port)) => format!("{host}:{port}"),
        Some(_) => answer.controller_address.clone(),
        None => format!("{host}:7443"),
    };
    ControllerConfig { address, server_name: None }
}
