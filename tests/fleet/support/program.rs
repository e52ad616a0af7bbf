//! The programs that tests roll out: shell scripts whose behaviour is part of their bytes.
//!
//! A script is a file like any other to Upfleet, and costs nothing to make; `dev.rs` and `outcomes.rs` also
//! roll out real executables.

use std::fmt::Write as _;

/// The component that every test node has.
pub const COMPONENT: &str = "app";

/// The version that nodes run before a test begins.
pub const BASE: &str = "1.0.0";

/// What a version does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs and is healthy.
    Good,
    /// Ends at once, with exit status 7 and a line on standard error.
    Crashes,
    /// Healthy, but not on a node whose name is in the file `unhealthy` beside it.
    UnhealthyWhereToldSo,
    /// Takes its time to become healthy: until the file `healthy` exists beside it.
    HealthyWhenToldSo,
}

/// The bytes of `version`. Each start appends `version pid` to the file `starts` in its working directory.
pub fn script(version: &str, behaviour: Behaviour) -> Vec<u8> {
    let probe = match behaviour {
        Behaviour::Good | Behaviour::Crashes => "exit 0",
        Behaviour::UnhealthyWhereToldSo => "[ ! -e \"$DIR/unhealthy\" ]; exit $?",
        Behaviour::HealthyWhenToldSo => "[ -e \"$DIR/healthy\" ]; exit $?",
    };
    let run = match behaviour {
        Behaviour::Crashes => "echo 'cannot bind: address in use' >&2; exit 7",
        _ => "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done",
    };
    let mut text = String::new();
    writeln!(text, "#!/bin/sh").unwrap();
    writeln!(text, "# {COMPONENT} {version}").unwrap();
    writeln!(text, "DIR=$(dirname \"$0\")").unwrap();
    writeln!(text, "if [ \"$1\" = probe ]; then {probe}; fi").unwrap();
    writeln!(text, "echo \"{version} $$\" >>\"$DIR/starts\"").unwrap();
    writeln!(text, "{run}").unwrap();
    text.into_bytes()
}

/// The same with a comment that makes it `size` bytes long, for downloads that take a while.
pub fn padded(version: &str, behaviour: Behaviour, size: usize) -> Vec<u8> {
    let mut bytes = script(version, behaviour);
    bytes.extend(b"# ");
    bytes.resize(size, b'.');
    bytes.push(b'\n');
    bytes
}
