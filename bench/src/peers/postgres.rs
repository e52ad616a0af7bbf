//! A private PostgreSQL, and how many status rows its clients store per second, each in a transaction of its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::child::{Program, run};

/// A server that runs until this is dropped. It listens on a socket in its own directory only.
pub struct Server {
    _program: Program,
    bin: PathBuf,
    dir: TempDir,
}

impl Server {
    /// Makes a cluster and starts it, durable as by default.
    ///
    /// # Errors
    /// Where PostgreSQL is not installed or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let bin = newest()?;
        let dir = tempfile::Builder::new().prefix("upfleet-pg").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        let data = dir.path().join("data");
        run(as_owner(&bin.join("initdb")).args(["-A", "trust", "-U", "bench", "-D"]).arg(&data))?;
        let mut command = as_owner(&bin.join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-c", "listen_addresses="]);
        let log = dir.path().join("log");
        let mut program = Program::start(&mut command, &log)?;
        let socket = dir.path().join(".s.PGSQL.5432");
        program.wait_for("it listens", || socket.exists().then_some(()))?;
        let server = Self { _program: program, bin, dir };
        // The socket is there a moment before it answers.
        let table = "CREATE TABLE upgrade (node int PRIMARY KEY, state text, revision bigint, doc text); \
                     INSERT INTO upgrade SELECT n, 'PENDING', 1, repeat('x', 900) FROM generate_series(1, 10000) n";
        for _ in 0..100 {
            if server.sql(table).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        anyhow::bail!("PostgreSQL does not answer")
    }

    fn sql(&self, text: &str) -> anyhow::Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        run(psql.arg("-h").arg(self.dir.path()).args(["-U", "bench", "-d", "postgres", "-c", text]))
    }

    /// Rows updated per second by `clients` that each change one row per transaction, for `seconds`.
    ///
    /// # Errors
    /// Where pgbench fails.
    pub fn rows_per_second(&self, clients: usize, seconds: usize) -> anyhow::Result<f64> {
        let script = self.dir.path().join("update.sql");
        fs::write(
            &script,
            "\\set node random(1, 10000)\n\
             UPDATE upgrade SET state = 'FETCHING', revision = revision + 1, doc = repeat('y', 900) WHERE node = :node;\n",
        )?;
        let mut pgbench = Command::new(self.bin.join("pgbench"));
        pgbench.arg("-h").arg(self.dir.path()).args(["-U", "bench", "-n", "-M", "prepared", "-j", "2"]);
        pgbench
            .args(["-c", &clients.to_string(), "-T", &seconds.to_string(), "-f"])
            .arg(&script)
            .arg("postgres");
        let text = run(&mut pgbench)?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench says no tps")?;
        Ok(line.split(' ').next().unwrap_or_default().parse()?)
    }
}

/// The newest installed version's programs; Debian keeps them out of the path.
fn newest() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| -> u32 {
        path.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
    };
    let found = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    found.max_by_key(number).context("PostgreSQL is not installed: `.ci/tools bench` installs the peers")
}

/// PostgreSQL refuses to run as root.
fn as_owner(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--pdeathsig", "KILL"])
        .arg(program);
    command.current_dir("/");
    command
}
