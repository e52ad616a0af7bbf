//! Shims outside the agent's own unit: where systemd runs the agent, it is asked to run each shim as a service of its
//! own. Neither a stop of the agent's control group nor the agent's sandbox then reaches what runs.
//!
//! Speaks D-Bus over its Unix socket, and nothing else. Where that does not work, the shim is a child of the agent, as
//! it is without systemd.

use std::{os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use tokio::time::timeout;
use upfleet_domain::digest::Digest;
use zbus::{Connection, OwnedObjectPath, Variant, connection};

use crate::shim::LIFELINE;

const MANAGER: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
/// How long the bus may take to greet, and the manager to answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(20);
/// What the manager calls a unit that it has loaded already.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// What it answers while the machine goes down: then nothing is to be started by any way.
const DOWN: [&str; 2] =
    ["org.freedesktop.systemd1.TransactionIsDestructive", "org.freedesktop.systemd1.ShuttingDown"];
/// Where the shims of a packaged agent are. Those of others have a longer name, so that two agents never share one.
const USUAL: &str = "/var/lib/upfleet-agent/shims";

type Properties<'a> = Vec<(&'a str, Variant<'a>)>;
type Auxiliary<'a> = Vec<(&'a str, Properties<'a>)>;

/// Whether the system's manager runs this agent as a service.
pub fn wanted() -> bool {
    // A dev fleet's processes end with their parent, which a service of systemd's would not.
    std::env::var_os("INVOCATION_ID").is_some()
        && std::env::var_os(LIFELINE).is_none()
        && rustix::process::geteuid().is_root()
        && sd_notify::booted().unwrap_or(false)
}

/// The unit of the shim in `dir`.
pub fn unit(dir: &Path) -> String {
    let name = escape(&dir.file_name().unwrap_or_default().to_string_lossy());
    if dir.parent() == Some(Path::new(USUAL)) {
        return format!("upfleet-shim-{name}.service");
    }
    let place = Digest::of(dir.as_os_str().as_bytes());
    format!("upfleet-shim-{name}-{}.service", place.short())
}

/// Whether the manager said that the machine goes down.
pub fn goes_down(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, _, _) if DOWN.contains(&name.as_str()))
}

/// Has systemd run the shim of `dir`, with its words in `log`. A unit that runs already is as good.
///
/// # Errors
/// What the bus or the manager says.
pub async fn start(dir: &Path, log: &Path) -> zbus::Result<()> {
    // Of this very agent, also when its file was replaced by a newer one: the manager follows the link.
    let program = format!("/proc/{}/exe", std::process::id());
    let dir_text = dir.to_string_lossy().into_owned();
    let log = log.to_string_lossy().into_owned();
    let argv: Vec<String> = ["upfleet-agent", "shim", "--dir", &dir_text].map(str::to_owned).to_vec();
    let unit = unit(dir);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let properties: Properties<'_> = vec![
        ("Description", Variant::new(format!("{name}, run by the Upfleet agent"))),
        ("Type", Variant::new("exec")),
        ("ExecStart", Variant::new(vec![(program, argv, false)])),
        ("StandardInput", Variant::new("null")),
        ("StandardOutputFileToAppend", Variant::new(log.clone())),
        ("StandardErrorFileToAppend", Variant::new(log)),
        // The shim sees to its own children, and starts anew what the kernel killed for its memory.
        ("OOMPolicy", Variant::new("continue")),
        ("TasksMax", Variant::new(u64::MAX)),
        // The agent ends first when the machine goes down, and so does not miss its shims.
        ("Before", Variant::new(vec!["upfleet-agent.service"])),
        // A unit that ended leaves nothing: its name is needed again.
        ("CollectMode", Variant::new("inactive-or-failed")),
    ];
    let body = (unit.as_str(), "fail", properties, Auxiliary::new());
    let bus = connect().await?;
    let answer = bus.call_method(Some(MANAGER), PATH, Some(INTERFACE), "StartTransientUnit", &body).await;
    match answer {
        Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == EXISTS => Ok(()),
        answer => answer.map(drop),
    }
}

/// The system's bus; one that takes connections and answers nothing is as good as none.
async fn connect() -> zbus::Result<Connection> {
    let connecting = connection::Builder::system().method_timeout(ANSWER).build();
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the system bus does not answer");
    timeout(CONNECT, connecting).await.map_err(|_| late())?
}

/// Whether the manager still has the unit of `dir`: one that ended is forgotten at once.
pub async fn lives(dir: &Path) -> zbus::Result<bool> {
    let bus = connect().await?;
    let unit = unit(dir);
    let answer = bus.call_method(Some(MANAGER), PATH, Some(INTERFACE), "GetUnit", &(unit.as_str(),)).await;
    match answer {
        Ok(message) => message.body().deserialize::<OwnedObjectPath>().map(|_| true),
        Err(zbus::Error::MethodError(..)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name as a part of a unit's name: what systemd gives a meaning becomes `\xNN`.
fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("\\x{byte:02x}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_after_its_component() {
        let usual = Path::new(USUAL);
        assert_eq!(unit(&usual.join("pay-ments.1")), "upfleet-shim-pay-ments.1.service");
        let (one, other) = (unit(Path::new("/a/shims/web")), unit(Path::new("/b/shims/web")));
        assert!(one.starts_with("upfleet-shim-web-") && one != other, "{one} {other}");
        assert_eq!(escape("a b@c"), "a\\x20b\\x40c");
    }
}
