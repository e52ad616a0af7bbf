//! What a configuration may not say, each with what to do instead. Pure: it looks at no file.

use std::{
    collections::BTreeSet,
    path::{Component as Part, Path},
};

use upfleet_domain::release::Kind;

use super::{
    ComponentConfig, Config, JavaAgents, MechanismChoice, ProbeConfig, ProbeKind, ReloadConfig, RunMode,
    load::{Problem, Sourced},
};

/// The name of the directory that holds the components' kept versions, beside each component's path.
const STORE: &str = ".upfleet";

/// Adds what is wrong to `problems`.
pub(super) fn check(main: &Path, config: &Config, components: &[Sourced], problems: &mut Vec<Problem>) {
    let mut add = |key: &str, text: String| {
        problems.push(Problem { file: main.to_owned(), key: key.to_owned(), text });
    };
    for (key, path) in [("state_dir", &config.state_dir), ("run_dir", &config.run_dir)] {
        if let Some(text) = path_problem(path) {
            add(key, text);
        }
    }
    if let Some(controller) = &config.controller
        && let Some(text) = address_problem(&controller.address)
    {
        add("controller.address", text);
    }
    if let Some(proxy) = &config.fetch.proxy
        && !proxy.starts_with("http://")
    {
        add("fetch.proxy", format!("`{proxy}` is not an HTTP proxy; write it like \"http://proxy:3128\""));
    }
    if let Some(extra_ca) = &config.fetch.extra_ca
        && let Some(text) = path_problem(extra_ca)
    {
        add("fetch.extra_ca", text);
    }
    for (index, sourced) in components.iter().enumerate() {
        let mut found = Vec::new();
        check_component(config, &sourced.component, &mut found);
        check_against(&sourced.component, &components[..index], components, &mut found);
        problems.extend(found.into_iter().map(|(key, text)| Problem {
            file: sourced.file.clone(),
            key: format!("component \"{}\": {key}", sourced.component.name),
            text,
        }));
    }
}

pub(super) type Found = Vec<(String, String)>;

pub(super) fn add(found: &mut Found, key: impl Into<String>, text: impl Into<String>) {
    found.push((key.into(), text.into()));
}

fn check_component(config: &Config, component: &ComponentConfig, found: &mut Found) {
    let path = &component.path;
    if let Some(text) = path_problem(path) {
        add(found, "path", text);
    } else if path.file_name().is_none() {
        add(found, "path", format!("`{}` names no file", path.display()));
    } else if path.components().any(|part| part.as_os_str() == STORE) {
        let text = format!(
            "`{}` lies in a store of kept versions (`{STORE}`); give the component a path outside",
            path.display()
        );
        add(found, "path", text);
    } else if let Some(own) =
        // The agent's own file lies best where nobody else writes.
        [&config.state_dir, &config.run_dir]
            .into_iter()
            .find(|dir| path.starts_with(dir) && component.kind != Kind::Agent)
    {
        let text = format!("`{}` lies in the agent's own directory `{}`", path.display(), own.display());
        add(found, "path", text);
    }
    if !(1..=100).contains(&component.keep) {
        add(found, "keep", format!("{} is not between 1 and 100", component.keep));
    }
    check_run(component, found);
    super::unit::check(component, found);
    super::socket::check(component, found);
    super::itself::check(component, found);
    check_files(component, found);
    if let Some(text) = component.reload.as_ref().and_then(|reload| reload_problem(component, reload)) {
        add(found, "reload", text);
    }
    for (index, probe) in component.probes.iter().enumerate() {
        let key = format!("probe {} ({})", index + 1, probe.kind.name());
        if let Some(text) = probe_problem(component, probe) {
            add(found, key, text);
        }
    }
    if component.health.start_deadline.is_zero() {
        add(found, "health.start_deadline", "is zero; no version could become healthy in that time");
    }
    check_timeouts(component, found);
    check_jvm(component, found);
}

