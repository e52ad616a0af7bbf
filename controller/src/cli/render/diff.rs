//! Two nodes side by side: bases, patches, and which patch each class comes from.

use std::collections::BTreeMap;

use serde::Serialize;
use upfleet_api::v1;

use super::{Paint, Table, component_state};

/// One component on one of the two nodes.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// What it runs; `None` where the node does not have the component.
    pub state: Option<v1::ComponentState>,
    /// For each patched class: the number of the patch in force that ships it, and the first digits of the digest.
    pub owners: BTreeMap<String, (u32, String)>,
}

/// One thing that is not the same on both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The patch number or the class.
    pub name: String,
    /// On the first node.
    pub left: String,
    /// On the second node.
    pub right: String,
}

/// How a component differs between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The component.
    pub component: String,
    /// What the first node runs; `-` where it does not have the component.
    pub left: String,
    /// What the second node runs.
    pub right: String,
    /// Patches that do not stand the same.
    pub patches: Vec<Pair>,
    /// Classes that do not come from the same patch.
    pub classes: Vec<Pair>,
}

impl Difference {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == self.right && self.patches.is_empty() && self.classes.is_empty()
    }
}

/// Compares a component of two nodes.
#[must_use]
pub fn differences(component: &str, left: &Side, right: &Side) -> Difference {
    let layers = |side: &Side| -> BTreeMap<u32, String> {
        let layers = side.state.iter().flat_map(|state| &state.layers);
        layers.map(|layer| (layer.number, stands(layer))).collect()
    };
    let (a, b) = (layers(left), layers(right));
    let mut numbers: Vec<u32> = a.keys().chain(b.keys()).copied().collect();
    numbers.sort_unstable_by(|x, y| y.cmp(x));
    numbers.dedup();
    let side = |layers: &BTreeMap<u32, String>, number| layers.get(number).map_or("-", |s| s).to_owned();
    let patches = numbers.iter().map(|number| Pair {
        name: number.to_string(),
        left: side(&a, number),
        right: side(&b, number),
    });
    let owner = |side: &Side, class: &str| match side.owners.get(class) {
        Some((number, digest)) => format!("{number} ({digest})"),
        None => "base".to_owned(),
    };
    let mut names: Vec<&String> = left.owners.keys().chain(right.owners.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let classes = names.into_iter().map(|class| Pair {
        name: class.clone(),
        left: owner(left, class),
        right: owner(right, class),
    });
    let differs = |pair: &Pair| pair.left != pair.right;
    Difference {
        component: component.to_owned(),
        left: component_state(left.state.as_ref()),
        right: component_state(right.state.as_ref()),
        patches: patches.filter(differs).collect(),
        classes: classes.filter(differs).collect(),
    }
}

fn stands(layer: &v1::Layer) -> String {
    let mut text = if layer.retired { "retired" } else { "active" }.to_owned();
    if !layer.contains.is_empty() {
        let numbers: Vec<String> = layer.contains.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", contains {}", numbers.join(",")));
    }
    text
}

/// The differences of two nodes; says so where there are none.
#[must_use]
pub fn stack_diff(left: &str, right: &str, all: &[Difference], paint: Paint) -> String {
    let differing: Vec<&Difference> = all.iter().filter(|difference| !difference.is_empty()).collect();
    if differing.is_empty() {
        let names: Vec<&str> = all.iter().map(|difference| difference.component.as_str()).collect();
        let what = if names.is_empty() { "no component".to_owned() } else { names.join(", ") };
        return format!("{left} and {right} are alike: {what}\n");
    }
    let mut text = String::new();
    for difference in &differing {
        let mut table = Table::of(["COMPONENT", left, right], "");
        let row = [difference.component.clone(), difference.left.clone(), difference.right.clone()];
        table.row(row);
        section(&mut table, "  patch", &difference.patches);
        section(&mut table, "  class", &difference.classes);
        text.push_str(&table.text(paint));
    }
    let count = |pick: fn(&Difference) -> usize| differing.iter().map(|d| pick(d)).sum::<usize>();
    text.push_str(&format!(
        "{} and {right} differ: components {}, patches {}, classes {}\n",
        left,
        differing.len(),
        count(|d| d.patches.len()),
        count(|d| d.classes.len()),
    ));
    text
}

fn section(table: &mut Table, word: &str, pairs: &[Pair]) {
    for pair in pairs {
        table.row([format!("{word} {}", pair.name), pair.left.clone(), pair.right.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::stack::tests::state, *};

    fn side(layers: &[(u32, bool)], owners: &[(&str, u32, &str)]) -> Side {
        let owners = owners
            .iter()
            .map(|(class, number, digest)| ((*class).to_owned(), (*number, (*digest).to_owned())));
        Side { state: Some(state("2.14.1", layers)), owners: owners.collect() }
    }

    #[test]
    fn two_nodes_side_by_side() {
        let left = side(
            &[(10, false), (9, false), (8, true)],
            &[("com.acme.Order", 10, "9f2c"), ("com.acme.Tax", 9, "11aa")],
        );
        let right =
            side(&[(9, false), (8, false)], &[("com.acme.Order", 9, "77ab"), ("com.acme.Tax", 9, "11aa")]);
        let found = [differences("payments", &left, &right), differences("cart", &left, &left)];
        assert_eq!(
            stack_diff("web-01", "web-02", &found, Paint::PLAIN),
            "\
COMPONENT               web-01            web-02
payments                2.14.1+patch10,9  2.14.1+patch9,8
  patch 10              active            -
  patch 8               retired           active
  class com.acme.Order  10 (9f2c)         9 (77ab)
web-01 and web-02 differ: components 1, patches 2, classes 1
"
        );
    }

    #[test]
    fn alike_is_said_too() {
        let left = side(&[(9, false)], &[]);
        let text = stack_diff("a", "b", &[differences("payments", &left, &left.clone())], Paint::PLAIN);
        assert_eq!(text, "a and b are alike: payments\n");
        // The same patch rebuilt under its number is not the same.
        let mut other = left.clone();
        other.owners.insert("X".into(), (9, "aa".into()));
        assert!(!differences("payments", &left, &other).is_empty());
        // A component that only one has.
        assert_eq!(differences("payments", &left, &Side::default()).right, "-");
    }
}
