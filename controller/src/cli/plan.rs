//! `upfleet plan`: what a rollout would do; changes nothing.

use upfleet_api::v1;

use super::{
    app::App,
    failure::{Failure, Result},
    render,
    spec::SpecArgs,
};
use crate::{cli::client::Client, exit::Exit};

/// What to plan.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    spec: SpecArgs,
    /// Exit with 10 where something would change.
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(super) async fn run(app: &App, args: Args) -> Result<Exit> {
    let spec = args.spec.spec()?;
    let (context, _) = app.context()?;
    let client = app.connect().await?;
    let plan = make(&client, &spec).await?;
    app.show(&plan, |paint| {
        let mut text = render::plan(&context, &spec, &plan, app.is_wide(), paint);
        text.push_str(&format!("Nothing was changed. Run: {}\n", start_command(&plan)));
        text
    });
    let changes = args.detailed_exitcode && !plan.upgrades.is_empty();
    Ok(if changes { Exit::Changes } else { Exit::Success })
}

/// Asks the controller for the plan; stores nothing.
pub(super) async fn make(client: &Client, spec: &v1::RolloutSpec) -> Result<v1::Plan> {
    let request =
        v1::CreateRolloutRequest { spec: Some(spec.clone()), validate_only: true, ..Default::default() };
    let answer = client.rollouts().create_rollout(request).await;
    let answer = answer.map_err(|status| Failure::from(status).while_trying("could not plan"))?;
    Ok(answer.into_inner().plan.unwrap_or_default())
}

/// The command that starts exactly this plan: this one with `plan` replaced.
fn start_command(plan: &v1::Plan) -> String {
    let digest: String = plan.plan_digest.chars().take(12).collect();
    let mut words = std::env::args().skip(1).collect::<Vec<_>>();
    if let Some(position) = words.iter().position(|word| word == "plan") {
        words.splice(position..=position, ["rollout".to_owned(), "start".to_owned()]);
    }
    words.retain(|word| word != "--detailed-exitcode");
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("upfleet {} --plan {digest}", quoted.join(" "))
}

/// A word as a shell takes it unchanged.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:=,%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("hello@1.1.0"), "hello@1.1.0");
        assert_eq!(quote("25%"), "25%");
        assert_eq!(quote("*"), "'*'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
