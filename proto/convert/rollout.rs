//! Rollouts: specs and policies both ways, plans, rollouts and upgrades to the wire.
//!
//! Here a spec's defaults are filled in, as `rollout.proto` words them, and each of its limits is checked, so
//! that the planner and the machine never see a policy that makes no sense.

use std::{collections::BTreeMap, time::Duration};

use upfleet_domain::{
    id::NodeId,
    labels::Selector,
    reason::Reason,
    rollout::{
        Budget, Cause, FailedNodes, NodeCount, NodeUpgrade, OnFailure, PauseStrength, Plan, Policy, Rollout,
        Spec, State, Wave, WaveSpec, WaveState,
    },
    upgrade::UpgradeState,
};

use super::{
    Result, all, change, duration, each, field, invalid, optional, parse, required, span, timestamp, within,
};
use crate::v1;

/// The most waves a policy may have: people plan a handful, and each costs a row.
const MAX_WAVES: usize = 100;
/// The longest span in a policy: a year.
const MAX_SPAN: Duration = Duration::from_secs(366 * 24 * 3600);

/// The part of a resource name behind its collection, e.g. `web-01` of `nodes/web-01`.
///
/// # Errors
/// Where the name has another form.
pub fn named<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    collection: &str,
    path: &str,
) -> Result<T> {
    let id = name.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/'));
    let id = id.ok_or_else(|| invalid(path, format!("`{name}` is not of the form `{collection}/…`")))?;
    parse(id, path)
}

