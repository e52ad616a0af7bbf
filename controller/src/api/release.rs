//! ReleaseService.

use tonic::{Request, async_trait};
use upfleet_api::{convert, v1};
use upfleet_domain::{reason::Reason, release::Kind};
use v1::release_service_server::ReleaseService;

use super::{Answer, Api, answer, names, opened, page, refuse, show};
use crate::ops::Once;

/// The one-field answers of this service.
macro_rules! release_answer {
    ($result:expr, $response:ident) => {
        answer($result, |view| v1::$response { release: Some(show::release(&view, true)) })
    };
}

fn release_kind(name: &str) -> Result<Kind, Reason> {
    let known =
        [Kind::Binary, Kind::Files, Kind::Patch, Kind::Agent].into_iter().find(|kind| kind.as_str() == name);
    known.ok_or_else(|| convert::invalid("kind", "kinds are `binary`, `files`, `patch` and `agent`"))
}

#[async_trait]
impl ReleaseService for Api {
    async fn create_release(
        &self,
        request: Request<v1::CreateReleaseRequest>,
    ) -> Answer<v1::CreateReleaseResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("CreateRelease", &request.request_id, &request).map_err(refuse)?;
        let signatures = request.signatures.iter().map(|signature| signature.to_vec()).collect();
        let (manifest, dry) = (request.manifest.to_vec(), request.validate_only);
        let created = self.0.create_release(&caller, manifest, signatures, dry, once.as_ref()).await;
        release_answer!(created, CreateReleaseResponse)
    }

    async fn get_release(&self, request: Request<v1::GetReleaseRequest>) -> Answer<v1::GetReleaseResponse> {
        let (_, request) = opened(request)?;
        let (component, version) = names::release(&request.name, "name").map_err(refuse)?;
        release_answer!(self.0.release(&component, &version).await, GetReleaseResponse)
    }

    async fn list_releases(
        &self,
        request: Request<v1::ListReleasesRequest>,
    ) -> Answer<v1::ListReleasesResponse> {
        let (_, request) = opened(request)?;
        let query = ("releases", &request.component, &request.kind);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let component = convert::parse_optional(&request.component, "component").map_err(refuse)?;
        let kind = match request.kind.as_str() {
            "" => None,
            name => Some(release_kind(name).map_err(refuse)?),
        };
        let found = self.0.list_releases(component.as_ref(), kind, &page).await;
        page::listed(
            found,
            &query,
            |view| show::release(view, false),
            |releases, next_page_token| v1::ListReleasesResponse { releases, next_page_token },
        )
    }

    async fn yank_release(
        &self,
        request: Request<v1::YankReleaseRequest>,
    ) -> Answer<v1::YankReleaseResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("YankRelease", &request.request_id, &request).map_err(refuse)?;
        let (component, version) = names::release(&request.name, "name").map_err(refuse)?;
        let done = self.0.yank_release(&caller, &component, &version, &request.message, once.as_ref());
        release_answer!(done.await, YankReleaseResponse)
    }

    async fn unquarantine_release(
        &self,
        request: Request<v1::UnquarantineReleaseRequest>,
    ) -> Answer<v1::UnquarantineReleaseResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("UnquarantineRelease", &request.request_id, &request).map_err(refuse)?;
        let (component, version) = names::release(&request.name, "name").map_err(refuse)?;
        let done =
            self.0.unquarantine_release(&caller, &component, &version, &request.message, once.as_ref());
        release_answer!(done.await, UnquarantineReleaseResponse)
    }
}
