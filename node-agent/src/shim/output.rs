//! What the component prints: the last lines in memory, all of it in a log of bounded size, and whoever
//! follows. A component that prints without end, or without line ends, costs neither memory nor its speed.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use super::protocol::Event;

/// The log's name in the shim's directory.
pub const LOG: &str = "output.log";
/// The one older log that is kept.
const OLD_LOG: &str = "output.log.1";
/// Lines kept in memory; evidence takes 200.
const LINES: usize = 400;
/// The longest line in bytes; longer ones are cut into several.
const MAX_LINE: usize = 4096;
/// Events a slow follower may lag behind.
const LAG: usize = 1024;

/// The component's output.
pub struct Output {
    dir: PathBuf,
    inner: Mutex<Inner>,
    drained: Condvar,
}

struct Inner {
    lines: VecDeque<(u64, String)>,
    launch: u64,
    log: Option<File>,
    log_size: u64,
    log_limit: u64,
    followers: Vec<Follower>,
    /// How many pipes of each launch are still read.
    readers: BTreeMap<u64, u32>,
}

struct Follower {
    events: SyncSender<Event>,
    missed: u64,
}

impl Output {
    /// Begins with what an earlier shim has left in the log's last part.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        let mut inner = Inner {
            lines: VecDeque::new(),
            launch: 0,
            log: None,
            log_size: 0,
            log_limit: u64::MAX,
            followers: Vec::new(),
            readers: BTreeMap::new(),
        };
        inner.open_log(&dir);
        Self { dir, inner: Mutex::new(inner), drained: Condvar::new() }
    }

    /// Processes from here on belong to another launch, and so do their lines.
    pub fn begin_launch(&self, log_limit: u64) -> u64 {
        let mut inner = self.lock();
        inner.launch += 1;
        inner.log_limit = log_limit;
        inner.launch
    }

    /// The last lines, oldest first.
    #[must_use]
    pub fn tail(&self, lines: usize, this_launch: bool) -> Vec<String> {
        let inner = self.lock();
        let wanted = |launch: u64| !this_launch || launch == inner.launch;
        let newest = inner.lines.iter().rev().filter(|(launch, _)| wanted(*launch)).take(lines);
        let mut lines: Vec<String> = newest.map(|(_, text)| text.clone()).collect();
        lines.reverse();
        lines
    }

    /// Events from now on.
    #[must_use]
    pub fn follow(&self) -> Receiver<Event> {
        let (events, receiver) = sync_channel(LAG);
        self.lock().followers.push(Follower { events, missed: 0 });
        receiver
    }

    /// Tells the followers.
    pub fn announce(&self, event: &Event) {
        self.lock().announce(event);
    }

    /// Adds a line of that launch.
    fn push(&self, launch: u64, stderr: bool, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut inner = self.lock();
        inner.write_log(&self.dir, &text);
        inner.announce(&Event::Line { stderr, text: text.clone() });
        inner.lines.push_back((launch, text));
        if inner.lines.len() > LINES {
            inner.lines.pop_front();
        }
    }

    /// Says that one more pipe of that launch is read; [`Output::read_all`] takes it back.
    pub fn add_reader(&self, launch: u64) {
        *self.lock().readers.entry(launch).or_default() += 1;
    }

    /// Reads a pipe of that launch to its end.
    pub fn read_all(&self, launch: u64, stderr: bool, mut pipe: impl Read) {
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = retry(|| pipe.read(&mut buffer)) {
            for byte in &buffer[..length] {
                if *byte == b'\n' {
                    self.push(launch, stderr, &line);
                    line.clear();
                } else {
                    line.push(*byte);
                    if line.len() >= MAX_LINE {
                        self.push(launch, stderr, &line);
                        line.clear();
                    }
                }
            }
        }
        if !line.is_empty() {
            self.push(launch, stderr, &line);
        }
        let mut inner = self.lock();
        if let Some(left) = inner.readers.get_mut(&launch) {
            *left -= 1;
            if *left == 0 {
                inner.readers.remove(&launch);
            }
        }
        drop(inner);
        self.drained.notify_all();
    }

    /// Waits until all pipes of that launch are read to their end, so that its last words are in `tail`.
    pub fn drain(&self, launch: u64, limit: Duration) {
        let inner = self.lock();
        let reads = |inner: &mut Inner| inner.readers.contains_key(&launch);
        let _ = self.drained.wait_timeout_while(inner, limit, reads);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A reader that panicked leaves whole lines behind; the output goes on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn announce(&mut self, event: &Event) {
        self.followers.retain_mut(|follower| {
            if follower.missed > 0
                && follower.events.try_send(Event::Missed { events: follower.missed }).is_ok()
            {
                follower.missed = 0;
            }
            match follower.events.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    follower.missed += 1;
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }

    fn open_log(&mut self, dir: &std::path::Path) {
        // Where even that fails the component runs without a log.
        let _ = crate::damage::clear_directory(&dir.join(LOG));
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(LOG));
        self.log_size = file.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        self.log = file.ok();
    }

    /// A log that can't be written (a full disk) must not stop the component; the lines in memory go on.
    fn write_log(&mut self, dir: &std::path::Path, text: &str) {
        let length = text.len() as u64 + 1;
        if self.log_size > 0 && self.log_size.saturating_add(length) > self.log_limit {
            let _ = fs::rename(dir.join(LOG), dir.join(OLD_LOG));
            self.open_log(dir);
        }
        if let Some(log) = &mut self.log
            && log.write_all(format!("{text}\n").as_bytes()).is_ok()
        {
            self.log_size += length;
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> (tempfile::TempDir, Output) {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::new(dir.path().to_owned());
        (dir, output)
    }

    fn feed(output: &Output, bytes: &[u8]) {
        let launch = output.lock().launch;
        output.add_reader(launch);
        output.read_all(launch, false, bytes);
    }

    #[test]
    fn keeps_the_last_lines_of_a_launch() {
        let (_dir, output) = output();
        output.begin_launch(u64::MAX);
        feed(&output, b"a\nb\nno end");
        output.begin_launch(u64::MAX);
        feed(&output, b"c\n\xff\n");
        assert_eq!(output.tail(2, false), ["c", "\u{fffd}"]);
        assert_eq!(output.tail(99, true), ["c", "\u{fffd}"]);
        assert_eq!(output.tail(99, false).len(), 5);
        feed(&output, "x\n".repeat(LINES * 2).as_bytes());
        assert_eq!(output.tail(usize::MAX, false).len(), LINES);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (_dir, output) = output();
        feed(&output, &[b'x'; MAX_LINE * 3]);
        let lines = output.tail(99, false);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE; 3]);
    }

    #[test]
    fn the_log_stays_bounded() {
        let (dir, output) = output();
        output.begin_launch(1000);
        feed(&output, "0123456789\n".repeat(1000).as_bytes());
        let size = |name| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(LOG) <= 1000 && size(OLD_LOG) <= 1000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_slow_follower_is_told_what_it_missed() {
        let (_dir, output) = output();
        let events = output.follow();
        feed(&output, "x\n".repeat(LAG + 5).as_bytes());
        assert_eq!(events.try_iter().count(), LAG);
        feed(&output, b"y\n");
        let rest: Vec<Event> = events.try_iter().collect();
        assert_eq!(rest[0], Event::Missed { events: 5 });
        assert_eq!(rest[1], Event::Line { stderr: false, text: "y".into() });
        drop(events);
        feed(&output, b"z\n");
        assert!(output.lock().followers.is_empty());
    }
}
