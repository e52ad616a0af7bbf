//! What is read, and what is refused with which words.

use std::{fs, time::Duration};

use super::*;

const FULL: &str = r#"
state_dir = "/var/lib/x"
run_dir = "/run/x"

[controller]
address = "controller.example:7443"

[fetch]
rate_limit = "10MiB"
allowed_hosts = ["cdn.example"]
proxy = ""

[[component]]
name = "hello"
path = "/opt/hello/hello"
kind = "binary"
mode = "0750"
[component.run]
mode = "supervised"
command = ["{path}", "--port", "9001"]
env = { LOG = "debug" }
stop_signal = "SIGINT"
stop_timeout = "5s"
activate = "stop-then-start"
[[component.probe]]
type = "http"
url = "http://127.0.0.1:9001/healthz"
expect = "200"
interval = "200ms"
[[component.probe]]
type = "grpc"
address = "127.0.0.1:9002"
[component.health]
soak = "2s"
[component.timeouts]
fetch = "5m"
"#;

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FRAGMENT_DIR)).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn patches_need_a_jvm_that_can_take_them() {
    let text =
        format!("{FULL}\n[component.jvm]\nmechanism = \"class-path\"\nclass_path = [\"/opt/lib/a.jar\"]");
    let config = Config::load(dir(&[(MAIN_FILE, &text)]).path()).unwrap();
    let jvm = config.components[0].jvm.as_ref().unwrap();
    assert_eq!(jvm.mechanism.mechanism().unwrap().as_str(), "class-path");
    assert_eq!((jvm.live, jvm.options_variable.as_str()), (true, "JDK_JAVA_OPTIONS"));
    for (text, words) in [
        ("mechanism = \"java-agent\"\njava_agents = \"forbidden\"", "jvm.java_agents forbids"),
        ("mechanism = \"patch-module\"", "jvm.module"),
        ("options_variable = \"A=B\"", "not a variable's name"),
        ("module = \"a/b\"", "not a module's name"),
        ("class_path = [\"lib/a.jar\"]", "relative"),
        ("class_path = [\"/opt/lib/*\"]", "name each jar by itself"),
        ("mechanism = \"live\"", "live"),
        ("novel = 1", "novel"),
    ] {
        refused(&component(&format!("[component.jvm]\n{text}")), &[words]);
    }
}

#[test]
fn a_full_file_is_read() {
    let dir = dir(&[(MAIN_FILE, FULL)]);
    let config = Config::load(dir.path()).unwrap();
    assert_eq!(config.fetch.rate_limit, Some(10 << 20));
    assert_eq!(config.fetch.proxy, None);
    assert_eq!(config.controller.as_ref().unwrap().expected_name(), "controller.example");
    let hello = config.component(&"hello".parse().unwrap()).unwrap();
    assert_eq!(hello.mode, FileMode(0o750));
    assert_eq!(hello.keep, 3);
    assert_eq!(hello.run.stop_signal, StopSignal::Int);
    assert_eq!(hello.health.soak, Duration::from_secs(2));
    assert_eq!(hello.timeouts.fetch, Duration::from_secs(300));
    assert_eq!(hello.timeouts.verify, TimeoutsConfig::default().verify);
    let ProbeKind::Http { expect, .. } = &hello.probes[0].kind else { panic!("{:?}", hello.probes[0]) };
    assert_eq!(*expect, StatusRange { from: 200, to: 200 });
    assert_eq!(hello.probes[0].interval, Duration::from_millis(200));
    assert_eq!(hello.probes[1].kind.name(), "grpc");
}

#[test]
fn what_was_read_can_be_written_and_read_again() {
    let dir = dir(&[(MAIN_FILE, FULL)]);
    let hello = &Config::load(dir.path()).unwrap().components[0];
    let text = toml::to_string(hello).unwrap();
    assert_eq!(toml::from_str::<ComponentConfig>(&text).unwrap(), *hello, "{text}");
}

