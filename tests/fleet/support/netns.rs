//! Networks of their own for a test: one namespace for the controller, one for each node, a bridge between them, and
//! faults on the way.
//!
//! Each namespace lives as long as a process in it that reads from this one: however the test ends, nothing of it
//! is left. It must never touch the network of the machine.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    process::{Output, run},
    skip::skip,
    wait::eventually,
};

/// Where the controller listens.
pub const HUB: &str = "10.99.0.1";

/// Which way is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToController,
    ToAgent,
}

impl Way {
    pub const BOTH: [Self; 2] = [Self::ToController, Self::ToAgent];
}

/// One network namespace.
struct Space {
    holder: Child,
    // What keeps the holder alive: it reads until this is closed.
    _alive: ChildStdin,
}

impl Space {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare was tried before");
        let alive = holder.stdin.take().expect("it was asked for");
        let space = Self { holder, _alive: alive };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let outer = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        eventually("the namespace", || {
            let link = std::fs::read_link(space.path()).ok()?;
            (link != own && link != outer).then_some(())
        });
        space.do_("ip", "link set lo up");
        space
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Runs a command inside.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = within(&self.path(), program);
        run(command.args(arguments))
    }

    /// Runs a command inside that must succeed; its words are separated by spaces.
    fn do_(&self, program: &str, arguments: &str) -> String {
        self.run(program, &arguments.split_whitespace().collect::<Vec<_>>()).success()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command that will run in the namespace at `path`, as the very process that is started.
pub fn within(path: &std::path::Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path.display())).arg("--").arg(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// A hub and spokes. While it lives, the thread that made it is in the hub, and so is what it starts.
pub struct Network {
    before: File,
    hub: Space,
    spokes: Vec<Space>,
}

impl Network {
    /// Makes a network and goes into its hub; `None`, said as a skipped test, where that is impossible.
    pub fn enter(test: &str, spokes: usize) -> Option<Self> {
        if let Err(problem) = possible() {
            skip(test, &problem);
            return None;
        }
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        let hub = Space::new();
        hub.do_("ip", "link add br0 type bridge");
        hub.do_("ip", &format!("addr add {HUB}/16 dev br0"));
        hub.do_("ip", "link set br0 up");
        hub.do_("nft", "add table inet fault");
        hub.do_("nft", "add chain inet fault in { type filter hook input priority 0 ; }");
        let mut network = Self { before, hub, spokes: Vec::new() };
        for _ in 0..spokes {
            network.add_spoke();
        }
        let inside = File::open(network.hub.path()).unwrap();
        move_into_link_name_space(inside.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        Some(network)
    }

    fn add_spoke(&mut self) {
        let (space, number) = (Space::new(), self.spokes.len());
        let pid = space.holder.id();
        // Segments of one packet each: else the rules would see, and lose, 64 KiB at a time.
        let single = "gso_max_segs 1";
        self.hub
            .do_("ip", &format!("link add s{number} {single} type veth peer name eth0 {single} netns {pid}"));
        self.hub.do_("ip", &format!("link set s{number} master br0 up"));
        space.do_("ip", &format!("addr add {}/16 dev eth0", address(number)));
        space.do_("ip", "link set eth0 up");
        space.do_("nft", "add table inet fault");
        space.do_("nft", "add chain inet fault in { type filter hook input priority 0 ; }");
        space.do_("nft", "add chain inet fault seen { type filter hook input priority 10 ; }");
        space.do_("nft", "add rule inet fault seen iifname eth0 counter");
        self.spokes.push(space);
    }

    /// Where a spoke's processes run.
    pub fn spoke(&self, spoke: usize) -> PathBuf {
        self.spokes[spoke].path()
    }

    /// Nothing gets through that way any more; nobody is told.
    pub fn cut(&self, spoke: usize, way: Way) {
        self.drop_some(spoke, way, "");
    }

    /// So many packets of a hundred get lost, both ways.
    pub fn lose(&self, spoke: usize, percent: u32) {
        for way in Way::BOTH {
            self.drop_some(spoke, way, &format!("numgen random mod 100 < {percent}"));
        }
    }

    fn drop_some(&self, spoke: usize, way: Way, which: &str) {
        match way {
            Way::ToAgent => {
                self.spokes[spoke].do_("nft", &format!("add rule inet fault in iifname eth0 {which} drop"));
            }
            Way::ToController => {
                let from = address(spoke);
                self.hub.do_(
                    "nft",
                    &format!("add rule inet fault in ip saddr {from} {which} drop comment s{spoke}"),
                );
            }
        }
    }

    /// All that was cut or lossy at that spoke is whole again.
    pub fn heal(&self, spoke: usize) {
        self.spokes[spoke].do_("nft", "flush chain inet fault in");
        let rules = self.hub.do_("nft", "-a list chain inet fault in");
        let own = format!("comment \"s{spoke}\" # handle ");
        for handle in rules.lines().filter_map(|line| line.split_once(&own)).map(|(_, handle)| handle) {
            self.hub.do_("nft", &format!("delete rule inet fault in handle {handle}"));
        }
    }

    /// The way to that spoke is a slow line from now on.
    pub fn slow_down(&self, spoke: usize, rate: &str) {
        self.hub.do_("tc", &format!("qdisc add dev s{spoke} root tbf rate {rate} burst 16kb latency 200ms"));
    }

    /// Bytes that arrived at that spoke so far, with all headers.
    pub fn arrived(&self, spoke: usize) -> u64 {
        let text = self.spokes[spoke].do_("nft", "list chain inet fault seen");
        let bytes =
            text.split_once("bytes ").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or_else(|| panic!("no counter in {text}"))
    }

    /// Does something as if at that spoke, on a thread of its own.
    pub fn at<T: Send + 'static>(
        &self,
        spoke: usize,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let space = File::open(self.spoke(spoke)).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The thread may run other tests afterwards.
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

/// The address of a spoke.
pub fn address(spoke: usize) -> Ipv4Addr {
    let number = u8::try_from(spoke + 1).expect("a test has few nodes");
    Ipv4Addr::new(10, 99, 1, number)
}

/// Whether this machine can make such networks.
fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    let tried = "ip link add br0 type bridge && nft add table inet fault && tc -V";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", tried]);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("no `unshare`: {error}")),
    }
}
