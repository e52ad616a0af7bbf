//! What the agent says of its node when it opens a session.

use std::collections::BTreeMap;

use upfleet_api::v1;
use upfleet_domain::release::Platform;

use super::Purpose;
use crate::component::Snapshot;

/// The wire's minor version that this agent speaks.
const WIRE_MINOR: u32 = 0;

/// What programs on this node are built for.
#[must_use]
pub fn platform() -> Platform {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: std::env::consts::OS.to_owned(), arch: arch.to_owned() }
}

pub(super) fn hello(purpose: Purpose, instance: &str, snapshots: &[Snapshot]) -> v1::Hello {
    let purpose = match purpose {
        Purpose::Serve => v1::hello::Purpose::Serve,
        Purpose::Trial => v1::hello::Purpose::Trial,
    };
    v1::Hello {
        purpose: purpose.into(),
        instance_id: instance.to_owned(),
        boot_id: boot_id(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        wire_minor: WIRE_MINOR,
        platform: Some((&platform()).into()),
        facts: facts(),
        components: snapshots.iter().map(|snapshot| (&snapshot.inventory).into()).collect(),
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn facts() -> BTreeMap<String, String> {
    let uname = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let libc = if cfg!(target_env = "musl") { "musl" } else { "glibc" };
    [("hostname", text(uname.nodename())), ("kernel", text(uname.release())), ("libc", libc.to_owned())]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
