//! What the Java agent is asked: a stack as seen by one JVM, written as the text that `node-agent/java` reads.
//!
//! Decides nothing about patches; which class of which layer is in force follows from the numbers alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use upfleet_domain::{
    digest::Digest,
    jvm::Mechanism,
    patch::PatchSpec,
    reason::{Reason, ReasonCode},
};

/// The request's and the report's version; the Java side refuses another.
pub const VERSION: u32 = 1;

/// A patch of a stack, with the jar that holds its classes.
#[derive(Clone, Debug)]
pub struct LayerView {
    /// Its number.
    pub number: u32,
    /// Its jar. Absolute, and as the JVM sees it where it is written into a request.
    pub jar: PathBuf,
    /// SHA-256 of the jar.
    pub sha256: Digest,
    /// What it ships.
    pub spec: PatchSpec,
    /// Another layer supersedes it: it is in the stack, but not in force.
    pub retired: bool,
}

/// A stack, as a JVM should have it.
#[derive(Clone, Debug)]
pub struct StackView {
    /// The digest that names the stack set.
    pub set: Digest,
    /// Its layers, in any order.
    pub layers: Vec<LayerView>,
    /// Layers that were in force until now and are not any more. A running JVM whose class path begins with
    /// their jars needs them to find its way back to the application's own classes.
    pub gone: Vec<LayerView>,
}

/// One class as the stack wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The binary name, with dots.
    pub name: String,
    /// The layer it comes from; 0 where the application's own should be in force again.
    pub number: u32,
    /// SHA-256 of its bytes; `None` where the application's own should be in force again.
    pub patched: Option<Digest>,
    /// SHA-256 of the application's own class files it may stand for; empty for a class that no base has.
    pub accepts: BTreeSet<Digest>,
    /// SHA-256 of what other patches have for it: what a loader finds where their jars are on the class path.
    pub others: BTreeSet<Digest>,
}

impl StackView {
    /// For each class that a layer ships or shipped: what should be in force. By name.
    #[must_use]
    pub fn effective(&self) -> Vec<Effective> {
        let mut classes = BTreeMap::new();
        let in_force = |layer: &&LayerView| !layer.retired;
        let mut layers: Vec<_> = self.layers.iter().filter(in_force).collect();
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.number));
        let retired = self.layers.iter().filter(|layer| layer.retired);
        let force = layers.iter().map(|layer| (true, *layer));
        for (force, layer) in force.chain(retired.chain(&self.gone).map(|layer| (false, layer))) {
            for class in &layer.spec.classes {
                let entry = classes.entry(class.name.clone()).or_insert_with(|| Effective {
                    name: class.name.clone(),
                    number: if force { layer.number } else { 0 },
                    patched: force.then_some(class.patched),
                    accepts: BTreeSet::new(),
                    others: BTreeSet::new(),
                });
                entry.accepts.extend(&class.accepts);
                entry.others.insert(class.patched);
            }
        }
        let mut classes: Vec<_> = classes.into_values().collect();
        for class in &mut classes {
            // A patch built upon another accepts that one's bytes as well; they are nobody's own class.
            class.accepts.retain(|digest| !class.others.contains(digest));
        }
        classes
    }

    /// The classes in force that no base has.
    #[must_use]
    pub fn additions(&self) -> Vec<Effective> {
        self.effective()
            .into_iter()
            .filter(|class| class.patched.is_some() && class.accepts.is_empty())
            .collect()
    }
}

/// What the Java agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// With `-javaagent`: replace classes as they load.
    Start,
    /// In a running JVM: bring it to exactly this stack.
    Set,
    /// Change nothing, only say what is in force.
    Prove,
}

/// What a request holds beside the stack. Paths are absolute and as the JVM sees them.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What to do.
    pub operation: Operation,
    /// How patches get into this JVM when it starts.
    pub mechanism: Mechanism,
    /// The jar of the Java agent.
    pub agent: &'a Path,
    /// Where the answer goes; none where only the journal is wanted.
    pub report: Option<&'a Path>,
    /// The directory in which the JVM keeps its journal, as `PID-START.journal`; it has to be able to write there.
    pub journal: Option<&'a Path>,
    /// A jar of just the classes that no base has, see [`StackView::additions`].
    pub additions: Option<&'a Path>,
}

