//! EnrollmentService, alone on its listener: callers prove a token or a key, for they have no certificate.

use std::net::IpAddr;

use tonic::{Request, Status, async_trait};
use upfleet_api::{convert, v1};
use v1::enrollment_service_server::EnrollmentService;

use super::{Answer, answer, refuse};
use crate::{
    ops::{EnrollWish, Operations},
    tls::Peer,
};

/// The longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// The service.
#[derive(Clone)]
pub struct Enrollment(pub Operations);

fn origin<T>(request: &Request<T>) -> Result<IpAddr, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.map(|peer| peer.addr.ip()).ok_or_else(|| Status::internal("the connection is not known"))
}

#[async_trait]
impl EnrollmentService for Enrollment {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Answer<v1::EnrollResponse> {
        let origin = origin(&request)?;
        let request = request.into_inner();
        if request.token.len() > MAX_TOKEN_BYTES {
            return Err(refuse(convert::invalid("token", "it is too long")));
        }
        let wish = EnrollWish {
            token: request.token,
            node: convert::parse(&request.node, "node").map_err(refuse)?,
            csr: request.csr_der.to_vec(),
            platform: convert::optional(request.platform, "platform").map_err(refuse)?,
        };
        answer(self.0.enroll(origin, &wish).await, |enrolled| v1::EnrollResponse {
            name: format!("nodes/{}", enrolled.node),
            certificate_pem: enrolled.issued.chain_pem,
            ca_pem: self.0.ca.pem().to_owned(),
            controller_address: self.0.doors.api.clone(),
            renew_time: Some(convert::timestamp(enrolled.issued.renew_time)),
        })
    }

    async fn renew_expired(
        &self,
        request: Request<v1::RenewExpiredRequest>,
    ) -> Answer<v1::RenewExpiredResponse> {
        let origin = origin(&request)?;
        let request = request.into_inner();
        let renewed = self.0.renew_expired(origin, &request.certificate_der, &request.csr_der).await;
        answer(renewed, |issued| v1::RenewExpiredResponse {
            certificate_pem: issued.chain_pem,
            ca_pem: self.0.ca.pem().to_owned(),
            renew_time: Some(convert::timestamp(issued.renew_time)),
        })
    }
}
