//! What a shim keeps on disk: what it is to run (`spec.json`), and what became of it (`record.json`).
//!
//! Both are replaced as a whole (spare file, fsync, exchange of the names, fsync of the directory), carry a
//! format number, and a newer format is refused, not guessed at. The spare is what was replaced before: it
//! has its blocks already, so that stopping and starting, and with them rolling back, need no free disk.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use upfleet_domain::digest::Digest;

use super::protocol::ExitRecord;
use crate::{
    config::{Listen, StopSignal},
    damage,
    formats::{self, Number, SHIM_SPEC},
    processes::Identity,
};

/// The major of both files' format.
pub const FORMAT: u32 = SHIM_SPEC.number.major;
/// What the shim is to do.
pub const SPEC: &str = "spec.json";
/// What became of it.
pub const RECORD: &str = "record.json";
/// The files' length is a multiple of this: a line of JSON, a line with its checksum, blanks.
const BLOCK: usize = 16 * 1024;
/// How many exits are kept.
const EXITS: usize = 20;

/// A file that a process is started from, beside its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// Where it lies. Absolute.
    pub path: PathBuf,
    /// SHA-256 of what it must be.
    pub digest: Digest,
}

/// A listening socket that the shim keeps for its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// What a process finds it by.
    pub name: String,
    /// Where it listens.
    pub listen: Listen,
    /// Permissions of a Unix socket's file.
    pub mode: u32,
    /// Its owner, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its group, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Everything that is needed to run the component's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program and arguments; `{path}` is expanded already.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The component's file, hashed before each exec.
    pub file: PathBuf,
    /// Nothing else than this is run; any file where it is left out.
    pub expect: Option<Digest>,
    /// What else the process is started from: patches, argument files. Each is hashed before each exec, and one
    /// that is not what it should be refuses the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// The stack that those make up, see [`upfleet_domain::state::stack_digest`]; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<Digest>,
    /// Asks the process to end.
    pub stop_signal: StopSignal,
    /// How long it may take to, in milliseconds.
    pub stop_timeout_ms: u64,
    /// The wait before the first restart, in milliseconds.
    pub restart_delay_ms: u64,
    /// The longest wait before a restart, in milliseconds.
    pub restart_delay_max_ms: u64,
    /// The size at which the log is rotated, in bytes.
    pub log_size: u64,
    /// The most data that a process of it may have, in bytes; 0 for no limit.
    #[serde(default)]
    pub memory_max: u64,
    /// The sockets that the process is given, in this order from descriptor 3 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketSpec>,
    /// Whether it is told where to say `READY=1`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notify: bool,
    /// Asks the process before this one, in a handover, to finish; `stop_signal` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_signal: Option<StopSignal>,
    /// How long that one may take to, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drain_timeout_ms: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Launch {
    /// Whether only a shim that keeps sockets can start it.
    #[must_use]
    pub fn needs_sockets(&self) -> bool {
        !self.sockets.is_empty() || self.notify
    }

    /// The wait before restart number `attempt`, which counts from 0.
    #[must_use]
    pub fn delay(&self, attempt: u32) -> Duration {
        let factor = 1_u64.checked_shl(attempt).unwrap_or(u64::MAX);
        Duration::from_millis(self.restart_delay_ms.saturating_mul(factor).min(self.restart_delay_max_ms))
    }

    /// A process that ran this long has not crashed at its start; the next wait is the first again.
    #[must_use]
    pub fn counts_as_up(&self, ran: Duration) -> bool {
        ran > Duration::from_millis(self.restart_delay_max_ms)
    }
}

/// What the shim is to do, also after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The format's number.
    pub format: u32,
    /// Whether the process is wanted.
    pub run: bool,
    /// What to run; none before the first start.
    pub launch: Option<Launch>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format's number.
    pub format: u32,
    /// The process that was started last, until its end is recorded.
    pub process: Option<Identity>,
    /// Those that run beside it: one that is judged, and those that drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub besides: Vec<Identity>,
    /// The shim that started it, whose session it is in.
    pub shim: Option<Identity>,
    /// The last exits, newest last.
    pub exits: VecDeque<ExitRecord>,
}

