//! One listening socket that a component's shim opens and keeps: its notation, and what may not be said of it. Pure:
//! it opens nothing.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use core::net::{IpAddr, SocketAddr};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use upfleet_domain::release::Kind;

use super::{
    Activate, ComponentConfig, FileMode, PID, ProbeKind, Require, RunMode,
    check::{Found, add, path_problem},
};

/// The longest path of a Unix socket: an address has room for 108 bytes with the NUL at its end.
const MAX_PATH: usize = 107;
/// The longest name.
const MAX_NAME: usize = 64;
/// How many sockets a component may have; each process of it gets all of them.
const MAX_SOCKETS: usize = 64;

/// A `[[component.run.socket]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketConfig {
    /// What the process finds it by, in `LISTEN_FDNAMES`: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// Where it listens.
    pub listen: Listen,
    /// Permissions of a Unix socket's file, `0660` where it is left out; a TCP socket has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// Owner of a Unix socket's file, by name or number; the agent's own user where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group of a Unix socket's file, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl SocketConfig {
    /// The permissions of a Unix socket's file.
    #[must_use]
    pub fn file_mode(&self) -> FileMode {
        self.mode.unwrap_or(FileMode(0o660))
    }
}

/// Where a socket listens, written `"0.0.0.0:8080"`, `"[::]:8080"` or `"/run/shop.sock"`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    /// TCP. `[::]` takes IPv4 as well, unless the node's kernel is told otherwise.
    Tcp(SocketAddr),
    /// A Unix stream socket. Absolute.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            D::Error::custom(format!(
                "`{text}` is not where a socket can listen; write an address and a port like \"0.0.0.0:8080\" or \
                 \"[::]:8080\", or the whole path of a Unix socket"
            ))
        })
    }
}

impl Listen {
    /// Whether not both can listen at a time.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Tcp(one), Self::Tcp(other)) => {
                let all = |ip: IpAddr| ip.is_unspecified();
                let mixed = one.is_ipv4() != other.is_ipv4();
                // The IPv6 address for all takes IPv4 as well.
                let wide = |address: &SocketAddr| address.is_ipv6() && all(address.ip());
                let same = match mixed {
                    true => wide(one) || wide(other),
                    false => one.ip() == other.ip() || all(one.ip()) || all(other.ip()),
                };
                one.port() == other.port() && same
            }
            _ => false,
        }
    }
}

/// Adds what is wrong with a component's sockets and its handover.
pub(super) fn check(component: &ComponentConfig, found: &mut Found) {
    let run = &component.run;
    if run.mode != RunMode::Supervised {
        let instead = match run.mode {
            RunMode::Systemd => "a unit's sockets are opened by a socket unit of systemd's",
            _ => "set run.mode = \"supervised\"",
        };
        if !run.sockets.is_empty() {
            add(found, "run.socket", format!("only what the agent runs itself is given sockets; {instead}"));
        }
        if run.activate == Activate::Handover {
            let text = format!("\"handover\" needs a process that the agent runs itself; {instead}");
            add(found, "run.activate", text);
        }
        return;
    }
    check_handover(component, found);
    if run.sockets.len() > MAX_SOCKETS {
        add(found, "run.socket", format!("there are more than {MAX_SOCKETS}"));
    }
    for (index, socket) in run.sockets.iter().enumerate() {
        let key = format!("run.socket {} ({})", index + 1, socket.name);
        for text in socket_problems(socket) {
            add(found, key.clone(), text);
        }
        for earlier in &run.sockets[..index] {
            if earlier.name == socket.name {
                add(found, key.clone(), "has the name of an earlier one; the process tells them apart by it");
            } else if earlier.listen.collides(&socket.listen) {
                let text = format!("`{}` is taken by socket `{}` already", socket.listen, earlier.name);
                add(found, key.clone(), text);
            }
        }
    }
}

