//! Rules about who may import whom. See the invariants in ARCHITECTURE.md.

use crate::{files, none};

/// No program line of the files in `dirs`, except those under `except`, contains a word of `banned`.
fn check(rule: &str, dirs: &[&str], except: &[&str], banned: &[&str]) {
    let mut faults = Vec::new();
    for file in files(dirs, &["rs"]) {
        if except.iter().any(|path| file.path.starts_with(path)) {
            continue;
        }
        for (number, line) in file.program() {
            if let Some(word) = banned.iter().find(|word| line.contains(*word)) {
                faults.push(format!("{}:{number}: {word}", file.path));
            }
        }
    }
    none(rule, &faults);
}

#[test]
fn the_domain_is_pure() {
    check(
        "domain takes times, seeds and ids as arguments, and does no I/O",
        &["domain/src"],
        &[],
        &[
            "std::fs",
            "std::net",
            "std::env",
            "std::process",
            "std::thread",
            "SystemTime",
            "Instant::",
            "tokio",
            "tonic",
            "prost",
            "rand::",
            "println!",
        ],
    );
}

#[test]
fn controller_and_agent_do_not_know_each_other() {
    check("controller does not import node-agent", &["controller/src"], &[], &["upfleet_agent::"]);
    check("node-agent does not import controller", &["node-agent/src"], &[], &["upfleet_controller::"]);
}

#[test]
fn the_command_line_can_do_nothing_that_a_third_party_cannot() {
    check(
        "cli uses the generated client",
        &["controller/src/cli"],
        &[],
        &["crate::store", "crate::engine", "crate::api", "crate::sessions", "crate::blobs"],
    );
}

#[test]
fn what_touches_files_and_processes_speaks_to_no_network() {
    check(
        "exec, supervise and shim import no network code",
        &["node-agent/src/exec", "node-agent/src/supervise", "node-agent/src/shim"],
        &[],
        &[
            "tonic",
            "reqwest",
            "hyper",
            "rustls",
            "std::net",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "crate::transport",
            "crate::download",
            "crate::enroll",
            "upfleet_api",
        ],
    );
}

#[test]
fn wire_types_stay_at_the_edges() {
    check(
        "wire types are converted at the edge",
        &["node-agent/src"],
        &["node-agent/src/transport", "node-agent/src/download", "node-agent/src/enroll.rs"],
        &["v1::", "upfleet_api::v1"],
    );
    check(
        "wire types are converted at the edge",
        &["controller/src"],
        &[
            "controller/src/api",
            "controller/src/sessions",
            "controller/src/serve",
            "controller/src/auth",
            "controller/src/cli",
            "controller/src/dev",
        ],
        &["v1::", "upfleet_api::v1"],
    );
}
