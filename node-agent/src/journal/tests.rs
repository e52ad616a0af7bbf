//! Journals whole, torn, damaged, too new, and full.

use std::path::Path;

use upfleet_domain::{id::ComponentId, reason::ReasonCode, upgrade::record::Record};

use super::*;

fn web() -> ComponentId {
    "web".parse().unwrap()
}

fn record(n: u64) -> Record {
    let mut record = Record::new(web());
    record.hold_generation = n;
    record
}

fn number(opened: &Opened) -> Option<u64> {
    opened.record.as_ref().map(|record| record.hold_generation)
}

fn written(dir: &Path, count: u64) -> PathBuf {
    let mut journal = Journal::open(dir, &web()).unwrap().journal;
    (1..=count).for_each(|n| journal.append(&record(n)).unwrap());
    dir.join("web.journal")
}

#[test]
fn the_last_record_counts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), None);
    written(dir.path(), 3);
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(3));
}

/// Cut anywhere in the last record, and anywhere in what was allocated ahead, the one before counts.
#[test]
fn a_torn_tail_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 2);
    let whole = std::fs::read(&path).unwrap();
    let last = frame(&record(2)).unwrap().len();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for keep in [0, 1, 4, 7, 8, 9, last / 2, last - 1] {
        let mut torn = whole.clone();
        torn[end - last + keep..].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let mut opened = Journal::open(dir.path(), &web()).unwrap();
        assert_eq!((number(&opened), opened.damage.is_none()), (Some(1), true), "{keep} bytes kept");
        opened.journal.append(&record(9)).unwrap();
        assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(9));
        torn.truncate(end - last + keep);
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(1), "cut at {keep}");
    }
}

#[test]
fn damage_before_the_tail_is_moved_aside_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 3);
    let whole = std::fs::read(&path).unwrap();
    let first = HEADER as usize;
    for (count, at) in [0, 3, 8, first, first + 4, first + 9, first + 40].into_iter().enumerate() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let result = Journal::open(dir.path(), &web());
        let opened = match result {
            // The flipped bit is in the format's number.
            Err(JournalError::TooNew { .. }) => continue,
            other => other.unwrap(),
        };
        let damage = opened.damage.expect("damage is said");
        assert_eq!(damage.code, ReasonCode::JournalDamaged, "bit at {at}");
        assert_eq!(opened.record, None);
        let aside = dir.path().join(format!("web.journal.damaged-{}", count + 1));
        assert_eq!(std::fs::read(aside).unwrap(), damaged);
    }
}

/// A compacted journal has one record, which is what an idle component has: its damage is no tear.
#[test]
fn damage_to_the_only_record_is_said_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), &web()).unwrap().journal;
    journal.append(&record(1)).unwrap();
    journal.compact(&record(2));
    let path = dir.path().join("web.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER as usize + 40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let opened = Journal::open(dir.path(), &web()).unwrap();
    assert_eq!(
        (opened.record, opened.damage.map(|damage| damage.code)),
        (None, Some(ReasonCode::JournalDamaged))
    );
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    std::fs::write(&path, &bytes).unwrap();
    let error = Journal::open(dir.path(), &web()).unwrap_err();
    assert_eq!(error.reason().code, ReasonCode::StateTooNew);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

/// A later minor has fields that this version passes over. What is intact and yet not to be understood is left alone.
#[test]
fn a_later_minor_is_read_and_never_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 1);
    let later = |payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        let mut bytes = Vec::from(MAGIC.as_slice());
        bytes.extend(Number { major: 1, minor: 7 }.packed().to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(length);
        bytes.extend(checksum(length, payload).to_le_bytes());
        bytes.extend(payload);
        bytes
    };
    let mut value = serde_json::to_value(record(4)).unwrap();
    value["novelty"] = serde_json::json!({ "since": "1.7" });
    std::fs::write(&path, later(&serde_json::to_vec(&value).unwrap())).unwrap();
    let mut opened = Journal::open(dir.path(), &web()).unwrap();
    assert_eq!((number(&opened), opened.damage.is_none()), (Some(4), true));
    opened.journal.append(&record(5)).unwrap();
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(5));

    value["current"] = serde_json::json!({ "base": "of another kind" });
    let bytes = later(&serde_json::to_vec(&value).unwrap());
    std::fs::write(&path, &bytes).unwrap();
    let reason = Journal::open(dir.path(), &web()).unwrap_err().reason();
    assert_eq!(reason.code, ReasonCode::StateTooNew);
    assert!(reason.message().contains("has format 1.7"), "{reason}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

/// Where the directory could not be synced after a compaction, what is written later still goes into the file
/// that has the name, and the name is made durable with it.
#[test]
fn a_compaction_whose_name_is_not_durable_yet_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), &web()).unwrap().journal;
    journal.append(&record(1)).unwrap();
    journal.compact(&record(1));
    journal.named = false;
    journal.append(&record(2)).unwrap();
    assert!(journal.named);
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(2));
}

#[test]
fn it_is_compacted_and_stays_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), &web()).unwrap().journal;
    let mut big = record(1);
    big.drift = Some(Reason::new(ReasonCode::Drifted).with("actual", "x".repeat(40_000)));
    for n in 1..=60 {
        big.hold_generation = n;
        journal.append(&big).unwrap();
    }
    let path = dir.path().join("web.journal");
    assert!(std::fs::metadata(&path).unwrap().len() <= COMPACT_AT + 2 * RESERVE);
    journal.compact(&big);
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(60));
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(files.len(), 2, "the journal and its spare");
}

/// A file that the kernel could not write is never trusted again.
#[test]
fn after_a_failed_sync_another_file_is_written() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), &web()).unwrap().journal;
    let inode = || std::fs::metadata(dir.path().join("web.journal")).unwrap().ino();
    journal.append(&record(1)).unwrap();
    let before = inode();
    journal.failed = true;
    journal.append(&record(2)).unwrap();
    assert_ne!(inode(), before);
    assert!(!journal.failed);
    assert_eq!(number(&Journal::open(dir.path(), &web()).unwrap()), Some(2));
}
