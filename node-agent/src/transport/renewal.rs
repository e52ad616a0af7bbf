//! Renews the node's certificate over the session, at half of its life.
//!
//! Each renewal makes a new key. The new certificate is proven by a connection of its own before the old one
//! is given up: a certificate that the controller would not take never costs the node its identity.

use std::time::Duration;

use tokio::sync::mpsc;
use upfleet_api::v1::{
    self, GetCallerRequest, session_request::Message, user_service_client::UserServiceClient,
};
use upfleet_domain::{backoff::Backoff, time::Time};

use super::{Connector, now, session::Sender};
use crate::{
    error::chain,
    identity::{Granted, Identity, new_key, request_for},
};

/// How often the clock is looked at; a timer alone would miss that it was set.
const LOOK: Duration = Duration::from_secs(30);
/// How long the controller may take to sign, or to answer to the new certificate.
const PATIENCE: Duration = Duration::from_secs(30);
/// Renewal has days to succeed; trying it more often would only burden a controller in trouble.
const RETRY: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(1800) };

/// Renews whenever it is time, until it is dropped. `wished` is when the controller would like the first.
pub(super) async fn keep_fresh(
    connector: &Connector,
    sender: &Sender,
    mut grants: mpsc::Receiver<v1::CertificateGrant>,
    wished: Option<Time>,
) {
    let (mut wished, mut in_vain) = (wished, 0);
    loop {
        let own = connector.identities().current().renew_at(rand::random());
        let at = wished.take().map_or(own, |wished| wished.min(own));
        while now() < at {
            tokio::time::sleep(at.since(now()).min(LOOK)).await;
        }
        let mut attempt = 0;
        while let Err(problem) = renew(connector, sender, &mut grants).await {
            tracing::warn!(problem, "could not renew the certificate");
            tokio::time::sleep(RETRY.delay(attempt, rand::random())).await;
            attempt += 1;
        }
        tokio::time::sleep(pause(connector.identities().current().renew_at(0.0), now(), &mut in_vain)).await;
    }
}

/// The wait after a renewal. To a clock that runs ahead a new certificate is due at once, too; the controller
/// is not to sign without end for that.
fn pause(due: Time, now: Time, in_vain: &mut u32) -> Duration {
    if now < due {
        *in_vain = 0;
        return Duration::ZERO;
    }
    let bound = RETRY.bound(*in_vain);
    *in_vain = in_vain.saturating_add(1);
    bound
}

async fn renew(
    connector: &Connector,
    sender: &Sender,
    grants: &mut mpsc::Receiver<v1::CertificateGrant>,
) -> Result<(), String> {
    // A late answer to an earlier request is for a key that is gone.
    while grants.try_recv().is_ok() {}
    let key = new_key();
    let csr_der = request_for(&key).into();
    sender.send(Message::CertificateRequest(v1::CertificateRequest { csr_der })).await;
    let grant = tokio::time::timeout(PATIENCE, grants.recv()).await;
    let grant = grant.ok().flatten().ok_or("the controller did not answer")?;
    let granted = Granted { certificate_pem: grant.certificate_pem, ca_pem: grant.ca_pem };
    let old = connector.identities().current();
    let next = Identity::new(&key, granted, old.door().clone()).map_err(|error| chain(&error))?;
    if next.node() != old.node() {
        return Err(format!("the certificate is for node `{}`", next.node()));
    }
    // One of the two clocks is wrong: a certificate that is good only by the other one would lock the node out once
    // that is set right.
    if !next.is_valid(now()) {
        return Err(format!("the certificate is not good at this time, by the node's clock: {}", now()));
    }
    tokio::time::timeout(PATIENCE, prove(connector, &next))
        .await
        .map_err(|_| "the controller did not answer to the new certificate".to_owned())??;
    let not_after = next.not_after();
    connector.identities().replace(next).map_err(|error| chain(&error))?;
    tracing::info!(%not_after, "certificate renewed");
    Ok(())
}

/// Whether the controller takes the certificate, and takes it for this node's.
async fn prove(connector: &Connector, identity: &Identity) -> Result<(), String> {
    let channel = connector.connect_as(identity).await.map_err(|error| chain(&error))?;
    let caller = UserServiceClient::new(channel)
        .get_caller(GetCallerRequest {})
        .await
        .map_err(|status| super::session::told(&status))?;
    let name = caller.into_inner().name;
    let own = format!("nodes/{}", identity.node());
    if name == own { Ok(()) } else { Err(format!("the controller takes the certificate for `{name}`")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_ahead_does_not_renew_without_end() {
        let mut in_vain = 0;
        assert_eq!(pause(Time(10), Time(5), &mut in_vain), Duration::ZERO);
        let waits: Vec<u64> = (0..10).map(|_| pause(Time(10), Time(20), &mut in_vain).as_secs()).collect();
        assert_eq!((waits[0], waits[1], waits[9]), (10, 20, 1800));
        assert_eq!(pause(Time(30), Time(20), &mut in_vain), Duration::ZERO);
        assert_eq!(pause(Time(10), Time(20), &mut in_vain), Duration::from_secs(10));
    }
}
