//! What processes cost: CPU time and resident memory, from /proc.

use std::{fs, time::Duration};

use anyhow::Context as _;

/// Memory and CPU time of one process, its threads included and its children not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time so far, in user and kernel.
    pub cpu: Duration,
    /// Resident memory now, in bytes.
    pub resident: u64,
    /// The most resident memory so far, in bytes.
    pub peak: u64,
    /// What of the resident memory is no page of a file, in bytes: the rest can be dropped, and is shared with other
    /// processes of the same program.
    pub own: u64,
}

/// What a process has used so far.
///
/// # Errors
/// Where there is no such process.
pub fn of(pid: u32) -> anyhow::Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("could not read `{path}`"))
    };
    let ticks = ticks(&read("stat")?).context("/proc/PID/stat has another form")?;
    let status = read("status")?;
    let hertz = rustix::param::clock_ticks_per_second();
    // Where the scheduler accounts exactly, that is finer than a tick; it covers the main thread only, so it is not used.
    let cpu = Duration::from_secs_f64(ticks as f64 / hertz as f64);
    let memory = |key| kibibytes(&status, key);
    Ok(Usage { cpu, resident: memory("VmRSS:"), peak: memory("VmHWM:"), own: memory("RssAnon:") })
}

/// The CPU time of this process so far.
///
/// # Errors
/// Where /proc is not mounted.
pub fn own() -> anyhow::Result<Usage> {
    of(std::process::id())
}

/// The CPU time of all processes that this one started and that have ended, and of theirs.
///
/// # Errors
/// Where /proc is not mounted.
pub fn children() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("could not read `/proc/self/stat`")?;
    let ticks = times(&stat, 13).context("/proc/self/stat has another form")?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The machine's load average over one minute, for the record of a figure.
#[must_use]
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// User and kernel time of a process in ticks.
fn ticks(stat: &str) -> Option<u64> {
    times(stat, 11)
}

/// The sum of two neighbouring times, the first of them so many fields after the name.
fn times(stat: &str, skip: usize) -> Option<u64> {
    // The name before it may hold blanks and parentheses of its own.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(skip);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn kibibytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_costs_something() {
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(30) {
            std::hint::black_box(0);
        }
        let usage = own().unwrap();
        assert!(usage.resident > 1 << 20 && usage.peak >= usage.resident, "{usage:?}");
        assert!(usage.cpu >= Duration::from_millis(10), "{usage:?}");
    }

    #[test]
    fn a_name_with_parentheses_is_passed_over() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 0 0 20 0 1 0 5 0 0";
        assert_eq!((ticks(stat), times(stat, 13)), (Some(33), Some(0)));
    }
}