impl Default for Spec {
    fn default() -> Self {
        Self { format: FORMAT, run: false, launch: None }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self { format: FORMAT, process: None, besides: Vec::new(), shim: None, exits: VecDeque::new() }
    }
}

impl Record {
    /// Adds an exit and forgets the oldest ones.
    pub fn push(&mut self, exit: ExitRecord) {
        self.exits.push_back(exit);
        while self.exits.len() > EXITS {
            self.exits.pop_front();
        }
    }
}

/// Reads one of the files; its default where it is not there.
///
/// # Errors
/// Where it can't be read, is damaged, or is of a newer format.
pub fn read<T: Default + DeserializeOwned>(path: &Path) -> io::Result<T> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        #[serde(default)]
        minor: u32,
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(error),
    };
    let bytes = checked(path, &bytes)?;
    let Format { format: major, minor } = serde_json::from_slice(bytes)?;
    let (found, known) = (Number { major, minor }, SHIM_SPEC.number);
    let too_new = || {
        let text = format!("`{}` has format {found}, this version reads up to {known}", path.display());
        io::Error::new(io::ErrorKind::Unsupported, text)
    };
    if found.major > known.major {
        return Err(too_new());
    }
    // Intact, and yet nothing that this version knows: whoever wrote it does.
    let unknown = |error: serde_json::Error| if found > known { too_new() } else { error.into() };
    serde_json::from_slice(bytes).map_err(unknown)
}

/// The first line, where the second has its checksum.
fn checked<'a>(path: &Path, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
    let damaged = |problem: &str| {
        let text = format!("`{}` {problem}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    // Written before there were checksums.
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(bytes) };
    let (line, sum) = (&bytes[..end], bytes[end + 1..].trim_ascii_end());
    if sum == checksum(line).as_bytes() {
        Ok(line)
    } else {
        Err(damaged("has another checksum than it says"))
    }
}

fn checksum(line: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(line))
}

/// Reads one of the files. Damage is moved aside: a component must not stay down because of it. The agent, whose journal
/// says what is to run, starts it again. What a later version wrote is no damage, and is left to that version.
///
/// # Errors
/// Where it can't be moved aside, or is of a newer format.
pub fn read_or_move_aside<T: Default + DeserializeOwned>(path: &Path) -> io::Result<T> {
    match read(path) {
        Ok(value) => Ok(value),
        // Only what was read and can't be obeyed: a file that could not be read this time may be whole.
        Err(error) if !is_damage(&error) => Err(error),
        Err(error) => {
            let aside = damage::move_aside(path)?;
            eprintln!("upfleet-agent shim: `{}` moved to `{}`: {error}", path.display(), aside.display());
            Ok(T::default())
        }
    }
}

fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, UnexpectedEof};
    matches!(error.kind(), InvalidData | IsADirectory | UnexpectedEof)
}

/// What became of the process. Where the file is damaged, its spare still names the shim before and its session, so
/// that what that one left running is found.
///
/// # Errors
/// Where it can't be moved aside.
pub fn read_record(dir: &Path) -> io::Result<Record> {
    let path = dir.join(RECORD);
    let intact = read::<Record>(&path).ok().filter(|record| record.shim.is_some());
    let record = read_or_move_aside(&path)?;
    let spare = || read::<Record>(&path.with_extension("spare")).ok();
    Ok(intact.or_else(spare).unwrap_or(record))
}

