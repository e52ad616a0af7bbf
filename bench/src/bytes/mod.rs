//! What the rows about bytes share: one file at a real controller and at nginx, an enrolled agent, and the cost of
//! fetching it.

pub mod fetch;
mod nginx;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use md5::Digest as _;
use tempfile::TempDir;
use upfleet_domain::digest::{Digest, Md5Digest};

use self::nginx::Nginx;
use crate::{api::SERVER_NAME, child, controller::Controller, report::Measure, rows::Bench, usage};

const GB: f64 = 1e9;

/// What both rows ask for.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The size of the file, in MiB.
    #[arg(long, default_value_t = 1024)]
    pub mib: usize,
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Where the file is downloaded to; a temporary directory where unset.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What one download cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    wall: Duration,
    /// Of the server and of all processes of the client.
    cpu: Duration,
    /// The most memory of the client, in bytes; 0 where it is not measured.
    pub peak: u64,
}

/// The same file in both places.
pub struct Shop {
    controller: Controller,
    nginx: Nginx,
    state: PathBuf,
    digest: Digest,
    md5: Md5Digest,
    size: u64,
    dir: TempDir,
}

impl Shop {
    /// Puts a file of random bytes into a controller and beside an nginx, and enrolls an agent.
    ///
    /// # Errors
    /// Where a program is missing or does not start.
    pub fn open(bench: &Bench, args: &Args) -> anyhow::Result<Self> {
        for program in ["nginx", "curl", "sha256sum", "md5sum"] {
            let found = Command::new("which").arg(program).output().is_ok_and(|out| out.status.success());
            anyhow::ensure!(found, "skipped: `{program}` is not installed; `.ci/tools bench` installs it");
        }
        let mut made = tempfile::Builder::new();
        let dir = match &args.dir {
            Some(at) => made.prefix("upfleet-bytes").tempdir_in(at)?,
            None => made.prefix("upfleet-bytes").tempdir()?,
        };
        let bytes = random(args.mib << 20);
        fs::create_dir(dir.path().join("www"))?;
        fs::write(dir.path().join("www/file"), &bytes)?;
        let md5 = Md5Digest(md5::Md5::digest(&bytes).into());
        let size = bytes.len() as u64;
        let nginx = Nginx::start(dir.path())?;
        let controller = Controller::start(bench)?;
        let state = dir.path().join("agent");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let digest = runtime.block_on(async {
            let api = controller.api().await?;
            let token = api.token(&[]).await?;
            upfleet_agent::enroll::enroll(&token.parse()?, &"node-1".parse()?, &state).await?;
            api.upload(bytes).await
        })?;
        Ok(Self { controller, nginx, state, digest, md5, size, dir })
    }

    /// Our agent fetches: to the disk with all digests, or only to throw the bytes away.
    ///
    /// # Errors
    /// Where it fails.
    pub fn agent(&self, to_disk: bool, with_md5: bool) -> anyhow::Result<Cost> {
        let mut fetch = Command::new(std::env::current_exe()?);
        fetch.arg("fetch").arg("--state").arg(&self.state);
        fetch.args(["--controller", &self.controller.endpoints().api, "--server-name", SERVER_NAME]);
        fetch.args(["--sha256", &self.digest.to_string(), "--size", &self.size.to_string()]);
        let to = self.dir.path().join("ours");
        let _ = fs::remove_file(&to);
        if to_disk {
            fetch.arg("--to").arg(&to);
        }
        if with_md5 {
            fetch.args(["--md5", &self.md5.to_string()]);
        }
        let (mut cost, said) = self.cost(self.controller.pid()?, &mut fetch)?;
        cost.peak = said.trim().parse().context("the fetch told no peak")?;
        let _ = fs::remove_file(&to);
        Ok(cost)
    }

    /// curl fetches from nginx and throws the bytes away.
    ///
    /// # Errors
    /// Where it fails.
    pub fn curl(&self) -> anyhow::Result<Cost> {
        let script = format!("{} -o /dev/null", self.nginx.curl());
        Ok(self.cost(self.nginx.pid(), Command::new("sh").args(["-ec", &script]))?.0)
    }

    /// curl fetches from nginx to the disk, `sha256sum` and perhaps `md5sum` read along; durable with `sync`.
    ///
    /// # Errors
    /// Where it fails.
    pub fn curl_and_sums(&self, with_md5: bool, sync: bool) -> anyhow::Result<Cost> {
        let to = self.dir.path().join("theirs");
        let _ = fs::remove_file(&to);
        let sync = if sync { "sync theirs" } else { ":" };
        let curl = self.nginx.curl();
        let script = if with_md5 {
            format!(
                "rm -f fifo; mkfifo fifo; md5sum < fifo > md5 & {curl} | tee theirs fifo | sha256sum > sha256; wait; {sync}"
            )
        } else {
            format!("{curl} | tee theirs | sha256sum > sha256; {sync}")
        };
        let mut shell = Command::new("sh");
        shell.args(["-ec", &script]).current_dir(self.dir.path());
        let (cost, _) = self.cost(self.nginx.pid(), &mut shell)?;
        let said = fs::read_to_string(self.dir.path().join("sha256"))?;
        anyhow::ensure!(said.starts_with(&self.digest.to_string()), "curl fetched other bytes");
        let _ = fs::remove_file(&to);
        Ok(cost)
    }

    fn cost(&self, server: u32, client: &mut Command) -> anyhow::Result<(Cost, String)> {
        let before = usage::of(server)?.cpu + usage::children()?;
        let began = Instant::now();
        let said = child::run(client)?;
        let wall = began.elapsed();
        let cpu = (usage::of(server)?.cpu + usage::children()?).saturating_sub(before);
        Ok((Cost { wall, cpu, peak: 0 }, said))
    }

    /// The rate and the CPU time of downloads beside a peer's.
    #[must_use]
    pub fn measures(&self, peer: &str, ours: &[Cost], theirs: &[Cost]) -> [Measure; 2] {
        let size = self.size as f64;
        let rate = |costs: &[Cost]| costs.iter().map(|cost| size / 1e6 / cost.wall.as_secs_f64()).collect();
        let cpu = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu.as_secs_f64() / (size / GB)).collect();
        let measure = |name: &str, unit, figures: &dyn Fn(&[Cost]) -> Vec<f64>| {
            Measure::new(&format!("{name} ({peer})"), unit).ours(figures(ours)).peer(figures(theirs))
        };
        [measure("rate", "MB/s", &rate), measure("CPU of all processes", "s/GB", &cpu)]
    }
}

/// Bytes that no layer can compress; the same each time.
fn random(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// The file system on which the bytes lie, for the record of a figure.
#[must_use]
pub fn file_system(dir: Option<&Path>) -> String {
    let mut df = Command::new("df");
    df.args(["--output=fstype,source"]).arg(dir.unwrap_or(&std::env::temp_dir()));
    let said = child::run(&mut df).unwrap_or_default();
    said.lines().nth(1).unwrap_or("unknown").split_whitespace().collect::<Vec<_>>().join(" ")
}
