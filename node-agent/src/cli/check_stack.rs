//! `upfleet-agent check-stack`: whether a patched JVM's files are what they were, asked by its unit before each start.
//!
//! It reads and hashes, and neither asks the agent nor changes anything, so that it holds with the agent away. With
//! `--path` it needs no configuration either: a mistake in that must not keep a healthy JVM down.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use upfleet_domain::id::ComponentId;

use super::{Done, Exit, Failure, Global, enroll::exit_of};
use crate::exec::{
    Place,
    stack::{self, Current},
};
use crate::supervise::STACK;

#[derive(Debug, Args)]
pub(super) struct CheckStack {
    /// The component
    component: ComponentId,
    /// Where the component lies; the configuration says it where left out
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// The set of patches that the JVM is started with; the one in force where left out
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Print nothing where all is well
    #[arg(short, long)]
    quiet: bool,
}

impl CheckStack {
    pub(super) fn run(self, global: &Global) -> Done {
        let place = self.place(global)?;
        let found = match &self.set {
            Some(name) => stack::named(&place, name).map(Some),
            None => match stack::current(&place) {
                // Its unit says that there are patches.
                Ok(None) if std::env::var_os(STACK).is_some() => Err(stack::missing(&place)),
                found => found,
            },
        };
        let found = found.map_err(|reason| {
            let hint = reason.code.hint();
            let failure = Failure::new(exit_of(&reason), anyhow!("{reason}"));
            match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        if !self.quiet {
            println!("{}", told(&self.component, found.as_ref()));
        }
        Ok(Exit::Done)
    }

    fn place(&self, global: &Global) -> Result<Place, Failure> {
        if let Some(path) = &self.path {
            return Ok(Place::new(&self.component, path));
        }
        let config = super::load(global)?;
        let Some(component) = config.component(&self.component) else {
            let error = anyhow!("the configuration has no component `{}`", self.component);
            return Err(Failure::new(Exit::Usage, error).hint("upfleet-agent status lists the components"));
        };
        Ok(Place::new(&component.name, &component.path))
    }
}

fn told(component: &ComponentId, found: Option<&Current>) -> String {
    let Some(found) = found else {
        return format!("{component}: no patches, nothing to check");
    };
    let active: Vec<String> =
        found.layers.iter().filter(|layer| !layer.retired).map(|layer| layer.number.to_string()).collect();
    let patches = if active.is_empty() { "none".to_owned() } else { active.join(", ") };
    format!("{component}: {} files are as recorded; patches in force: {patches}", found.files.len())
}
