//! Recorded sessions played again: what an agent of each version said, to controllers of both; what a controller of each
//! version told, to agents of both. The bytes are those of the fixtures, but for the names of upgrades.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Channel};
use upfleet_api::v1::{self, UpgradeState, rollout::State, session_response::Message as Told};

use crate::{
    formats::{RELEASES, all, between, fleet, outcomes},
    support::{
        COMPONENT, TestFleet, eventually, eventually_async, next,
        transcript::{self, Line, Side},
        wire::{Answers, agent_session, connect},
    },
};

const SOON: Duration = Duration::from_secs(30);

/// The lines of a fixture.
fn lines(fixture: &std::path::Path) -> Vec<Line> {
    transcript::read(&fixture.join("session.jsonl"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_said_to_controllers_of_both_versions() {
    for fixture in all() {
        for controller in [next::current_controller(), next::controller()] {
            let what = format!("{} to {}", fixture.display(), controller.display());
            let mut fleet = fleet(controller).await;
            fleet.add_node("n1", None).await;
            say_again(&fleet, &lines(&fixture), &what).await;
            let component = fleet.api.component("n1").await.unwrap();
            let base = format!("{:?}", component.current.unwrap().base);
            assert!(base.contains("1.1.0"), "{what}: {base}");
        }
    }
}

/// Plays the agent's part; the controller's own words say which upgrades it is about now.
async fn say_again(fleet: &TestFleet, lines: &[Line], what: &str) {
    let channel = connect(&fleet.context().address, &fleet.node("n1").app("../state")).await;
    let (say, said) = mpsc::channel(64);
    let mut lines = lines.iter();
    say.send(lines.next().expect("a Hello").bytes.clone()).await.unwrap();
    let mut controller = agent_session(channel, said).await;
    eventually_async("the node to be known", || async {
        fleet.api.component("n1").await.map(|_| ()).ok_or_else(|| "no component".to_owned())
    })
    .await;
    let (mut releases, mut names) = (RELEASES.iter(), Vec::new());
    let mut rollouts: Vec<String> = Vec::new();
    for line in lines {
        if line.from == Side::Agent {
            say.send(line.renamed(&names).bytes).await.unwrap();
            continue;
        }
        let Some(Told::DesiredState(order)) = line.told() else { continue };
        if !order.upgrade.is_empty() && names.iter().all(|(old, _)| *old != order.upgrade) {
            if let Some(before) = rollouts.last() {
                fleet.api.reach(before, State::Succeeded).await;
            }
            let (version, _) = releases.next().expect("as many upgrades as releases");
            rollouts.push(fleet.api.start(fleet.spec(version)).await);
        }
        let now = ordered(&mut controller, order.generation, what).await;
        if !order.upgrade.is_empty() {
            names.push((order.upgrade, now.upgrade));
        }
    }
    fleet.api.reach(rollouts.last().expect("there were rollouts"), State::Halted).await;
    assert_eq!(rollouts.len(), RELEASES.len(), "{what}");
}

/// The controller's order of this generation.
async fn ordered(controller: &mut Streaming<Bytes>, generation: u64, what: &str) -> v1::DesiredState {
    let waiting = async {
        loop {
            let bytes = controller.message().await.unwrap().expect("the session is open");
            let line = Line { from: Side::Controller, bytes };
            match line.told() {
                Some(Told::DesiredState(order)) if order.generation == generation => return order,
                _ => {}
            }
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: no order of generation {generation}"))
}

/// Tells an agent what was told before.
struct Player(Vec<Line>);

impl Answers for Player {
    fn session(&self, agent: Streaming<Bytes>, _: Channel, told: mpsc::Sender<Result<Bytes, Status>>) {
        let lines: Vec<Line> = self.0.iter().filter(|line| line.from == Side::Controller).cloned().collect();
        tokio::spawn(async move {
            let mut heard = Heard { agent, reports: Vec::new() };
            let mut upgrades: Vec<String> = Vec::new();
            for line in lines {
                match line.told() {
                    Some(Told::DesiredState(order)) => {
                        heard.until(|heard| upgrades.iter().all(|upgrade| heard.ended(upgrade))).await;
                        upgrades.push(order.upgrade);
                    }
                    Some(Told::ReportAck(ack)) => {
                        let (upgrade, sequence) = (ack.upgrade, ack.sequence);
                        heard
                            .until(|heard| heard.ended(&upgrade) || heard.reported(&upgrade, sequence))
                            .await;
                    }
                    _ => {}
                }
                if told.send(Ok(line.bytes)).await.is_err() {
                    return;
                }
            }
            heard.until(|_| false).await;
        });
    }
}

/// What the agent has said so far.
struct Heard {
    agent: Streaming<Bytes>,
    reports: Vec<v1::UpgradeReport>,
}

impl Heard {
    /// Listens until that is true, or the agent is gone.
    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let Ok(Some(bytes)) = self.agent.message().await else { return };
            let line = Line { from: Side::Agent, bytes };
            if let Some(v1::session_request::Message::Report(report)) = line.said() {
                self.reports.push(report);
            }
        }
    }

    fn reported(&self, upgrade: &str, sequence: u64) -> bool {
        self.reports.iter().any(|report| report.upgrade == upgrade && report.sequence >= sequence)
    }

    fn ended(&self, upgrade: &str) -> bool {
        let end = |state| matches!(state, UpgradeState::Succeeded | UpgradeState::RolledBack);
        upgrade.is_empty()
            || self.reports.iter().any(|report| report.upgrade == upgrade && end(report.state()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_controller_told_to_agents_of_both_versions() {
    for fixture in all() {
        let programs: [PathBuf; 2] = [next::current_agent(), next::agent()];
        for program in programs {
            let what = format!("{} to {}", fixture.display(), program.display());
            // It has the artifacts; the orders come from the fixture.
            let mut fleet = fleet(next::current_controller()).await;
            fleet.add_node("n1", None).await;
            let between = between(&fleet, Arc::new(Player(lines(&fixture)))).await;
            let node = fleet.node_mut("n1");
            node.program = program;
            node.start();
            eventually(&format!("{what}: all orders to be carried out"), || {
                // What crashes may be started more than once before it is put back.
                let mut starts = node.starts();
                starts.dedup();
                (starts == ["1.0.0", "1.1.0", "1.2.0", "1.1.0"]).then_some(())
            });
            eventually(&format!("{what}: 1.1.0 in the end"), || {
                node.running().filter(|(version, _)| version == "1.1.0")
            });
            eventually(&format!("{what}: its history"), || {
                let history = node.run(&["history", COMPONENT, "-o", "json"]).success();
                (outcomes(&history) == ["SUCCEEDED", "SUCCEEDED", "ROLLED_BACK"]).then_some(())
            });
            node.kill();
            drop(between);
        }
    }
}