#[test]
fn fragments_add_components_and_the_controller() {
    let fragment = "[[component]]\nname = \"b\"\npath = \"/opt/b\"\n";
    let controller = "[controller]\naddress = \"[::1]:7443\"\n";
    let dir = dir(&[
        (MAIN_FILE, "[[component]]\nname = \"a\"\npath = \"/opt/a\"\n"),
        ("conf.d/b.toml", fragment),
        ("conf.d/controller.toml", controller),
        ("conf.d/c.toml.bak", "nonsense"),
    ]);
    let config = Config::load(dir.path()).unwrap();
    let names: Vec<&str> = config.components.iter().map(|component| component.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(config.components[0].run.mode, RunMode::None);
    assert_eq!(config.controller.unwrap().expected_name(), "::1");
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let problems = check_config(dir.path());
    assert!(problems[0].to_string().contains("agent.toml: can't be read"), "{problems:?}");
}

/// Checks that `text` as the main file is refused once, with these words.
fn refused(text: &str, words: &[&str]) {
    let dir = dir(&[(MAIN_FILE, text)]);
    let problems = check_config(dir.path());
    assert_eq!(problems.len(), 1, "{text}\n{problems:?}");
    let problem = problems[0].to_string();
    for word in words.iter().chain(&["agent.toml"]) {
        assert!(problem.contains(word), "`{word}` is not in: {problem}");
    }
}

/// A component with these further lines.
fn component(lines: &str) -> String {
    format!("[[component]]\nname = \"a\"\npath = \"/opt/a\"\n{lines}")
}

#[test]
fn mistakes_are_refused_by_file_and_key() {
    refused("stat_dir = \"/x\"", &["line 1", "unknown field `stat_dir`"]);
    refused("state_dir = \"x\"", &["state_dir", "relative"]);
    refused("[controller]\naddress = \"x\"", &["controller.address", "127.0.0.1:8080"]);
    refused("[fetch]\nrate_limit = \"10\"", &["line 2", "10MiB"]);
    refused(&component("kep = 4"), &["line 4", "`kep`"]);
    refused(&component("keep = 0"), &["component \"a\": keep", "between 1 and 100"]);
    refused(&component("mode = \"4755\""), &["4755", "octal"]);
    refused(&component("mode = \"755x\""), &["octal"]);
    refused(&component("exclusive_with = [\"zz\"]"), &["exclusive_with", "`zz` is not declared"]);
    refused(&component("[component.run]\nstop_timeout = 5"), &["line 5", "string"]);
    refused(&component("[component.run]\nstop_timeout = \"soon\""), &["`soon` is not a span"]);
    refused(&component("[component.run]\nmode = \"upstart\""), &["unknown variant `upstart`"]);
    refused(&component("[component.run]\nmode = \"systemd\""), &["run.unit", "shop.service"]);
    refused(&component("[component.run]\nmode = \"systemd\"\nunit = \"a.socket\""), &["is no service"]);
    refused(
        &component("[component.run]\nmode = \"systemd\"\nunit = \"a.service\"\ncommand = [\"{path}\"]"),
        &["run.command", "ExecStart="],
    );
    refused(&component("[component.run]\nunit = \"a.service\""), &["run.unit", "no effect"]);
    refused(&component("[[component.probe]]\ntype = \"systemd\""), &["no unit to look at"]);
    refused(&component("[component.run]\ncommand = [\"{path}\"]"), &["run.command", "no effect"]);
    refused(
        &component("[component.run]\nmode = \"supervised\"\ncommand = [\"sh\", \"{path}\"]"),
        &["`sh` is not an absolute path"],
    );
    refused(
        &component("[component.run]\nmode = \"supervised\"\ncommand = [\"/bin/true\"]"),
        &["run.command", "`{path}`"],
    );
    refused(
        &component("[component.run]\nmode = \"supervised\"\n[component.timeouts]\nactivate = \"10s\""),
        &["timeouts.activate", "run.stop_timeout"],
    );
}

#[test]
fn probes_that_can_t_work_are_refused() {
    let probe = |lines: &str| component(&format!("[[component.probe]]\n{lines}"));
    refused(&probe("type = \"process\""), &["probe 1 (process)", "run.mode"]);
    refused(&probe("type = \"tcp\""), &["needs `address`"]);
    refused(&probe("type = \"tcp\"\naddress = \"1.2.3.4\""), &["probe 1 (tcp)"]);
    refused(&probe("type = \"tcp\"\naddress = \"a:1\"\nurl = \"x\""), &["`url` does not belong"]);
    refused(&probe("type = \"http\"\nurl = \"https://a/\""), &["probe 1 (http)", "http://"]);
    refused(&probe("type = \"http\"\nurl = \"http://a/\"\nexpect = \"2xx\""), &["`2xx`"]);
    refused(&probe("type = \"exec\"\ncommand = []"), &["`command` is empty"]);
    refused(&probe("type = \"exec\"\ncommand = [\"/bin/true\"]\nfailures = 0"), &["1 or more"]);
    refused(&probe("type = \"exec\"\ncommand = [\"/bin/true\"]\nretries = 2"), &["`retries`"]);
}

#[test]
fn paths_that_collide_are_refused() {
    let two =
        |name: &str, path: &str| component(&format!("[[component]]\nname = \"{name}\"\npath = \"{path}\"\n"));
    refused(&two("a", "/opt/b"), &["component \"a\": name", "already"]);
    refused(&two("b", "/opt/a"), &["component \"b\": path", "component `a` too"]);
    refused(&two("b", "/opt/.upfleet/a/versions/x"), &["store of kept versions"]);
    refused(&two("b", "/opt/a/b"), &["inside the path"]);
    refused(&two("b", "opt/b"), &["relative"]);
    refused(&two("b", "/opt/../b"), &["`..`"]);
    refused(&two("b", "/var/lib/upfleet-agent/b"), &["agent's own directory"]);
}

#[test]
fn problems_of_all_files_are_shown_at_once() {
    let dir = dir(&[
        (MAIN_FILE, "state_dir = \"x\""),
        ("conf.d/a.toml", "nope = 1"),
        ("conf.d/b.toml", "[[component]]\nname = \"b\"\npath = \"b\""),
    ]);
    let problems = check_config(dir.path());
    let files: Vec<_> = problems.iter().map(|p| p.file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(files, ["a.toml", "agent.toml", "b.toml"], "{problems:?}");
}

#[test]
fn the_documented_example_is_valid() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/configuration.md");
    let page = fs::read_to_string(page).unwrap();
    let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = dir(&[(MAIN_FILE, example)]);
    assert_eq!(check_config(dir.path()), []);
}

const FILES: &str = r#"
[[component]]
name = "site"
path = "/srv/site"
kind = "files"
mode = "0750"
[component.files]
swap = "exchange"
[component.reload]
type = "signal"
signal = "SIGUSR2"
pid_file = "/run/php-fpm.pid"
[[component]]
name = "plugins"
path = "/srv/plugins"
kind = "files"
[component.reload]
type = "http"
url = "http://127.0.0.1:8080/-/reload"
body_contains = "ok"
"#;

#[test]
fn directories_and_reloads_are_read() {
    let dir = dir(&[(MAIN_FILE, FILES)]);
    let config = Config::load(dir.path()).unwrap();
    let site = config.component(&"site".parse().unwrap()).unwrap();
    assert_eq!(site.files.unwrap().swap, SwapMode::Exchange);
    let Some(ReloadConfig::Signal { signal, .. }) = &site.reload else { panic!("{:?}", site.reload) };
    assert_eq!(*signal, ReloadSignal::Usr2);
    let plugins = config.component(&"plugins".parse().unwrap()).unwrap();
    assert_eq!(plugins.files.unwrap_or_default().swap, SwapMode::Link);
    let Some(ReloadConfig::Http { method, .. }) = &plugins.reload else { panic!("{:?}", plugins.reload) };
    assert_eq!(method, "POST");
    for component in &config.components {
        let text = toml::to_string(component).unwrap();
        assert_eq!(toml::from_str::<ComponentConfig>(&text).unwrap(), *component, "{text}");
    }
}

#[test]
fn reloads_and_directories_that_cannot_be_are_refused() {
    for (lines, said) in [
        ("[component.files]", "set kind"),
        ("[component.reload]\ntype = \"signal\"", "there is no process to signal"),
        ("[component.reload]\ntype = \"signal\"\npid_file = \"x\"", "relative"),
        ("[component.reload]\ntype = \"exec\"\ncommand = [\"nginx\"]", "not an absolute path"),
        ("[component.reload]\ntype = \"exec\"\ncommand = []", "`command` is empty"),
        ("[component.reload]\ntype = \"http\"\nurl = \"https://x/\"", "is not usable"),
        ("[component.reload]\ntype = \"http\"\nurl = \"http://x/\"\nmethod = \"A B\"", "not an HTTP method"),
        ("[component.reload]\ntype = \"exec\"\ncommand = [\"/x\"]\ntimeout = \"0s\"", "more than zero"),
        ("[component.reload]\ntype = \"signal\"\nsignal = \"SIGKILL\"", "unknown variant"),
        ("kind = \"files\"\n[component.run]\nmode = \"supervised\"", "names no program"),
    ] {
        let text = format!("[[component]]\nname = \"a\"\npath = \"/opt/a\"\n{lines}");
        let dir = dir(&[(MAIN_FILE, &text)]);
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(said), "{lines}: {error}");
    }
}

