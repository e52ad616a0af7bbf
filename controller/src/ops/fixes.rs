//! Which nodes lack a fix, and which patch is where: questions to the whole fleet.
//!
//! Each answer is one look at all releases and one pass over what components run; no node is asked by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, NodeId},
    labels::Selector,
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{Base, ComponentState},
};

use super::Operations;
use crate::{
    failure::internal,
    store::{ComponentRecord, NodeRecord, NodeState, Page, ReleaseRecord, Rows},
};

mod shelf;

use shelf::{Shelf, is_proved};

/// How a component of a node stands with a fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Neither its base nor a patch in force has the fix.
    Lacks,
    /// A patch in force has it, and the running JVM does not say so.
    Unproved,
    /// A patch in force has it, and the running JVM says so.
    Patched,
    /// The base release has it.
    InBase,
}

impl Standing {
    /// As counts name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lacks => "LACKS",
            Self::Unproved => "UNPROVED",
            Self::Patched => "PATCHED",
            Self::InBase => "IN_BASE",
        }
    }
}

/// How one component of one node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixView {
    /// The node.
    pub node: NodeId,
    /// The component.
    pub component: ComponentId,
    /// How it stands.
    pub standing: Standing,
    /// The patch that has the fix.
    pub number: Option<u32>,
    /// What the component runs.
    pub current: ComponentState,
    /// What is to be known.
    pub reason: Option<Reason>,
    /// Whether the node is connected.
    pub online: bool,
}

/// What is asked about a fix.
#[derive(Clone, Debug)]
pub struct FixQuestion {
    /// The issue.
    pub fix: String,
    /// Of which nodes.
    pub selector: Selector,
    /// Of which component; where `None` of each that a release with this fix is for.
    pub component: Option<ComponentId>,
    /// Only those that stand so; all where empty.
    pub standings: Vec<Standing>,
}

/// A page of answers.
#[derive(Clone, Debug)]
pub struct FixAnswer {
    /// The page.
    pub rows: Rows<FixView>,
    /// How many stand how, over all pages.
    pub counts: BTreeMap<Standing, u32>,
}

/// How many nodes have a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchCount {
    /// The component.
    pub component: ComponentId,
    /// The release, as `component@version`.
    pub release: String,
    /// The number.
    pub number: u32,
    /// Nodes that have it in force.
    pub active: u32,
    /// Of these, nodes whose JVM says so.
    pub proved: u32,
    /// Nodes that have it, retired by another.
    pub retired: u32,
    /// Nodes that have the component.
    pub nodes: u32,
}

impl Operations {
    /// How nodes stand with a fix, by node and component.
    ///
    /// # Errors
    /// `NOT_FOUND` where no release has the fix and no component is named, or what the store says.
    pub async fn fix_states(&self, question: &FixQuestion, page: &Page) -> Result<FixAnswer, Reason> {
        let shelves = self.shelves(question).await?;
        let nodes = self.chosen(&question.selector).await?;
        let (mut counts, mut rows) = (BTreeMap::new(), Vec::new());
        let after = page.after.as_deref().unwrap_or_default();
        let mut visit = |record: ComponentRecord| {
            let (Some(online), Some(shelf)) = (nodes.get(&record.node), shelves.get(record.component()))
            else {
                return;
            };
            let inventory = record.inventory;
            if inventory.current.base == Base::Absent {
                return;
            }
            let (standing, number, reason) = shelf.stands(&inventory);
            *counts.entry(standing).or_default() += 1;
            let key = format!("{} {}", record.node, inventory.component);
            let wanted = question.standings.is_empty() || question.standings.contains(&standing);
            // One row more than the page has says that another page follows.
            if wanted && key.as_str() > after && rows.len() <= page.limit as usize {
                let (node, component, current) = (record.node, inventory.component, inventory.current);
                let online = *online;
                rows.push((key, FixView { node, component, standing, number, current, reason, online }));
            }
        };
        let only = shelves.keys().next().filter(|_| shelves.len() == 1);
        self.store.each_component(only, &mut visit).await.map_err(internal)?;
        Ok(FixAnswer { rows: cut(rows, page), counts })
    }

