//! Crash points: places where a test can kill the agent. Without the feature `crash-points` they are nothing.
//!
//! `UPFLEET_CRASH_AT=<point>:<n>` kills the process, as `kill -9` would, when it comes to that point for the
//! n-th time. Every name is in [`POINTS`] or [`STACK_POINTS`], so that a test can walk them all.

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

/// The environment variable that names the point.
pub const VARIABLE: &str = "UPFLEET_CRASH_AT";

/// Dies here if a test wants so.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    };
    static AIM: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static HITS: AtomicU32 = AtomicU32::new(0);
    debug_assert!(
        [POINTS, STACK_POINTS, TREE_POINTS].iter().any(|points| points.contains(&name)),
        "crash point `{name}` is not listed"
    );
    let aim = AIM.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (point, count) = text.rsplit_once(':').unwrap_or((&text, "1"));
        Some((point.to_owned(), count.parse().unwrap_or(1)))
    });
    let Some((_, count)) = aim.as_ref().filter(|(point, _)| point == name) else { return };
    if HITS.fetch_add(1, Ordering::SeqCst) + 1 == *count {
        // SIGKILL leaves no time to tidy up, which is the point.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
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