/// Replaces one of the files so that it is the old or the new one whatever happens.
///
/// # Errors
/// Where the directory can't be written.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let spare = path.with_extension("spare");
    damage::clear_directory(&spare)?;
    let mut bytes = formats::encode(value)?;
    let sum = checksum(&bytes);
    bytes.push(b'\n');
    bytes.extend(sum.as_bytes());
    fill(&spare, &mut bytes)?;
    if !path.exists() || renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE).is_err() {
        // The first of its kind, or a file system that can't exchange.
        fs::rename(&spare, path)?;
        fill(&spare, &mut Vec::new())?;
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Overwrites the spare file, in the blocks it has where they suffice.
fn fill(spare: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(spare)?;
    let present = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let length = bytes.len().max(present).max(1).next_multiple_of(BLOCK);
    bytes.resize(length, b' ');
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_and_newer_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SPEC);
        assert_eq!(read::<Spec>(&path).unwrap(), Spec::default());
        let spec = Spec { run: true, ..Spec::default() };
        write(&path, &spec).unwrap();
        assert_eq!(read::<Spec>(&path).unwrap(), spec);
        let blocks =
            || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        assert_eq!(blocks().collect::<Vec<_>>(), [BLOCK as u64; 2], "the file and its spare");
        for run in [false, true, false] {
            let spec = Spec { run, ..Spec::default() };
            write(&path, &spec).unwrap();
            assert_eq!(read::<Spec>(&path).unwrap(), spec);
        }
        assert_eq!(blocks().collect::<Vec<_>>(), [BLOCK as u64; 2]);
        fs::write(&path, r#"{"format":2,"run":"novel"}"#).unwrap();
        assert!(read::<Spec>(&path).unwrap_err().to_string().contains("format 2"));
        assert!(read_or_move_aside::<Spec>(&path).unwrap_err().to_string().contains("format 2"));
        assert!(path.exists(), "a later version's file is left to it");
        fs::write(&path, r#"{"format":1,"minor":3,"run":true,"launch":null,"novelty":{}}"#).unwrap();
        assert!(read::<Spec>(&path).unwrap().run, "what a later minor adds is passed over");
        fs::write(&path, r#"{"format":1,"minor":3,"run":"novel"}"#).unwrap();
        assert!(read_or_move_aside::<Spec>(&path).unwrap_err().to_string().contains("format 1.3"));
        fs::write(&path, r#"{"format":1,"ru"#).unwrap();
        assert!(read::<Spec>(&path).is_err());
    }

    /// Every bit of a file that is not a blank is one that its checksum minds, and no damage keeps a shim from starting.
    #[test]
    fn every_flipped_bit_is_found_and_the_file_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SPEC);
        write(&path, &Spec { run: true, ..Spec::default() }).unwrap();
        let bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != b' ').unwrap() + 1;
        for bit in 0..used * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            assert!(read::<Spec>(&path).is_err(), "bit {bit}");
        }
        assert_eq!(read_or_move_aside::<Spec>(&path).unwrap(), Spec::default());
        assert!(!path.exists() && dir.path().join("spec.json.damaged-1").exists());
    }

    #[test]
    fn a_damaged_record_still_names_the_shim_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD);
        let mut record = Record::default();
        record.begin_shim().unwrap();
        write(&path, &record).unwrap();
        write(&path, &Record { process: record.shim.clone(), ..record.clone() }).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(read_record(dir.path()).unwrap().shim, record.shim);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let launch = Launch {
            argv: vec![],
            env: BTreeMap::new(),
            cwd: "/".into(),
            file: "/x".into(),
            expect: None,
            inputs: vec![],
            stack: None,
            stop_signal: StopSignal::Term,
            stop_timeout_ms: 1,
            restart_delay_ms: 250,
            restart_delay_max_ms: 30_000,
            log_size: 1,
            memory_max: 0,
            sockets: vec![],
            notify: false,
            drain_signal: None,
            drain_timeout_ms: 0,
        };
        let waits: Vec<u128> =
            [0, 1, 2, 6, 7, 63, 64, u32::MAX].map(|n| launch.delay(n).as_millis()).to_vec();
        assert_eq!(waits, [250, 500, 1000, 16_000, 30_000, 30_000, 30_000, 30_000]);
    }
}
