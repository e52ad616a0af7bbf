//! NodeService.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, async_trait};
use upfleet_api::{convert, v1};
use upfleet_domain::{labels::Selector, reason::Reason};
use v1::node_service_server::NodeService;

use super::{Answer, Api, answer, names, opened, page, refuse, show};
use crate::ops::{JvmQuestion, Once, TokenWish};

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The lines that are shown where no number is asked for, and the most.
const LINES: u32 = 200;
const MAX_LINES: u32 = 2000;

pub(super) fn selector(text: &str) -> Result<Selector, Status> {
    let found = if text.is_empty() { Ok(Selector::all()) } else { text.parse() };
    found.map_err(|error| refuse(convert::invalid("selector", error)))
}

fn node_id(name: &str) -> Result<upfleet_domain::id::NodeId, Status> {
    names::id(name, "nodes", "name").map_err(refuse)
}

/// Holds the one-field answers of this service.
macro_rules! node_answer {
    ($result:expr, $response:ident) => {
        answer($result, |view| v1::$response { node: Some(show::node(&view)) })
    };
}

#[async_trait]
impl NodeService for Api {
    type WatchNodesStream = Streaming<v1::WatchNodesResponse>;
    type TailComponentLogStream = Streaming<v1::TailComponentLogResponse>;

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Answer<v1::GetNodeResponse> {
        let (_, request) = opened(request)?;
        node_answer!(self.0.node(&node_id(&request.name)?).await, GetNodeResponse)
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        let (_, request) = opened(request)?;
        let query = ("nodes", &request.selector, &request.states);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let states: Vec<_> = request.states().filter_map(show::node_state_from).collect();
        let found = self.0.list_nodes(&selector(&request.selector)?, &states, &page).await;
        page::listed(found, &query, show::node, |nodes, next_page_token| v1::ListNodesResponse {
            nodes,
            next_page_token,
        })
    }

