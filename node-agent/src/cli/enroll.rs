//! `upfleet-agent enroll`.

use std::{fs, io::Read as _, path::PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use upfleet_domain::{
    id::NodeId,
    reason::{Class, Reason},
    token::EnrollmentToken,
};

use super::{Done, Exit, Failure, Global, logging};
use crate::{
    config::{Config, MAIN_FILE},
    enroll::{self, EnrollError},
    identity::Identities,
};

#[derive(Debug, Args)]
pub(super) struct Enroll {
    /// The token; other users of this machine can see it here while the command runs
    #[arg(long, required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The node's name [default: the machine's name]
    #[arg(long, alias = "name", value_name = "NAME")]
    node: Option<String>,
    /// Replace an identity that this node has already
    #[arg(long)]
    replace: bool,
    /// Where journals and identity go, when agent.toml is made anew
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Enroll {
    pub(super) fn run(self, global: &Global) -> Done {
        logging::begin(global.log);
        let text = self.token_text()?;
        let token: EnrollmentToken = text.parse().map_err(|error| {
            Failure::new(Exit::Usage, anyhow::Error::new(error))
                .hint("copy the whole line that `upfleet token create` printed")
        })?;
        let node = self.name()?;
        let state_dir = self.state_dir(global)?;
        if !self.replace
            && let Ok(identities) = Identities::load(&state_dir)
        {
            let own = identities.current();
            let error = anyhow!("this node is enrolled already, as `{}`", own.node());
            return Err(Failure::new(Exit::Refused, error).hint("--replace gives it a new identity"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let controller = runtime.block_on(enroll::enroll(&token, &node, &state_dir)).map_err(explain)?;
        let written = enroll::write_controller(&global.config, self.state_dir.as_deref(), &controller)?;
        println!("Enrolled as {node} with the controller at {}.", controller.address);
        println!("Wrote {} and the identity in {}.", written.display(), state_dir.join("identity").display());
        println!("Next: upfleet-agent run");
        Ok(Exit::Done)
    }

    fn token_text(&self) -> Result<String, Failure> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(path)) if path.as_os_str() == "-" => {
                let mut text = String::new();
                let read = std::io::stdin().take(64 * 1024).read_to_string(&mut text);
                read.context("could not read the token from standard input")?;
                Ok(text)
            }
            (None, Some(path)) => {
                let read = fs::read_to_string(path);
                Ok(read.with_context(|| format!("could not read the token from `{}`", path.display()))?)
            }
            (None, None) => Err(Failure::new(Exit::Usage, anyhow!("no token was given"))),
        }
    }

    fn name(&self) -> Result<NodeId, Failure> {
        let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = self.node.clone().unwrap_or_else(machine);
        NodeId::new(name).map_err(|error| Failure::new(Exit::Usage, error).hint("choose a name: --node NAME"))
    }

    fn state_dir(&self, global: &Global) -> Result<PathBuf, Failure> {
        if global.config.join(MAIN_FILE).exists() {
            let config: Config = super::load(global)?;
            return match &self.state_dir {
                Some(other) if *other != config.state_dir => {
                    let error = anyhow!("agent.toml says state_dir = `{}`", config.state_dir.display());
                    Err(Failure::new(Exit::Usage, error).hint("leave --state-dir out, or change agent.toml"))
                }
                _ => Ok(config.state_dir),
            };
        }
        Ok(self.state_dir.clone().unwrap_or_else(|| PathBuf::from("/var/lib/upfleet-agent")))
    }
}

fn explain(error: EnrollError) -> Failure {
    let (exit, hint) = match &error {
        EnrollError::Connect(_) | EnrollError::Silent(_) => (
            Exit::Unreachable,
            Some(
                "nothing was sent but a greeting; check the network, and that the token is this controller's",
            ),
        ),
        EnrollError::Refused { reason, .. } => (exit_of(reason), reason.code.hint()),
        _ => (Exit::Failed, None),
    };
    let failure = Failure::new(exit, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The exit code of a reason that stopped a command.
pub(super) fn exit_of(reason: &Reason) -> Exit {
    match reason.code.class() {
        Class::InvalidArgument => Exit::Usage,
        Class::Unauthenticated | Class::PermissionDenied => Exit::NotPermitted,
        Class::Unavailable => Exit::Unreachable,
        Class::Internal => Exit::Failed,
        _ => Exit::Refused,
    }
}
