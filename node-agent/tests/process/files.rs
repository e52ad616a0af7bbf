//! Directories whose files are used by real programs: a plugin directory that a server reloads when told, Python and its
//! byte-code cache, and nodes that can't take an upgrade.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use upfleet_domain::{files::OnLocalChange, reason::ReasonCode, upgrade::Outcome};

use super::files_support::{Site, release};

const REFUSE: OnLocalChange = OnLocalChange::Refuse;

/// Loads every `*.json` of a directory, and again on SIGHUP and on POST; says on GET what it has loaded.
const SERVER: &str = r#"
import http.server, json, os, signal, sys
plugins, problem = {}, ""
def load(*_):
    global plugins, problem
    try:
        found = {n: json.load(open(os.path.join(sys.argv[1], n)))["v"] for n in sorted(os.listdir(sys.argv[1])) if n.endswith(".json")}
        plugins, problem = found, ""
    except Exception as e:
        problem = repr(e)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = (problem or json.dumps(plugins)).encode()
        self.send_response(500 if problem else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer()
    def do_POST(self):
        load()
        self.answer()
    def log_message(self, *_):
        pass
signal.signal(signal.SIGHUP, load)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A program that is ended with the test.
struct Guard {
    child: Child,
    port: u16,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says past the capture of output that a test can't run here.
pub fn skipped(test: &str, why: &str) {
    let mut tty = std::io::stderr().lock();
    let _ = writeln!(tty, "skipped: {test}: {why}");
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn server(plugins: &Path) -> Guard {
    let mut child = Command::new("python3")
        .args(["-c", SERVER])
        .arg(plugins)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Guard { child, port: line.trim().parse().unwrap() }
}

fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
}

/// Waits until a program's answer is as expected.
fn until(expected: &str, mut answer: impl FnMut() -> String) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = answer();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{found} instead of {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_directory_is_what_the_release_names_and_the_answer_to_the_reload_decides() {
    if !has_python() {
        return skipped("files: plugins by POST", "there is no python3");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("site")).unwrap();
    fs::write(dir.path().join("site/dropped.json"), "{\"v\": 0}").unwrap();
    let program = server(&dir.path().join("site"));
    let lines = format!("[reload]\ntype = \"http\"\nurl = \"http://127.0.0.1:{}/-/reload\"\n", program.port);
    let one = release(1, &[("a.json", "{\"v\": 1}"), ("b.json", "{\"v\": 1}")], REFUSE, &[]);
    let two =
        release(2, &[("a.json", "{\"v\": 2}"), ("c.json", "{\"v\": 2}")], OnLocalChange::Overwrite, &[]);
    let bad = release(3, &[("a.json", "{\"v\": 3"), ("c.json", "{\"v\": 3}")], REFUSE, &[]);
    let mut site = Site::start(dir.path(), &lines, &[&one, &two, &bad]);

    let report = site.expect(&one, Outcome::Succeeded).await;
    let answer = report.reload.unwrap();
    assert!(answer.ends_with("answered 200: {\"a.json\": 1, \"b.json\": 1}"), "{answer}");
    assert_eq!(get(program.port), "{\"a.json\": 1, \"b.json\": 1}", "what the release does not name is gone");

    fs::write(dir.path().join("site/evil.json"), "{\"v\": 666}").unwrap();
    let drift = async {
        loop {
            if let Some(drift) = site.inventory().await.drift {
                break drift;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let drift = tokio::time::timeout(Duration::from_secs(20), drift).await.expect("drift is shown");
    assert_eq!(
        (drift.code, drift.metadata["files"].as_str()),
        (ReasonCode::LocalChanges, "evil.json (added)")
    );
    let report = site.expect(&one, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::LocalChanges);

    site.expect(&two, Outcome::Succeeded).await;
    assert_eq!(get(program.port), "{\"a.json\": 2, \"c.json\": 2}");
    let report = site.expect(&bad, Outcome::RolledBack).await;
    assert!(report.reason.message().contains("JSONDecodeError"), "{}", report.reason);
    assert_eq!(get(program.port), "{\"a.json\": 2, \"c.json\": 2}", "it was told again");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameter_files_are_read_again_on_a_signal() {
    if !has_python() {
        return skipped("files: parameters by SIGHUP", "there is no python3");
    }
    let dir = tempfile::tempdir().unwrap();
    let program = server(&dir.path().join("site"));
    let pid_file = dir.path().join("pid");
    fs::write(&pid_file, program.child.id().to_string()).unwrap();
    let lines = format!(
        "[files]\nswap = \"exchange\"\n[reload]\ntype = \"signal\"\npid_file = {pid_file:?}\nsettle = \"100ms\"\n"
    );
    let one = release(1, &[("limits.json", "{\"v\": 10}")], REFUSE, &[]);
    let two = release(2, &[("limits.json", "{\"v\": 20}")], REFUSE, &[]);
    let mut site = Site::start(dir.path(), &lines, &[&one, &two]);
    for (release, said) in
        [(&one, "{\"limits.json\": 10}"), (&two, "{\"limits.json\": 20}"), (&one, "{\"limits.json\": 10}")]
    {
        let report = site.expect(release, Outcome::Succeeded).await;
        assert!(report.reload.unwrap().contains("took SIGHUP"));
        until(said, || get(program.port));
    }
    drop(program);
    let report = site.expect(&two, Outcome::RollbackFailed).await;
    assert!(!report.reason.message().is_empty(), "nobody is there to be told, neither forward nor back");
    site.end().await;
}

/// T53: a module of the same length, and a cache that has compiled the old one. What runs is the new one, also where the
/// cache lies elsewhere and knows files by time and length alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_never_runs_the_byte_code_of_the_old_file() {
    if !has_python() {
        return skipped("files: T53", "there is no python3");
    }
    for (swap, prefix) in [("link", false), ("link", true), ("exchange", false), ("exchange", true)] {
        let dir = tempfile::tempdir().unwrap();
        let main = "import value; print(value.V)\n";
        let one = release(1, &[("main.py", main), ("value.py", "V = 1\n")], REFUSE, &[]);
        let two = release(2, &[("main.py", main), ("value.py", "V = 2\n")], REFUSE, &[]);
        let mut site = Site::start(dir.path(), &format!("[files]\nswap = \"{swap}\"\n"), &[&one, &two]);
        let run = || {
            let mut python = Command::new("python3");
            python.arg(dir.path().join("site/main.py")).env_remove("PYTHONDONTWRITEBYTECODE");
            if prefix {
                python.env("PYTHONPYCACHEPREFIX", dir.path().join("cache"));
            }
            String::from_utf8(python.output().unwrap().stdout).unwrap()
        };
        for (release, said) in [(&one, "1\n"), (&two, "2\n"), (&one, "1\n"), (&two, "2\n")] {
            site.expect(release, Outcome::Succeeded).await;
            // The first run compiles, the second one uses what was compiled.
            assert_eq!((run().as_str(), run().as_str()), (said, said), "{swap} {prefix}");
        }
        let caches = if prefix { "cache" } else { "site/__pycache__" };
        assert!(dir.path().join(caches).is_dir(), "there was a cache");
        site.end().await;
    }
}

/// A program of the directory that the agent runs itself is started again from the new version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_the_directory_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let script = |version: &str| format!("#!/bin/sh\necho {version} > \"$1\"\nexec sleep 1000\n");
    let (first, second) = (script("first"), script("second"));
    let one = release(1, &[("bin/run", &first), ("etc/x", "1")], REFUSE, &[]);
    let two = release(2, &[("bin/run", &second)], REFUSE, &[]);
    let out = dir.path().join("out");
    let lines = format!(
        "[run]\nmode = \"supervised\"\ncommand = [\"{{path}}/bin/run\", {out:?}]\n[health]\nsoak = \"20ms\"\n\
         [[probe]]\ntype = \"process\"\ninterval = \"10ms\"\n"
    );
    let mut site = Site::start(dir.path(), &lines, &[&one, &two]);
    for (release, said) in [(&one, "first\n"), (&two, "second\n"), (&one, "first\n")] {
        site.expect(release, Outcome::Succeeded).await;
        until(said, || fs::read_to_string(&out).unwrap_or_default());
    }
    site.end().await;
}
