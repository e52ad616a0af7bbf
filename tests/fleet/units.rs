//! Our own units: what systemd's tools say of them without systemd running, and what the controller tells a service
//! manager.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use crate::support::{Program, binary, run, skip};

/// The units, the program of each, and the exposure that it must not exceed.
const UNITS: [(&str, &str, &str); 3] = [
    ("upfleet-controller.service", "/usr/bin/upfleet", "2.0"),
    ("upfleet-agent.service", "/var/lib/upfleet-agent/bin/upfleet-agent", "3.3"),
    ("upfleet-agent-guard.service", "/var/lib/upfleet-agent/itself/last-good", "1.9"),
];

fn dist(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist").join(path)
}

fn analyze(arguments: &[&str]) -> Option<Command> {
    let version = Command::new("systemd-analyze").arg("--version").output();
    version.is_ok().then(|| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).env("SYSTEMD_LOG_LEVEL", "warning").env("SYSTEMD_PAGER", "");
        command
    })
}

#[test]
fn the_units_are_sound() {
    let Some(mut command) = analyze(&["verify", "--man=no"]) else {
        return skip("the_units_are_sound", "systemd-analyze is missing");
    };
    let dir = tempfile::tempdir().unwrap();
    for (unit, program, _) in UNITS {
        // Installed they run what the package brings; here, what was built.
        let text = fs::read_to_string(dist(&format!("systemd/{unit}"))).unwrap();
        let installed = format!("{program} ");
        assert!(text.contains(&format!("\nExecStart={installed}")), "{unit} runs {installed}");
        let name = if program.contains("agent") { "upfleet-agent" } else { "upfleet" };
        let built = format!("{} ", binary(name).display());
        let path = dir.path().join(unit);
        fs::write(&path, text.replace(&installed, &built)).unwrap();
        command.arg(path);
    }
    let found = run(&mut command);
    assert_eq!((found.code, found.out.trim(), found.err.trim()), (0, "", ""), "{found:?}");
}

#[test]
fn the_units_are_no_more_exposed_than_they_must_be() {
    for (unit, _, limit) in UNITS {
        let threshold = format!("--threshold={}", limit.replace('.', ""));
        let Some(mut command) = analyze(&["security", "--offline=true", "--no-pager", &threshold]) else {
            return skip("the_units_are_no_more_exposed_than_they_must_be", "systemd-analyze is missing");
        };
        let found = run(command.arg(dist(&format!("systemd/{unit}"))));
        let level = found.out.lines().rev().find(|line| line.contains("exposure")).unwrap_or("").to_owned();
        println!("{level}");
        assert_eq!(found.code, 0, "{unit}: at most {limit}: {}", found.out);
    }
}

/// The default configuration is one that the agent takes.
#[test]
fn the_default_configuration_is_valid() {
    let checked = run(Command::new(binary("upfleet-agent"))
        .arg("--config")
        .arg(dist("etc/upfleet-agent"))
        .arg("check-config"));
    assert_eq!(checked.code, 0, "{checked:?}");
}

#[test]
fn the_controller_tells_its_service_manager_how_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let upfleet = || {
        let mut command = Command::new(binary("upfleet"));
        command.env("UPFLEET_CONFIG", dir.path().join("config.toml")).env("HOME", dir.path());
        command
    };
    run(upfleet().args(["init", "--name", "localhost", "--data"]).arg(&data)).success();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut serve = upfleet();
    serve.arg("serve").arg("--data").arg(&data).env("NOTIFY_SOCKET", dir.path().join("notify"));
    serve.env("WATCHDOG_USEC", "1500000");
    for door in ["--listen", "--listen-enroll", "--listen-metrics"] {
        serve.args([door, "127.0.0.1:0"]);
    }
    let mut controller = Program::start(&mut serve, &dir.path().join("log"));
    let mut lines = Vec::new();
    let mut heard = |wanted: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = lines.iter().position(|line: &String| line.starts_with(wanted)) {
                return lines.drain(..=at).next_back().unwrap();
            }
            assert!(Instant::now() < deadline, "no {wanted} within a minute; heard {lines:?}");
            if let Ok(length) = socket.recv(&mut bytes) {
                lines.extend(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned));
            }
        }
    };
    heard("READY=1");
    assert!(data.join("run/endpoints.json").exists(), "it listens once it says so");
    heard("WATCHDOG=1");
    assert_eq!(heard("STATUS="), "STATUS=0 nodes connected, no rollout under way");
    for _ in 0..3 {
        heard("WATCHDOG=1");
    }
    controller.terminate();
    heard("STOPPING=1");
}
