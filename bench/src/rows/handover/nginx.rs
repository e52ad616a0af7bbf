//! nginx and its own upgrade of its executable, as its manual prescribes it: USR2, WINCH, QUIT.
//!
//! It answers after 200 ms by itself, without an upstream: a request is refused for want of a password, which
//! `auth_delay` does after the time that is asked for, and `error_page` makes a 200 of it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    agents::free_ports,
    child,
    group::{children, is_alive},
    rows::peer,
};

/// How long each step of an upgrade may take.
const STEP: Duration = Duration::from_secs(60);

/// An nginx that runs until this is dropped.
pub(super) struct Nginx {
    address: SocketAddr,
    // Last, so that it is removed when nothing uses it any more.
    dir: TempDir,
}

impl Nginx {
    pub(super) fn start() -> anyhow::Result<Self> {
        let program = peer("nginx")?;
        let dir = tempfile::Builder::new().prefix("upfleet-nginx").tempdir()?;
        let port = free_ports(1)?[0];
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, config(dir.path(), port))?;
        fs::write(dir.path().join("nobody"), "")?;
        let nginx = Self { address: ([127, 0, 0, 1], port).into(), dir };
        // A path, as the new process is started by what the old one was called.
        child::run(Command::new(program).arg("-p").arg(nginx.dir.path()).arg("-c").arg(&conf))?;
        wait("it listens", || TcpStream::connect(nginx.address).ok())?;
        Ok(nginx)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new master with new workers beside the old ones, then the old workers finish, then the old master ends.
    pub(super) fn upgrade(&self) -> anyhow::Result<()> {
        let old = self.master().context("nginx does not run")?;
        send(old, Signal::USR2)?;
        let new = wait("the new master", || self.master().filter(|master| *master != old))?;
        wait("its workers", || (!children(new).is_empty()).then_some(()))?;
        send(old, Signal::WINCH)?;
        wait("the old workers' end", || children(old).iter().all(|child| *child == new).then_some(()))?;
        send(old, Signal::QUIT)?;
        wait("the old master's end", || (!is_alive(old)).then_some(()))
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("nginx.pid")
    }

    fn master(&self) -> Option<u32> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A killed master would leave its workers behind, so it is asked first.
        if let Some(master) = self.master() {
            let _ = send(master, Signal::TERM);
            let _ = wait("its end", || (!is_alive(master)).then_some(()));
        }
        crate::group::kill(self.dir.path());
    }
}

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process has a number above 0")?;
    kill_process(pid, signal).with_context(|| format!("could not signal {}", pid.as_raw_nonzero()))
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let until = Instant::now() + STEP;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < until, "nginx: waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One worker, as there is one core for it. Connections are kept for as many requests as ours.
fn config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "daemon on;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    client_body_temp_path {dir}/t1;
    proxy_temp_path {dir}/t2;
    fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4;
    scgi_temp_path {dir}/t5;
    keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /slow {{
            auth_delay 200ms;
            auth_basic shop;
            auth_basic_user_file {dir}/nobody;
            error_page 401 =200 /answer;
        }}
        location = /answer {{ return 200 \"shop 1.0.0\"; }}
    }}
}}
"
    )
}
