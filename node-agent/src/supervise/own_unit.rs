//! The agent's own unit: which one it is, its guard's unit, and its process. Asks systemd over D-Bus.

use std::sync::LazyLock;

use super::systemd::Manager;

/// One connection for all that is asked.
static MANAGER: LazyLock<Manager> = LazyLock::new(Manager::system);

/// Overrides which unit this agent is, where its control group does not say.
pub const UNIT: &str = "UPFLEET_UNIT";
/// What a unit's guard is called: `upfleet-agent.service` has `upfleet-agent-guard.service`, and
/// `upfleet-agent@a.service` has `upfleet-agent-guard@a.service`.
const SUFFIX: &str = "-guard";
const SERVICE: &str = ".service";

/// The unit of the system's manager that this process is of, as its control group says.
#[must_use]
pub fn find() -> Option<String> {
    if let Ok(unit) = std::env::var(UNIT) {
        return Some(unit).filter(|unit| !unit.is_empty());
    }
    // Only a unit tells its process which start of it this is.
    std::env::var_os("INVOCATION_ID")?;
    unit_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The service in a text of `/proc/PID/cgroup`: `ID:CONTROLLERS:PATH` on each line. Systemd's own hierarchy is told
/// apart: others may leave a process at the root, or somewhere that is nobody's unit.
fn unit_of(groups: &str) -> Option<String> {
    let of = |hierarchy: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == hierarchy).then_some(path)
        })
    };
    // With the first version beside the second, systemd's names are in both.
    let path = of("name=systemd").filter(|path| *path != "/").or_else(|| of(""))?;
    // What systemd would take for its own files in a control group's directory begins with a `_` of its own.
    let names = path.split('/').map(|name| name.strip_prefix('_').unwrap_or(name));
    let services: Vec<&str> = names.filter(|name| name.ends_with(SERVICE)).collect();
    match services.as_slice() {
        // A unit may have control groups of its own below it.
        [service] => Some((*service).to_owned()),
        // Below `user@1000.service` are the units of another manager, which is not asked.
        _ => None,
    }
}

/// The name of the guard's unit.
#[must_use]
pub fn guard_of(unit: &str) -> String {
    let name = unit.trim_end_matches(SERVICE);
    match name.split_once('@') {
        Some((name, instance)) => format!("{name}{SUFFIX}@{instance}{SERVICE}"),
        None => format!("{name}{SUFFIX}{SERVICE}"),
    }
}

/// Has the guard of an agent's unit started.
///
/// # Errors
/// What systemd said.
pub async fn start_guard(unit: &str) -> Result<(), String> {
    MANAGER.start(&guard_of(unit)).await
}

/// The main process of an agent's unit; `None` where none runs.
///
/// # Errors
/// What systemd said.
pub async fn main_pid(unit: &str) -> Result<Option<u32>, String> {
    MANAGER.main_pid(unit).await
}

/// Has an agent's unit start again, also where systemd has given it up.
///
/// # Errors
/// What systemd said.
pub async fn start(unit: &str) -> Result<(), String> {
    MANAGER.reset_failed(unit).await?;
    MANAGER.start(unit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_knows_itself_by_its_control_group() {
        let unified = "0::/system.slice/upfleet-agent.service\n";
        let legacy = "12:pids:/system.slice/upfleet-agent.service\n11:cpuset:/\n10:freezer:/\n\
                      1:name=systemd:/system.slice/upfleet-agent.service\n";
        let both = "2:cpuset:/\n1:name=systemd:/system.slice/upfleet-agent.service\n\
                    0::/system.slice/upfleet-agent.service\n";
        let slices = "0::/system.slice/system-upfleet\\x2dagent.slice/upfleet-agent@x.service\n";
        let nested = "0::/fleet.slice/fleet-one.slice/upfleet-agent.service/main\n";
        let contained = "4:memory:/docker/4f2a\n1:name=systemd:/\n0::/system.slice/upfleet-agent.service\n";
        let escaped = "0::/system.slice/_cpu.service\n";
        for (text, unit) in [
            (unified, Some("upfleet-agent.service")),
            (legacy, Some("upfleet-agent.service")),
            (both, Some("upfleet-agent.service")),
            (slices, Some("upfleet-agent@x.service")),
            (nested, Some("upfleet-agent.service")),
            (contained, Some("upfleet-agent.service")),
            (escaped, Some("cpu.service")),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("0::/user.slice/user-7.slice/user@7.service/app.slice/upfleet-agent.service\n", None),
            ("5:pids:/system.slice/upfleet-agent.service\n1:name=systemd:/\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(text).as_deref(), unit, "{text}");
        }
    }

    #[test]
    fn each_unit_has_a_guard_of_its_own() {
        assert_eq!(guard_of("upfleet-agent.service"), "upfleet-agent-guard.service");
        assert_eq!(guard_of("upfleet-agent@x.service"), "upfleet-agent-guard@x.service");
    }
}