impl Request<'_> {
    /// The request as text.
    ///
    /// # Errors
    /// Where a path or a name can't be written in a line.
    pub fn render(&self, stack: &StackView) -> Result<String, Reason> {
        let operation = match self.operation {
            Operation::Start => "start",
            Operation::Set => "set",
            Operation::Prove => "prove",
        };
        let mut text = format!("upfleet-request\t{VERSION}\noperation\t{operation}\nset\t{}\n", stack.set);
        let _ = writeln!(text, "mechanism\t{}", self.mechanism);
        let paths = [
            ("agent", Some(self.agent)),
            ("report", self.report),
            ("journal", self.journal),
            ("additions", self.additions),
        ];
        for (key, path) in paths {
            if let Some(path) = path {
                let _ = writeln!(text, "{key}\t{}", line(path)?);
            }
        }
        for layer in stack.layers.iter().filter(|layer| !layer.retired) {
            let _ = writeln!(text, "jar\t{}\t{}\t{}", layer.number, line(&layer.jar)?, layer.sha256);
        }
        for class in stack.effective() {
            let patched = class.patched.map_or_else(|| "-".to_owned(), |digest| digest.to_string());
            let (accepts, others) = (list(&class.accepts), list(&class.others));
            let name = line(Path::new(&class.name))?;
            let _ = writeln!(text, "class\t{name}\t{}\t{patched}\t{accepts}\t{others}", class.number);
        }
        text.push_str("end\n");
        Ok(text)
    }
}

fn list(digests: &BTreeSet<Digest>) -> String {
    let texts: Vec<_> = digests.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

fn line(path: &Path) -> Result<&str, Reason> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    text.ok_or_else(|| {
        Reason::new(ReasonCode::PatchInvalid).with("problem", format!("{path:?} can't be written in a line"))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use upfleet_domain::patch::PatchedClass;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    pub(in crate::jvm) fn layer(number: u32, classes: &[(&str, &[u8], u8)]) -> LayerView {
        let class = |(name, accepts, patched): &(&str, &[u8], u8)| PatchedClass {
            name: (*name).to_owned(),
            accepts: accepts.iter().map(|n| digest(*n)).collect(),
            parent: None,
            patched: digest(*patched),
            major: 52,
        };
        let spec = PatchSpec {
            number,
            base: Default::default(),
            fixes: vec![],
            classes: classes.iter().map(class).collect(),
            resources: vec![],
            requires: vec![],
            supersedes: vec![],
            module: None,
            removed: vec![],
            live: Default::default(),
            needs_restart: false,
        };
        LayerView { number, jar: format!("/p/{number}.jar").into(), sha256: digest(99), spec, retired: false }
    }

    #[test]
    fn the_highest_number_is_in_force_and_what_is_gone_goes_back() {
        let mut retired = layer(8, &[("a.R", &[1], 81)]);
        retired.retired = true;
        let stack = StackView {
            set: digest(0),
            layers: vec![
                layer(9, &[("a.C", &[1], 9), ("a.N", &[], 19)]),
                retired,
                layer(10, &[("a.C", &[1, 9], 10)]),
            ],
            gone: vec![layer(11, &[("a.G", &[5], 55), ("a.C", &[1, 10], 11)])],
        };
        let seen: Vec<_> = stack.effective().into_iter().map(|c| (c.name, c.number, c.patched)).collect();
        let want =
            |name: &str, number: u32, patched: Option<u8>| (name.to_owned(), number, patched.map(digest));
        let expected =
            [want("a.C", 10, Some(10)), want("a.G", 0, None), want("a.N", 9, Some(19)), want("a.R", 0, None)];
        assert_eq!(seen, expected);
        assert_eq!(stack.effective()[0].accepts, [digest(1)].into());
        assert_eq!(stack.additions().len(), 1);
    }

    #[test]
    fn a_request_is_lines_of_fields_and_paths_that_break_them_are_refused() {
        let stack = StackView { set: digest(0), layers: vec![layer(9, &[("a.N", &[], 19)])], gone: vec![] };
        let mut request = Request {
            operation: Operation::Start,
            mechanism: Mechanism::JavaAgent,
            agent: Path::new("/a b/agent.jar"),
            report: None,
            journal: Some(Path::new("/j")),
            additions: None,
        };
        let text = request.render(&stack).unwrap();
        assert!(text.starts_with("upfleet-request\t1\noperation\tstart\nset\t0000"), "{text}");
        assert!(text.contains("\nagent\t/a b/agent.jar\njournal\t/j\njar\t9\t/p/9.jar\t6363"), "{text}");
        assert!(
            text.contains(&format!("\nclass\ta.N\t9\t{}\t-\t{}\nend\n", digest(19), digest(19))),
            "{text}"
        );
        request.report = Some(Path::new("/a\nb"));
        assert_eq!(request.render(&stack).unwrap_err().code, ReasonCode::PatchInvalid);
    }
}
