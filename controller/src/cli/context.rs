//! `upfleet context`: which controller to talk to, and as whom.

use std::{fs, path::PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::{
    app::App,
    config::{Config, Context, NewContext},
    failure::{Failure, Result},
    render::Table,
};
use crate::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a context from files, or replace one.
    Add {
        /// The context's name.
        name: String,
        /// Where the controller's API is, `host:port`.
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
        /// The name in the controller's certificate; the address's host where not given.
        #[arg(long, value_name = "NAME")]
        server_name: Option<String>,
        /// The CA's certificate.
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// Your certificate.
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// Your private key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Changes will need `--confirm NAME`.
        #[arg(long)]
        protect: bool,
        /// Select it.
        #[arg(long = "use")]
        select: bool,
    },
    /// Select a context for the commands that follow.
    Use {
        /// The context's name.
        name: String,
    },
    /// List contexts.
    List,
    /// Show a context and its files.
    Show {
        /// The context's name; the selected one where not given.
        name: Option<String>,
    },
    /// Let changes need `--confirm NAME`.
    Protect {
        /// The context's name.
        name: String,
        /// Lift the protection.
        #[arg(long)]
        off: bool,
    },
    /// Remove a context and its key.
    Remove {
        /// The context's name.
        name: String,
    },
}

/// A context as `-o json` prints it: no secrets, only where they are.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    selected: bool,
    #[serde(flatten)]
    context: &'a Context,
}

pub(super) fn run(app: &App, command: Command) -> Result<Exit> {
    let mut config = Config::load()?;
    match command {
        Command::Add { name, address, server_name, ca, cert, key, protect, select } => {
            let read =
                |path: &PathBuf| fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error));
            let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
            let host = host.ok_or_else(|| Failure::usage(format!("`{address}` has no port")))?;
            let (ca, cert, key) = (read(&ca)?, read(&cert)?, read(&key)?);
            let new = NewContext {
                address,
                server_name: server_name.unwrap_or(host),
                ca_pem: &ca,
                cert_pem: &cert,
                key_pem: &key,
                protected: protect,
            };
            config.put(&name, &new, select)?;
            app.note(format!("Context {name} is written to {}.", config.path().display()));
        }
        Command::Use { name } => {
            config.select(&name)?;
            app.note(format!("Context {name} is selected."));
        }
        Command::List => list(app, &config),
        Command::Show { name } => show(app, &config, name.as_deref())?,
        Command::Protect { name, off } => {
            config.protect(&name, !off)?;
            let text = if off { "is no longer protected" } else { "is protected: changes need --confirm" };
            app.note(format!("Context {name} {text}."));
        }
        Command::Remove { name } => {
            if !config.contexts().contains_key(&name) {
                config.select(&name)?;
            }
            app.confirm(&format!("remove context {name} and its key"))?;
            config.remove(&name)?;
            app.note(format!("Context {name} is removed."));
        }
    }
    Ok(Exit::Success)
}

fn list(app: &App, config: &Config) {
    let shown: Vec<Shown<'_>> = config
        .contexts()
        .iter()
        .map(|(name, context)| Shown { name, selected: config.current() == Some(name), context })
        .collect();
    app.show_list("contexts", &shown, |paint| {
        let mut table = Table::new(
            &["", "CONTEXT", "ADDRESS", "SERVER NAME", "PROTECTED"],
            "No contexts. `upfleet dev` makes one, so does `upfleet init`.",
        );
        for context in &shown {
            let protected = if context.context.protected { paint.warn("yes") } else { "no".to_owned() };
            table.row([
                if context.selected { "*".to_owned() } else { " ".to_owned() },
                context.name.to_owned(),
                context.context.address.clone(),
                context.context.server_name.clone(),
                protected,
            ]);
        }
        table.text(paint)
    });
}

fn show(app: &App, config: &Config, name: Option<&str>) -> Result<()> {
    let (name, context) = config.resolve(name.or(app.globals.context.as_deref()))?;
    let shown = Shown { name: &name, selected: config.current() == Some(&name), context: &context };
    app.show(&shown, |_| {
        format!(
            "context      {name}\naddress      {}\nserver name  {}\nCA           {}\ncertificate  {}\nkey          {}\nprotected    {}\n",
            context.address,
            context.server_name,
            context.ca.display(),
            context.cert.display(),
            context.key.display(),
            if context.protected { "yes" } else { "no" },
        )
    });
    Ok(())
}
