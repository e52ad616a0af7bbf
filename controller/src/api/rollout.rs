//! RolloutService.

use tonic::{Request, Response, async_trait};
use upfleet_api::{
    convert::{self, rollout as wire},
    v1,
};
use upfleet_domain::{
    id::{NodeId, RolloutId},
    reason::Reason,
    rollout::{Rollout, Spec, event::Event},
    upgrade::UpgradeState,
};
use v1::rollout_service_server::RolloutService;

use super::{Answer, names, opened, page, refuse, watch};
use crate::{
    auth::Principal,
    engine::{Command, Created, Rollouts, Wish},
    failure::internal,
    ops::Once,
    sessions::Sessions,
    store::{Page, Store},
};

/// The service for rollouts.
#[derive(Clone)]
pub struct RolloutApi {
    rollouts: Rollouts,
    sessions: Option<Sessions>,
}

impl RolloutApi {
    /// Over these operations; byte progress comes from `sessions`, where there are any.
    #[must_use]
    pub fn new(rollouts: Rollouts, sessions: Option<Sessions>) -> Self {
        Self { rollouts, sessions }
    }

    fn store(&self) -> &dyn Store {
        &**self.rollouts.store()
    }

    async fn show(&self, rollout: &Rollout) -> Result<v1::Rollout, Reason> {
        let mut counts = wire::Counts::default();
        let rows = self.store().upgrades(&rollout.id, &[], &Page::ALL).await.map_err(internal)?.rows;
        rows.iter().for_each(|row| counts.add(row));
        Ok(wire::rollout(rollout, &counts))
    }

    /// A person's command, answered with the rollout.
    async fn command(
        &self,
        caller: &Principal,
        name: &str,
        rest: (&str, &str, &str),
        event: impl Fn(upfleet_domain::rollout::event::By) -> Event + Send + Sync,
    ) -> Result<Option<v1::Rollout>, tonic::Status> {
        let id = rollout_id(name, "name").map_err(refuse)?;
        let (etag, action, message) = rest;
        let command = Command { id: &id, etag, action, message };
        let rollout = self.rollouts.command(caller, command, event).await.map_err(refuse)?;
        self.show(&rollout).await.map(Some).map_err(refuse)
    }

    async fn created(&self, created: &Created) -> Result<(Option<v1::Rollout>, v1::Plan), tonic::Status> {
        let rollout = match &created.rollout {
            Some(rollout) => Some(self.show(rollout).await.map_err(refuse)?),
            None => None,
        };
        let waves = created.rollout.as_ref().map(|rollout| rollout.spec.clone());
        let plan = waves.map(|spec| wire::plan(&created.plan, &spec));
        Ok((rollout, plan.unwrap_or_default()))
    }
}

fn rollout_id(name: &str, field: &str) -> Result<RolloutId, Reason> {
    names::id(name, "rollouts", field)
}

fn node_ids(names: &[String]) -> Result<Vec<NodeId>, Reason> {
    let id = |(index, name): (usize, &String)| names::id(name, "nodes", &format!("nodes[{index}]"));
    names.iter().enumerate().map(id).collect()
}

#[async_trait]
impl RolloutService for RolloutApi {
    async fn create_rollout(
        &self,
        request: Request<v1::CreateRolloutRequest>,
    ) -> Answer<v1::CreateRolloutResponse> {
        let (caller, request) = opened(request)?;
        let once = Once::of("CreateRollout", &request.request_id, &request).map_err(refuse)?;
        let expected = convert::parse_optional(&request.expected_plan_digest, "expected_plan_digest");
        let expected = expected.map_err(refuse)?;
        let spec: Spec = convert::field(request.spec, "spec").map_err(refuse)?;
        let wish = Wish { spec: spec.clone(), message: request.message, expected };
        if request.validate_only {
            let plan = self.rollouts.plan(&wish).await.map_err(refuse)?;
            let plan = Some(wire::plan(&plan, &spec));
            return Ok(Response::new(v1::CreateRolloutResponse { rollout: None, plan }));
        }
        let created = self.rollouts.create(&caller, wish, once.as_ref()).await.map_err(refuse)?;
        let (rollout, plan) = self.created(&created).await?;
        Ok(Response::new(v1::CreateRolloutResponse { rollout, plan: Some(plan) }))
    }

