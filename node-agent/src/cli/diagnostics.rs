//! `upfleet-agent diagnostics`: one directory to send to whoever looks into a problem.
//!
//! It holds no keys, no tokens and no values of environment variables: what might be secret is left out rather
//! than searched for.

use std::{
    fs::{self, DirBuilder},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::{Done, Exit, Global, render, status};
use crate::{
    config::{Config, check_config},
    formats,
    identity::Identities,
    supervise::shim_dir,
    transport::now,
};

/// So much of the end of each log is taken.
const LOG_BYTES: u64 = 256 * 1024;

#[derive(Debug, Args)]
pub(super) struct Diagnostics {
    /// Directory to make [default: upfleet-agent-diagnostics-TIME in the present one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Diagnostics {
    pub(super) fn run(self, global: &Global) -> Done {
        let out = self
            .out
            .unwrap_or_else(|| PathBuf::from(format!("upfleet-agent-diagnostics-{}", now().0 / 1000)));
        DirBuilder::new()
            .mode(0o700)
            .create(&out)
            .with_context(|| format!("could not create `{}`", out.display()))?;
        let put = |name: &str, text: &str| {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("could not write `{}`", path.display()))
        };
        put("system.txt", &system())?;
        match Config::load(&global.config) {
            Err(_) => {
                let problems: Vec<String> =
                    check_config(&global.config).iter().map(ToString::to_string).collect();
                put("configuration-problems.txt", &problems.join("\n"))?;
            }
            Ok(config) => {
                put("configuration.json", &serde_json::to_string_pretty(&without_secrets(&config))?)?;
                put("identity.txt", &identity(&config.state_dir))?;
                match status::gather(&config) {
                    Ok(status) => {
                        put("status.json", &serde_json::to_string_pretty(&status)?)?;
                        put("status.txt", &render::status(&status, &status::units(&config), now()))?;
                    }
                    Err(failure) => put("status.txt", &format!("{:#}", failure.error))?,
                }
                copy_journals(&config.state_dir, &out)?;
                for component in &config.components {
                    let shim = shim_dir(&config.state_dir, &component.name);
                    for log in ["output.log", "shim.log"] {
                        if let Some(text) = tail(&shim.join(log)) {
                            put(&format!("{}-{log}", component.name), &text)?;
                        }
                    }
                }
            }
        }
        println!("Wrote {}. It holds no keys; look through it before you send it.", out.display());
        Ok(Exit::Done)
    }
}

fn system() -> String {
    let uname = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    format!(
        "upfleet-agent {}\n{} {} {}\n{}\n{}\n",
        formats::VERSION,
        text(uname.sysname()),
        text(uname.release()),
        text(uname.machine()),
        file("/etc/os-release"),
        file("/proc/loadavg"),
    )
}

/// The configuration as it was read, with the values of environment variables and credentials of a proxy
/// blotted out.
fn without_secrets(config: &Config) -> serde_json::Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let Some(proxy) = value.pointer_mut("/fetch/proxy")
        && proxy.as_str().is_some_and(|proxy| proxy.contains('@'))
    {
        *proxy = "(with credentials)".into();
    }
    for component in value["components"].as_array_mut().into_iter().flatten() {
        if let Some(env) = component.pointer_mut("/run/env").and_then(serde_json::Value::as_object_mut) {
            env.values_mut().for_each(|value| *value = "(left out)".into());
        }
    }
    value
}

fn identity(state_dir: &Path) -> String {
    match Identities::load(state_dir) {
        Ok(identities) => {
            let own = identities.current();
            format!("node {}, certificate good until {} ms since 1970\n", own.node(), own.not_after())
        }
        Err(error) => format!("{}\n", crate::error::chain(&error)),
    }
}

fn copy_journals(state_dir: &Path, out: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(crate::journal::dir(state_dir)) else { return Ok(()) };
    let to = out.join("journals");
    fs::create_dir(&to).with_context(|| format!("could not create `{}`", to.display()))?;
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name()))
            .with_context(|| format!("could not copy `{}`", entry.path().display()))?;
    }
    Ok(())
}

fn tail(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
