//! UserService.

use tonic::{Request, Response, async_trait};
use upfleet_api::{convert, v1};
use upfleet_domain::reason::{Reason, ReasonCode};
use v1::user_service_server::UserService;

use super::{Answer, Api, answer, names, opened, page, refuse, show};
use crate::{
    auth::{role_from_wire, role_to_wire},
    ops::{Once, UserWish},
    tls::Peer,
    version::VERSION,
};

#[async_trait]
impl UserService for Api {
    async fn issue_user_certificate(
        &self,
        request: Request<v1::IssueUserCertificateRequest>,
    ) -> Answer<v1::IssueUserCertificateResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("IssueUserCertificate", &request.request_id, &request).map_err(refuse)?;
        let role =
            role_from_wire(request.role).ok_or_else(|| refuse(convert::invalid("role", "it is required")))?;
        let wish = UserWish {
            user: names::id(&request.name, "users", "name").map_err(refuse)?,
            role,
            ttl: request.ttl.as_ref().map(|ttl| convert::span(ttl, "ttl")).transpose().map_err(refuse)?,
            csr: request.csr_der.to_vec(),
        };
        answer(self.0.issue_user(&caller, &wish, once.as_ref()).await, |issued| {
            v1::IssueUserCertificateResponse {
                certificate_pem: issued.certificate_pem,
                ca_pem: self.0.ca.pem().to_owned(),
                user: Some(show::user(&issued.record)),
            }
        })
    }

    async fn list_users(&self, request: Request<v1::ListUsersRequest>) -> Answer<v1::ListUsersResponse> {
        let (_, request) = opened(request)?;
        let page = page::page(request.page_size, &request.page_token, &"users")?;
        page::listed(self.0.list_users(&page).await, &"users", show::user, |users, next_page_token| {
            v1::ListUsersResponse { users, next_page_token }
        })
    }

    async fn revoke_user(&self, request: Request<v1::RevokeUserRequest>) -> Answer<v1::RevokeUserResponse> {
        let (caller, request) = opened(request)?;
        let user = names::id(&request.name, "users", "name").map_err(refuse)?;
        let serial = (!request.serial.is_empty()).then_some(request.serial.as_str());
        answer(self.0.revoke_user(&caller, &user, serial, &request.message).await, |revoked| {
            v1::RevokeUserResponse { users: revoked.iter().map(show::user).collect() }
        })
    }

    async fn get_caller(&self, request: Request<v1::GetCallerRequest>) -> Answer<v1::GetCallerResponse> {
        let peer = request.extensions().get::<Peer>();
        let known = peer.and_then(|peer| Some((peer.credentials.clone()?, peer.key_exchange.clone())));
        let (credentials, key_exchange) =
            known.ok_or_else(|| refuse(Reason::new(ReasonCode::Unauthenticated)))?;
        let role = credentials.principal.role().map_or(v1::Role::Unspecified, role_to_wire);
        Ok(Response::new(v1::GetCallerResponse {
            name: credentials.principal.to_string(),
            role: role.into(),
            expire_time: Some(convert::timestamp(credentials.leaf.expires)),
            controller_version: VERSION.to_owned(),
            key_exchange,
        }))
    }
}
