//! What the Java agent answers: its report of one request, and the journal that it keeps as classes load.
//!
//! Both were written in a process that the agent does not trust: they are read with limits, and what does not
//! parse is no proof.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use upfleet_domain::{
    digest::Digest,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    reason::{Reason, ReasonCode},
    time::Time,
};

use super::request::StackView;

/// The most bytes that a report or a journal may have.
pub const MOST_BYTES: u64 = 16 << 20;

/// The most classes, each loader's counted, that a report or a journal may speak of.
const MOST_CLASSES: usize = 50_000;
/// The most notes and refusals each.
const MOST_REMARKS: usize = 1000;
/// The most fields of a refusal.
const MOST_FIELDS: usize = 8;
/// The longest field that is kept, in characters: what is sent on has to fit into a message.
const MOST_LETTERS: usize = 400;

/// A class that stood in the way of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What refused: `BASE` (its original is another), `SCHEMA` (the JVM), or `AGENT` (the Java agent failed).
    pub code: String,
    /// The other fields of the line: class, loader, number, original, problem for `BASE`; class, loader, problem for
    /// `SCHEMA`; the problem otherwise.
    pub fields: Vec<String>,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The JVM's version, e.g. `17.0.15`.
    pub java_version: String,
    /// The stack it is about, as 64 hex digits.
    pub set: String,
    /// Each class in each loader that has it; a class that nobody has loaded has no loader.
    pub classes: Vec<ClassProof>,
    /// Remarks, as (kind, text).
    pub notes: Vec<(String, String)>,
    /// What went wrong; nothing was changed then.
    pub refusals: Vec<Refusal>,
    /// Whether the last line is there.
    pub whole: bool,
}

impl Report {
    /// Reads a report. A torn one is not whole, but what it has is kept.
    ///
    /// # Errors
    /// `PROOF_MISSING` where it is of another version, has a line that can't be understood, or speaks of more classes
    /// than there can be.
    pub fn parse(text: &str) -> Result<Self, Reason> {
        let mut lines = text.lines();
        if lines.next() != Some("upfleet-report\t1") {
            return Err(missing("its report is of another version"));
        }
        let mut reading = Reading::default();
        for line in lines {
            reading.line(line)?;
        }
        Ok(reading.finish())
    }

    /// Reads a journal: what holds since its last change of stack. A last line without its end is left out.
    ///
    /// # Errors
    /// As [`Report::parse`]; also where the journal ran full.
    pub fn parse_journal(text: &str) -> Result<Self, Reason> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines();
        if lines.next() != Some("upfleet-journal\t1") {
            return Err(missing("its journal is of another version"));
        }
        let mut reading = Reading::default();
        for line in lines {
            if line.starts_with("set\t") {
                reading.classes.clear();
                reading.seen = 0;
                reading.report.refusals.clear();
                reading.report.whole = false;
            }
            if line == "overflow" {
                return Err(missing("its journal ran full"));
            }
            reading.line(line)?;
        }
        Ok(reading.finish())
    }

    /// Whether it answers what was asked: it is about this stack, and says of each class of it how its patched bytes
    /// stand. What it leaves out is not in force for all anybody knows.
    ///
    /// # Errors
    /// `PROOF_MISSING` with the first class that it does not speak of.
    pub fn answers(&self, wanted: &StackView) -> Result<(), Reason> {
        if self.set != wanted.set.to_string() {
            return Err(missing("its answer is about another stack"));
        }
        for class in wanted.effective() {
            let Some(patched) = class.patched else { continue };
            let mut said = self.classes.iter().filter(|proof| proof.class == class.name).peekable();
            if said.peek().is_none() {
                return Err(missing(&format!("it says nothing of {} of patch {}", class.name, class.number)));
            }
            let other = |proof: &&ClassProof| proof.expected != patched || proof.number != class.number;
            if said.any(|proof| other(&proof)) {
                return Err(missing(&format!(
                    "it speaks of other bytes of {} than those of patch {}",
                    class.name, class.number
                )));
            }
        }
        Ok(())
    }

    /// The note of a kind, as texts.
    pub fn notes_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.notes.iter().filter(move |(known, _)| known == kind).map(|(_, text)| text.as_str())
    }

    /// As the proof of a process.
    #[must_use]
    pub fn into_proof(self, pid: u32, mechanism: Mechanism) -> Proof {
        let mut alarms = vec![];
        for thread in self.notes_of("old-frame") {
            alarms.push(Reason::new(ReasonCode::OldFrame).with("pid", pid).with("thread", thread));
        }
        Proof { pid, mechanism, classes: self.classes, alarms, time: now() }
    }
}

