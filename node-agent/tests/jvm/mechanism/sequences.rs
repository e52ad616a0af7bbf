//! Random sequences of apply and remove over overlapping patches, in real JVMs: each class says which patch it is of,
//! and that has to be what a plain model says.

use std::collections::BTreeMap;

use upfleet_domain::{
    digest::Digest,
    patch::stack::{Ground, StackChange, change},
    state::Layer,
};

use super::{
    App,
    app::{Shipped, class_bytes, compiled},
};
use crate::support::{Jdk, newest_jdk};

const CLASSES: [&str; 4] = ["A", "B", "C", "D"];
/// Which classes each patch ships: patch 1 first. Every class is in several.
const SHIPPED: [&[usize]; 8] = [&[0], &[0, 1], &[1, 2], &[3], &[0, 2, 3], &[1], &[0, 1, 2, 3], &[2, 3]];
const SEQUENCES: u64 = 20;
const STEPS: usize = 5;

fn build(jdk: &Jdk, value: &str) -> std::path::PathBuf {
    let class = |name: &str| {
        let text = format!(
            "package s; public class {name} {{ public static String v() {{ return \"{value}\"; }} }}"
        );
        text
    };
    let mut sources = vec![(
        "s/Main.java",
        "package s; public class Main { public static void main(String[] a) {\
           System.out.println(A.v() + \" \" + B.v() + \" \" + C.v() + \" \" + D.v()); } }"
            .to_owned(),
    )];
    for (file, name) in [("s/A.java", "A"), ("s/B.java", "B"), ("s/C.java", "C"), ("s/D.java", "D")] {
        sources.push((file, class(name)));
    }
    compiled(jdk, &["-encoding", "UTF-8"], &sources)
}

/// Each patch is built upon all below it that have the class, as a vendor's are.
fn patches(app: &mut App<'_>, jdk: &Jdk, base: &std::path::Path) -> BTreeMap<u32, Layer> {
    let mut parents: BTreeMap<usize, Digest> = BTreeMap::new();
    let mut made = BTreeMap::new();
    for (number, shipped) in (1..).zip(SHIPPED) {
        let built = build(jdk, &format!("p{number}"));
        let class = |index: &usize| {
            let name = format!("s.{}", CLASSES[*index]);
            let original = Digest::of(&class_bytes(base, &name));
            let parent = parents.get(index).copied().unwrap_or(original);
            Shipped { bytes: class_bytes(&built, &name), accepts: vec![original], parent, name }
        };
        let classes: Vec<Shipped> = shipped.iter().map(class).collect();
        for (index, class) in shipped.iter().zip(&classes) {
            parents.insert(*index, Digest::of(&class.bytes));
        }
        made.insert(number, app.patch(number, &classes));
    }
    made
}

/// The plain model: for each class the highest patch of the stack that ships it.
fn effective(numbers: &[u32]) -> String {
    let value = |index: usize| {
        let ships = |number: &&u32| SHIPPED[**number as usize - 1].contains(&index);
        numbers.iter().filter(ships).max().map_or("base".to_owned(), |number| format!("p{number}"))
    };
    (0..CLASSES.len()).map(value).collect::<Vec<_>>().join(" ")
}

/// A small generator, the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(limit)).unwrap()
    }
}

/// 20 of the random sequences, half with the Java agent and half with the class path.
#[test]
fn random_sequences_in_real_jvms() {
    let Some(jdk) = newest_jdk("mechanism::random_sequences_in_real_jvms") else { return };
    let base = build(jdk, "base");
    let mut starts = 0;
    for seed in 0..SEQUENCES {
        let jvm = if seed % 2 == 0 { "" } else { "mechanism = \"class-path\"" };
        let mut app = App::new(jdk, "{java} -cp {path} s.Main", jvm);
        app.install(&base, "\r\n");
        let made = patches(&mut app, jdk, &base);
        let mut random = Random(seed + 1);
        let mut layers: Vec<Layer> = Vec::new();
        for _ in 0..STEPS {
            let wanted = next(&mut random, &layers, &made);
            let Ok(changed) = change(&layers, &wanted, &app.known, &Ground::default()) else { continue };
            layers = changed.layers;
            let numbers: Vec<u32> = layers.iter().map(|layer| layer.number).collect();
            assert_eq!(
                app.says(&layers),
                effective(&numbers),
                "sequence {seed}: {wanted:?} led to {numbers:?}"
            );
            starts += 1;
        }
    }
    println!("{starts} starts of a JVM");
    assert!(starts >= 40, "only {starts} of the changes were possible");
}

fn next(random: &mut Random, layers: &[Layer], made: &BTreeMap<u32, Layer>) -> StackChange {
    let mut change = StackChange { contained: true, ..StackChange::default() };
    let number = random.below(8) + 1;
    match random.below(10) {
        0 => change.none = true,
        1 => change.to_number = layers.get(random.below(8) as usize).map(|layer| layer.number),
        2..=4 if !layers.is_empty() => {
            let at = random.below(u32::try_from(layers.len()).unwrap()) as usize;
            change.remove = vec![layers[at].number];
        }
        _ => change.apply = vec![made[&number].release.clone()],
    }
    change
}