fn check_jvm(component: &ComponentConfig, found: &mut Found) {
    let Some(jvm) = &component.jvm else { return };
    let agents = jvm.java_agents == JavaAgents::Allowed;
    if jvm.mechanism == MechanismChoice::JavaAgent && !agents {
        let text = "is \"java-agent\", which jvm.java_agents forbids; allow them or choose another mechanism";
        add(found, "jvm.mechanism", text);
    }
    if jvm.mechanism == MechanismChoice::PatchModule
        && jvm.module.is_none()
        && component.run.command.is_empty()
    {
        add(found, "jvm.module", "is needed for \"patch-module\", as there is no command that says it");
    }
    let name = &jvm.options_variable;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        add(found, "jvm.options_variable", format!("`{name}` is not a variable's name"));
    }
    let modules =
        |name: &str| name.split('.').all(|part| !part.is_empty() && !part.contains([':', '=', '/', ' ']));
    if let Some(module) = jvm.module.as_deref().filter(|module| !modules(module)) {
        add(found, "jvm.module", format!("`{module}` is not a module's name"));
    }
    for path in &jvm.class_path {
        if let Some(text) = path_problem(path) {
            add(found, "jvm.class_path", text);
        } else if path.as_os_str().as_encoded_bytes().iter().any(|byte| b":*".contains(byte)) {
            add(
                found,
                "jvm.class_path",
                format!("`{}` holds `:` or `*`; name each jar by itself", path.display()),
            );
        }
    }
}

fn check_run(component: &ComponentConfig, found: &mut Found) {
    let run = &component.run;
    if run.mode == RunMode::None {
        let unused = [
            ("run.command", !run.command.is_empty()),
            ("run.env", !run.env.is_empty()),
            ("run.cwd", run.cwd.is_some()),
        ];
        for (key, _) in unused.iter().filter(|(_, set)| *set) {
            add(found, *key, "has no effect as nothing is run; set run.mode = \"supervised\" or remove it");
        }
        return;
    }
    if run.mode == RunMode::Systemd {
        return;
    }
    if let Some(program) = run.command.first() {
        if !is_absolute(program) {
            let text = format!("`{program}` is not an absolute path; nothing is looked up in PATH");
            add(found, "run.command", text);
        }
        if !run.command.iter().any(|word| word.contains("{path}")) {
            add(found, "run.command", "does not name the component; use `{path}` where its path belongs");
        }
    }
    if run.command.iter().any(|word| word.contains('\0')) {
        add(found, "run.command", "holds a NUL character");
    }
    if let Some(key) = run.env.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        add(found, "run.env", format!("`{key}` is not a variable's name"));
    }
    if let Some(text) = run.cwd.as_deref().and_then(path_problem) {
        add(found, "run.cwd", text);
    }
    if run.restart_delay.is_zero() || run.restart_delay > run.restart_delay_max {
        add(found, "run.restart_delay", "has to be more than zero and at most run.restart_delay_max");
    }
    if run.memory_max.is_some_and(|most| most < 1024 * 1024) {
        add(found, "run.memory_max", "is less than 1MiB; \"\" means no limit");
    }
    if run.log_size < 64 * 1024 {
        add(found, "run.log_size", "is less than 64KiB");
    }
}

/// Whether a program is named by its place: `{path}` is one.
fn is_absolute(program: &str) -> bool {
    program.starts_with('/') || program == "{path}" || program.starts_with("{path}/")
}

fn check_files(component: &ComponentConfig, found: &mut Found) {
    let directory = component.kind == Kind::Files;
    if component.files.is_some() && !directory {
        add(
            found,
            "files",
            "has no effect on a component of another kind; set kind = \"files\" or remove it",
        );
    }
    let program = component.run.command.first().map(String::as_str);
    if directory && component.run.mode == RunMode::Supervised && matches!(program, None | Some("{path}")) {
        let text = "names no program, as the component is a directory; write it like [\"{path}/bin/server\"]";
        add(found, "run.command", text);
    }
}

fn reload_problem(component: &ComponentConfig, reload: &ReloadConfig) -> Option<String> {
    match reload {
        ReloadConfig::Signal { pid_file: None, .. } if component.run.mode == RunMode::None => Some(
            "there is no process to signal; set `pid_file`, or run.mode = \"supervised\", or use another type"
                .to_owned(),
        ),
        ReloadConfig::Signal { pid_file, .. } => pid_file.as_deref().and_then(path_problem),
        ReloadConfig::Exec { timeout, .. } | ReloadConfig::Http { timeout, .. } if timeout.is_zero() => {
            Some("`timeout` has to be more than zero".to_owned())
        }
        ReloadConfig::Exec { command, .. } => match command.first() {
            Some(program) if is_absolute(program) => None,
            Some(program) => {
                Some(format!("`{program}` is not an absolute path; nothing is looked up in PATH"))
            }
            None => Some("`command` is empty".to_owned()),
        },
        ReloadConfig::Http { method, .. } if method.parse::<http::Method>().is_err() => {
            Some(format!("`{method}` is not an HTTP method; write it like \"POST\""))
        }
        ReloadConfig::Http { url, .. } => url_problem(url),
    }
}

