//! Crash points: places where a test can kill the agent. Without the feature `crash-points` they are nothing.
//!
//! `UPFLEET_CRASH_AT=<point>:<n>` kills the process, as `kill -9` would, when it comes to that point for the
//! n-th time; `UPFLEET_STOP_AT` stops it there, as `kill -STOP` would, until somebody continues it. Every name is in one of
//! the lists below, so that a test can walk them all.

/// Every point, in the order in which an upgrade comes to them.
pub const POINTS: &[&str] = &[
    "journal.append.before",
    "journal.append.torn",
    "journal.append.after",
    "journal.compact.before",
    "journal.compact.written",
    "journal.compact.after",
    "manifest.store.before",
    "manifest.store.after",
    "step.check.before",
    "step.check.after",
    "step.fetch.before",
    "step.fetch.after",
    "step.verify.before",
    "step.verify.after",
    "step.stage.before",
    "stage.metadata",
    "stage.synced",
    "stage.renamed",
    "step.stage.after",
    "step.back-up.before",
    "backup.linked",
    "backup.renamed",
    "step.back-up.after",
    "step.switch.before",
    "switch.linked",
    "switch.renamed",
    "step.switch.after",
    "step.stop.before",
    "step.stop.after",
    "step.start.before",
    "step.start.after",
    "step.probe.before",
    "step.probe.after",
    "step.inspect.before",
    "step.inspect.after",
    "step.verify-kept.before",
    "step.verify-kept.after",
    "step.put-back.before",
    "step.put-back.after",
    "step.remove.before",
    "remove.unlinked",
    "step.remove.after",
    "step.prune.before",
    "prune.some",
    "step.prune.after",
];

/// Every point that only a stack of patches, or a reload, comes to.
pub const STACK_POINTS: &[&str] = &[
    "step.switch-the-stack.before",
    "stack.written",
    "stack.built",
    "stack.linked",
    "stack.switched",
    "stack.unlinked",
    "step.switch-the-stack.after",
    "step.patch-live.before",
    "step.patch-live.after",
    "step.prove.before",
    "step.prove.after",
    "step.reload.before",
    "step.reload.after",
    "step.put-the-stack-back.before",
    "step.put-the-stack-back.after",
];

/// Those that only an upgrade of a directory comes to.
pub const TREE_POINTS: &[&str] =
    &["stage.unpacked", "stage.recorded", "backup.recorded", "switch.carried", "switch.recorded"];

/// Those that only an upgrade of the agent itself comes to, in the old agent, its guard, or the new agent.
pub const ITSELF_POINTS: &[&str] = &[
    "step.try-out.before",
    "step.try-out.after",
    "step.set-the-guard.before",
    "itself.marked",
    "guard.watches",
    "itself.guarded",
    "step.set-the-guard.after",
    "itself.hands-over",
    "guard.counts",
    "guard.counted",
    "guard.decided",
    "guard.restored",
    "guard.restarted",
    "itself.tidies",
];

/// Those that only a handover comes to.
pub const HANDOVER_POINTS: &[&str] = &[
    "step.start-beside.before",
    "step.start-beside.after",
    "step.drain.before",
    "step.drain.after",
    "step.dismiss.before",
    "step.dismiss.after",
];

/// The environment variable that names the point.
pub const VARIABLE: &str = "UPFLEET_CRASH_AT";

/// The environment variable that names the point to stop at.
pub const STOP_VARIABLE: &str = "UPFLEET_STOP_AT";

/// The environment variable that names a directory in which a test directs several processes: see [`directed`].
pub const DIRECTED: &str = "UPFLEET_CRASH_DIR";

/// Stops this process, as `kill -STOP` would, where the first line of the directory's file `points` that nobody has come
/// to yet is this one; then `taken-<line>` has its pid. So each point is taken once, by whichever process comes to it, in
/// the order of the lines, and what becomes of that process is the test's affair.
#[cfg(feature = "crash-points")]
fn directed(name: &str) {
    use std::{fs::File, io::Write as _, path::PathBuf, sync::OnceLock};

    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(dir) = DIR.get_or_init(|| std::env::var_os(DIRECTED).map(PathBuf::from)) else { return };
    let Ok(points) = std::fs::read_to_string(dir.join("points")) else { return };
    let taken = |line: usize| dir.join(format!("taken-{line}"));
    let Some((line, point)) = points.lines().enumerate().find(|(line, _)| !taken(*line).exists()) else {
        return;
    };
    if point == name
        && let Ok(mut file) = File::create_new(taken(line))
    {
        let _ = writeln!(file, "{}", std::process::id());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

/// Dies or stops here if a test wants so.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    };

    use rustix::process::{Signal, getpid, kill_process};

    struct Aim {
        point: String,
        count: u32,
        hits: AtomicU32,
        signal: Signal,
    }
    static AIMS: OnceLock<Vec<Aim>> = OnceLock::new();
    debug_assert!(
        [POINTS, STACK_POINTS, TREE_POINTS, ITSELF_POINTS, HANDOVER_POINTS]
            .iter()
            .any(|points| points.contains(&name)),
        "crash point `{name}` is not listed"
    );
    directed(name);
    let aims = AIMS.get_or_init(|| {
        // SIGKILL leaves no time to tidy up, which is the point.
        let wanted = [(VARIABLE, Signal::KILL), (STOP_VARIABLE, Signal::STOP)];
        let aim = |(variable, signal)| {
            let text = std::env::var(variable).ok()?;
            let (point, count) = text.rsplit_once(':').unwrap_or((&text, "1"));
            let (point, count) = (point.to_owned(), count.parse().unwrap_or(1));
            Some(Aim { point, count, hits: AtomicU32::new(0), signal })
        };
        wanted.into_iter().filter_map(aim).collect()
    });
    for aim in aims.iter().filter(|aim| aim.point == name) {
        if aim.hits.fetch_add(1, Ordering::SeqCst) + 1 == aim.count {
            let _ = kill_process(getpid(), aim.signal);
        }
    }
}

/// Nothing, in a build without the feature.
#[cfg(not(feature = "crash-points"))]
pub fn point(_name: &str) {}

/// The point before or after a step, e.g. `step.put-back.before`.
#[must_use]
pub fn step_point(step: &str, when: &str) -> String {
    format!("step.{}.{when}", step.replace(' ', "-"))
}
