//! PatchService.

use tonic::{Request, Response, async_trait};
use upfleet_api::{convert, v1};
use upfleet_domain::reason::Reason;
use v1::patch_service_server::PatchService;

use super::{Answer, Api, answer, node::selector, opened, page, refuse, show};
use crate::ops::{FixQuestion, Standing};

fn standing(wire: i32, index: usize) -> Result<Standing, Reason> {
    use v1::fix_state::State;
    match State::try_from(wire) {
        Ok(State::Lacks) => Ok(Standing::Lacks),
        Ok(State::Unproved) => Ok(Standing::Unproved),
        Ok(State::Patched) => Ok(Standing::Patched),
        Ok(State::InBase) => Ok(Standing::InBase),
        Ok(State::Unspecified) | Err(_) => {
            Err(convert::invalid(&format!("states[{index}]"), format!("{wire} is no state of a fix")))
        }
    }
}

#[async_trait]
impl PatchService for Api {
    async fn list_fix_states(
        &self,
        request: Request<v1::ListFixStatesRequest>,
    ) -> Answer<v1::ListFixStatesResponse> {
        let (_, request) = opened(request)?;
        if request.fix.is_empty() {
            return Err(refuse(convert::invalid("fix", "it is required")));
        }
        let query = ("fixes", &request.fix, &request.selector, &request.component, &request.states);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let standings: Result<Vec<_>, Reason> =
            request.states.iter().enumerate().map(|(index, state)| standing(*state, index)).collect();
        let question = FixQuestion {
            fix: request.fix.clone(),
            selector: selector(&request.selector)?,
            component: convert::parse_optional(&request.component, "component").map_err(refuse)?,
            standings: standings.map_err(refuse)?,
        };
        let found = self.0.fix_states(&question, &page).await.map_err(refuse)?;
        Ok(Response::new(v1::ListFixStatesResponse {
            nodes: found.rows.rows.iter().map(show::fix_state).collect(),
            next_page_token: found.rows.token(&query),
            counts: found.counts.iter().map(|(state, count)| (state.as_str().to_owned(), *count)).collect(),
        }))
    }

    async fn list_patch_counts(
        &self,
        request: Request<v1::ListPatchCountsRequest>,
    ) -> Answer<v1::ListPatchCountsResponse> {
        let (_, request) = opened(request)?;
        let component = convert::parse_optional(&request.component, "component").map_err(refuse)?;
        let selector = selector(&request.selector)?;
        answer(self.0.patch_counts(component.as_ref(), &selector).await, |counts| {
            v1::ListPatchCountsResponse { counts: counts.iter().map(show::patch_count).collect() }
        })
    }
}
