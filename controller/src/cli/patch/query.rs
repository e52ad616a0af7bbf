//! The questions about patches: list, info, stack, diff, fixes.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;
use upfleet_api::v1;
use upfleet_domain::{patch::PatchSpec, release::parse_manifest};

use super::super::{
    app::App,
    client::Client,
    failure::{Failure, Result},
    now,
    page::pages,
    render::{self, Difference, Side, id},
    resource,
};
use crate::exit::Exit;

/// Which patches.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Only this component's.
    component: Option<String>,
    /// Count only nodes with these labels.
    #[arg(short = 'l', long, default_value = "", hide_default_value = true, value_name = "SELECTOR")]
    selector: String,
}

/// Which patch.
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// The patch release, `COMPONENT@pNUMBER`.
    release: String,
}

/// Which stack.
#[derive(Args, Debug)]
pub(crate) struct StackArgs {
    /// The node.
    node: String,
    /// Only this component's.
    component: Option<String>,
    /// What happened to it as well, newest first: also what was rolled back.
    #[arg(long)]
    history: bool,
}

/// Which nodes.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// The one node.
    left: String,
    /// The other node.
    right: String,
    /// Only this component.
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Exit with 10 where they differ.
    #[arg(long)]
    detailed_exitcode: bool,
}

/// Which fix, and what is wanted of the answer.
#[derive(Args, Debug)]
pub(crate) struct FixesArgs {
    /// The issue, e.g. `CVE-2021-44228`.
    fix: String,
    /// Only nodes that lack it.
    #[arg(long)]
    lacking: bool,
    /// Only nodes that have it in a patch whose classes the JVM has not proved.
    #[arg(long)]
    unproved: bool,
    /// Only nodes with these labels.
    #[arg(short = 'l', long, default_value = "", hide_default_value = true, value_name = "SELECTOR")]
    selector: String,
    /// Only this component.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    component: String,
    /// Exit with 10 where a node lacks it or has not proved it.
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(super) async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let client = app.connect().await?;
    let patches = releases(&client, args.component.clone().unwrap_or_default()).await?;
    let request =
        v1::ListPatchCountsRequest { component: args.component.unwrap_or_default(), selector: args.selector };
    let counts = client.patches().list_patch_counts(request).await?.into_inner().counts;
    if app.is_json() {
        app.show_list("counts", &counts, |_| String::new());
    } else {
        app.say(render::patch_table(&patches, &counts, app.is_wide(), app.paint()));
    }
    Ok(Exit::Success)
}

/// The patch releases, of one component where it is named.
async fn releases(client: &Client, component: String) -> Result<Vec<v1::Release>> {
    let request = v1::ListReleasesRequest { component, kind: "patch".to_owned(), ..Default::default() };
    let mut releases = pages!(client.releases(), list_releases, request, releases);
    releases.retain(|release| release.kind == "patch");
    let component = |release: &v1::Release| id(&release.name).split('@').next().map(str::to_owned);
    releases.sort_by_key(|release| (component(release), std::cmp::Reverse(release.patch_number)));
    Ok(releases)
}

pub(super) async fn info(app: &App, args: &InfoArgs) -> Result<Exit> {
    let client = app.connect().await?;
    let name = resource("releases", &args.release);
    let answer = client.releases().get_release(v1::GetReleaseRequest { name: name.clone() }).await?;
    let release = answer.into_inner().release.unwrap_or_default();
    if app.is_json() {
        app.show(&release, |_| String::new());
        return Ok(Exit::Success);
    }
    let spec = spec_of(&release)?;
    let component = id(&name).split('@').next().unwrap_or_default().to_owned();
    let request = v1::ListPatchCountsRequest { component, selector: String::new() };
    let counts = client.patches().list_patch_counts(request).await?.into_inner().counts;
    let count = counts.into_iter().find(|count| count.release == name);
    app.say(render::patch_details(&release, &spec, count.as_ref(), app.paint()));
    Ok(Exit::Success)
}

fn spec_of(release: &v1::Release) -> Result<PatchSpec> {
    let manifest = parse_manifest(&release.manifest).map_err(|reason| Failure::of_reason(&reason))?;
    manifest.patch.ok_or_else(|| {
        Failure::usage(format!("`{}` is no patch", id(&release.name)))
            .hint(format!("upfleet release show {}", id(&release.name)))
    })
}

async fn node(client: &Client, name: &str) -> Result<v1::Node> {
    let request = v1::GetNodeRequest { name: resource("nodes", name) };
    Ok(client.nodes().get_node(request).await?.into_inner().node.unwrap_or_default())
}

/// What `patch stack -o json` prints.
#[derive(Serialize)]
struct Stack<'a> {
    node: &'a str,
    components: &'a [v1::NodeComponent],
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<&'a [v1::NodeHistoryEntry]>,
}

pub(super) async fn stack(app: &App, args: &StackArgs) -> Result<Exit> {
    let client = app.connect().await?;
    let mut node = node(&client, &args.node).await?;
    match &args.component {
        Some(wanted) => node.components.retain(|component| component.component == *wanted),
        // Components that never take patches only stand in the way, unless there is nothing else.
        None if node.components.iter().any(takes_patches) => node.components.retain(takes_patches),
        None => {}
    }
    if let (Some(wanted), true) = (&args.component, node.components.is_empty()) {
        return Err(Failure::usage(format!("node {} has no component `{wanted}`", id(&node.name)))
            .hint(format!("upfleet node show {}", id(&node.name))));
    }
    let history =
        if args.history { Some(history(&client, &node, args.component.as_deref()).await?) } else { None };
    if app.is_json() {
        let history = history.as_deref();
        let stack = Stack { node: &node.name, components: &node.components, history };
        app.show(&stack, |_| String::new());
        return Ok(Exit::Success);
    }
    let mut text = String::new();
    for component in &node.components {
        let releases = releases(&client, component.component.clone()).await?;
        text.push_str(&render::stack_table(&node, component, &releases, now(), app.paint()));
        text.push('\n');
    }
    if node.components.is_empty() {
        text.push_str(&format!("Node {} has no components.\n", id(&node.name)));
    }
    if let Some(history) = &history {
        text.push_str(&render::history_table(history, now(), app.paint()));
    }
    app.say(text);
    Ok(Exit::Success)
}