    /// What is known of the releases of each component that the question is about.
    async fn shelves(&self, question: &FixQuestion) -> Result<BTreeMap<ComponentId, Shelf>, Reason> {
        let heads = self.store.release_heads(question.component.as_ref()).await.map_err(internal)?;
        let has = |head: &ReleaseRecord| head.fixes.iter().any(|fix| fix.id == question.fix);
        let mut names: BTreeSet<&ComponentId> =
            heads.iter().filter(|head| has(head)).map(|head| &head.component).collect();
        names.extend(&question.component);
        if names.is_empty() {
            // A mistyped issue must not look like a fleet without the flaw.
            return Err(Reason::new(ReasonCode::NotFound)
                .with("what", "release with fix")
                .with("name", &question.fix));
        }
        let mut shelves: BTreeMap<ComponentId, Shelf> =
            names.into_iter().map(|name| (name.clone(), Shelf::new(&question.fix))).collect();
        for head in heads.iter().filter(|head| head.patch_number.is_none()) {
            if let Some(shelf) = shelves.get_mut(&head.component) {
                shelf.add(head, has(head));
            }
        }
        for (component, shelf) in &mut shelves {
            let patches = self.store.releases(Some(component), Some(Kind::Patch), &Page::ALL).await;
            for patch in patches.map_err(internal)?.rows {
                shelf.add(&patch, has(&patch));
            }
        }
        Ok(shelves)
    }

    /// The nodes that a selector chooses, with whether each is connected.
    pub(super) async fn chosen(&self, selector: &Selector) -> Result<BTreeMap<NodeId, bool>, Reason> {
        let chosen = Mutex::new(BTreeMap::new());
        let note = |node: &NodeRecord| {
            if node.state != NodeState::Retired && selector.matches(&node.id, &node.labels) {
                let mut chosen = chosen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                chosen.insert(node.id.clone(), node.online());
            }
            // Noted as rows are read: none is kept.
            false
        };
        self.store.nodes(&note, &Page::ALL).await.map_err(internal)?;
        Ok(chosen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// How many nodes have which patch, by component and highest number first. Patches that no node has are counted
    /// as well, and so are those that nodes have and that were never published here.
    ///
    /// # Errors
    /// What the store says.
    pub async fn patch_counts(
        &self,
        component: Option<&ComponentId>,
        selector: &Selector,
    ) -> Result<Vec<PatchCount>, Reason> {
        type Key = (ComponentId, std::cmp::Reverse<u32>, Digest);
        let mut counts: BTreeMap<Key, PatchCount> = BTreeMap::new();
        let fresh = |component: &ComponentId, release: String, number| PatchCount {
            component: component.clone(),
            release,
            number,
            active: 0,
            proved: 0,
            retired: 0,
            nodes: 0,
        };
        for head in self.store.release_heads(component).await.map_err(internal)? {
            if let Some(number) = head.patch_number {
                let key = (head.component.clone(), std::cmp::Reverse(number), head.digest);
                counts.insert(key, fresh(&head.component, head.name(), number));
            }
        }
        let chosen = self.chosen(selector).await?;
        let mut nodes: BTreeMap<ComponentId, u32> = BTreeMap::new();
        let mut visit = |record: ComponentRecord| {
            if !chosen.contains_key(&record.node) {
                return;
            }
            let (name, inventory) = (record.component().clone(), &record.inventory);
            *nodes.entry(name.clone()).or_default() += 1;
            for layer in &inventory.current.layers {
                let key = (name.clone(), std::cmp::Reverse(layer.number), layer.release.manifest);
                let entry = counts.entry(key);
                let count = entry.or_insert_with(|| fresh(&name, layer.release.to_string(), layer.number));
                count.retired += u32::from(layer.retired);
                count.active += u32::from(!layer.retired);
                count.proved += u32::from(!layer.retired && is_proved(inventory, layer.number));
            }
        };
        self.store.each_component(component, &mut visit).await.map_err(internal)?;
        let of = |name: &ComponentId| nodes.get(name).copied().unwrap_or_default();
        Ok(counts.into_values().map(|count| PatchCount { nodes: of(&count.component), ..count }).collect())
    }
}

/// Cuts the row too many off, and says where the next page begins.
pub(super) fn cut<T>(mut rows: Vec<(String, T)>, page: &Page) -> Rows<T> {
    let limit = page.limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = if more { rows.last().map(|(key, _)| key.clone()) } else { None };
    Rows { rows: rows.into_iter().map(|(_, row)| row).collect(), next }
}
