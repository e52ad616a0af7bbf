//! AgentService: hands a node's stream to its session.

use tonic::{Request, Response, Status, Streaming, async_trait};
use upfleet_api::v1;
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    time::Time,
};
use v1::agent_service_server::AgentService;

use super::{Answer, Api, refuse};
use crate::{
    auth::{Principal, principal},
    ca::NODE_LIFETIME,
    sessions,
    tls::Peer,
};

#[async_trait]
impl AgentService for Api {
    type SessionStream = sessions::Outgoing;

    async fn session(&self, request: Request<Streaming<v1::SessionRequest>>) -> Answer<Self::SessionStream> {
        // The node is the one in the certificate; nothing in a message can name another.
        let Principal::Node(node) = principal(&request)? else {
            return Err(refuse(Reason::new(ReasonCode::Unauthenticated)));
        };
        let renew = renew_time(&request)?;
        let outgoing = sessions::serve(&self.0.sessions, node, renew, request.into_inner());
        Ok(Response::new(outgoing))
    }
}

/// Half the life of the certificate that is in use.
fn renew_time<T>(request: &Request<T>) -> Result<Time, Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.credentials.as_ref());
    let leaf = &peer.ok_or_else(|| refuse(Reason::new(ReasonCode::Unauthenticated)))?.leaf;
    let half = i64::try_from(NODE_LIFETIME.as_millis() / 2).unwrap_or(0);
    Ok(Time(leaf.expires.0.saturating_sub(half)))
}