fn check_handover(component: &ComponentConfig, found: &mut Found) {
    let run = &component.run;
    if run.activate != Activate::Handover {
        if run.drain_signal.is_some() {
            add(found, "run.drain_signal", "has no effect; set run.activate = \"handover\" or remove it");
        }
        return;
    }
    if component.kind == Kind::Files {
        // The directory is exchanged while the old process still runs and goes on reading it by its path.
        let text = "\"handover\" can't be had for kind = \"files\": the old process would go on in the new version's \
                    directory while it serves; leave it out, so that the process is stopped and started";
        add(found, "run.activate", text);
    }
    if run.sockets.is_empty() {
        let text =
            "\"handover\" needs a socket that both processes can serve; add a [[component.run.socket]]";
        add(found, "run.activate", text);
    }
    if run.drain_timeout.is_zero() {
        add(found, "run.drain_timeout", "is zero; the old process could finish nothing");
    }
    // Two processes serve one socket while the new one is judged: a question asked of the socket may be answered by
    // the old one, and would let any release pass.
    let exact = |kind: &ProbeKind| match kind {
        ProbeKind::Notify => true,
        ProbeKind::Exec { command } => command.iter().any(|word| word.contains(PID)),
        _ => false,
    };
    let any = component.health.require == Require::Any;
    let mut kinds = component.probes.iter().map(|probe| &probe.kind);
    let judged = if any { kinds.clone().next().is_some() && kinds.all(exact) } else { kinds.any(exact) };
    if !judged {
        let which = if any { "each probe has to be one that asks" } else { "there is no probe that asks" };
        let text = format!(
            "with \"handover\" both processes answer on the socket, and {which} the new process alone: use \
             type = \"notify\", or \"exec\" with `{{pid}}`"
        );
        add(found, "probe", text);
    }
}

fn socket_problems(socket: &SocketConfig) -> Vec<String> {
    let mut problems = Vec::new();
    let name = &socket.name;
    let letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(letter) {
        problems.push(format!("`{name}` is no name; use 1 to {MAX_NAME} of a-z, 0-9, `_` and `-`"));
    }
    match &socket.listen {
        Listen::Tcp(address) => {
            if address.port() == 0 {
                problems.push("port 0 would be another one each time; name the port".to_owned());
            }
            if socket.mode.is_some() || socket.owner.is_some() || socket.group.is_some() {
                problems.push("`mode`, `owner` and `group` are for Unix sockets; remove them".to_owned());
            }
        }
        Listen::Unix(path) => {
            problems.extend(path_problem(path));
            if path.as_os_str().len() > MAX_PATH {
                problems.push(format!("`{}` is longer than {MAX_PATH} bytes", path.display()));
            }
        }
    }
    problems
}

/// What concerns the sockets of two components.
pub(super) fn check_against(own: &ComponentConfig, other: &ComponentConfig, found: &mut Found) {
    for socket in &own.run.sockets {
        if let Some(same) = other.run.sockets.iter().find(|same| same.listen.collides(&socket.listen)) {
            let text = format!(
                "`{}` is taken by socket `{}` of component `{}`; a socket belongs to one component",
                socket.listen, same.name, other.name
            );
            add(found, format!("run.socket ({})", socket.name), text);
        }
        let taken = |path: &Path| matches!(&socket.listen, Listen::Unix(unix) if unix.starts_with(path));
        if taken(&own.path) || taken(&other.path) {
            let text = format!("`{}` lies inside a component's path; choose another", socket.listen);
            add(found, format!("run.socket ({})", socket.name), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_cannot_both_listen_collide() {
        let listen = |text: &str| serde_json::from_value::<Listen>(text.into()).unwrap();
        for (one, other, collide) in [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "0.0.0.0:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "10.0.0.1:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::1]:1", "0.0.0.0:1", false),
            ("/run/a", "/run/a", true),
            ("/run/a", "/run/b", false),
            ("/run/a", "0.0.0.0:1", false),
        ] {
            assert_eq!(listen(one).collides(&listen(other)), collide, "{one} {other}");
            assert_eq!(listen(other).collides(&listen(one)), collide, "{other} {one}");
        }
    }
}
