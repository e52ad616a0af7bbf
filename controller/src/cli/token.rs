//! `upfleet token`: the single-use tokens with which nodes enroll.

use std::{collections::BTreeMap, time::Duration};

use clap::Subcommand;
use upfleet_api::v1;

use super::{
    app::App,
    failure::{Failure, Result},
    page::pages,
    render::{Table, date, id},
    resource,
};
use crate::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a token and print it; it is shown this once.
    Create {
        /// The only node name it is good for; any where not given.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
        node: String,
        /// A label the node gets, `KEY=VALUE`; may be given several times.
        #[arg(long = "label", value_parser = super::token::label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        /// How long it is good, at most 30d.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration, value_name = "DURATION")]
        ttl: Duration,
        /// Let it replace a node of that name that is enrolled already.
        #[arg(long)]
        allow_replace: bool,
    },
    /// List tokens that are not used up, without their secrets.
    List,
    /// Revoke a token.
    Revoke {
        /// The token's id.
        token: String,
    },
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Create { node, labels, ttl, allow_replace } => {
            let client = app.connect_to_change().await?;
            let request = v1::CreateEnrollmentTokenRequest {
                node,
                labels: labels.into_iter().collect::<BTreeMap<_, _>>(),
                ttl: Some(ttl.into()),
                allow_replace,
                request_id: app.request_id(),
            };
            let answer = client.nodes().create_enrollment_token(request).await?.into_inner();
            // The secret alone on standard output, so that it can be piped; the rest beside it.
            app.show(&answer, |_| answer.secret.clone());
            if !app.is_json() {
                let expire = answer.token.and_then(|token| token.expire_time);
                app.note(format!(
                    "Good for one node until {}. On the node:\n  upfleet-agent enroll --token-file FILE",
                    date(expire.as_ref())
                ));
            }
        }
        Command::List => {
            let client = app.connect().await?;
            let request = v1::ListEnrollmentTokensRequest::default();
            let tokens = pages!(client.nodes(), list_enrollment_tokens, request, tokens);
            app.show_list("tokens", &tokens, |paint| {
                let mut table =
                    Table::new(&["TOKEN", "NODE", "LABELS", "EXPIRES", "BY"], "No tokens wait to be used.");
                for token in &tokens {
                    let labels: Vec<String> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let node = if token.node.is_empty() { "any" } else { &token.node };
                    table.row([
                        id(&token.name).to_owned(),
                        node.to_owned(),
                        labels.join(","),
                        date(token.expire_time.as_ref()),
                        id(&token.creator).to_owned(),
                    ]);
                }
                table.text(paint)
            });
        }
        Command::Revoke { token } => {
            let client = app.connect_to_change().await?;
            let name = resource("enrollmentTokens", &token);
            client.nodes().revoke_enrollment_token(v1::RevokeEnrollmentTokenRequest { name }).await?;
            app.note(format!("Token {token} is revoked."));
        }
    }
    Ok(Exit::Success)
}

/// Reads `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or_else(|| Failure::usage("write KEY=VALUE").message)?;
    Ok((key.to_owned(), value.to_owned()))
}
