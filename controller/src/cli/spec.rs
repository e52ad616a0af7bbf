//! Flags and files that say what a rollout is to do.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use upfleet_api::v1::{self, failure_budget::Cause, node_count::Value};

use super::{
    change::ChangeArgs,
    failure::{Failure, Result},
};

/// What to do when a budget is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnFailure {
    /// Start no more nodes and wait for a person.
    Halt,
    /// Put the wave's nodes back.
    RevertWave,
    /// Put all nodes of the rollout back.
    RevertAll,
}

/// What a rollout is to do. Flags win over the file.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct SpecArgs {
    /// A RolloutSpec in YAML or JSON, with the API's field names.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub change: ChangeArgs,
    /// The component; taken from the release where one is named.
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// The nodes, e.g. `env=prod,name=web-*`; all where not given.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// A wave's size, a number or a percentage; give one per wave. One node, then the rest, where not given.
    #[arg(long = "wave", value_name = "N|P%", value_parser = node_count)]
    pub waves: Vec<v1::NodeCount>,
    /// Wait for a person before the first wave.
    #[arg(long)]
    pub approval: bool,
    /// Wait for a person before each wave after the first.
    #[arg(long)]
    pub approve_waves: bool,
    /// How long each wave is watched once its nodes are done.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub bake: Option<Duration>,
    /// Watch each node at least so long.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub soak: Option<Duration>,
    /// How many nodes may be unavailable at once.
    #[arg(long, value_name = "N|P%", value_parser = node_count)]
    pub max_unavailable: Option<v1::NodeCount>,
    /// Failures borne of a cause: `fetch-verify`, `preflight-refused`, `probe` or `rollback-failed`, then `=LIMIT`
    /// and, for a percentage, `/SAMPLE`: the nodes attempted before it counts.
    #[arg(long = "budget", value_name = "CAUSE=N|P%[/SAMPLE]", value_parser = budget)]
    pub budgets: Vec<v1::FailureBudget>,
    /// How many nodes may stay silent without holding a wave.
    #[arg(long, value_name = "N|P%", value_parser = node_count)]
    pub silence_budget: Option<v1::NodeCount>,
    /// After how long without a word a node counts as silent.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub silence_after: Option<Duration>,
    /// What to do when a budget is exceeded.
    #[arg(long, value_enum)]
    on_failure: Option<OnFailure>,
    /// How long offline nodes get the order when they return.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub offline_deadline: Option<Duration>,
    /// Orders nodes within waves; the same seed gives the same plan.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SpecArgs {
    /// The spec, from the file and the flags.
    ///
    /// # Errors
    /// Where the file can't be read, or no change is asked for.
    pub fn spec(&self) -> Result<v1::RolloutSpec> {
        let mut spec = match &self.file {
            Some(path) => read(path)?,
            None => v1::RolloutSpec { selector: "*".to_owned(), ..Default::default() },
        };
        if let Some(change) = self.change.change()? {
            spec.change = Some(change);
        }
        if let Some(change) = &mut spec.change {
            self.change.permit(change)?;
        }
        if let Some(component) = self.component.clone().or_else(|| self.change.component()) {
            spec.component = component;
        }
        if let Some(selector) = &self.selector {
            spec.selector.clone_from(selector);
        }
        if let Some(seed) = self.seed {
            spec.seed = seed;
        }
        self.policy(spec.policy.get_or_insert_default());
        if spec.change.is_none() {
            return Err(Failure::usage("nothing to change")
                .hint("name a --release, a --patch, a --restore or a --file"));
        }
        if spec.component.is_empty() {
            return Err(Failure::usage("no component is named").hint("add --component NAME"));
        }
        Ok(spec)
    }

    fn policy(&self, policy: &mut v1::RolloutPolicy) {
        if !self.waves.is_empty() {
            policy.waves = self
                .waves
                .iter()
                .map(|size| v1::WaveSpec { size: Some(*size), ..Default::default() })
                .collect();
        } else if policy.waves.is_empty() && (self.bake.is_some() || self.approve_waves) {
            // The default waves, written out so that a gate can be put on them.
            let sizes = [Value::Count(1), Value::Percent(100)];
            let wave = |value| v1::WaveSpec {
                size: Some(v1::NodeCount { value: Some(value) }),
                ..Default::default()
            };
            policy.waves = sizes.into_iter().map(wave).collect();
        }
        for (index, wave) in policy.waves.iter_mut().enumerate() {
            wave.approval |= self.approve_waves && index > 0;
            if let Some(bake) = self.bake {
                wave.bake = Some(bake.into());
            }
        }
        policy.approval |= self.approval;
        if !self.budgets.is_empty() {
            policy.failure_budgets.clone_from(&self.budgets);
        }
        let set = |field: &mut Option<pbjson_types::Duration>, value: Option<Duration>| {
            if let Some(value) = value {
                *field = Some(value.into());
            }
        };
        set(&mut policy.soak, self.soak);
        set(&mut policy.offline_deadline, self.offline_deadline);
        set(&mut policy.silence_after, self.silence_after);
        policy.max_unavailable = self.max_unavailable.or(policy.max_unavailable);
        policy.silence_budget = self.silence_budget.or(policy.silence_budget);
        if let Some(on_failure) = self.on_failure {
            policy.on_failure = match on_failure {
                OnFailure::Halt => v1::OnFailure::Halt,
                OnFailure::RevertWave => v1::OnFailure::RevertWave,
                OnFailure::RevertAll => v1::OnFailure::RevertAll,
            }
            .into();
        }
    }
}

