//! This version's numbers: its own, and those of every file that outlives a process of it.
//!
//! A format is a major and a minor number. A file of a known major is read whatever its minor says: what a later minor
//! added is passed over, what an earlier one lacks has a default. Another major is refused, never guessed at. Before one
//! version takes another's place, [`readable`] says whether either could go on with what the other leaves. Only numbers
//! are here; each file's own module knows what is in it.
//!
//! A minor may add fields. What changes a field's meaning, takes one away, or adds a variant to what an older version
//! reads, is a new major; a version that brings one reads the major before as well, and there is one version in between
//! that reads the new one and still writes the old one.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    release,
};

use crate::shim::protocol;

/// The program's version.
pub const VERSION: &str = if cfg!(feature = "next") { "0.2.0" } else { env!("CARGO_PKG_VERSION") };

/// `journals/<component>.journal`.
pub const JOURNAL: Format = Format::new("journal", 1);
/// `shims/<component>/spec.json`.
pub const SHIM_SPEC: Format = Format::new("shim-spec", 1);
/// `shims/<component>/record.json`.
pub const SHIM_RECORD: Format = Format::new("shim-record", 1);
/// What is said over `shims/<component>/sock`: a shim outlives the agent that started it.
pub const SHIM_PROTOCOL: Format = Format::new("shim-protocol", protocol::VERSION)
    .reading_up_to(protocol::VERSIONS[protocol::VERSIONS.len() - 1]);
/// `itself/marker.json` and `itself/child.json`: what an old agent writes and its guard and the new agent read.
pub const MARKER: Format = Format::new("marker", 1);
/// `units/<component>.json`.
pub const UNIT_RECORD: Format = Format::new("unit-record", 1);
/// `identity/`.
pub const IDENTITY: Format = Format::new("identity", 1);
/// `manifests/<component>/<digest>`: verbatim bytes of whoever published the release.
pub const MANIFEST: Format = Format::new("manifest", release::FORMAT);
/// `history/<component>.jsonl`.
pub const HISTORY: Format = Format::new("history", 1);
/// `trees/<digest>.json` in the store beside a component's directory.
pub const TREE: Format = Format::new("tree", 1);
/// `stacks/<digest>/stack.json` in the store beside a component. Its digest is the set's name, so it has no minors.
pub const STACK: Format = Format::new("stack", 1);

/// Every kind of file.
pub const ALL: [Format; 11] = [
    JOURNAL,
    SHIM_SPEC,
    SHIM_RECORD,
    SHIM_PROTOCOL,
    MARKER,
    UNIT_RECORD,
    IDENTITY,
    MANIFEST,
    HISTORY,
    TREE,
    STACK,
];

/// The minor number of every file that this version writes.
const MINOR: u32 = if cfg!(feature = "next") { 1 } else { 0 };

/// The format that a kind of file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The kind of file, as [`Formats`] names it.
    pub kind: &'static str,
    /// The oldest major that is read.
    pub oldest: u32,
    /// The latest major that is read.
    pub latest: u32,
    /// What is written.
    pub number: Number,
}

impl Format {
    const fn new(kind: &'static str, major: u32) -> Self {
        Self { kind, oldest: 1, latest: major, number: Number { major, minor: MINOR } }
    }

    /// One that reads what is not written unless it has to be.
    const fn reading_up_to(self, latest: u32) -> Self {
        Self { latest, ..self }
    }

    /// Whether a file that says `found` is read.
    #[must_use]
    pub fn reads(&self, found: Number) -> bool {
        (self.oldest..=self.latest).contains(&found.major)
    }
}

/// A format's number. Order is age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// Another one is not read.
    pub major: u32,
    /// A later one is read all the same. At most 65,535, as is `major`.
    pub minor: u32,
}

impl Number {
    /// Both in one: the lower 16 bits are the major, the upper ones the minor.
    #[must_use]
    pub const fn packed(self) -> u32 {
        (self.minor << 16) | (self.major & 0xffff)
    }

    /// From [`Self::packed`].
    #[must_use]
    pub const fn unpacked(packed: u32) -> Self {
        Self { major: packed & 0xffff, minor: packed >> 16 }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor {
            0 => write!(f, "{}", self.major),
            minor => write!(f, "{}.{minor}", self.major),
        }
    }
}

/// Which formats a version reads and writes, by kind of file: what one version says of itself to another, as
/// `upfleet-agent formats` prints it. Fields and kinds of later versions are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// The program's version.
    pub version: String,
    /// The oldest and the latest major that are read.
    pub reads: BTreeMap<String, [u32; 2]>,
    /// The major that is written.
    pub writes: BTreeMap<String, u32>,
}

impl Formats {
    /// Those of this program.
    #[must_use]
    pub fn own() -> Self {
        let name = |format: &Format| format.kind.to_owned();
        Self {
            version: VERSION.to_owned(),
            reads: ALL.iter().map(|format| (name(format), [format.oldest, format.latest])).collect(),
            writes: ALL.iter().map(|format| (name(format), format.number.major)).collect(),
        }
    }
}

