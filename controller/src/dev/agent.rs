//! The agents' configuration in a dev fleet: as in production, with shorter timers. Texts only.

use std::{fs, path::Path};

use super::app::COMPONENT;
use crate::cli::failure::{Failure, Result};

/// The component that is the agent itself.
pub(super) const AGENT: &str = "upfleet-agent";
/// Where its file lies, in the node's directory.
pub(super) const AGENT_FILE: &str = "bin/upfleet-agent";

/// What the agents of a fleet look after.
#[derive(Clone, Debug)]
pub(super) enum Components {
    /// The demo service.
    Demo,
    /// What a person's file says: `[[component]]` tables with `{root}`, `{port}` and `{node}` where they differ.
    Own(String),
}

impl Components {
    /// Those of the file, or the demo service.
    pub(super) fn read(file: Option<&Path>) -> Result<Self> {
        let Some(path) = file else { return Ok(Self::Demo) };
        let text = fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
        if !text.contains("[[component]]") {
            return Err(Failure::usage(format!("`{}` has no [[component]]", path.display()))
                .hint("write it as in an agent's configuration, see docs/reference/configuration.md"));
        }
        Ok(Self::Own(text))
    }

    /// An agent's configuration. `root` is the node's directory, `port` a free one.
    pub(super) fn config(&self, root: &str, node: &str, port: u16) -> String {
        let head =
            format!("# Written by `upfleet dev`.\nstate_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\n");
        let components = match self {
            Self::Demo => demo() + &itself(),
            Self::Own(text) => text.clone(),
        };
        let port = port.to_string();
        let values = [("{root}", root), ("{port}", port.as_str()), ("{node}", node)];
        let fill = |text: String, (name, value): (&str, &str)| text.replace(name, value);
        format!("{head}\n{}", values.into_iter().fold(components, fill))
    }
}

fn demo() -> String {
    format!(
        r#"[[component]]
name = "{COMPONENT}"
path = "{{root}}/app/{COMPONENT}"
kind = "binary"

[component.run]
mode = "supervised"
command = ["{{path}}", "--port", "{{port}}"]
stop_timeout = "2s"

[[component.probe]]
type = "http"
url = "http://127.0.0.1:{{port}}/healthz"
interval = "100ms"
timeout = "1s"
successes = 2
failures = 2

[component.health]
soak = "1s"
start_deadline = "10s"
"#
    )
}

/// The agent as a component, so that `upfleet-agent` can be rolled out to the fleet as well.
fn itself() -> String {
    format!(
        r#"
[[component]]
name = "{AGENT}"
path = "{{root}}/{AGENT_FILE}"
kind = "agent"

[component.health]
soak = "1s"

[component.guard]
deadline = "1m"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_own_place_and_port() {
        let own = Components::Own("[[component]]\npath = \"{root}/x\" # {node} {port} {path}".to_owned());
        let text = own.config("/d/a1", "demo-1", 9001);
        assert!(text.contains("state_dir = \"/d/a1/state\""), "{text}");
        assert!(text.ends_with("path = \"/d/a1/x\" # demo-1 9001 {path}"), "{text}");
        assert!(Components::Demo.config("/d/a1", "demo-1", 9001).contains("{path}"));
    }
}
