//! `upfleet node`: the machines of the fleet.

use clap::{ArgGroup, Args, Subcommand};
use upfleet_api::v1;

use super::{
    app::App,
    failure::{Failure, Result},
    now,
    page::pages,
    render::{id, jvm_table, node_details, node_table},
    resource,
};
use crate::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List nodes and what they run.
    List {
        /// Only nodes with these labels, e.g. `env=prod,name=web-*`.
        #[arg(short = 'l', long, default_value = "", hide_default_value = true, value_name = "SELECTOR")]
        selector: String,
        /// Retired nodes too.
        #[arg(short, long)]
        all: bool,
    },
    /// Show a node: what each component ran before and runs now, who changed it, what can be gone back to.
    Show {
        /// The node.
        node: String,
    },
    /// Print nodes as they change, until interrupted.
    Watch {
        /// Only nodes with these labels.
        #[arg(short = 'l', long, default_value = "", hide_default_value = true, value_name = "SELECTOR")]
        selector: String,
    },
    /// Change labels: `KEY=VALUE` sets, `KEY-` removes.
    Label {
        /// The node.
        node: String,
        /// The changes.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<String>,
    },
    /// Keep a node out of new plans; what runs on it goes on.
    Cordon {
        /// The node.
        node: String,
    },
    /// Take a node into plans again; also ends its suspension for a suspected clone.
    Uncordon {
        /// The node.
        node: String,
    },
    /// Remove a node for good and revoke its certificates.
    Retire {
        /// The node.
        node: String,
    },
    /// Keep a component as it is: orders for it are refused until it is released.
    Hold {
        /// The node.
        node: String,
        /// The component.
        component: String,
    },
    /// Release a held component, also one that a local rollback held.
    Release {
        /// The node.
        node: String,
        /// The component.
        component: String,
    },
    /// List the JVMs that run on nodes, component or not.
    Jvms(JvmsArgs),
    /// Print what a component wrote last.
    Logs {
        /// The node.
        node: String,
        /// The component; may be left out where the node has one only.
        component: Option<String>,
        /// Go on with lines as they come.
        #[arg(short, long)]
        follow: bool,
        /// How many of the last lines, at most 2000.
        #[arg(short = 'n', long, default_value_t = 200, value_name = "N")]
        lines: u32,
    },
}

/// Which JVMs.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("where").required(true).args(["node", "selector", "all"])))]
pub(super) struct JvmsArgs {
    /// The node.
    node: Option<String>,
    /// Of nodes with these labels, e.g. `env=prod,name=web-*`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Of all nodes.
    #[arg(short, long)]
    all: bool,
    /// Only of this version of Java: `17`, `17.0.15`, `1.8`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "VERSION")]
    java: String,
    /// Only with this text in main class, jar or class path, e.g. `log4j-core`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    contains: String,
    /// Only those that belong to no component.
    #[arg(long)]
    unmanaged: bool,
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Jvms(args) => jvms(app, args).await,
        Command::List { selector, all } => list(app, selector, all).await,
        Command::Show { node } => {
            let node = get(app, &node).await?;
            show(app, &node);
            Ok(Exit::Success)
        }
        Command::Watch { selector } => watch(app, selector).await,
        Command::Logs { node, component, follow, lines } => logs(app, &node, component, follow, lines).await,
        change => {
            let node = alter(app, change).await?;
            show(app, &node);
            Ok(Exit::Success)
        }
    }
}

async fn list(app: &App, selector: String, all: bool) -> Result<Exit> {
    let client = app.connect().await?;
    let states = if all {
        use v1::node::State as S;
        vec![S::Active.into(), S::Cordoned.into(), S::Suspended.into(), S::Retired.into()]
    } else {
        Vec::new()
    };
    let request = v1::ListNodesRequest { selector, states, ..Default::default() };
    let nodes = pages!(client.nodes(), list_nodes, request, nodes);
    app.show_list("nodes", &nodes, |paint| node_table(&nodes, now(), app.is_wide(), paint));
    Ok(Exit::Success)
}

async fn jvms(app: &App, args: JvmsArgs) -> Result<Exit> {
    let client = app.connect().await?;
    let selector = match (args.node, args.selector) {
        // Asked for first, so that a name that is none is said to be none.
        (Some(node), _) => format!("name={}", id(&get(app, &node).await?.name)),
        (None, selector) => selector.unwrap_or_default(),
    };
    let request = v1::ListJvmsRequest {
        selector,
        java_version: args.java,
        contains: args.contains,
        unmanaged: args.unmanaged,
        ..Default::default()
    };
    let jvms = pages!(client.nodes(), list_jvms, request, jvms);
    app.show_list("jvms", &jvms, |paint| jvm_table(&jvms, now(), app.is_wide(), paint));
    Ok(Exit::Success)
}

async fn get(app: &App, node: &str) -> Result<v1::Node> {
    let name = resource("nodes", node);
    let answer = app.connect().await?.nodes().get_node(v1::GetNodeRequest { name }).await?;
    Ok(answer.into_inner().node.unwrap_or_default())
}