const HANDOVER: &str = r#"
[component.run]
mode = "supervised"
activate = "handover"
drain_timeout = "5s"
[[component.run.socket]]
name = "http"
listen = "0.0.0.0:8080"
[[component.run.socket]]
name = "admin"
listen = "/run/a.sock"
mode = "0600"
[[component.probe]]
type = "notify"
"#;

#[test]
fn sockets_and_the_handover_are_read() {
    let dir = dir(&[(MAIN_FILE, &component(HANDOVER))]);
    let config = Config::load(dir.path()).unwrap();
    let run = &config.components[0].run;
    assert_eq!((run.activate, run.drain_signal()), (Activate::Handover, StopSignal::Term));
    assert_eq!(run.sockets[0].listen.to_string(), "0.0.0.0:8080");
    assert_eq!(run.sockets[1].file_mode(), FileMode(0o600));
    let text = toml::to_string(&config.components[0]).unwrap();
    assert_eq!(toml::from_str::<ComponentConfig>(&text).unwrap(), config.components[0], "{text}");
}

#[test]
fn sockets_and_handovers_that_cannot_be_are_refused() {
    let other = |was: &str, now: &str, words: &[&str]| {
        let text = component(HANDOVER);
        assert!(text.contains(was), "{was}");
        refused(&text.replacen(was, now, 1), words);
    };
    other("\"0.0.0.0:8080\"", "\"8080\"", &["is not where a socket can listen", "[::]:8080"]);
    other("0.0.0.0:8080", "0.0.0.0:0", &["name the port"]);
    other("\"/run/a.sock\"\nmode = \"0600\"", "\"127.0.0.1:8080\"", &["run.socket 2 (admin)"]);
    other("name = \"admin\"", "name = \"http\"", &["run.socket 2 (http)", "tells them apart"]);
    other("\"admin\"", "\"Admin\"", &["`Admin` is no name"]);
    other("name = \"http\"", "name = \"http\"\nmode = \"0600\"", &["are for Unix sockets"]);
    other("/run/a.sock", &format!("/run/{}", "a".repeat(103)), &["longer than 107"]);
    other("/run/a.sock", "/opt/../a.sock", &["`..`"]);
    other("\"notify\"", "\"process\"", &["probe", "`{pid}`", "notify"]);
    let exec = |word: &str| format!("\"exec\"\ncommand = [\"/bin/ask\", \"{word}\"]");
    other("\"notify\"", &exec("http://127.0.0.1:8080/"), &["probe", "`{pid}`"]);
    let exact = component(&HANDOVER.replacen("\"notify\"", &exec("/run/shop/{pid}"), 1));
    Config::load(dir(&[(MAIN_FILE, &exact)]).path()).unwrap();
    other("\"5s\"", "\"0s\"", &["run.drain_timeout"]);
    other(
        "[component.run]",
        "kind = \"files\"\n[component.run]\ncommand = [\"{path}/bin/a\"]",
        &["run.activate", "kind = \"files\"", "stopped and started"],
    );
    other(
        "\"handover\"",
        "\"stop-then-start\"\ndrain_signal = \"SIGINT\"",
        &["run.drain_signal", "no effect"],
    );
    let any = format!("{HANDOVER}[[component.probe]]\ntype = \"tcp\"\naddress = \"127.0.0.1:8080\"\n");
    refused(&component(&format!("{any}[component.health]\nrequire = \"any\"")), &["each probe"]);
    let none = "[component.run]\nmode = \"supervised\"\nactivate = \"handover\"\n";
    refused(
        &component(&format!("{none}[[component.probe]]\ntype = \"notify\"")),
        &["[[component.run.socket]]"],
    );
    refused(&component("[component.run]\nactivate = \"handover\""), &["run.activate", "supervised"]);
    let socket = "[[component.run.socket]]\nname = \"a\"\nlisten = \"/run/a\"";
    refused(&component(socket), &["run.socket", "supervised"]);
    let unit = format!("[component.run]\nmode = \"systemd\"\nunit = \"a.service\"\n{socket}");
    refused(&component(&unit), &["a socket unit"]);
    refused(&component("[[component.probe]]\ntype = \"notify\""), &["probe 1 (notify)", "READY=1"]);
    let supervised = format!("[component.run]\nmode = \"supervised\"\n{socket}\n");
    let two = format!("{supervised}[[component]]\nname = \"b\"\npath = \"/opt/b\"\n{supervised}");
    refused(&component(&two), &["component \"b\"", "component `a`", "belongs to one component"]);
}