/// A value as it is kept in a file: JSON on one line. The next version's has what this one passes over.
///
/// # Errors
/// Where the value has no form in JSON.
pub fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    #[cfg(feature = "next")]
    let value = &next::Later { value, minor: MINOR, added_later: &["a", "b"] };
    serde_json::to_vec(value)
}

/// What a later minor may add to a file.
#[cfg(feature = "next")]
mod next {
    #[derive(serde::Serialize)]
    pub struct Later<'a, T> {
        #[serde(flatten)]
        pub value: &'a T,
        pub minor: u32,
        pub added_later: &'static [&'static str],
    }
}

/// Whether `reader` can go on with every file that `writer` writes. A kind that the reader does not know is none that
/// it opens. Before an agent is replaced, both directions are asked: the new one takes over what the old one wrote, and
/// the way back must be open.
///
/// # Errors
/// `AGENT_FORMAT_UNREADABLE` with the first kind of file that it can't read.
pub fn readable(writer: &Formats, reader: &Formats) -> Result<(), Reason> {
    let known = |(kind, written): (&String, &u32)| Some((kind.clone(), *written, *reader.reads.get(kind)?));
    let unreadable = writer
        .writes
        .iter()
        .filter_map(known)
        .find(|(_, written, [from, to])| written < from || written > to);
    match unreadable {
        None => Ok(()),
        Some((kind, written, [from, to])) => Err(Reason::new(ReasonCode::AgentFormatUnreadable)
            .with("writer", &writer.version)
            .with("kind", kind)
            .with("found", written)
            .with("reader", &reader.version)
            .with("from", from)
            .with("to", to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(version: &str, kind: &str, reads: [u32; 2], writes: u32) -> Formats {
        let mut formats = Formats { version: version.to_owned(), ..Formats::own() };
        formats.reads.insert(kind.to_owned(), reads);
        formats.writes.insert(kind.to_owned(), writes);
        formats
    }

    #[test]
    fn numbers_are_packed_and_order_is_age() {
        let number = |major, minor| Number { major, minor };
        for (value, packed, text) in
            [(number(1, 0), 1, "1"), (number(2, 0), 2, "2"), (number(1, 3), 0x3_0001, "1.3")]
        {
            assert_eq!((value.packed(), Number::unpacked(packed)), (packed, value));
            assert_eq!(value.to_string(), text);
        }
        assert!(number(1, 9) < number(2, 0) && number(1, 0) < number(1, 1));
        assert!(JOURNAL.reads(number(1, 9)) && !JOURNAL.reads(number(2, 0)) && !JOURNAL.reads(number(0, 0)));
    }

    #[test]
    fn each_version_of_the_shims_protocol_is_read() {
        let own = Formats::own();
        let reads = own.reads[SHIM_PROTOCOL.kind];
        assert_eq!((reads[0]..=reads[1]).collect::<Vec<_>>(), protocol::VERSIONS);
        assert!(protocol::VERSIONS.contains(&own.writes[SHIM_PROTOCOL.kind]));
        let handover = Number { major: protocol::HANDOVER, minor: 0 };
        assert!(SHIM_PROTOCOL.reads(handover) && !JOURNAL.reads(handover));
        // Before there was a handover.
        let old = formats("0.0.9", SHIM_PROTOCOL.kind, [1, 1], 1);
        assert_eq!((readable(&old, &own), readable(&own, &old)), (Ok(()), Ok(())));
    }

    #[test]
    fn what_the_other_can_t_read_is_said_with_what_to_do() {
        assert_eq!(readable(&Formats::own(), &Formats::own()), Ok(()));
        let (old, new) = (formats("1.4.0", "journal", [1, 1], 1), formats("3.0.0", "journal", [1, 2], 2));
        assert_eq!(readable(&old, &new), Ok(()), "the new one takes over");
        let reason = readable(&new, &old).unwrap_err();
        assert_eq!(reason.code, ReasonCode::AgentFormatUnreadable);
        assert_eq!(
            reason.message(),
            "version 3.0.0 keeps journal in format 2, version 1.4.0 reads formats 1 to 1"
        );
        assert!(reason.code.hint().is_some_and(|hint| hint.contains("version in between")));
        let between = formats("2.0.0", "journal", [1, 2], 1);
        for (writer, reader) in [(&old, &between), (&between, &old), (&between, &new), (&new, &between)] {
            assert_eq!(readable(writer, reader), Ok(()), "by {}", between.version);
        }
        let dropped = formats("4.0.0", "journal", [2, 2], 2);
        assert!(readable(&old, &dropped).is_err(), "too old to be taken over");
    }

    #[test]
    fn kinds_and_fields_of_later_versions_are_passed_over() {
        let novel = formats("9.0.0", "novelty", [1, 1], 1);
        assert_eq!(readable(&novel, &Formats::own()), Ok(()));
        let text = r#"{"version":"9.0.0","reads":{"journal":[1,1]},"writes":{"journal":1},"novelty":[]}"#;
        let read: Formats = serde_json::from_str(text).unwrap();
        assert_eq!(readable(&read, &Formats::own()), Ok(()));
        let own = Formats::own();
        assert_eq!(serde_json::from_str::<Formats>(&serde_json::to_string(&own).unwrap()).unwrap(), own);
    }
}