fn read(path: &std::path::Path) -> Result<v1::RolloutSpec> {
    let text = fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    serde_saphyr::from_str(&text).map_err(|error| {
        let mut failure = Failure::usage(format!("`{}` is no rollout spec", path.display()));
        failure.causes.push(error.to_string());
        failure.hint("the fields are those of RolloutSpec; durations are written as seconds, e.g. 600s")
    })
}

fn node_count(text: &str) -> Result<v1::NodeCount, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent @ 1..=100) => Value::Percent(percent),
            _ => return Err("a percentage is 1% to 100%".to_owned()),
        },
        None => Value::Count(text.parse().map_err(|_| "write a number or a percentage".to_owned())?),
    };
    Ok(v1::NodeCount { value: Some(value) })
}

fn budget(text: &str) -> Result<v1::FailureBudget, String> {
    let (cause, limit) = text.split_once('=').ok_or("write CAUSE=LIMIT")?;
    let (limit, sample) = limit.split_once('/').unwrap_or((limit, "0"));
    let cause = match cause {
        "fetch-verify" => Cause::FetchVerify,
        "preflight-refused" => Cause::PreflightRefused,
        "probe" => Cause::Probe,
        "rollback-failed" => Cause::RollbackFailed,
        _ => {
            return Err(
                "the causes are fetch-verify, preflight-refused, probe and rollback-failed".to_owned()
            );
        }
    };
    Ok(v1::FailureBudget {
        cause: cause.into(),
        limit: Some(node_count(limit)?),
        minimum_sample: sample.parse().map_err(|_| "the sample is a number of nodes".to_owned())?,
    })
}

#[cfg(test)]
mod tests {
    use v1::rollout_spec::Change;

    use super::*;

    fn install(release: &str) -> SpecArgs {
        let change = ChangeArgs { release: Some(release.to_owned()), ..Default::default() };
        SpecArgs { change, ..Default::default() }
    }

    #[test]
    fn a_release_names_its_component() {
        let spec = install("hello@1.1.0").spec().unwrap();
        assert_eq!((spec.component.as_str(), spec.selector.as_str()), ("hello", "*"));
        assert!(install("hello").spec().is_err());
        assert!(SpecArgs::default().spec().is_err());
    }

    #[test]
    fn gates_go_on_the_default_waves_too() {
        let mut args = install("hello@1.1.0");
        args.approve_waves = true;
        args.bake = Some(Duration::from_secs(5));
        let waves = args.spec().unwrap().policy.unwrap().waves;
        assert_eq!(waves.iter().map(|wave| wave.approval).collect::<Vec<_>>(), [false, true]);
        assert_eq!(waves[0].bake.as_ref().unwrap().seconds, 5);
    }

    #[test]
    fn kept_states_are_named() {
        let restore = |text: &str| {
            let args = SpecArgs {
                change: ChangeArgs { restore: Some(text.to_owned()), ..Default::default() },
                component: Some("hello".into()),
                ..Default::default()
            };
            args.spec().map(|spec| spec.change)
        };
        for good in ["previous", "hello@1.0.0", "before:r-1"] {
            assert!(matches!(restore(good), Ok(Some(Change::Restore(_)))), "{good}");
        }
        assert!(restore("1.0.0").is_err());
    }

    #[test]
    fn numbers_and_budgets() {
        assert_eq!(node_count("25%").unwrap().value, Some(Value::Percent(25)));
        assert_eq!(node_count("3").unwrap().value, Some(Value::Count(3)));
        assert!(node_count("0%").is_err() && node_count("x").is_err() && node_count("101%").is_err());
        let probe = budget("probe=10%/20").unwrap();
        assert_eq!((probe.cause(), probe.minimum_sample), (Cause::Probe, 20));
        assert!(budget("bad=1").is_err());
    }

    #[test]
    fn a_file_is_read_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollout.yaml");
        let yaml = "component: hello\nselector: env=prod\ninstall:\n  release: releases/hello@1.1.0\npolicy:\n  \
                    waves:\n    - size: { count: 1 }\n      bake: 10s\n    - size: { percent: 100 }\n      approval: true\n";
        fs::write(&path, yaml).unwrap();
        let args = SpecArgs { file: Some(path), selector: Some("env=dev".into()), ..Default::default() };
        let spec = args.spec().unwrap();
        assert_eq!(spec.selector, "env=dev");
        assert!(spec.policy.unwrap().waves[1].approval);
    }

    #[test]
    fn a_file_can_change_a_stack() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollout.yaml");
        fs::write(
            &path,
            "component: app\nselector: '*'\nstack:\n  apply: [releases/app@p10]\n  remove: [8]\n",
        )
        .unwrap();
        let change = ChangeArgs { live: true, ..Default::default() };
        let spec = SpecArgs { file: Some(path), change, ..Default::default() }.spec().unwrap();
        let Some(Change::Stack(stack)) = spec.change else { panic!("{spec:?}") };
        assert_eq!((stack.apply.len(), stack.remove, stack.live), (1, vec![8], true));
    }
}
