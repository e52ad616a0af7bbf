//! Pseudo-hosts: ssh daemons on many loopback addresses, with keys and a directory of their own and no rights that this
//! user has not. Each address has its own directory, in which commands and copies begin.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    agents::padded,
    child::{self, Program},
    group,
    rows::{Bench, peer},
};

/// Where Debian keeps the program that serves copies.
const SFTP: &str = "/usr/lib/openssh/sftp-server";

/// So many addresses a daemon can listen on.
const LISTENERS: usize = 16;

/// The pseudo-hosts, as long as this is held.
pub(super) struct Hosts {
    daemons: Vec<Program>,
    bench: Bench,
    port: u16,
    count: usize,
    size: u64,
    round: u64,
    dir: TempDir,
}

impl Hosts {
    /// Starts the daemon.
    pub(super) fn start(bench: &Bench, count: usize, size: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(count <= 250, "there are at most 250 hosts");
        let dir = tempfile::Builder::new().prefix("upfleet-hosts").tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut hosts = Self { daemons: Vec::new(), bench: bench.clone(), port, count, size, round: 0, dir };
        hosts.write()?;
        let addresses: Vec<String> = hosts.addresses().collect();
        for (index, some) in addresses.chunks(LISTENERS).enumerate() {
            let configuration = hosts.dir().join(format!("sshd_config.{index}"));
            fs::write(&configuration, hosts.configuration(some))?;
            let mut daemon = Program::start(&mut command(&configuration), &hosts.dir().join("sshd.log"))?;
            let last = format!("{}:{port}", some[some.len() - 1]);
            daemon.wait_for("it listens", || std::net::TcpStream::connect(&last).ok())?;
            hosts.daemons.push(daemon);
        }
        Ok(hosts)
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A host's own directory.
    pub(super) fn place(&self, address: &str) -> PathBuf {
        self.dir().join("hosts").join(address)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|n| format!("127.0.0.{n}"))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Options of every ssh client: these keys, no questions, nothing of this user's own.
    pub(super) fn ssh_options(&self) -> String {
        format!(
            "-F /dev/null -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.dir().join("user").display()
        )
    }

    /// A new file to bring, and its SHA-256.
    pub(super) fn next_file(&mut self) -> anyhow::Result<(PathBuf, String)> {
        self.round += 1;
        let path = self.dir().join("incoming");
        // Beyond the seeds of ours, so that no two files are alike.
        padded(&self.bench, &path, self.size, (1 << 32) + self.round)?;
        let sum = child::run(Command::new("sha256sum").arg(&path))?;
        Ok((path, sum.split_whitespace().next().unwrap_or_default().to_owned()))
    }

    /// What runs on a host once the file is there: the digest is checked, the file takes its place, the service is
    /// started anew.
    pub(super) fn switch(&self, sha256: &str) -> String {
        format!(
            "echo '{sha256}  incoming' | sha256sum --check --quiet && chmod 755 incoming && mv incoming service \
             && {{ [ ! -e pid ] || kill $(cat pid); }} \
             && {{ setsid $PWD/service --port 0 </dev/null >/dev/null 2>&1 & echo $! >pid; }}"
        )
    }

    fn write(&self) -> anyhow::Result<()> {
        for key in ["daemon", "user"] {
            let path = self.dir().join(key);
            child::run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path))?;
        }
        fs::copy(self.dir().join("user.pub"), self.dir().join("authorized"))?;
        for address in self.addresses() {
            fs::create_dir_all(self.place(&address))?;
        }
        // The third word is the address that was called, which is the host.
        let enter = format!(
            "#!/bin/sh\nset -- $SSH_CONNECTION\ncd {}/hosts/$3 || exit 1\nexec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            self.dir().display()
        );
        let path = self.dir().join("enter");
        fs::write(&path, enter)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let lines: Vec<String> =
            self.addresses().map(|address| format!("{address}:{}\n", self.port)).collect();
        fs::write(self.dir().join("list"), lines.concat())?;
        Ok(())
    }

    fn configuration(&self, addresses: &[String]) -> String {
        let dir = self.dir().display();
        let mut text = format!(
            "Port {}\nHostKey {dir}/daemon\nAuthorizedKeysFile {dir}/authorized\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             MaxStartups 1000\nPrintMotd no\nUseDNS no\nForceCommand {dir}/enter\nSubsystem sftp {SFTP}\n",
            self.port
        );
        addresses.iter().for_each(|address| text.push_str(&format!("ListenAddress {address}\n")));
        text
    }
}

/// A daemon in the foreground; where the machine can, it ends with this program also when that is killed.
fn command(configuration: &Path) -> Command {
    let daemon = peer("sshd").unwrap_or_else(|_| "sshd".into());
    // As root it wants an empty directory, which the package makes only where it starts the service.
    if rustix::process::geteuid().is_root() {
        let _ = fs::create_dir("/run/sshd");
    }
    let mut command = match peer("setpriv") {
        Ok(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(daemon);
            command
        }
        Err(_) => Command::new(daemon),
    };
    command.arg("-D").arg("-e").arg("-f").arg(configuration);
    command
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.daemons.clear();
        // Services, and connections that ansible keeps for later.
        group::kill(self.dir.path());
    }
}
