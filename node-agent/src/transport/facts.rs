//! What the agent says of its node when it opens a session.

use std::collections::BTreeMap;

use upfleet_api::v1;

use super::Purpose;
use crate::{component::Snapshot, formats, platform::node_platform, processes::boot_id};

pub(super) fn hello(purpose: Purpose, instance: &str, snapshots: &[Snapshot]) -> v1::Hello {
    let purpose = match purpose {
        Purpose::Serve => v1::hello::Purpose::Serve,
        Purpose::Trial => v1::hello::Purpose::Trial,
    };
    v1::Hello {
        purpose: purpose.into(),
        instance_id: instance.to_owned(),
        boot_id: boot_id().unwrap_or_default(),
        agent_version: formats::VERSION.to_owned(),
        wire_minor: upfleet_api::WIRE_MINOR,
        platform: Some((&node_platform()).into()),
        facts: facts(),
        components: snapshots.iter().map(|snapshot| (&snapshot.inventory).into()).collect(),
    }
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
