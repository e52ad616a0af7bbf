//! Transcripts of sessions as files: each message in the order it passed, as bytes and beside them as JSON for people.

use std::{fmt::Write as _, path::Path};

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use upfleet_api::v1::{self, session_request::Message as Said, session_response::Message as Told};

/// Stands in fixtures for the boot that they were made in.
pub const BOOT: &str = "00000000-0000-4000-8000-000000000000";

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Agent,
    Controller,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub from: Side,
    pub bytes: Bytes,
}

/// A line as it is in the file.
#[derive(Serialize, Deserialize)]
struct Written {
    from: Side,
    bytes: String,
    message: serde_json::Value,
}

impl Line {
    /// What the agent said.
    pub fn said(&self) -> Option<Said> {
        (self.from == Side::Agent).then(|| v1::SessionRequest::decode(self.bytes.clone()).unwrap().message)?
    }

    /// What the controller told it.
    pub fn told(&self) -> Option<Told> {
        (self.from == Side::Controller)
            .then(|| v1::SessionResponse::decode(self.bytes.clone()).unwrap().message)?
    }

    fn json(&self) -> serde_json::Value {
        let bytes = self.bytes.clone();
        match self.from {
            Side::Agent => serde_json::to_value(v1::SessionRequest::decode(bytes).unwrap()),
            Side::Controller => serde_json::to_value(v1::SessionResponse::decode(bytes).unwrap()),
        }
        .unwrap()
    }

    /// The same of a machine without a name, and with orders that do not expire. What this version does not know stays
    /// where it is, at the end.
    fn timeless(&self) -> Self {
        match (self.said(), self.told()) {
            (Some(Said::Hello(mut hello)), _) => {
                let wrap = |hello| v1::SessionRequest { message: Some(Said::Hello(hello)) };
                let known = wrap(hello.clone());
                hello.boot_id = BOOT.to_owned();
                hello.facts.insert("hostname".to_owned(), "n1".to_owned());
                hello.facts.insert("kernel".to_owned(), "6.1".to_owned());
                self.with(&known, &wrap(hello))
            }
            (_, Some(Told::DesiredState(mut order))) => {
                let wrap = |order| v1::SessionResponse { message: Some(Told::DesiredState(order)) };
                let known = wrap(order.clone());
                order.not_after = Some(pbjson_types::Timestamp { seconds: 4_922_000_000, nanos: 0 });
                self.with(&known, &wrap(order))
            }
            _ => self.clone(),
        }
    }

    fn with<M: prost::Message>(&self, known: &M, instead: &M) -> Self {
        let rest = self.bytes.strip_prefix(known.encode_to_vec().as_slice());
        let mut bytes = instead.encode_to_vec();
        bytes.extend(rest.expect("what is unknown comes last"));
        Self { from: self.from, bytes: bytes.into() }
    }

    /// The same with other names in it, each as long as the one it stands for.
    pub fn renamed(&self, names: &[(String, String)]) -> Self {
        let mut bytes = self.bytes.to_vec();
        for (old, new) in names {
            assert_eq!(old.len(), new.len(), "{old} and {new}");
            let places: Vec<usize> = bytes
                .windows(old.len())
                .enumerate()
                .filter(|(_, window)| *window == old.as_bytes())
                .map(|(at, _)| at)
                .collect();
            for at in places {
                bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
            }
        }
        Self { from: self.from, bytes: bytes.into() }
    }
}

/// Writes a transcript.
pub fn write(path: &Path, lines: &[Line]) {
    let mut text = String::new();
    // What else runs on the machine is nobody's concern.
    for line in lines.iter().filter(|line| !matches!(line.said(), Some(Said::JvmInventory(_)))) {
        let line = line.timeless();
        let bytes = line.bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let written = Written { from: line.from, bytes, message: line.json() };
        text.push_str(&serde_json::to_string(&written).unwrap());
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}

/// Reads a transcript, and sees that its bytes still mean what they meant when it was written.
pub fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap();
    let read = |text: &str| {
        let written: Written = serde_json::from_str(text).unwrap();
        let pair = |at| u8::from_str_radix(&written.bytes[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..written.bytes.len()).step_by(2).map(pair).collect();
        let line = Line { from: written.from, bytes: bytes.into() };
        assert_eq!(line.json(), written.message, "{}: another meaning", path.display());
        line
    };
    text.lines().map(read).collect()
}
