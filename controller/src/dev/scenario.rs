//! `upfleet dev --scenario`: plays a story on the fleet and says whether it happened as told.
//!
//! The rollout is started by the real command line in a process of its own, and what happened is asked from the
//! controller and from the demo services themselves: nothing is believed because it was ordered.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use upfleet_api::v1::{self, UpgradeState, rollout::State};

use super::{
    app::{COMPONENT, FIRST},
    context::CONTEXT,
    fleet::{Fleet, demo},
};
use crate::{
    cli::{
        app::App,
        client::Client,
        failure::{Failure, Result},
        file,
        render::{Paint, hex, id},
    },
    exit::Exit,
};

/// A story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Story {
    /// A good release reaches every node.
    GoodRelease,
    /// A bad release is caught on the canary and put back by itself.
    BadRelease,
}

/// What a story is to end in.
struct Ending {
    version: &'static str,
    exit: Exit,
    state: State,
    /// The version that every node runs at the end.
    runs: &'static str,
    canary: UpgradeState,
    others: UpgradeState,
}

impl Story {
    fn ending(self) -> Ending {
        match self {
            Self::GoodRelease => Ending {
                version: "1.1.0",
                exit: Exit::Success,
                state: State::Succeeded,
                runs: "1.1.0",
                canary: UpgradeState::Succeeded,
                others: UpgradeState::Succeeded,
            },
            Self::BadRelease => Ending {
                version: "1.2.0",
                exit: Exit::RolledBack,
                state: State::Halted,
                runs: FIRST.version,
                canary: UpgradeState::RolledBack,
                others: UpgradeState::Pending,
            },
        }
    }
}

/// Plays it and checks each part of its ending.
pub(super) async fn play(app: &App, fleet: &Fleet, story: Story, ci: bool) -> Result<Exit> {
    let ending = story.ending();
    app.say(format!(
        "{} nodes run {COMPONENT} {}. Rolling out {}.",
        fleet.nodes.len(),
        FIRST.version,
        ending.version
    ));
    let code = roll_out(fleet, ending.version, ci).await?;
    let client = fleet.connect().await?;
    let mut checks = vec![(
        format!("`upfleet rollout start` ended with exit code {}", ending.exit.code()),
        code == Some(i32::from(ending.exit.code())),
    )];
    checks.extend(look_at_rollout(&client, &ending).await?);
    checks.extend(look_at_nodes(&client, fleet, &ending).await?);
    report(app, &checks)
}

fn report(app: &App, checks: &[(String, bool)]) -> Result<Exit> {
    let paint: Paint = app.paint();
    for (what, holds) in checks {
        let mark = if *holds { paint.good("✔") } else { paint.bad("✖") };
        app.say(format!("  {mark} {what}"));
    }
    let broken = checks.iter().filter(|(_, holds)| !holds).count();
    if broken > 0 {
        return Err(Failure::new(
            Exit::Internal,
            format!("the story did not happen as told: {broken} checks failed"),
        ));
    }
    app.say(format!("{} The story happened as told.", paint.good("✔")));
    Ok(Exit::Success)
}

/// Starts the rollout as a person would, and returns the exit code.
async fn roll_out(fleet: &Fleet, version: &str, ci: bool) -> Result<Option<i32>> {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Internal, "could not run `upfleet`").because(&error);
    let own = std::env::current_exe().map_err(failed)?;
    let mut command = tokio::process::Command::new(own);
    command.args(["rollout", "start", "--release", &format!("{COMPONENT}@{version}")]);
    command.args(["--context", CONTEXT, "--timeout", "2m", "--message", "played by upfleet dev"]);
    if ci {
        command.arg("--no-progress");
    }
    command.env("UPFLEET_CONFIG", fleet.config()).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command.status().await.map_err(failed)?.code())
}

async fn look_at_rollout(client: &Client, ending: &Ending) -> Result<Vec<(String, bool)>> {
    let request = v1::ListRolloutsRequest { page_size: 1, ..Default::default() };
    let newest = client.rollouts().list_rollouts(request).await?.into_inner().rollouts.into_iter().next();
    let rollout = newest.unwrap_or_default();
    let request =
        v1::ListUpgradesRequest { parent: rollout.name.clone(), page_size: 1000, ..Default::default() };
    let upgrades = client.rollouts().list_upgrades(request).await?.into_inner().upgrades;
    let (canary, others): (Vec<_>, Vec<_>) = upgrades.iter().partition(|upgrade| upgrade.wave == 1);
    let word = |state: UpgradeState| state.as_str_name().trim_start_matches("UPGRADE_STATE_");
    let named: Vec<&str> = canary.iter().map(|upgrade| id(&upgrade.node)).collect();
    let mut checks = vec![
        (
            format!("the rollout is {}", ending.state.as_str_name().trim_start_matches("STATE_")),
            rollout.state() == ending.state,
        ),
        (
            format!("the canary {} is {}", named.join(", "), word(ending.canary)),
            !canary.is_empty() && canary.iter().all(|upgrade| upgrade.state() == ending.canary),
        ),
        (
            format!("the other {} nodes are {}", others.len(), word(ending.others)),
            others.iter().all(|upgrade| upgrade.state() == ending.others),
        ),
    ];
    if ending.canary == UpgradeState::RolledBack {
        let said = |upgrade: &&v1::Upgrade| {
            upgrade.evidence.as_ref().is_some_and(|e| e.lines.iter().any(|line| line.contains("giving up")))
        };
        checks.push(("its last words were kept as evidence".to_owned(), canary.iter().all(said)));
    }
    Ok(checks)
}

async fn look_at_nodes(client: &Client, fleet: &Fleet, ending: &Ending) -> Result<Vec<(String, bool)>> {
    let expected = file::facts(&fleet.release_file(ending.runs))?.sha256.to_string();
    let request = v1::ListNodesRequest { page_size: 1000, ..Default::default() };
    let nodes = client.nodes().list_nodes(request).await?.into_inner().nodes;
    let runs = |node: &v1::Node| {
        demo(node).is_some_and(|component| hex(component.running_digest.as_ref()) == expected)
    };
    let mut answers = Vec::new();
    for node in &fleet.nodes {
        answers.push(greeting(node.port).await);
    }
    let greeting = format!("{COMPONENT} {}", ending.runs);
    Ok(vec![
        (
            format!("all {} nodes run the digest of {} ({})", nodes.len(), ending.runs, &expected[..12]),
            nodes.len() == fleet.nodes.len() && nodes.iter().all(runs),
        ),
        (
            format!("all {} services answer `{greeting}`", answers.len()),
            answers.iter().all(|answer| answer.as_deref() == Some(greeting.as_str())),
        ),
    ])
}

/// What a demo service answers.
async fn greeting(port: u16) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.trim().to_owned())
    };
    timeout(Duration::from_secs(5), ask).await.ok()?
}
