//! `upfleet dev`: a whole fleet by one command, real executables, and nothing left behind.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::support::{Program, binary, eventually, run};

fn dev(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("upfleet"));
    command
        .arg("dev")
        .args(arguments)
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("UPFLEET_CONFIG", home.join("config.toml"))
        .env_remove("UPFLEET_CONTEXT");
    command
}

/// Processes whose command line or working directory names `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let line =
            fs::read(path.join("cmdline")).map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        let cwd = fs::read_link(path.join("cwd")).unwrap_or_default();
        if let Ok(line) = line
            && (line.contains(dir) || cwd.starts_with(dir))
        {
            found.push(line);
        }
    }
    found
}

#[test]
fn a_bad_release_is_put_back_and_a_good_one_finishes() {
    let home = tempfile::Builder::new().prefix("ufdev").tempdir().unwrap();
    for scenario in ["good-release", "bad-release"] {
        let output = run(&mut dev(home.path(), &["--scenario", scenario, "--ci"]));
        assert_eq!(output.code, 0, "{scenario}: {output:?}");
    }
    assert_eq!(processes_of(home.path()), Vec::<String>::new());
}

#[test]
fn nothing_is_left_behind_when_the_parent_is_killed() {
    let home = tempfile::Builder::new().prefix("ufdev").tempdir().unwrap();
    let mut parent = Program::start(&mut dev(home.path(), &[]), &home.path().join("log"));
    eventually("the fleet to be up", || {
        if let Some(status) = parent.ended() {
            panic!("dev ended with {status}: {}", parent.log());
        }
        parent.log().contains("hello@1.1.0").then_some(())
    });
    assert!(processes_of(home.path()).len() > 5, "{:?}", processes_of(home.path()));
    parent.kill();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    eventually("every process to be gone", || {
        let left = processes_of(home.path());
        assert!(std::time::Instant::now() < deadline, "left behind: {left:?}");
        left.is_empty().then_some(())
    });
}