    async fn start_rollout(
        &self,
        request: Request<v1::StartRolloutRequest>,
    ) -> Answer<v1::StartRolloutResponse> {
        let (caller, r) = opened(request)?;
        let rollout = self.command(&caller, &r.name, (&r.etag, "start", ""), Event::Start).await?;
        Ok(Response::new(v1::StartRolloutResponse { rollout }))
    }

    async fn get_rollout(&self, request: Request<v1::GetRolloutRequest>) -> Answer<v1::GetRolloutResponse> {
        let (_, request) = opened(request)?;
        let id = rollout_id(&request.name, "name").map_err(refuse)?;
        let rollout = self.rollouts.rollout(&id).await.map_err(refuse)?;
        let rollout = Some(self.show(&rollout).await.map_err(refuse)?);
        Ok(Response::new(v1::GetRolloutResponse { rollout }))
    }

    async fn list_rollouts(
        &self,
        request: Request<v1::ListRolloutsRequest>,
    ) -> Answer<v1::ListRolloutsResponse> {
        let (_, request) = opened(request)?;
        let query = ("rollouts", &request.component, &request.states);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let component = convert::parse_optional(&request.component, "component").map_err(refuse)?;
        let states: Result<Vec<_>, Reason> =
            request.states.iter().map(|state| wire::state_from(*state, "states")).collect();
        let states = states.map_err(refuse)?;
        let found = self.store().rollouts(component.as_ref(), &states, &page).await;
        let found = found.map_err(|error| refuse(internal(error)))?;
        let mut rollouts = Vec::with_capacity(found.rows.len());
        for record in &found.rows {
            rollouts.push(self.show(&record.rollout).await.map_err(refuse)?);
        }
        let next_page_token = found.token(&query);
        Ok(Response::new(v1::ListRolloutsResponse { rollouts, next_page_token }))
    }

    async fn list_upgrades(
        &self,
        request: Request<v1::ListUpgradesRequest>,
    ) -> Answer<v1::ListUpgradesResponse> {
        let (_, request) = opened(request)?;
        let query = ("upgrades", &request.parent, &request.states);
        let page = page::page(request.page_size, &request.page_token, &query)?;
        let id = rollout_id(&request.parent, "parent").map_err(refuse)?;
        let rollout = self.rollouts.rollout(&id).await.map_err(refuse)?;
        let states: Result<Vec<UpgradeState>, Reason> =
            request.states.iter().map(|state| convert::upgrade_state(*state, "states")).collect();
        let found = self.store().upgrades(&id, &states.map_err(refuse)?, &page).await.map_err(internal);
        page::listed(
            found,
            &query,
            |row| watch::with_progress(wire::upgrade(&rollout, row), row, self.sessions.as_ref()),
            |upgrades, next_page_token| v1::ListUpgradesResponse { upgrades, next_page_token },
        )
    }

    type WatchRolloutStream = watch::Changes;

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Answer<Self::WatchRolloutStream> {
        let (_, request) = opened(request)?;
        let id = rollout_id(&request.name, "name").map_err(refuse)?;
        self.rollouts.rollout(&id).await.map_err(refuse)?;
        let progress = self.sessions.as_ref().filter(|_| request.progress).map(Sessions::progress);
        let store = self.rollouts.store().clone();
        let stop = self.sessions.as_ref().map(Sessions::stopped).unwrap_or_default();
        Ok(Response::new(watch::changes(store, id, request.from_revision, progress, stop)))
    }

    async fn approve_rollout(
        &self,
        request: Request<v1::ApproveRolloutRequest>,
    ) -> Answer<v1::ApproveRolloutResponse> {
        let (caller, r) = opened(request)?;
        let wave = (r.wave as usize).checked_sub(1);
        let event = |by| Event::Approve { wave, by };
        let rollout = self.command(&caller, &r.name, (&r.etag, "approve", &r.message), event).await?;
        Ok(Response::new(v1::ApproveRolloutResponse { rollout }))
    }