fn check_timeouts(component: &ComponentConfig, found: &mut Found) {
    let timeouts = &component.timeouts;
    let all = [
        ("preflight", timeouts.preflight),
        ("fetch", timeouts.fetch),
        ("verify", timeouts.verify),
        ("activate", timeouts.activate),
        ("rollback", timeouts.rollback),
    ];
    for (key, _) in all.iter().filter(|(_, span)| span.is_zero()) {
        add(found, format!("timeouts.{key}"), "is zero");
    }
    if component.run.mode != RunMode::None {
        let stop = component.run.stop_timeout;
        for (key, span) in &all[3..] {
            if !span.is_zero() && *span <= stop {
                let text = format!(
                    "{} leaves no time after run.stop_timeout ({})",
                    humantime::format_duration(*span),
                    humantime::format_duration(stop)
                );
                add(found, format!("timeouts.{key}"), text);
            }
        }
    }
}

fn probe_problem(component: &ComponentConfig, probe: &ProbeConfig) -> Option<String> {
    if probe.timeout.is_zero() || probe.interval.is_zero() {
        return Some("`interval` and `timeout` have to be more than zero".to_owned());
    }
    if probe.successes == 0 || probe.failures == 0 {
        return Some("`successes` and `failures` have to be 1 or more".to_owned());
    }
    match &probe.kind {
        ProbeKind::Process if component.run.mode == RunMode::None => Some(
            "there is no process to look at; set run.mode = \"supervised\" or use another type".to_owned(),
        ),
        ProbeKind::Systemd if component.run.mode != RunMode::Systemd => {
            Some("there is no unit to look at; set run.mode = \"systemd\" or use another type".to_owned())
        }
        ProbeKind::Notify if component.run.mode != RunMode::Supervised => Some(
            "only a process that the agent runs itself can tell it READY=1; set run.mode = \"supervised\", or \
             type = \"systemd\" with a unit of Type=notify"
                .to_owned(),
        ),
        ProbeKind::Process | ProbeKind::Systemd | ProbeKind::Notify => None,
        ProbeKind::Exec { command } => match command.first() {
            Some(program) if is_absolute(program) => None,
            Some(program) => {
                Some(format!("`{program}` is not an absolute path; nothing is looked up in PATH"))
            }
            None => Some("`command` is empty".to_owned()),
        },
        ProbeKind::Http { url, .. } => url_problem(url),
        ProbeKind::Tcp { address } | ProbeKind::Grpc { address, .. } => address_problem(address),
    }
}

fn url_problem(url: &str) -> Option<String> {
    let sound = url.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.authority().is_some_and(|authority| {
                !authority.as_str().contains('@') && authority.port().is_none_or(|port| port.as_u16() != 0)
            })
    });
    (!sound).then(|| format!("`{url}` is not usable; write it like \"http://127.0.0.1:8080/healthz\""))
}

fn address_problem(address: &str) -> Option<String> {
    let sound = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    (!sound).then(|| format!("`{address}` is not an address; write it like \"127.0.0.1:8080\""))
}

pub(super) fn path_problem(path: &Path) -> Option<String> {
    if !path.is_absolute() {
        return Some(format!("`{}` is relative; write the whole path, beginning with `/`", path.display()));
    }
    let plain = path.components().all(|part| matches!(part, Part::RootDir | Part::Normal(_)));
    (!plain).then(|| format!("`{}` holds `..`; write the path without it", path.display()))
}

/// What concerns two components.
fn check_against(own: &ComponentConfig, earlier: &[Sourced], all: &[Sourced], found: &mut Found) {
    for other in earlier {
        super::unit::check_against(own, &other.component, found);
        super::socket::check_against(own, &other.component, found);
        super::itself::check_against(own, &other.component, found);
        if other.component.name == own.name {
            let text = format!("is declared in `{}` already; rename or remove one", other.file.display());
            add(found, "name", text);
        } else if other.component.path == own.path {
            let text = format!(
                "`{}` is the path of component `{}` too; a path belongs to one component",
                own.path.display(),
                other.component.name
            );
            add(found, "path", text);
        } else if own.path.starts_with(&other.component.path) || other.component.path.starts_with(&own.path) {
            let text = format!(
                "lies inside the path of component `{}`, or the other way round",
                other.component.name
            );
            add(found, "path", text);
        }
    }
    let names: BTreeSet<_> = all.iter().map(|sourced| &sourced.component.name).collect();
    for other in &own.exclusive_with {
        if *other == own.name {
            add(found, "exclusive_with", "names the component itself");
        } else if !names.contains(other) {
            add(found, "exclusive_with", format!("`{other}` is not declared"));
        }
    }
}
