//! One node: its directories, its configuration, its agent's process.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use upfleet_domain::digest::Digest;

use super::{
    itself::AGENT,
    lifeline::Lifeline,
    netns::within,
    next::wanted_agent,
    process::{Output, Program, run},
    program::COMPONENT,
};

/// A node of a test fleet.
pub struct Node {
    pub name: String,
    dir: PathBuf,
    lifeline: (&'static str, String),
    agent: Option<Program>,
    /// The network namespace that its agent runs in; the test's own where it is `None`.
    pub space: Option<PathBuf>,
    /// The agent's program.
    pub program: PathBuf,
}

impl Node {
    /// Writes the configuration; with `initial` the component's file is there before Upfleet.
    pub fn prepare(dir: &Path, name: &str, lifeline: &Lifeline, fetch: &str, initial: Option<&[u8]>) -> Self {
        let lifeline = lifeline.variable();
        let node = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            lifeline,
            agent: None,
            space: None,
            program: wanted_agent(),
        };
        for sub in ["etc", "state", "run", "app"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        node.configure("", fetch);
        if let Some(bytes) = initial {
            fs::write(node.component(), bytes).unwrap();
            fs::set_permissions(node.component(), fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    /// Writes the configuration anew, with further keys for the component and for `[fetch]`.
    pub fn configure(&self, component_keys: &str, fetch_keys: &str) {
        let dir = self.dir.display();
        let text = format!(
            r#"
state_dir = "{dir}/state"
run_dir = "{dir}/run"

[fetch]
allow_loopback = true
{fetch_keys}

[[component]]
name = "{COMPONENT}"
path = "{dir}/app/{COMPONENT}"
{component_keys}

[component.run]
mode = "supervised"
cwd = "{dir}/app"
stop_timeout = "2s"
restart_delay = "50ms"

[[component.probe]]
type = "process"
interval = "50ms"
successes = 1
failures = 2

[[component.probe]]
type = "exec"
command = ["{{path}}", "probe"]
interval = "50ms"
successes = 1
failures = 2

[component.health]
soak = "200ms"
start_deadline = "8s"
"#
        );
        fs::write(self.dir.join("etc/agent.toml"), text).unwrap();
    }

    /// Has the component run another way: these lines are its `[component.run]`.
    pub fn run_by(&self, lines: &str) {
        let path = self.dir.join("etc/agent.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once("[component.run]\n").unwrap();
        let (_, after) = rest.split_once("[[component.probe]]").unwrap();
        fs::write(path, format!("{before}[component.run]\n{lines}\n[[component.probe]]{after}")).unwrap();
    }

    /// Declares another component in the place of the usual one, with what follows it.
    pub fn declare(&self, component: &str) {
        let path = self.dir.join("etc/agent.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (before, _) = text.split_once("[[component]]").unwrap();
        fs::write(path, format!("{before}{component}")).unwrap();
    }

    /// Gives the component longer to become healthy, for a test that makes it wait.
    pub fn be_patient(&self) {
        let file = self.dir.join("etc/agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace("start_deadline = \"8s\"", "start_deadline = \"50s\"")).unwrap();
    }

    /// Where all of it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The component's file.
    pub fn component(&self) -> PathBuf {
        self.dir.join("app").join(COMPONENT)
    }

    /// A file in the component's directory.
    pub fn app(&self, name: &str) -> PathBuf {
        self.dir.join("app").join(name)
    }

    /// SHA-256 of the component's file; `None` where there is none.
    pub fn digest(&self) -> Option<Digest> {
        fs::read(self.component()).ok().map(|bytes| Digest::of(&bytes))
    }

    /// How often each version was started here, in order of the starts: `["1.0.0", "1.1.0"]`.
    pub fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.app("starts")).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    }

    /// The process id of the version started last, if it still runs.
    pub fn running(&self) -> Option<(String, u32)> {
        let text = fs::read_to_string(self.app("starts")).ok()?;
        let (version, pid) = text.lines().last()?.split_once(' ')?;
        let pid: u32 = pid.parse().ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let alive = !state.rsplit_once(')')?.1.trim_start().starts_with('Z');
        alive.then(|| (version.to_owned(), pid))
    }

    /// `upfleet-agent` with this node's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.space {
            Some(space) => within(space, self.program.clone()),
            None => Command::new(&self.program),
        };
        command
            .arg("--config")
            .arg(self.dir.join("etc"))
            .args(arguments)
            .current_dir(&self.dir)
            .env(self.lifeline.0, &self.lifeline.1)
            .env_remove("UPFLEET_CONFIG");
        command
    }

