//! What the Java agent answers: its report of one request, and the journal that it keeps as classes load.
//!
//! Both were written in a process that the agent does not trust: they are read with limits, and what does not
//! parse is no proof.

use std::time::{SystemTime, UNIX_EPOCH};

use upfleet_domain::{
    digest::Digest,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    reason::{Reason, ReasonCode},
    time::Time,
};

/// The most bytes that a report or a journal may have.
pub const MOST_BYTES: u64 = 16 << 20;

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
    /// `PROOF_MISSING` where it is of another version or has a line that can't be understood.
    pub fn parse(text: &str) -> Result<Self, Reason> {
        let mut lines = text.lines();
        if lines.next() != Some("upfleet-report\t1") {
            return Err(missing("its report is of another version"));
        }
        let mut report = Self::default();
        for line in lines {
            report.line(line)?;
        }
        Ok(report)
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
        let mut report = Self::default();
        for line in lines {
            if line.starts_with("set\t") {
                report.classes.clear();
                report.refusals.clear();
                report.whole = false;
            }
            if line == "overflow" {
                return Err(missing("its journal ran full"));
            }
            report.line(line)?;
        }
        Ok(report)
    }

    fn line(&mut self, line: &str) -> Result<(), Reason> {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.as_slice() {
            ["jvm", _, version, ..] => (*version).clone_into(&mut self.java_version),
            ["set", set, _] => (*set).clone_into(&mut self.set),
            ["class", rest @ ..] => {
                let class = class(rest).ok_or_else(|| missing("a line of its report can't be understood"))?;
                self.see(class);
            }
            ["note", kind, text] => self.notes.push(((*kind).to_owned(), (*text).to_owned())),
            ["error", code, rest @ ..] => self.refusals.push(Refusal {
                code: (*code).to_owned(),
                fields: rest.iter().map(|field| (*field).to_owned()).collect(),
            }),
            ["end", _] => self.whole = true,
            // What a later version says besides is no concern of this one.
            _ => {}
        }
        Ok(())
    }

    /// The later line about a class in a loader counts, and none that it is not loaded once it was.
    fn see(&mut self, class: ClassProof) {
        let loaded = |other: &ClassProof| other.class == class.class && !other.loader.is_empty();
        if class.loader.is_empty() && self.classes.iter().any(loaded) {
            return;
        }
        self.classes.retain(|other| {
            other.class != class.class || (!other.loader.is_empty() && other.loader != class.loader)
        });
        self.classes.push(class);
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
        class: (*class).to_owned(),
        number: number.parse().ok()?,
        standing: match *standing {
            "armed" => Standing::Armed,
            "proved" => Standing::Proved,
            "old" => Standing::Old,
            _ => return None,
        },
        loader: (*loader).to_owned(),
        source: Some((*source).to_owned()).filter(|source| !source.is_empty()),
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
        problem: (*problem).to_owned(),
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
