//! Renews a certificate that has expired, e.g. after a long time without power: by proof of its key, at the
//! enrollment listener.

use std::time::Duration;

use upfleet_api::v1::{RenewExpiredRequest, enrollment_service_client::EnrollmentServiceClient};

use super::tls;
use crate::{
    error::chain,
    identity::{Granted, Identities, Identity, request_for},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Renews the expired certificate of `identities` and puts the new one in force. The key stays the same: the
/// request is signed by it, and that is the proof.
///
/// # Errors
/// Says what stood in the way, for a log.
pub async fn renew_expired(identities: &Identities) -> Result<(), String> {
    let old = identities.current();
    let renewed = tokio::time::timeout(PATIENCE, ask(&old));
    let granted = renewed.await.map_err(|_| "the controller did not answer".to_owned())??;
    let next = Identity::new(&old.key_pair(), granted, old.door().clone()).map_err(|error| chain(&error))?;
    if next.node() != old.node() {
        return Err(format!("the certificate is for node `{}`", next.node()));
    }
    identities.replace(next).map_err(|error| chain(&error))?;
    tracing::info!("the expired certificate was renewed");
    Ok(())
}

async fn ask(old: &Identity) -> Result<Granted, String> {
    let address = &old.door().address;
    let host = crate::enroll::host_of(address);
    let config = tls::anonymous_config(old.authorities()).map_err(|error| chain(&error))?;
    let channel = tls::connect(address, host, config).await.map_err(|error| chain(&error))?;
    let request = RenewExpiredRequest {
        certificate_der: old.chain()[0].to_vec().into(),
        csr_der: request_for(&old.key_pair()).into(),
    };
    let answer = EnrollmentServiceClient::new(channel).renew_expired(request).await;
    let answer = answer.map_err(|status| super::session::told(&status))?.into_inner();
    Ok(Granted { certificate_pem: answer.certificate_pem, ca_pem: answer.ca_pem })
}
