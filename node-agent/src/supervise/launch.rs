//! From a component's configuration to what its shim is to run.

use std::{path::PathBuf, time::Duration};

use upfleet_domain::{digest::Digest, release::Kind};

use crate::{
    config::{Activate, ComponentConfig, ProbeKind, RunConfig, SocketConfig},
    processes::environment,
    shim::spec::{Launch, SocketSpec},
};

impl Launch {
    /// What the configuration says to run; with `expect`, only if the component's file has that digest.
    #[must_use]
    pub fn of(component: &ComponentConfig, expect: Option<Digest>) -> Self {
        let RunConfig { command, cwd, stop_signal, stop_timeout, log_size, memory_max, sockets, .. } =
            &component.run;
        let path = component.path.to_string_lossy();
        let mut argv = expand(command, &path);
        if argv.is_empty() {
            argv.push(path.into_owned());
        }
        // Of a directory, what runs is the program: the executor has seen that the directory is the right one.
        let directory = component.kind == Kind::Files;
        let file = if directory { PathBuf::from(&argv[0]) } else { component.path.clone() };
        let handover = component.run.activate == Activate::Handover;
        let mut env = environment();
        env.extend(component.run.env.clone());
        Self {
            argv,
            env,
            cwd: cwd.clone().unwrap_or_else(|| PathBuf::from("/")),
            file,
            expect: expect.filter(|_| !directory),
            inputs: Vec::new(),
            stack: None,
            stop_signal: *stop_signal,
            stop_timeout_ms: millis(*stop_timeout),
            restart_delay_ms: millis(component.run.restart_delay),
            restart_delay_max_ms: millis(component.run.restart_delay_max),
            log_size: *log_size,
            memory_max: memory_max.unwrap_or(0),
            sockets: sockets.iter().map(socket).collect(),
            notify: component.probes.iter().any(|probe| probe.kind == ProbeKind::Notify),
            drain_signal: handover.then(|| component.run.drain_signal()),
            drain_timeout_ms: if handover { millis(component.run.drain_timeout) } else { 0 },
        }
    }
}

fn socket(config: &SocketConfig) -> SocketSpec {
    SocketSpec {
        name: config.name.clone(),
        listen: config.listen.clone(),
        mode: config.file_mode().0,
        owner: config.owner.clone(),
        group: config.group.clone(),
    }
}

/// Puts the component's path where `{path}` stands.
#[must_use]
pub fn expand(command: &[String], path: &str) -> Vec<String> {
    command.iter().map(|word| word.replace("{path}", path)).collect()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(run: &str) -> ComponentConfig {
        toml::from_str(&format!("name = \"a\"\npath = \"/opt/a\"\n[run]\n{run}")).unwrap()
    }

    #[test]
    fn the_path_is_put_where_it_stands() {
        let launch = Launch::of(&component("command = [\"/bin/x\", \"--jar={path}\", \"{pat}\"]"), None);
        assert_eq!(launch.argv, ["/bin/x", "--jar=/opt/a", "{pat}"]);
        assert_eq!(Launch::of(&component(""), None).argv, ["/opt/a"]);
    }

    #[test]
    fn the_environment_is_small_and_can_be_set() {
        let launch = Launch::of(&component("env = { PATH = \"/x\", A = \"b\" }"), None);
        assert_eq!((launch.env["PATH"].as_str(), launch.env["A"].as_str()), ("/x", "b"));
        assert!(launch.env.keys().all(|key| ["PATH", "A", "HOME", "LANG", "TZ"].contains(&key.as_str())));
        assert_eq!(launch.stop_timeout_ms, 10_000);
    }
}