    async fn pause_rollout(
        &self,
        request: Request<v1::PauseRolloutRequest>,
    ) -> Answer<v1::PauseRolloutResponse> {
        let (caller, r) = opened(request)?;
        let strength = wire::pause_strength(r.strength, "strength").map_err(refuse)?;
        let event = |by| Event::Pause { strength, by };
        let rollout = self.command(&caller, &r.name, (&r.etag, "pause", &r.message), event).await?;
        Ok(Response::new(v1::PauseRolloutResponse { rollout }))
    }

    async fn resume_rollout(
        &self,
        request: Request<v1::ResumeRolloutRequest>,
    ) -> Answer<v1::ResumeRolloutResponse> {
        let (caller, r) = opened(request)?;
        let failed = wire::failed_nodes(r.failed_nodes, "failed_nodes").map_err(refuse)?;
        let allow_failed_digest = r.allow_failed_digest;
        let event = |by| Event::Resume { failed, allow_failed_digest, by };
        let rollout = self.command(&caller, &r.name, (&r.etag, "resume", &r.message), event).await?;
        Ok(Response::new(v1::ResumeRolloutResponse { rollout }))
    }

    async fn cancel_rollout(
        &self,
        request: Request<v1::CancelRolloutRequest>,
    ) -> Answer<v1::CancelRolloutResponse> {
        let (caller, r) = opened(request)?;
        let rollout = self.command(&caller, &r.name, (&r.etag, "cancel", &r.message), Event::Cancel).await?;
        Ok(Response::new(v1::CancelRolloutResponse { rollout }))
    }

    async fn retry_rollout(
        &self,
        request: Request<v1::RetryRolloutRequest>,
    ) -> Answer<v1::RetryRolloutResponse> {
        let (caller, r) = opened(request)?;
        let nodes = node_ids(&r.nodes).map_err(refuse)?;
        let allow_failed_digest = r.allow_failed_digest;
        let event = |by| Event::Retry { nodes: nodes.clone(), allow_failed_digest, by };
        let rollout = self.command(&caller, &r.name, (&r.etag, "retry", &r.message), event).await?;
        Ok(Response::new(v1::RetryRolloutResponse { rollout }))
    }

    async fn skip_node(&self, request: Request<v1::SkipNodeRequest>) -> Answer<v1::SkipNodeResponse> {
        let (caller, r) = opened(request)?;
        let node: NodeId = names::id(&r.node, "nodes", "node").map_err(refuse)?;
        let event = |by| Event::Skip { node: node.clone(), by };
        let rollout = self.command(&caller, &r.name, ("", "skip", &r.message), event).await?;
        Ok(Response::new(v1::SkipNodeResponse { rollout }))
    }

    async fn roll_back_rollout(
        &self,
        request: Request<v1::RollBackRolloutRequest>,
    ) -> Answer<v1::RollBackRolloutResponse> {
        let (caller, r) = opened(request)?;
        let once = Once::of("RollBackRollout", &r.request_id, &r).map_err(refuse)?;
        let id = rollout_id(&r.name, "name").map_err(refuse)?;
        let (dry, once) = (r.validate_only, once.as_ref());
        let done = self.rollouts.roll_back(&caller, &id, &r.message, dry, once).await.map_err(refuse)?;
        let (rollout, mut plan) = self.created(&done).await?;
        if rollout.is_none() {
            // A revert has one wave; see `Machine::revert_spec`.
            let original = self.rollouts.rollout(&id).await.map_err(refuse)?;
            plan = wire::plan(&done.plan, &revert_waves(original.spec));
        }
        Ok(Response::new(v1::RollBackRolloutResponse { rollout, plan: Some(plan) }))
    }
}

fn revert_waves(mut spec: Spec) -> Spec {
    spec.policy.waves.truncate(1);
    if let Some(wave) = spec.policy.waves.first_mut() {
        wave.size = upfleet_domain::rollout::NodeCount::Percent(100);
    }
    spec
}