impl From<NodeCount> for v1::NodeCount {
    fn from(count: NodeCount) -> Self {
        use v1::node_count::Value;
        let value = match count {
            NodeCount::Count(count) => Value::Count(count),
            NodeCount::Percent(percent) => Value::Percent(percent),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<v1::NodeCount> for NodeCount {
    type Error = Reason;

    fn try_from(wire: v1::NodeCount) -> Result<Self> {
        use v1::node_count::Value;
        match required(wire.value, "value")? {
            Value::Count(count) => Ok(Self::Count(count)),
            Value::Percent(percent) if (1..=100).contains(&percent) => Ok(Self::Percent(percent)),
            Value::Percent(percent) => Err(invalid("percent", format!("{percent} is not between 1 and 100"))),
        }
    }
}

impl From<&WaveSpec> for v1::WaveSpec {
    fn from(wave: &WaveSpec) -> Self {
        let bake = (!wave.bake.is_zero()).then(|| duration(wave.bake));
        Self { size: Some(wave.size.into()), approval: wave.approval, bake }
    }
}

impl TryFrom<v1::WaveSpec> for WaveSpec {
    type Error = Reason;

    fn try_from(wire: v1::WaveSpec) -> Result<Self> {
        let size = field(wire.size, "size")?;
        if size == NodeCount::Count(0) {
            return Err(invalid("size.count", "a wave has at least one node"));
        }
        let bake = limited(wire.bake.as_ref(), "bake")?.unwrap_or_default();
        Ok(Self { size, approval: wire.approval, bake })
    }
}

fn limited(wire: Option<&pbjson_types::Duration>, path: &str) -> Result<Option<Duration>> {
    let Some(wire) = wire else { return Ok(None) };
    let span = span(wire, path)?;
    if span > MAX_SPAN {
        return Err(invalid(path, "it is longer than a year"));
    }
    Ok(Some(span))
}

fn cause_to_wire(cause: Cause) -> v1::failure_budget::Cause {
    use v1::failure_budget::Cause as Wire;
    match cause {
        Cause::FetchVerify => Wire::FetchVerify,
        Cause::PreflightRefused => Wire::PreflightRefused,
        Cause::Probe => Wire::Probe,
        Cause::RollbackFailed => Wire::RollbackFailed,
    }
}

fn budgets(wire: Vec<v1::FailureBudget>) -> Result<BTreeMap<Cause, Budget>> {
    let mut budgets = BTreeMap::new();
    for (index, budget) in wire.into_iter().enumerate() {
        let path = format!("failure_budgets[{index}]");
        let known = Cause::ALL.into_iter().find(|cause| cause_to_wire(*cause) as i32 == budget.cause);
        let cause = known.ok_or_else(|| invalid(&format!("{path}.cause"), "it is required"))?;
        let limit = within(&path, field(budget.limit, "limit"))?;
        let minimum_sample = budget.minimum_sample.max(1);
        if budgets.insert(cause, Budget { limit, minimum_sample }).is_some() {
            return Err(invalid(&path, format!("a second budget for {}", cause.as_str())));
        }
    }
    Ok(budgets)
}

impl From<&Policy> for v1::RolloutPolicy {
    fn from(policy: &Policy) -> Self {
        let on_failure = match policy.on_failure {
            OnFailure::Halt => v1::OnFailure::Halt,
            OnFailure::RevertWave => v1::OnFailure::RevertWave,
            OnFailure::RevertAll => v1::OnFailure::RevertAll,
        };
        let budget = |(cause, budget): (&Cause, &Budget)| v1::FailureBudget {
            cause: cause_to_wire(*cause) as i32,
            limit: Some(budget.limit.into()),
            minimum_sample: budget.minimum_sample,
        };
        Self {
            waves: all(&policy.waves),
            max_unavailable: Some(policy.max_unavailable.into()),
            failure_budgets: policy.budgets.iter().map(budget).collect(),
            silence_budget: Some(policy.silence_budget.into()),
            on_failure: on_failure as i32,
            offline_deadline: Some(duration(policy.offline_deadline)),
            silence_after: Some(duration(policy.silence_after)),
            approval: policy.approval,
            soak: policy.soak.map(duration),
        }
    }
}

impl TryFrom<v1::RolloutPolicy> for Policy {
    type Error = Reason;

    fn try_from(wire: v1::RolloutPolicy) -> Result<Self> {
        let default = Self::default();
        if wire.waves.len() > MAX_WAVES {
            return Err(invalid("waves", format!("more than {MAX_WAVES}")));
        }
        let on_failure = match v1::OnFailure::try_from(wire.on_failure) {
            Ok(v1::OnFailure::Unspecified | v1::OnFailure::Halt) => OnFailure::Halt,
            Ok(v1::OnFailure::RevertWave) => OnFailure::RevertWave,
            Ok(v1::OnFailure::RevertAll) => OnFailure::RevertAll,
            Err(_) => return Err(invalid("on_failure", format!("{} is not known", wire.on_failure))),
        };
        let waves: Vec<WaveSpec> = each(wire.waves, "waves")?;
        let silence_after = limited(wire.silence_after.as_ref(), "silence_after")?;
        if silence_after.is_some_and(|span| span.is_zero()) {
            return Err(invalid("silence_after", "it is zero, so that every node would be silent"));
        }
        let max: Option<NodeCount> = optional(wire.max_unavailable, "max_unavailable")?;
        if max == Some(NodeCount::Count(0)) {
            return Err(invalid("max_unavailable.count", "with none unavailable nothing can be changed"));
        }
        let offline = limited(wire.offline_deadline.as_ref(), "offline_deadline")?;
        Ok(Self {
            waves: if waves.is_empty() { default.waves } else { waves },
            max_unavailable: max.unwrap_or(default.max_unavailable),
            budgets: budgets(wire.failure_budgets)?,
            silence_budget: optional(wire.silence_budget, "silence_budget")?
                .unwrap_or(default.silence_budget),
            on_failure,
            offline_deadline: offline.unwrap_or(default.offline_deadline),
            silence_after: silence_after.unwrap_or(default.silence_after),
            approval: wire.approval,
            soak: limited(wire.soak.as_ref(), "soak")?.filter(|soak| !soak.is_zero()),
        })
    }
}

impl From<&Spec> for v1::RolloutSpec {
    fn from(spec: &Spec) -> Self {
        Self {
            component: spec.component.to_string(),
            selector: spec.selector.clone(),
            change: Some(change::to_wire(&spec.change, &spec.component)),
            policy: Some((&spec.policy).into()),
            seed: spec.seed,
        }
    }
}

impl TryFrom<v1::RolloutSpec> for Spec {
    type Error = Reason;

    fn try_from(wire: v1::RolloutSpec) -> Result<Self> {
        let component = parse(&wire.component, "component")?;
        let selector: Selector = parse(&wire.selector, "selector")?;
        let change = change::from_wire(required(wire.change, "change")?, &component)?;
        let policy = within("policy", wire.policy.unwrap_or_default().try_into())?;
        Ok(Self { component, selector: selector.to_string(), change, policy, seed: wire.seed })
    }
}

/// A plan, with the waves as `spec` asked for them.
#[must_use]
pub fn plan(plan: &Plan, spec: &Spec) -> v1::Plan {
    let mut waves: Vec<v1::PlannedWave> = (1..)
        .zip(&spec.policy.waves)
        .map(|(number, wave)| v1::PlannedWave { number, nodes: vec![], spec: Some(wave.into()) })
        .collect();
    for upgrade in &plan.upgrades {
        waves[upgrade.wave].nodes.push(format!("nodes/{}", upgrade.node));
    }
    let upgrade = |upgrade: &upfleet_domain::rollout::PlannedUpgrade| v1::PlannedUpgrade {
        node: format!("nodes/{}", upgrade.node),
        from: Some((&upgrade.from).into()),
        to: Some((&upgrade.to).into()),
        wave: number(upgrade.wave + 1),
        online: upgrade.online,
    };
    let excluded = |(node, reason): &(NodeId, Reason)| v1::ExcludedNode {
        node: format!("nodes/{node}"),
        reason: Some(reason.into()),
    };
    v1::Plan {
        waves,
        upgrades: plan.upgrades.iter().map(upgrade).collect(),
        excluded: plan.excluded.iter().map(excluded).collect(),
        plan_digest: plan.digest.to_string(),
        warnings: plan.warnings.clone(),
        max_unavailable: number(plan.max_unavailable),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A rollout's state on the wire.
#[must_use]
pub fn state(state: State) -> v1::rollout::State {
    let name = format!("STATE_{}", state.as_str());
    v1::rollout::State::from_str_name(&name).expect("a test walks all states")
}

/// A rollout's state from the wire.
///
/// # Errors
/// Where the number is unset or of a later version.
pub fn state_from(wire: i32, path: &str) -> Result<State> {
    let found = State::ALL.iter().copied().find(|known| state(*known) as i32 == wire);
    found.ok_or_else(|| invalid(path, format!("{wire} is no state of a rollout")))
}

fn wave_state(state: WaveState) -> v1::wave::State {
    use v1::wave::State as Wire;
    match state {
        WaveState::Pending => Wire::Pending,
        WaveState::AwaitingApproval => Wire::AwaitingApproval,
        WaveState::Running => Wire::Running,
        WaveState::Baking => Wire::Baking,
        WaveState::Succeeded => Wire::Succeeded,
        WaveState::Failed => Wire::Failed,
    }
}

fn wave(number_of: usize, wave: &Wave, done: u32) -> v1::Wave {
    v1::Wave {
        number: number(number_of + 1),
        state: wave_state(wave.state) as i32,
        node_count: number(wave.size),
        done_count: done,
        reason: Some((&wave.reason).into()),
        start_time: wave.started.map(timestamp),
        bake_end_time: wave.bake_end.map(timestamp),
        approver: wave.approver.clone().unwrap_or_default(),
    }
}

/// How a rollout's upgrades stand, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many are in which state.
    pub states: BTreeMap<UpgradeState, u32>,
    /// How many have ended, per wave.
    pub done: BTreeMap<usize, u32>,
}

impl Counts {
    /// Counts one upgrade.
    pub fn add(&mut self, upgrade: &NodeUpgrade) {
        *self.states.entry(upgrade.state).or_default() += 1;
        if upgrade.state.outcome().is_some() {
            *self.done.entry(upgrade.wave).or_default() += 1;
        }
    }
}

/// A rollout with the numbers of its upgrades.
#[must_use]
pub fn rollout(rollout: &Rollout, counts: &Counts) -> v1::Rollout {
    let name = |id: &upfleet_domain::id::RolloutId| format!("rollouts/{id}");
    let done = |index: usize| counts.done.get(&index).copied().unwrap_or_default();
    v1::Rollout {
        name: name(&rollout.id),
        spec: Some((&rollout.spec).into()),
        state: state(rollout.state) as i32,
        reason: Some((&rollout.reason).into()),
        waves: rollout.waves.iter().enumerate().map(|(index, w)| wave(index, w, done(index))).collect(),
        upgrade_counts: counts.states.iter().map(|(state, count)| (state.to_string(), *count)).collect(),
        plan_digest: rollout.plan_digest.to_string(),
        revision: rollout.revision,
        etag: rollout.etag(),
        create_time: Some(timestamp(rollout.created)),
        start_time: rollout.started.map(timestamp),
        end_time: rollout.ended.map(timestamp),
        creator: rollout.creator.clone(),
        message: rollout.message.clone(),
        reverts: rollout.reverts.as_ref().map(name).unwrap_or_default(),
        reverted_by: rollout.reverted_by.as_ref().map(name).unwrap_or_default(),
        max_unavailable: number(rollout.max_unavailable),
        last_actor: rollout.last_actor.clone(),
    }
}

/// An upgrade of a rollout. Its byte counts are not stored, so they are left at zero.
#[must_use]
pub fn upgrade(rollout: &Rollout, upgrade: &NodeUpgrade) -> v1::Upgrade {
    let reason = upgrade.drift.as_ref().unwrap_or(&upgrade.reason);
    v1::Upgrade {
        name: format!("rollouts/{}/upgrades/{}", rollout.id, upgrade.node),
        uid: upgrade.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        node: format!("nodes/{}", upgrade.node),
        component: rollout.spec.component.to_string(),
        wave: number(upgrade.wave + 1),
        state: v1::UpgradeState::from(upgrade.state) as i32,
        unreachable: upgrade.unreachable,
        reason: Some(reason.into()),
        from: Some((&upgrade.from).into()),
        to: Some((&upgrade.to).into()),
        fetched_bytes: 0,
        total_bytes: 0,
        attempt: upgrade.attempt,
        generation: upgrade.generation,
        start_time: upgrade.started.map(timestamp),
        end_time: upgrade.ended.map(timestamp),
        evidence: upgrade.evidence.as_ref().map(Into::into),
        revision: upgrade.revision,
        proof: upgrade.proof.as_ref().map(Into::into),
        reload: upgrade.reload.clone().unwrap_or_default(),
        interruption: upgrade.interruption.as_ref().map(Into::into),
    }
}

/// How hard to pause; the softer where unset.
///
/// # Errors
/// Where the number is of a later version.
pub fn pause_strength(wire: i32, path: &str) -> Result<PauseStrength> {
    use v1::pause_rollout_request::Strength;
    match Strength::try_from(wire) {
        Ok(Strength::Unspecified | Strength::StartNoMore) => Ok(PauseStrength::StartNoMore),
        Ok(Strength::NextSafePoint) => Ok(PauseStrength::NextSafePoint),
        Err(_) => Err(invalid(path, format!("{wire} is not known"))),
    }
}

/// What becomes of failed nodes; `None` where unset.
///
/// # Errors
/// Where the number is of a later version.
pub fn failed_nodes(wire: i32, path: &str) -> Result<Option<FailedNodes>> {
    match v1::FailedNodes::try_from(wire) {
        Ok(v1::FailedNodes::Unspecified) => Ok(None),
        Ok(v1::FailedNodes::Retry) => Ok(Some(FailedNodes::Retry)),
        Ok(v1::FailedNodes::Skip) => Ok(Some(FailedNodes::Skip)),
        Ok(v1::FailedNodes::Revert) => Ok(Some(FailedNodes::Revert)),
        Err(_) => Err(invalid(path, format!("{wire} is not known"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> v1::RolloutSpec {
        let install = v1::InstallChange { release: "releases/web@2.0.0".into(), ..Default::default() };
        v1::RolloutSpec {
            component: "web".into(),
            selector: "env=prod".into(),
            change: Some(v1::rollout_spec::Change::Install(install)),
            policy: None,
            seed: 3,
        }
    }

    fn check(expected: &str, change: impl FnOnce(&mut v1::RolloutSpec)) {
        let mut wire = spec();
        change(&mut wire);
        let reason = Spec::try_from(wire).unwrap_err();
        assert_eq!(reason.metadata.get("field").map(String::as_str), Some(expected), "{reason}");
    }

    #[test]
    fn a_spec_comes_back_as_it_went() {
        let spec = Spec::try_from(spec()).unwrap();
        assert_eq!(spec.policy, Policy::default());
        let again = Spec::try_from(v1::RolloutSpec::from(&spec)).unwrap();
        assert_eq!(again, spec);
        let wire = |target| v1::rollout_spec::Change::Restore(v1::RestoreChange { target: Some(target) });
        for target in [
            v1::restore_change::Target::Previous(v1::PreviousState {}),
            v1::restore_change::Target::Release("releases/web@1".into()),
            v1::restore_change::Target::BeforeRollout("rollouts/r-1".into()),
        ] {
            let mut restore = v1::RolloutSpec::from(&spec);
            restore.change = Some(wire(target));
            let domain = Spec::try_from(restore.clone()).unwrap();
            assert_eq!(v1::RolloutSpec::from(&domain), restore);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        check("component", |s| s.component.clear());
        check("selector", |s| s.selector = "env=".into());
        check("change", |s| s.change = None);
        check("install.release", |s| {
            let release = "releases/other@1".into();
            let install = v1::InstallChange { release, ..Default::default() };
            s.change = Some(v1::rollout_spec::Change::Install(install));
        });
        let count = |value| Some(v1::NodeCount { value: Some(value) });
        let policy = |policy| move |s: &mut v1::RolloutSpec| s.policy = Some(policy);
        let percent = count(v1::node_count::Value::Percent(101));
        let wave = v1::WaveSpec { size: percent, ..Default::default() };
        check(
            "policy.waves[0].size.percent",
            policy(v1::RolloutPolicy { waves: vec![wave], ..Default::default() }),
        );
        let none = count(v1::node_count::Value::Count(0));
        check(
            "policy.max_unavailable.count",
            policy(v1::RolloutPolicy { max_unavailable: none, ..Default::default() }),
        );
        let budget = v1::FailureBudget::default();
        check(
            "policy.failure_budgets[0].cause",
            policy(v1::RolloutPolicy { failure_budgets: vec![budget], ..Default::default() }),
        );
    }

    #[test]
    fn all_states_have_a_form_on_the_wire() {
        for known in State::ALL {
            assert_eq!(state_from(state(*known) as i32, "state"), Ok(*known));
        }
        assert!(state_from(0, "state").is_err());
    }
}