fn show(app: &App, node: &v1::Node) {
    app.show(node, |paint| node_details(node, now(), paint));
}

/// The commands that change one node and answer with it.
async fn alter(app: &App, command: Command) -> Result<v1::Node> {
    let mut nodes = app.connect_to_change().await?.nodes();
    let message = app.globals.message.clone();
    let name = |node: &str| resource("nodes", node);
    let node = match command {
        Command::Label { node, changes } => {
            let answer = nodes.get_node(v1::GetNodeRequest { name: name(&node) }).await?.into_inner();
            let mut node = answer.node.unwrap_or_default();
            for change in &changes {
                relabel(&mut node.labels, change)?;
            }
            let update_mask = Some(pbjson_types::FieldMask { paths: vec!["labels".to_owned()] });
            nodes
                .update_node(v1::UpdateNodeRequest { node: Some(node), update_mask })
                .await?
                .into_inner()
                .node
        }
        Command::Cordon { node } => {
            nodes.cordon_node(v1::CordonNodeRequest { name: name(&node), message }).await?.into_inner().node
        }
        Command::Uncordon { node } => {
            nodes.uncordon_node(v1::UncordonNodeRequest { name: name(&node) }).await?.into_inner().node
        }
        Command::Retire { node } => {
            app.confirm(&format!("retire node {node} for good"))?;
            nodes.retire_node(v1::RetireNodeRequest { name: name(&node), message }).await?.into_inner().node
        }
        Command::Hold { node, component } => {
            let request = v1::HoldComponentRequest { name: name(&node), component, message };
            nodes.hold_component(request).await?.into_inner().node
        }
        Command::Release { node, component } => {
            let request = v1::ReleaseComponentRequest { name: name(&node), component };
            nodes.release_component(request).await?.into_inner().node
        }
        Command::List { .. }
        | Command::Show { .. }
        | Command::Watch { .. }
        | Command::Jvms(_)
        | Command::Logs { .. } => None,
    };
    Ok(node.unwrap_or_default())
}

fn relabel(labels: &mut std::collections::BTreeMap<String, String>, change: &str) -> Result<()> {
    if let Some((key, value)) = change.split_once('=') {
        labels.insert(key.to_owned(), value.to_owned());
    } else if let Some(key) = change.strip_suffix('-') {
        labels.remove(key);
    } else {
        return Err(Failure::usage(format!("`{change}` is no change of a label"))
            .hint("KEY=VALUE sets, KEY- removes"));
    }
    Ok(())
}

async fn watch(app: &App, selector: String) -> Result<Exit> {
    let client = app.connect().await?;
    loop {
        let request = v1::WatchNodesRequest { selector: selector.clone() };
        let mut stream = client.nodes().watch_nodes(request).await?.into_inner();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
            };
            match message.map_err(Failure::from) {
                Ok(Some(change)) => {
                    let node = change.node.unwrap_or_default();
                    if app.is_json() {
                        super::app::print(&super::app::json(&node, false));
                    } else {
                        print_row(app, &node);
                    }
                }
                Ok(None) => break,
                Err(failure) if failure.is_transient() => break,
                Err(failure) => return Err(failure),
            }
        }
        app.note("the connection broke; connecting again");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

fn print_row(app: &App, node: &v1::Node) {
    let table = node_table(std::slice::from_ref(node), now(), app.is_wide(), app.paint());
    // The headings would be repeated for each change.
    for line in table.lines().skip(1) {
        app.say(line);
    }
}

async fn logs(app: &App, node: &str, component: Option<String>, follow: bool, lines: u32) -> Result<Exit> {
    let component = match component {
        Some(component) => component,
        None => only_component(&get(app, node).await?)?,
    };
    let client = app.connect().await?;
    let request = v1::TailComponentLogRequest { name: resource("nodes", node), component, lines, follow };
    let mut stream = client.nodes().tail_component_log(request).await?.into_inner();
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        let Some(part) = message else { return Ok(Exit::Success) };
        if app.is_json() {
            super::app::print(&super::app::json(&part, false));
        } else {
            part.lines.iter().for_each(|line| app.say(line));
        }
    }
}

fn only_component(node: &v1::Node) -> Result<String> {
    match &node.components[..] {
        [component] => Ok(component.component.clone()),
        components => {
            let names: Vec<&str> = components.iter().map(|component| component.component.as_str()).collect();
            Err(Failure::usage(format!("node {} has {} components", id(&node.name), names.len()))
                .hint(format!("name one of: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let mut labels = std::collections::BTreeMap::from([("old".to_owned(), "x".to_owned())]);
        relabel(&mut labels, "env=prod").unwrap();
        relabel(&mut labels, "old-").unwrap();
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("env".to_owned(), "prod".to_owned())]);
        assert!(relabel(&mut std::collections::BTreeMap::new(), "env").is_err());
    }
}