fn takes_patches(component: &v1::NodeComponent) -> bool {
    component.patchable || component.current.iter().any(|state| !state.layers.is_empty())
}

async fn history(
    client: &Client,
    node: &v1::Node,
    component: Option<&str>,
) -> Result<Vec<v1::NodeHistoryEntry>> {
    let request = v1::ListNodeHistoryRequest {
        name: node.name.clone(),
        component: component.unwrap_or_default().to_owned(),
        ..Default::default()
    };
    Ok(pages!(client.nodes(), list_node_history, request, entries))
}

/// What `patch diff -o json` prints.
#[derive(Serialize)]
struct Diff<'a> {
    left: &'a str,
    right: &'a str,
    differences: Vec<&'a Difference>,
}

pub(super) async fn diff(app: &App, args: &DiffArgs) -> Result<Exit> {
    let client = app.connect().await?;
    let (left, right) = (node(&client, &args.left).await?, node(&client, &args.right).await?);
    let names: BTreeSet<&str> = left
        .components
        .iter()
        .chain(&right.components)
        .map(|component| component.component.as_str())
        .collect();
    let mut specs = Specs { client: &client, known: BTreeMap::new() };
    let mut all = Vec::new();
    for name in names {
        if args.component.as_deref().is_none_or(|wanted| wanted == name) {
            let (a, b) = (specs.side(&left, name).await?, specs.side(&right, name).await?);
            all.push(render::differences(name, &a, &b));
        }
    }
    let differences: Vec<&Difference> = all.iter().filter(|difference| !difference.is_empty()).collect();
    let differ = !differences.is_empty();
    let diff = Diff { left: id(&left.name), right: id(&right.name), differences };
    app.show(&diff, |paint| render::stack_diff(id(&left.name), id(&right.name), &all, paint));
    Ok(if differ && args.detailed_exitcode { Exit::Changes } else { Exit::Success })
}

/// The manifests of patches, each fetched once.
struct Specs<'a> {
    client: &'a Client,
    known: BTreeMap<String, PatchSpec>,
}

impl Specs<'_> {
    /// A component of a node, with the patch that each of its patched classes comes from.
    async fn side(&mut self, node: &v1::Node, component: &str) -> Result<Side> {
        let Some(found) = node.components.iter().find(|found| found.component == component) else {
            return Ok(Side::default());
        };
        let mut side = Side { state: found.current.clone(), owners: BTreeMap::new() };
        // Layers come highest number first, and the highest one that ships a class is where it comes from.
        for layer in found.current.iter().flat_map(|state| &state.layers).filter(|layer| !layer.retired) {
            let version = layer.release.as_ref().map(|release| release.version.as_str()).unwrap_or_default();
            let spec = self.spec(format!("releases/{component}@{version}")).await?;
            for class in &spec.classes {
                let owner = (layer.number, class.patched.short());
                side.owners.entry(class.name.clone()).or_insert(owner);
            }
        }
        Ok(side)
    }

    async fn spec(&mut self, name: String) -> Result<&PatchSpec> {
        if !self.known.contains_key(&name) {
            let request = v1::GetReleaseRequest { name: name.clone() };
            let answer = self.client.releases().get_release(request).await?.into_inner();
            self.known.insert(name.clone(), spec_of(&answer.release.unwrap_or_default())?);
        }
        Ok(&self.known[&name])
    }
}

/// What `patch fixes -o json` prints.
#[derive(Serialize)]
struct Fixes<'a> {
    fix: &'a str,
    counts: &'a BTreeMap<String, u32>,
    nodes: &'a [v1::FixState],
}

pub(super) async fn fixes(app: &App, args: FixesArgs) -> Result<Exit> {
    use v1::fix_state::State as F;
    let client = app.connect().await?;
    let mut states = Vec::new();
    if args.lacking {
        states.push(F::Lacks.into());
    }
    if args.unproved {
        states.push(F::Unproved.into());
    }
    let mut request = v1::ListFixStatesRequest {
        fix: args.fix.clone(),
        selector: args.selector,
        component: args.component,
        states,
        page_size: 1000,
        page_token: String::new(),
    };
    let mut nodes = Vec::new();
    let counts = loop {
        let page = client.patches().list_fix_states(request.clone()).await?.into_inner();
        nodes.extend(page.nodes);
        if page.next_page_token.is_empty() {
            break page.counts;
        }
        request.page_token = page.next_page_token;
    };
    let counts: BTreeMap<String, u32> =
        counts.into_iter().map(|(key, count)| (key.trim_start_matches("STATE_").to_owned(), count)).collect();
    let fixes = Fixes { fix: &args.fix, counts: &counts, nodes: &nodes };
    app.show(&fixes, |paint| render::fix_table(&args.fix, &nodes, &counts, now(), paint));
    let open = ["LACKS", "UNPROVED"].iter().any(|state| counts.get(*state).is_some_and(|count| *count > 0));
    Ok(if open && args.detailed_exitcode { Exit::Changes } else { Exit::Success })
}
