//! `upfleet rollout`: start, watch and steer.

use clap::{Subcommand, ValueEnum};
use upfleet_api::v1;

use super::{
    app::App,
    client::Client,
    failure::{Failure, Result},
    now,
    page::pages,
    plan,
    render::{self, Table, component_state, date, id},
    resource,
    spec::SpecArgs,
    watch::{self, Until, WaitArgs},
};
use crate::exit::Exit;

/// What becomes of the failed nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Failed {
    /// Try them again.
    Retry,
    /// Leave them out.
    Skip,
    /// Put the rollout's nodes back instead of going on.
    Revert,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a rollout and wait for its end.
    Start {
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// Start only where planning again gives this plan; the digest, or its first digits, from `upfleet plan`.
        #[arg(long, value_name = "DIGEST")]
        plan: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List rollouts, newest first.
    List {
        /// Only this component's.
        component: Option<String>,
    },
    /// Show a rollout as it stands.
    #[command(visible_alias = "status")]
    Show {
        /// The rollout.
        rollout: String,
    },
    /// List a rollout's upgrades, one per node.
    #[command(visible_alias = "history")]
    Upgrades {
        /// The rollout.
        rollout: String,
    },
    /// Watch a rollout to its very end, through pauses and halts.
    Watch {
        /// The rollout.
        rollout: String,
    },
    /// Wait for a rollout; the exit code says how it ended or what it waits for.
    Wait {
        /// The rollout.
        rollout: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Approve what waits for approval: the rollout, or its next wave.
    Approve {
        /// The rollout.
        rollout: String,
        /// The wave meant, so that a late word approves nothing else.
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
        wave: u32,
    },
    /// Start no more nodes until resumed.
    Pause {
        /// The rollout.
        rollout: String,
        /// Also stop nodes under way at their next safe point.
        #[arg(long)]
        hard: bool,
    },
    /// Go on with a paused or halted rollout.
    Resume {
        /// The rollout.
        rollout: String,
        /// What becomes of the failed nodes; needed after a halt.
        #[arg(long, value_enum)]
        failed: Option<Failed>,
        /// With `--failed retry`: also digests that failed on a node before.
        #[arg(long)]
        allow_failed_digest: bool,
    },
    /// End a rollout: nodes not yet touched stay as they are, nodes in between are put back.
    Cancel {
        /// The rollout.
        rollout: String,
    },
    /// Try the failed nodes again.
    Retry {
        /// The rollout.
        rollout: String,
        /// Only this node; may be given several times.
        #[arg(long, value_name = "NODE")]
        node: Vec<String>,
        /// Also digests that failed on a node before.
        #[arg(long)]
        allow_failed_digest: bool,
    },
    /// Leave a node out of the rest of a rollout.
    Skip {
        /// The rollout.
        rollout: String,
        /// The node.
        node: String,
    },
    /// Put each changed node back to the state it proved before, in a rollout of its own, and wait for it.
    Rollback {
        /// The rollout.
        rollout: String,
        /// Show what it would do; change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Start { spec, plan, wait } => start(app, &spec, plan.as_deref(), &wait).await,
        Command::List { component } => {
            let client = app.connect().await?;
            let request =
                v1::ListRolloutsRequest { component: component.unwrap_or_default(), ..Default::default() };
            let rollouts = pages!(client.rollouts(), list_rollouts, request, rollouts);
            app.show_list("rollouts", &rollouts, |paint| {
                render::rollout_table(&rollouts, now(), app.is_wide(), paint)
            });
            Ok(Exit::Success)
        }
        Command::Show { rollout } => show(app, &rollout).await,
        Command::Upgrades { rollout } => upgrades(app, &rollout).await,
        Command::Watch { rollout } => {
            let client = app.connect().await?;
            watch::existing(app, &client, &resource("rollouts", &rollout), Until::End, &WaitArgs::default())
                .await
        }
        Command::Wait { rollout, wait } => {
            let client = app.connect().await?;
            watch::existing(app, &client, &resource("rollouts", &rollout), Until::Rest, &wait).await
        }
        Command::Rollback { rollout, dry_run, wait } => roll_back(app, &rollout, dry_run, &wait).await,
        steer_command => {
            let rollout = steer(app, steer_command).await?;
            app.show(&rollout, |paint| render::rollout_details(&rollout, now(), paint));
            Ok(Exit::Success)
        }
    }
}

async fn start(app: &App, args: &SpecArgs, plan_digest: Option<&str>, wait: &WaitArgs) -> Result<Exit> {
    let spec = args.spec()?;
    let (context, _) = app.context()?;
    let client = app.connect_to_change().await?;
    // Planned first, so that people see where and how many before anything begins.
    let planned = plan::make(&client, &spec).await?;
    if !app.is_json() && !app.globals.quiet {
        app.note(render::plan(&context, &spec, &planned, app.is_wide(), app.paint_err()));
    }
    if planned.upgrades.is_empty() {
        return nothing_to_change(app, &planned);
    }
    let expected_plan_digest = match plan_digest {
        None => String::new(),
        Some(wanted) if wanted.len() >= 8 && planned.plan_digest.starts_with(wanted) => planned.plan_digest,
        // The controller knows the difference only for whole digests; a part is enough to refuse.
        Some(wanted) if wanted.len() == 64 => wanted.to_owned(),
        Some(wanted) => {
            let mut failure =
                Failure::new(Exit::Precondition, "the fleet has changed since the plan was made");
            let now = planned.plan_digest.chars().take(wanted.len().max(12)).collect();
            failure.values = vec![("expected".to_owned(), wanted.to_owned()), ("got".to_owned(), now)];
            failure.reason = Some("PLAN_CHANGED".into());
            return Err(failure.hint("look at the plan above; run it with the digest it shows"));
        }
    };
    let request = v1::CreateRolloutRequest {
        spec: Some(spec),
        message: app.globals.message.clone(),
        validate_only: false,
        expected_plan_digest,
        request_id: app.request_id(),
    };
    let created = client.rollouts().create_rollout(request).await;
    let created =
        created.map_err(|status| Failure::from(status).while_trying("could not create the rollout"))?;
    let mut rollout = created.into_inner().rollout.unwrap_or_default();
    // A repeated request id answers with the rollout of the first time, which may be under way.
    if rollout.state() == v1::rollout::State::Planned {
        let request = v1::StartRolloutRequest { name: rollout.name.clone(), etag: String::new() };
        let started = client.rollouts().start_rollout(request).await;
        rollout = started.map_err(Failure::from)?.into_inner().rollout.unwrap_or(rollout);
    }
    follow(app, &client, rollout, wait).await
}

/// An empty plan: the goal is reached where every node runs it already, else it can't be begun.
fn nothing_to_change(app: &App, plan: &v1::Plan) -> Result<Exit> {
    let because = |code: &str| {
        let is = |node: &v1::ExcludedNode| node.reason.as_ref().is_some_and(|reason| reason.code == code);
        plan.excluded.iter().filter(|node| is(node)).collect::<Vec<_>>()
    };
    let count = plan.excluded.len();
    if count > 0 && because("ALREADY_CURRENT").len() == count {
        app.show(plan, |_| format!("Nothing to do: it runs on all {count} nodes already."));
        return Ok(Exit::Success);
    }
    let failure = if count == 0 {
        Failure::new(Exit::Precondition, "no node matches").hint("upfleet node list -l SELECTOR")
    } else {
        Failure::new(Exit::Precondition, format!("no node is left to change: {count} were left out"))
    };
    let mut failure = match because("OTHER_ROLLOUT").first().and_then(|node| node.reason.as_ref()) {
        None if count > 0 => failure.hint("-o wide shows the reason for each node"),
        None => failure,
        Some(reason) => {
            let other = reason.metadata.get("rollout").cloned().unwrap_or_default();
            failure.hint(format!(
                "finish the other rollout first: upfleet rollout resume {other}, or cancel {other}"
            ))
        }
    };
    failure.reason = Some("EMPTY_PLAN".into());
    Err(failure)
}

/// Waits for a rollout that was just started, or prints its id with `--no-wait`.
async fn follow(app: &App, client: &Client, rollout: v1::Rollout, wait: &WaitArgs) -> Result<Exit> {
    if wait.no_wait {
        app.show(&rollout, |_| id(&rollout.name).to_owned());
        return Ok(Exit::Success);
    }
    watch::new(app, client, rollout, wait).await
}

async fn show(app: &App, rollout: &str) -> Result<Exit> {
    let client = app.connect().await?;
    let model = watch::load(&client, &resource("rollouts", rollout)).await?;
    app.show(&model.rollout, |paint| {
        let tree = render::tree(&model, now(), 200, usize::MAX, paint);
        format!("{tree}{}", render::rollout_details(&model.rollout, now(), paint))
    });
    Ok(Exit::Success)
}

async fn upgrades(app: &App, rollout: &str) -> Result<Exit> {
    let client = app.connect().await?;
    let model = watch::load(&client, &resource("rollouts", rollout)).await?;
    let mut upgrades: Vec<v1::Upgrade> = model.upgrades.into_values().collect();
    upgrades.sort_by(|a, b| (a.wave, &a.node).cmp(&(b.wave, &b.node)));
    app.show_list("upgrades", &upgrades, |paint| {
        let mut table = Table::new(
            &["WAVE", "NODE", "STATE", "FROM", "TO", "TRY", "STARTED", "ENDED", "WHY"],
            "No upgrades.",
        );
        for upgrade in &upgrades {
            table.row([
                format!("{:>4}", upgrade.wave),
                id(&upgrade.node).to_owned(),
                render::upgrade_state(upgrade.state()).to_owned(),
                component_state(upgrade.from.as_ref()),
                component_state(upgrade.to.as_ref()),
                upgrade.attempt.to_string(),
                date(upgrade.start_time.as_ref()),
                date(upgrade.end_time.as_ref()),
                render::reason(upgrade.reason.as_ref(), now()),
            ]);
        }
        let mut text = table.text(paint);
        if app.is_wide() {
            upgrades.iter().for_each(|upgrade| text.push_str(&render::proof(upgrade)));
            upgrades.iter().for_each(|upgrade| text.push_str(&evidence(upgrade)));
        }
        text
    });
    Ok(Exit::Success)
}

/// Everything that a failed process left behind.
fn evidence(upgrade: &v1::Upgrade) -> String {
    let Some(evidence) = &upgrade.evidence else { return String::new() };
    let mut text = format!("\n{}: {}\n", id(&upgrade.node), evidence.exit);
    evidence.probe_results.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    evidence.lines.iter().for_each(|line| text.push_str(&format!("  | {line}\n")));
    text
}

async fn roll_back(app: &App, rollout: &str, dry_run: bool, wait: &WaitArgs) -> Result<Exit> {
    let client = if dry_run { app.connect().await? } else { app.connect_to_change().await? };
    let request = v1::RollBackRolloutRequest {
        name: resource("rollouts", rollout),
        message: app.globals.message.clone(),
        validate_only: dry_run,
        request_id: app.request_id(),
    };
    let answer = client.rollouts().roll_back_rollout(request).await;
    let answer = answer
        .map_err(|status| Failure::from(status).while_trying(format!("could not roll back `{rollout}`")))?;
    let answer = answer.into_inner();
    if !dry_run {
        return follow(app, &client, answer.rollout.unwrap_or_default(), wait).await;
    }
    let (context, _) = app.context()?;
    let plan = answer.plan.unwrap_or_default();
    let name = resource("rollouts", rollout);
    let before =
        client.rollouts().get_rollout(v1::GetRolloutRequest { name: name.clone() }).await?.into_inner();
    let component = before.rollout.and_then(|rollout| rollout.spec).unwrap_or_default().component;
    let target = Some(v1::restore_change::Target::BeforeRollout(name));
    let change = Some(v1::rollout_spec::Change::Restore(v1::RestoreChange { target }));
    let spec = v1::RolloutSpec { component, change, ..Default::default() };
    app.show(&plan, |paint| {
        format!("{}Nothing was changed.\n", render::plan(&context, &spec, &plan, app.is_wide(), paint))
    });
    Ok(Exit::Success)
}

/// The commands that steer a rollout and answer with it.
async fn steer(app: &App, command: Command) -> Result<v1::Rollout> {
    let mut rollouts = app.connect_to_change().await?.rollouts();
    let message = app.globals.message.clone();
    let name = |rollout: &str| resource("rollouts", rollout);
    let rollout = match command {
        Command::Approve { rollout, wave } => {
            let request =
                v1::ApproveRolloutRequest { name: name(&rollout), wave, message, ..Default::default() };
            rollouts.approve_rollout(request).await?.into_inner().rollout
        }
        Command::Pause { rollout, hard } => {
            use v1::pause_rollout_request::Strength;
            let strength = if hard { Strength::NextSafePoint } else { Strength::StartNoMore };
            let request = v1::PauseRolloutRequest {
                name: name(&rollout),
                strength: strength.into(),
                message,
                ..Default::default()
            };
            rollouts.pause_rollout(request).await?.into_inner().rollout
        }
        Command::Resume { rollout, failed, allow_failed_digest } => {
            let failed_nodes = match failed {
                None => v1::FailedNodes::Unspecified,
                Some(Failed::Retry) => v1::FailedNodes::Retry,
                Some(Failed::Skip) => v1::FailedNodes::Skip,
                Some(Failed::Revert) => v1::FailedNodes::Revert,
            };
            let request = v1::ResumeRolloutRequest {
                name: name(&rollout),
                failed_nodes: failed_nodes.into(),
                allow_failed_digest,
                message,
                ..Default::default()
            };
            rollouts.resume_rollout(request).await?.into_inner().rollout
        }
        Command::Cancel { rollout } => {
            let request = v1::CancelRolloutRequest { name: name(&rollout), message, ..Default::default() };
            rollouts.cancel_rollout(request).await?.into_inner().rollout
        }
        Command::Retry { rollout, node, allow_failed_digest } => {
            let request = v1::RetryRolloutRequest {
                name: name(&rollout),
                nodes: node.iter().map(|node| resource("nodes", node)).collect(),
                allow_failed_digest,
                message,
                ..Default::default()
            };
            rollouts.retry_rollout(request).await?.into_inner().rollout
        }
        Command::Skip { rollout, node } => {
            let request =
                v1::SkipNodeRequest { name: name(&rollout), node: resource("nodes", &node), message };
            rollouts.skip_node(request).await?.into_inner().rollout
        }
        _ => None,
    };
    Ok(rollout.unwrap_or_default())
}
