//! The same job done by parallel ssh and by ansible, as their users do it.

use std::{fs, process::Command};

use super::{Cost, hosts::Hosts};
use crate::{child, rows::peer};

/// Copies with parallel-scp, then switches with parallel-ssh.
pub(super) fn parallel_ssh(hosts: &mut Hosts, forks: usize) -> anyhow::Result<Cost> {
    let (file, sha256) = hosts.next_file()?;
    let common = |name: &str| -> anyhow::Result<Command> {
        let mut command = Command::new(peer(name)?);
        command.arg("-h").arg(hosts.dir().join("list")).args(["-t", "0", "-p", &forks.to_string()]);
        command.args(["-x", &hosts.ssh_options()]);
        Ok(command)
    };
    let mut copy = common("parallel-scp")?;
    copy.arg(&file).arg("incoming");
    let mut switch = common("parallel-ssh")?;
    switch.arg(hosts.switch(&sha256));
    let cost = Cost::of(hosts.dir(), || {
        child::run(&mut copy)?;
        child::run(&mut switch).map(drop)
    })?;
    check(hosts, &sha256)?;
    Ok(cost)
}

/// A play of two tasks: `copy`, which checks the digest itself, and `shell`.
pub(super) fn ansible(hosts: &mut Hosts, forks: usize) -> anyhow::Result<Cost> {
    let (file, sha256) = hosts.next_file()?;
    let home = hosts.dir().join("ansible");
    fs::create_dir_all(&home)?;
    let inventory: String = hosts
        .addresses()
        .map(|address| {
            let place = hosts.place(&address).display().to_string();
            format!(
                "{address} ansible_port={} place={place} ansible_remote_tmp={place}/.ansible\n",
                hosts.port()
            )
        })
        .collect();
    fs::write(home.join("inventory"), inventory)?;
    // Empty: as it comes, whatever this user has configured.
    fs::write(home.join("ansible.cfg"), "")?;
    let play = format!(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - copy:\n        src: {}\n        dest: '{{{{ place }}}}/incoming'\n        mode: '0755'\n    - shell:\n        chdir: '{{{{ place }}}}'\n        cmd: >-\n          {}\n",
        file.display(),
        hosts.switch(&sha256)
    );
    fs::write(home.join("play.yml"), play)?;
    let mut command = Command::new(peer("ansible-playbook")?);
    command
        .env("ANSIBLE_HOME", &home)
        .env("ANSIBLE_LOCAL_TEMP", home.join("tmp"))
        .env("ANSIBLE_SSH_CONTROL_PATH_DIR", home.join("cp"))
        .env("ANSIBLE_HOST_KEY_CHECKING", "False")
        .env("ANSIBLE_CONFIG", home.join("ansible.cfg"))
        .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
        .args(["--forks", &forks.to_string(), "--ssh-common-args", &hosts.ssh_options(), "--inventory"])
        .arg(home.join("inventory"))
        .arg(home.join("play.yml"));
    let cost = Cost::of(hosts.dir(), || child::run(&mut command).map(drop))?;
    check(hosts, &sha256)?;
    Ok(cost)
}

/// Whether every host has the file and runs it.
fn check(hosts: &Hosts, sha256: &str) -> anyhow::Result<()> {
    for address in hosts.addresses() {
        let place = hosts.place(&address);
        let sum = child::run(Command::new("sha256sum").arg(place.join("service")))?;
        anyhow::ensure!(sum.starts_with(sha256), "{address} has another file: {sum}");
        let pid = fs::read_to_string(place.join("pid"))?;
        anyhow::ensure!(fs::exists(format!("/proc/{}", pid.trim()))?, "{address} runs nothing");
    }
    Ok(())
}