    async fn watch_nodes(&self, request: Request<v1::WatchNodesRequest>) -> Answer<Self::WatchNodesStream> {
        let (_, request) = opened(request)?;
        let items = ReceiverStream::new(self.0.watch_nodes(selector(&request.selector)?));
        let shown = items.map(|item| {
            let item = item.map_err(refuse)?;
            let node = item.view.as_ref().map(show::node);
            Ok(v1::WatchNodesResponse { node, initial_done: item.initial_done })
        });
        Ok(Response::new(Box::pin(shown)))
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Answer<v1::UpdateNodeResponse> {
        let (caller, request) = opened(request)?;
        let node = convert::required(request.node, "node").map_err(refuse)?;
        let mask = convert::required(request.update_mask, "update_mask").map_err(refuse)?;
        if mask.paths != ["labels"] {
            return Err(refuse(convert::invalid(
                "update_mask",
                "`labels` is the one field that can be changed",
            )));
        }
        let id = names::id(&node.name, "nodes", "node.name").map_err(refuse)?;
        let revision = match node.etag.as_str() {
            "" => None,
            etag => Some(etag.parse().map_err(|_| refuse(convert::invalid("node.etag", "it is no etag")))?),
        };
        let labelled = self.0.label_node(&caller, &id, node.labels, revision).await;
        node_answer!(labelled, UpdateNodeResponse)
    }

    async fn cordon_node(&self, request: Request<v1::CordonNodeRequest>) -> Answer<v1::CordonNodeResponse> {
        let (caller, request) = opened(request)?;
        let done = self.0.cordon_node(&caller, &node_id(&request.name)?, &request.message).await;
        node_answer!(done, CordonNodeResponse)
    }

    async fn uncordon_node(
        &self,
        request: Request<v1::UncordonNodeRequest>,
    ) -> Answer<v1::UncordonNodeResponse> {
        let (caller, request) = opened(request)?;
        node_answer!(self.0.uncordon_node(&caller, &node_id(&request.name)?).await, UncordonNodeResponse)
    }

    async fn retire_node(&self, request: Request<v1::RetireNodeRequest>) -> Answer<v1::RetireNodeResponse> {
        let (caller, request) = opened(request)?;
        let done = self.0.retire_node(&caller, &node_id(&request.name)?, &request.message).await;
        node_answer!(done, RetireNodeResponse)
    }

    async fn hold_component(
        &self,
        request: Request<v1::HoldComponentRequest>,
    ) -> Answer<v1::HoldComponentResponse> {
        let (caller, request) = opened(request)?;
        let component = convert::parse(&request.component, "component").map_err(refuse)?;
        let node = node_id(&request.name)?;
        let done = self.0.hold_component(&caller, &node, &component, true, &request.message).await;
        node_answer!(done, HoldComponentResponse)
    }

    async fn release_component(
        &self,
        request: Request<v1::ReleaseComponentRequest>,
    ) -> Answer<v1::ReleaseComponentResponse> {
        let (caller, request) = opened(request)?;
        let component = convert::parse(&request.component, "component").map_err(refuse)?;
        let node = node_id(&request.name)?;
        let done = self.0.hold_component(&caller, &node, &component, false, "").await;
        node_answer!(done, ReleaseComponentResponse)
    }

    async fn tail_component_log(
        &self,
        request: Request<v1::TailComponentLogRequest>,
    ) -> Answer<Self::TailComponentLogStream> {
        let (_, request) = opened(request)?;
        let node = node_id(&request.name)?;
        let component = convert::parse(&request.component, "component").map_err(refuse)?;
        let lines = if request.lines == 0 { LINES } else { request.lines.min(MAX_LINES) };
        let parts = self.0.sessions.tail(&node, component, lines, request.follow).await.map_err(refuse)?;
        let shown = ReceiverStream::new(parts).map(|part: Result<Vec<String>, Reason>| {
            part.map(|lines| v1::TailComponentLogResponse { lines }).map_err(refuse)
        });
        Ok(Response::new(Box::pin(shown)))
    }

    async fn list_jvms(&self, request: Request<v1::ListJvmsRequest>) -> Answer<v1::ListJvmsResponse> {
        let (_, request) = opened(request)?;
        let v1::ListJvmsRequest { selector: nodes, java_version, contains, unmanaged, .. } = &request;
        let query = ("jvms", nodes, java_version, contains, unmanaged);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let question = JvmQuestion {
            selector: selector(nodes)?,
            version: java_version.clone(),
            contains: contains.clone(),
            unmanaged: *unmanaged,
        };
        page::listed(self.0.list_jvms(&question, &page).await, &query, show::jvm, |jvms, next_page_token| {
            v1::ListJvmsResponse { jvms, next_page_token }
        })
    }

    async fn list_node_history(
        &self,
        request: Request<v1::ListNodeHistoryRequest>,
    ) -> Answer<v1::ListNodeHistoryResponse> {
        let (_, request) = opened(request)?;
        let query = ("history", &request.name, &request.component);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let component = convert::parse_optional(&request.component, "component").map_err(refuse)?;
        let found = self.0.node_history(&node_id(&request.name)?, component.as_ref(), &page).await;
        page::listed(found, &query, show::history, |entries, next_page_token| v1::ListNodeHistoryResponse {
            entries,
            next_page_token,
        })
    }

    async fn create_enrollment_token(
        &self,
        request: Request<v1::CreateEnrollmentTokenRequest>,
    ) -> Answer<v1::CreateEnrollmentTokenResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("CreateEnrollmentToken", &request.request_id, &request).map_err(refuse)?;
        let ttl = request.ttl.as_ref().map(|ttl| convert::span(ttl, "ttl")).transpose().map_err(refuse)?;
        let wish = TokenWish {
            node: convert::parse_optional(&request.node, "node").map_err(refuse)?,
            labels: request.labels,
            ttl,
            allow_replace: request.allow_replace,
        };
        answer(self.0.create_token(&caller, wish, once.as_ref()).await, |minted| {
            v1::CreateEnrollmentTokenResponse {
                secret: minted.text,
                token: Some(show::token(&minted.record)),
            }
        })
    }

    async fn list_enrollment_tokens(
        &self,
        request: Request<v1::ListEnrollmentTokensRequest>,
    ) -> Answer<v1::ListEnrollmentTokensResponse> {
        let (_, request) = opened(request)?;
        let page = page::page(request.page_size, &request.page_token, &"enrollmentTokens")?;
        let found = self.0.list_tokens(&page).await;
        page::listed(found, &"enrollmentTokens", show::token, |tokens, next_page_token| {
            v1::ListEnrollmentTokensResponse { tokens, next_page_token }
        })
    }

    async fn revoke_enrollment_token(
        &self,
        request: Request<v1::RevokeEnrollmentTokenRequest>,
    ) -> Answer<v1::RevokeEnrollmentTokenResponse> {
        let (caller, request) = opened(request)?;
        let id: String = names::id(&request.name, "enrollmentTokens", "name").map_err(refuse)?;
        answer(self.0.revoke_token(&caller, &id).await, |()| v1::RevokeEnrollmentTokenResponse {})
    }
}
