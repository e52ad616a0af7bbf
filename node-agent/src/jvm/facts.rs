//! What a mechanism is chosen by: how a component's JVM is started, which Java that is, what the jar says that is run.
//!
//! Reads the component's own configuration and files only; what runs is not looked at.

use std::{fs, path::Path};

use upfleet_domain::{
    jvm::{
        command::{self, CommandError, Main},
        manifest::Manifest,
        mechanism::{MainJar, PatchJar, Start},
    },
    reason::{Reason, ReasonCode},
};

use super::request::LayerView;
use crate::{
    config::{ComponentConfig, RunMode},
    exec::jar::Jar,
    supervise::Launch,
};

/// The longest file of options that is read, in bytes.
const MAX_OPTIONS: u64 = 1 << 20;
/// Main attributes that have an effect only in the jar that is run.
const LAUNCHER_ATTRIBUTES: [&str; 4] =
    ["Launcher-Agent-Class", "Add-Exports", "Add-Opens", "Enable-Native-Access"];

/// How the component's JVM is started.
///
/// # Errors
/// [`ReasonCode::JvmUnknown`] where the command is java's but can't be read.
pub fn start(config: &ComponentConfig, launch: &Launch, java: Option<u16>) -> Result<Start, Reason> {
    match (&config.run.mode, &config.run.unit) {
        (RunMode::None, _) => return Ok(Start::Elsewhere),
        // Its command is the operator's and stays as it is: options reach it by a variable.
        (RunMode::Systemd, unit) => return Ok(Start::Script(unit.clone().unwrap_or_default())),
        (RunMode::Supervised, _) => {}
    }
    let file = |path: &str| read_options(&launch.cwd.join(path)).map_err(|error| error.to_string());
    match command::read(&launch.argv, &launch.env, java, &file) {
        Ok(command) => Ok(Start::Java(Box::new(command))),
        Err(CommandError::NotJava(program)) => Ok(Start::Script(program)),
        Err(error) => Err(Reason::new(ReasonCode::JvmUnknown).with("problem", error)),
    }
}

fn read_options(path: &Path) -> std::io::Result<String> {
    if fs::metadata(path)?.len() > MAX_OPTIONS {
        return Err(std::io::Error::other(format!("it is longer than {MAX_OPTIONS} bytes")));
    }
    fs::read_to_string(path)
}

/// The version of the Java that a command calls, or that `JAVA_HOME` of its environment names.
#[must_use]
pub fn java(launch: &Launch) -> Option<u16> {
    let program = launch.argv.first()?;
    if command::is_java(program) {
        let program = fs::canonicalize(launch.cwd.join(program)).ok()?;
        return release(program.parent()?.parent()?);
    }
    release(Path::new(launch.env.get("JAVA_HOME")?))
}

/// What a JDK says of itself in its file `release`; Java 8 keeps that one directory further up from its `jre`.
fn release(home: &Path) -> Option<u16> {
    let candidates = [home.join("release"), home.parent()?.join("release")];
    let text = candidates.iter().find_map(|path| fs::read_to_string(path).ok());
    let Some(text) = text else {
        // Distributions leave the file out of Java 8, which alone has this one.
        return [home, home.parent()?].iter().any(|home| home.join("lib/rt.jar").exists()).then_some(8);
    };
    let line = text.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    feature(line.trim_matches('"'))
}

/// `1.8.0_402` is 8, `17.0.15` is 17.
#[must_use]
pub fn feature(version: &str) -> Option<u16> {
    let mut parts = version.split(['.', '-', '+', '_']).map(str::parse);
    match parts.next()?.ok()? {
        1 => parts.next()?.ok(),
        feature => Some(feature),
    }
}

/// The jar that is run, or the component itself where that can't be told, and what it says.
#[must_use]
pub fn main_jar(config: &ComponentConfig, file: &Path, start: &Start, launch: &Launch) -> Option<MainJar> {
    let path = match start {
        Start::Java(command) => match &command.main {
            Main::Jar(jar) => launch.cwd.join(jar),
            // Spring Boot's launcher by its class: what it reads is the first of the class path.
            Main::Class(_) => launch.cwd.join(command.class_path_entries().first()?),
            Main::Module { .. } | Main::Source(_) => return None,
        },
        Start::Script(_) | Start::Elsewhere => config.path.clone(),
    };
    let path = if path == config.path { file.to_owned() } else { path };
    let jar = Jar::open(&path).ok()?;
    let mut found = of_manifest(jar.manifest());
    found.loader_path = launch.env.get("LOADER_PATH").cloned().or(found.loader_path);
    Some(found)
}

fn of_manifest(manifest: &Manifest) -> MainJar {
    let launcher = |name: &&str| Some(((*name).to_owned(), manifest.main(name)?.to_owned()));
    MainJar {
        main_class: manifest.main("Main-Class").map(|name| name.trim().to_owned()),
        loader_path: manifest.main("Loader-Path").map(|path| path.trim().to_owned()),
        launcher: LAUNCHER_ATTRIBUTES.iter().filter_map(launcher).collect(),
    }
}

/// What a patch's jar is like. One that can't be read (it is not fetched yet) says what its release says.
#[must_use]
pub fn patch_jar(layer: &LayerView) -> PatchJar {
    let (number, module) = (layer.number, layer.spec.module.clone());
    let versioned = |name: &&str| name.starts_with("META-INF/versions/") && !name.ends_with('/');
    let resource = layer.spec.resources.first().map(|resource| resource.name.clone());
    match Jar::open(&layer.jar) {
        Ok(jar) => {
            let names = jar.names();
            let versioned = names.iter().map(String::as_str).find(versioned).map(str::to_owned);
            let multi_release = jar.manifest().is_multi_release();
            PatchJar { number, versioned, resource, multi_release, module }
        }
        Err(_) => {
            let names = layer.spec.resources.iter().map(|resource| resource.name.as_str());
            let versioned = { names }.find(versioned).map(str::to_owned);
            PatchJar { number, versioned, resource, multi_release: true, module }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_what_a_jdk_says() {
        for (text, version) in [
            ("1.8.0_402", Some(8)),
            ("17.0.15", Some(17)),
            ("25", Some(25)),
            ("26-ea", Some(26)),
            ("x", None),
        ] {
            assert_eq!(feature(text), version, "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(release(&dir.path().join("jre")), None);
        fs::write(dir.path().join("release"), "IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"11.0.2\"\n").unwrap();
        assert_eq!((release(dir.path()), release(&dir.path().join("jre"))), (Some(11), Some(11)));
    }
}
