//! A whole rollout by a generic client: Python's gRPC with server reflection, and no code of ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Behaviour, COMPONENT, Fleet, eventually, run, script, skip};

/// A Python with gRPC, in a virtual environment under `target/`, made on first use.
fn python() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = dir.join("bin/python");
    let ready = || run(Command::new(&python).args(["-c", "import grpc, grpc_reflection"])).code == 0;
    if python.exists() && ready() {
        return Ok(python);
    }
    let made = Command::new("python3").args(["-m", "venv"]).arg(&dir).output();
    if !made.is_ok_and(|output| output.status.success()) {
        return Err("python3 with venv is missing".to_owned());
    }
    let packages = ["grpcio", "grpcio-reflection", "protobuf"];
    let pip = run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages));
    if pip.code == 0 && ready() {
        Ok(python)
    } else {
        Err(format!("pip could not install {packages:?}: {}", pip.err))
    }
}

#[tokio::test]
async fn a_generic_client_drives_a_whole_rollout() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip("python::a_generic_client_drives_a_whole_rollout", &reason),
    };
    let fleet = Fleet { nodes: 3, releases: Vec::new(), ..Fleet::default() }.start().await;
    let file = fleet.dir().join("release");
    fs::write(&file, script("2.0.0", Behaviour::Good)).unwrap();
    let context = fleet.context();
    let output = run(Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/rollout.py"))
        .args([&context.address, &context.server_name])
        .args([&context.ca, &context.cert, &context.key])
        .args([COMPONENT, "2.0.0", "7"])
        .arg(&file));
    let seen = output.json();
    let services: Vec<_> =
        seen["services"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(services.contains(&"upfleet.v1.RolloutService"), "{services:?}");
    assert!(services.contains(&"grpc.health.v1.Health"), "{services:?}");
    assert_eq!(seen["states"].as_array().unwrap().last().unwrap(), "STATE_SUCCEEDED", "{seen}");
    assert_eq!(seen["upgrades"].as_object().unwrap().len(), 3);
    for node in &fleet.nodes {
        eventually("the release to run", || node.running().filter(|(version, _)| version == "2.0.0"));
    }
}