/// A report while it is read.
#[derive(Default)]
struct Reading {
    report: Report,
    /// By class and loader, in the order in which they were last spoken of.
    classes: BTreeMap<String, BTreeMap<String, (usize, ClassProof)>>,
    /// How many lines there were of classes.
    seen: usize,
}

impl Reading {
    fn line(&mut self, line: &str) -> Result<(), Reason> {
        let fields: Vec<&str> = line.split('\t').collect();
        let report = &mut self.report;
        match fields.as_slice() {
            ["jvm", _, version, ..] => report.java_version = text(version),
            ["set", set, _] => report.set = text(set),
            ["class", rest @ ..] => {
                let class = class(rest).ok_or_else(|| missing("a line of its report can't be understood"))?;
                self.see(class)?;
            }
            ["note", kind, note] if report.notes.len() < MOST_REMARKS => {
                report.notes.push((text(kind), text(note)));
            }
            ["error", code, rest @ ..] if report.refusals.len() < MOST_REMARKS => {
                let fields = rest.iter().take(MOST_FIELDS).map(|field| text(field)).collect();
                report.refusals.push(Refusal { code: text(code), fields });
            }
            ["end", _] => report.whole = true,
            // What a later version says besides is no concern of this one.
            _ => {}
        }
        Ok(())
    }

    /// The later line about a class in a loader counts, and none that it is not loaded once it was.
    fn see(&mut self, class: ClassProof) -> Result<(), Reason> {
        self.seen += 1;
        if self.seen > MOST_CLASSES {
            return Err(missing("it speaks of too many classes"));
        }
        let loaders = self.classes.entry(class.class.clone()).or_default();
        if class.loader.is_empty() && loaders.keys().any(|loader| !loader.is_empty()) {
            return Ok(());
        }
        loaders.remove("");
        loaders.insert(class.loader.clone(), (self.seen, class));
        Ok(())
    }

    fn finish(mut self) -> Report {
        let mut classes: Vec<_> = self.classes.into_values().flat_map(BTreeMap::into_values).collect();
        classes.sort_by_key(|(order, _)| *order);
        self.report.classes = classes.into_iter().map(|(_, class)| class).collect();
        self.report
    }
}

