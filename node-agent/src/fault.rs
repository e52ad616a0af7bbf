//! Faults on purpose: what a test's bad agent does wrong, chosen by the last line of its executable. Without the feature
//! `crash-points` they are nothing.
//!
//! What follows the last section of an executable is nobody's, so the same program is made bad by appending to it. The
//! faults are bounded: a bad agent ends by itself, whatever becomes of the test.

/// What the last line of a bad agent begins with; then `trial` or `run`, and the fault's name.
pub const MARK: &str = "upfleet-fault:";

/// When a fault takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// While the new agent shows what it can.
    Trial,
    /// Once it is the agent.
    Run,
}

/// The faults that other code asks for; all others act by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection to the controller is made.
    NoConnection,
    /// No journal is of a format that it reads.
    OlderFormat,
}

/// Does what this executable's last line says of `when`.
#[cfg(feature = "crash-points")]
pub fn begin(when: When) {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    /// When any bad agent ends by itself.
    const MOST: Duration = Duration::from_secs(180);

    let Some((name, argument)) = inner::wanted(when) else { return };
    match name.as_str() {
        "exit" => std::process::exit(1),
        "hang" => {
            std::thread::sleep(MOST);
            std::process::exit(1);
        }
        // The first one only takes the runtime's own handler away.
        "segfault" => loop {
            let _ = kill_process(getpid(), Signal::SEGV);
        },
        "later" => inner::aside(move || {
            std::thread::sleep(Duration::from_millis(argument));
            std::process::abort();
        }),
        "memory" => inner::aside(|| inner::fill(Duration::from_secs(60))),
        "no-connection" => inner::choose(Fault::NoConnection),
        "older-format" => inner::choose(Fault::OlderFormat),
        other => panic!("no fault is named `{other}`"),
    }
}

/// Whether this is an agent with that fault.
#[cfg(feature = "crash-points")]
#[must_use]
pub fn is(fault: Fault) -> bool {
    inner::CHOSEN.get() == Some(&fault)
}

#[cfg(feature = "crash-points")]
mod inner {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, SeekFrom},
        sync::OnceLock,
        time::{Duration, Instant},
    };

    use super::{Fault, MARK, When};

    pub(super) static CHOSEN: OnceLock<Fault> = OnceLock::new();
    /// The last line is no longer than this, in bytes.
    const TAIL: u64 = 128;
    /// The most that is filled, in bytes, and how much at a time.
    const FULL: usize = 1 << 30;
    const PIECE: usize = 8 << 20;

    pub(super) fn choose(fault: Fault) {
        let _ = CHOSEN.set(fault);
    }

    /// The fault's name, and its number where it has one.
    pub(super) fn wanted(when: When) -> Option<(String, u64)> {
        let mut file = File::open("/proc/self/exe").ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let line = text.lines().rev().find_map(|line| line.strip_prefix(MARK))?;
        let mut words = line.split_whitespace();
        let of = if words.next()? == "trial" { When::Trial } else { When::Run };
        let name = words.next()?.to_owned();
        let argument = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        (of == when).then_some((name, argument))
    }

    pub(super) fn aside(work: impl FnOnce() + Send + 'static) {
        std::thread::spawn(work);
    }

    /// Takes memory until there is enough of it, and ends after `most`.
    pub(super) fn fill(most: Duration) {
        let began = Instant::now();
        let mut taken: Vec<Vec<u8>> = Vec::new();
        while began.elapsed() < most {
            if taken.len() * PIECE < FULL {
                taken.push(vec![1; PIECE]);
            }
            std::thread::sleep(Duration::from_millis(40));
        }
        std::process::exit(i32::from(taken.is_empty()));
    }
}

/// Nothing, in a build without the feature.
#[cfg(not(feature = "crash-points"))]
pub fn begin(_when: When) {}

/// No agent has one, in a build without the feature.
#[cfg(not(feature = "crash-points"))]
#[must_use]
pub fn is(_fault: Fault) -> bool {
    false
}