    /// Runs an agent command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// Trades `token` for a certificate.
    pub fn enroll(&self, token: &str) -> Output {
        self.run(&["enroll", "--token", token, "--node", &self.name])
    }

    /// Starts the agent.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Makes the agent a component of its own, which runs from a link to `program`. `guard` are the guard's keys, the
    /// deadline among them unless it is a minute.
    pub fn be_itself(&self, program: &Path, guard: &str) {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        // A link: a copy of that many bytes takes a while, and can't be executed while another thread forks.
        fs::hard_link(program, bin.join(AGENT))
            .or_else(|_| fs::copy(program, bin.join(AGENT)).map(drop))
            .unwrap();
        let file = self.dir.join("etc/agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        let path = bin.join(AGENT);
        let deadline = if guard.contains("deadline") { "" } else { "deadline = \"60s\"" };
        let own = format!(
            "\n[[component]]\nname = \"{AGENT}\"\nkind = \"agent\"\npath = {path:?}\n[component.health]\nsoak = \"500ms\"\n[component.guard]\n{deadline}\n{guard}\n"
        );
        fs::write(file, text + &own).unwrap();
    }

    /// Gives a new agent another soak time than half a second.
    pub fn soak_itself(&self, soak: &str) {
        let file = self.dir.join("etc/agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        let (before, own) = text.split_once(&format!("name = \"{AGENT}\"")).unwrap();
        let own = own.replacen("soak = \"500ms\"", &format!("soak = \"{soak}\""), 1);
        fs::write(file, format!("{before}name = \"{AGENT}\"{own}")).unwrap();
    }

    /// Starts the agent from its component's place, under a parent that keeps it.
    pub fn start_supervised(&mut self) {
        self.start_supervised_with(&[]);
    }

    /// The same with further environment, of the parent and of all that it starts.
    pub fn start_supervised_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.agent.is_none(), "{} has an agent already", self.name);
        let mut command = Command::new(self.dir.join("bin").join(AGENT));
        command
            .arg("--config")
            .arg(self.dir.join("etc"))
            .args(["run", "--supervised"])
            .current_dir(&self.dir)
            .envs(environment.iter().copied())
            .env(self.lifeline.0, &self.lifeline.1)
            .env("RUST_LOG", "info");
        self.agent = Some(Program::start(&mut command, &self.dir.join("agent.log")));
    }

    /// The process that is the agent, under its parent.
    pub fn own_agent(&self) -> u32 {
        self.find_own_agent().expect("a parent has started it")
    }

    /// The same, where a parent has started one and it can be read.
    pub fn find_own_agent(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("state/itself/child.json")).ok()?;
        let value: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
        u32::try_from(value["process"]["pid"].as_u64()?).ok()
    }

    /// The variable by which whatever is started ends with the test.
    pub fn lifeline(&self) -> (&'static str, &str) {
        (self.lifeline.0, &self.lifeline.1)
    }

    /// Starts the agent with further environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.agent.is_none(), "{} has an agent already", self.name);
        let mut command = self.command(&["run"]);
        command.envs(environment.iter().copied()).env("RUST_LOG", "info");
        self.agent = Some(Program::start(&mut command, &self.dir.join("agent.log")));
    }

    /// `kill -9` to the agent; its shims and components go on.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// SIGTERM to the agent, which ends in order.
    pub fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.terminate();
        }
    }

    /// The agent's process.
    pub fn agent(&self) -> u32 {
        self.agent.as_ref().expect("the agent was started").pid()
    }

    /// Whether the agent ended by itself.
    pub fn ended(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| agent.ended().is_some())
    }

    /// What the agent wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Files that must not be there once nothing is under way: temporary and partial ones.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.join("app")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if path.is_dir() {
                    dirs.push(path);
                } else if name.contains("tmp") || name.ends_with(".part") {
                    found.push(path);
                }
            }
        }
        found
    }
}