/// What a JVM's user wrote, as it may be kept and shown: not endless, and nothing that a terminal obeys.
fn text(field: &str) -> String {
    field.chars().take(MOST_LETTERS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The node's clock.
pub(super) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn class(fields: &[&str]) -> Option<ClassProof> {
    let [standing, number, class, loader, source, original, expected, mechanism, problem] = fields else {
        return None;
    };
    let digest = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    Some(ClassProof {
        class: text(class),
        number: number.parse().ok()?,
        standing: match *standing {
            "armed" => Standing::Armed,
            "proved" => Standing::Proved,
            "old" => Standing::Old,
            _ => return None,
        },
        loader: text(loader),
        source: Some(text(source)).filter(|source| !source.is_empty()),
        original: digest(original)?,
        expected: digest(expected)?.unwrap_or(Digest([0; 32])),
        mechanism: [
            Mechanism::JavaAgent,
            Mechanism::ClassPath,
            Mechanism::PathingJar,
            Mechanism::PropertiesLauncher,
            Mechanism::PatchModule,
            Mechanism::Live,
        ]
        .into_iter()
        .find(|known| known.as_str() == *mechanism)?,
        problem: text(problem),
    })
}

fn missing(problem: &str) -> Reason {
    Reason::new(ReasonCode::ProofMissing).with("problem", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "6363636363636363636363636363636363636363636363636363636363636363";

    fn line(standing: &str, class: &str, loader: &str) -> String {
        format!("class\t{standing}\t7\t{class}\t{loader}\t/a.jar\t{DIGEST}\t{DIGEST}\tjava-agent\t\n")
    }

    #[test]
    fn a_journal_says_what_holds_since_its_last_change() {
        let begin = format!("upfleet-journal\t1\nset\t{DIGEST}\tlive\n");
        let old = line("old", "a.C", "app");
        let text =
            format!("{begin}{old}set\tother\tlive\n{}{}", line("armed", "a.C", ""), line("armed", "a.D", ""));
        let report =
            Report::parse_journal(&format!("{text}{}class\tpro", line("proved", "a.C", "x.L@1"))).unwrap();
        let seen: Vec<_> = report.classes.iter().map(|c| (c.class.as_str(), c.standing)).collect();
        assert_eq!(seen, [("a.D", Standing::Armed), ("a.C", Standing::Proved)]);
        assert_eq!((report.set.as_str(), report.whole), ("other", false));
        assert!(Report::parse_journal(&format!("{text}overflow\n")).is_err());
    }

    #[test]
    fn what_a_report_leaves_out_is_not_proved() {
        let layer = crate::jvm::request::tests::layer(7, &[("a.C", &[1], 0x63), ("a.D", &[1], 0x63)]);
        let stack = StackView { set: Digest([7; 32]), layers: vec![layer], gone: vec![] };
        let read = |set: &Digest, lines: &[String]| {
            let text = format!("upfleet-report\t1\nset\t{set}\tlive\n{}end\tok\n", lines.concat());
            Report::parse(&text).unwrap().answers(&stack)
        };
        let (c, d) = (line("proved", "a.C", "app"), line("armed", "a.D", ""));
        assert_eq!(read(&stack.set, &[c.clone(), d.clone()]), Ok(()));
        for (set, lines) in [
            (stack.set, vec![]),
            (stack.set, vec![c.clone()]),
            (Digest([8; 32]), vec![c.clone(), d.clone()]),
            (stack.set, vec![c.replace(DIGEST, &"62".repeat(32)), d.clone()]),
            (stack.set, vec![c.replace("\t7\t", "\t6\t"), d]),
        ] {
            assert_eq!(read(&set, &lines).unwrap_err().code, ReasonCode::ProofMissing, "{lines:?}");
        }
    }

    #[test]
    fn a_jvms_user_can_neither_fill_the_agent_nor_write_to_terminals() {
        let endless = format!("upfleet-report\t1\n{}", line("old", "a.C", "app").repeat(MOST_CLASSES + 1));
        assert_eq!(Report::parse(&endless).unwrap_err().code, ReasonCode::ProofMissing);
        let long = line("old", "a.C", "app").replace("/a.jar", &format!("\u{1b}[2J{}", "x".repeat(9999)));
        let report = Report::parse(&format!("upfleet-report\t1\n{long}")).unwrap();
        let source = report.classes[0].source.as_deref().unwrap();
        assert!(source.starts_with(" [2Jxx") && source.len() == MOST_LETTERS, "{source}");
    }

    #[test]
    fn what_does_not_parse_is_no_proof() {
        assert!(Report::parse("upfleet-report\t2\n").is_err());
        assert!(Report::parse("upfleet-report\t1\nclass\tproved\n").is_err());
        let good = format!("upfleet-report\t1\n{}novel\tline\nend\tok\n", line("proved", "a.C", "app"));
        assert!(Report::parse(&good).unwrap().whole);
        assert!(!Report::parse(&good[..good.len() - 8]).unwrap().whole);
        let torn = good.replace("proved\t7", "proved\tx");
        assert_eq!(Report::parse(&torn).unwrap_err().code, ReasonCode::ProofMissing);
    }
}
