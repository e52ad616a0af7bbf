//! What the rows with simulated agents have in common: a controller, enrolled nodes, releases to roll out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use upfleet_api::v1;
use upfleet_domain::state::ComponentState;

use super::Bench;
use crate::{
    api::{Api, all_at_once},
    controller::Controller,
    sim::{Behaviour, Fleet, Pace, Roster},
    usage::Usage,
};

/// The component that every simulated node has.
pub const COMPONENT: &str = "payments";
/// How long agents may take to connect.
const PATIENCE: Duration = Duration::from_secs(180);

/// A controller with enrolled nodes.
pub struct Bed {
    /// The controller.
    pub controller: Controller,
    /// Who the nodes are.
    pub roster: Roster,
    /// What the controller used before anybody connected.
    pub empty: Usage,
    /// How long enrolling all nodes took.
    pub enrolled: Duration,
    /// Where agents and clients run.
    pub runtime: Runtime,
}

impl Bed {
    /// Starts a controller, enrolls `nodes` nodes, publishes two releases, and starts the controller anew, so that
    /// what enrolling left in its memory is not counted.
    ///
    /// # Errors
    /// Where anything of that fails.
    pub fn new(bench: &Bench, nodes: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut controller = Controller::start(bench)?;
        let ca = controller.ca_pem()?;
        let began = Instant::now();
        let roster = runtime.block_on(async {
            let api = controller.api().await?;
            for (sequence, version) in [(1, "1.0.0"), (2, "2.0.0"), (3, "3.0.0")] {
                api.publish(COMPONENT, version, sequence, Bytes::from(format!("release {version}"))).await?;
            }
            let names = (0..nodes).map(|number| format!("sim-{number:06}"));
            Roster::enroll(&api, &ca, names, &[("env".to_owned(), "bench".to_owned())]).await
        })?;
        let enrolled = began.elapsed();
        controller.restart()?;
        std::thread::sleep(Duration::from_secs(1));
        let empty = controller.usage()?;
        Ok(Self { controller, roster, empty, enrolled, runtime })
    }

    /// How the agents of this bed behave.
    ///
    /// # Errors
    /// Never; the component's name is valid.
    pub fn behaviour(&self, pace: Pace) -> anyhow::Result<Behaviour> {
        Ok(Behaviour {
            controller: self.controller.endpoints().api.clone(),
            components: vec![(COMPONENT.parse()?, ComponentState::absent())],
            pace,
            download: false,
        })
    }

    /// Connects an agent for each of the first `count` nodes; gives them once all are connected.
    ///
    /// # Errors
    /// Where they don't come in time.
    pub fn connect(&self, count: usize, pace: Pace) -> anyhow::Result<Fleet> {
        let nodes = self.roster.nodes.iter().take(count).cloned().collect();
        let roster = Roster { ca: self.roster.ca.clone(), nodes };
        let behaviour = self.behaviour(pace)?;
        self.runtime.block_on(async {
            let fleet = Fleet::start(&roster, behaviour).await?;
            fleet.connected(count, PATIENCE).await?;
            Ok(fleet)
        })
    }

    /// Waits until nothing of what happened is left to do: the controller is idle for two seconds.
    ///
    /// # Errors
    /// Where it has ended, or is not idle within a minute.
    pub fn settle(&self) -> anyhow::Result<()> {
        let mut last = self.controller.usage()?.cpu;
        for _ in 0..60 {
            std::thread::sleep(Duration::from_secs(2));
            let now = self.controller.usage()?.cpu;
            if now - last < Duration::from_millis(100) {
                return Ok(());
            }
            last = now;
        }
        anyhow::bail!("the controller does not come to rest")
    }

    /// Connects as the admin.
    ///
    /// # Errors
    /// Where the controller does not answer.
    pub fn api(&self) -> anyhow::Result<Api> {
        self.runtime.block_on(self.controller.api())
    }

    /// Plans a rollout of `version` to all nodes at once and gives its name.
    ///
    /// # Errors
    /// What the controller says.
    pub fn plan(&self, api: &Api, version: &str) -> anyhow::Result<String> {
        self.runtime.block_on(api.create_rollout(all_at_once(COMPONENT, version)))
    }

    /// Waits until a rollout has succeeded.
    ///
    /// # Errors
    /// Where it ends otherwise or takes more than five minutes.
    pub fn succeeded(&self, api: &Api, name: &str) -> anyhow::Result<v1::Rollout> {
        let wanted = v1::rollout::State::Succeeded;
        self.runtime.block_on(api.reach(name, wanted, Duration::from_secs(300)))
    }
}

/// A pace at which agents answer and then do nothing for a long time.
#[must_use]
pub fn answers_only() -> Pace {
    Pace { preflight: Duration::from_secs(3600), ..Pace::default() }
}

/// A pace at which nothing takes time.
#[must_use]
pub fn at_once() -> Pace {
    let none = Duration::ZERO;
    Pace { preflight: none, fetch: none, activate: none, probe: none, failures: 0.0 }
}

/// Bytes as KiB per one of `count`, above what there was before.
#[must_use]
pub fn per_agent(now: Usage, before: Usage, count: usize) -> f64 {
    now.resident.saturating_sub(before.resident) as f64 / 1024.0 / count as f64
}
