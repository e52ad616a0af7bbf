//! The Debian packages as files: what is in them, whose it is, and that the same tree gives the same bytes. What their
//! scripts do is seen where a Debian boots: `dist/test/boot-debian`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{run, skip};

/// Builds all packages around small programs that are no Upfleet: what is in the packages is the same.
fn build(dir: &Path, name: &str) -> PathBuf {
    let (bin, out) = (dir.join("bin"), dir.join(name));
    fs::create_dir_all(&bin).unwrap();
    for program in ["upfleet", "upfleet-agent"] {
        fs::copy("/bin/true", bin.join(program)).unwrap();
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("dist/build-deb"));
    command.args(["--fast", "--version", "9.8.7", "--bin"]).arg(&bin).arg("--out").arg(&out);
    run(command.env("SOURCE_DATE_EPOCH", "1700000000")).success();
    out
}

/// The one package of that name.
fn package(out: &Path, name: &str) -> PathBuf {
    let prefix = format!("{name}_9.8.7_");
    let entries = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix)).unwrap()
}

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    run(Command::new("dpkg-deb").args(arguments).arg(package)).success()
}

/// Mode and owner of each file, by path.
fn listed(package: &Path) -> BTreeMap<String, (String, String)> {
    let text = dpkg_deb(&["--contents"], package);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[5].trim_start_matches('.').to_owned(), (words[0].to_owned(), words[1].to_owned()))
    };
    text.lines().map(line).collect()
}

fn missing() -> Option<&'static str> {
    ["dpkg-deb", "objdump", "strip"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").output().is_err())
}

#[test]
fn the_packages_hold_what_they_should() {
    if let Some(tool) = missing() {
        return skip("the_packages_hold_what_they_should", &format!("{tool} is missing"));
    }
    let dir = tempfile::tempdir().unwrap();
    let out = build(dir.path(), "out");
    let agent = package(&out, "upfleet-agent");
    let files = listed(&agent);
    for (path, mode) in [
        ("/usr/bin/upfleet-agent", "-rwxr-xr-x"),
        ("/usr/lib/systemd/system/upfleet-agent.service", "-rw-r--r--"),
        ("/usr/lib/systemd/system/upfleet-agent-guard.service", "-rw-r--r--"),
        ("/usr/lib/tmpfiles.d/upfleet-agent.conf", "-rw-r--r--"),
        ("/etc/upfleet-agent/agent.toml", "-rw-r--r--"),
        ("/etc/upfleet-agent/conf.d/", "drwxr-xr-x"),
        ("/usr/share/doc/upfleet-agent/copyright", "-rw-r--r--"),
        ("/usr/share/doc/upfleet-agent/changelog.Debian.gz", "-rw-r--r--"),
    ] {
        assert_eq!(files.get(path).map(|(mode, _)| mode.as_str()), Some(mode), "{path}: {files:#?}");
    }
    assert!(files.values().all(|(_, owner)| owner == "root/root"), "{files:#?}");
    // What was changed there by hand stays at an upgrade.
    assert_eq!(dpkg_deb(&["--info"], &agent).matches("conffiles").count(), 1);
    let controller = package(&out, "upfleet-controller");
    assert!(dpkg_deb(&["--field"], &controller).contains("Depends: upfleet (= 9.8.7)"));
    assert!(listed(&controller).contains_key("/usr/lib/sysusers.d/upfleet-controller.conf"));
    assert!(listed(&package(&out, "upfleet")).contains_key("/usr/bin/upfleet"));
    let tree = dir.path().join("tree");
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(&agent).arg(&tree)).success();
    run(Command::new("md5sum").args(["--check", "--quiet", "DEBIAN/md5sums"]).current_dir(&tree)).success();
    run(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&out)).success();
}

#[test]
fn the_same_tree_gives_the_same_packages() {
    if let Some(tool) = missing() {
        return skip("the_same_tree_gives_the_same_packages", &format!("{tool} is missing"));
    }
    let dir = tempfile::tempdir().unwrap();
    let sums =
        ["one", "two"].map(|name| fs::read_to_string(build(dir.path(), name).join("SHA256SUMS")).unwrap());
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0].lines().count(), 4, "three packages and the script: {}", sums[0]);
}

/// No script of the packages or of the installation has a mistake that the shell finds.
#[test]
fn the_scripts_parse() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist");
    let scripts = fs::read_dir(root.join("debian")).unwrap().map(|entry| entry.unwrap().path());
    for script in scripts.chain([root.join("install")]) {
        let checked = run(Command::new("sh").arg("-n").arg(&script));
        assert_eq!(checked.code, 0, "{checked:?}");
    }
}

/// A token never stands in the arguments of a process, where other users of the machine see it.
#[test]
fn the_install_script_takes_no_token_as_an_argument() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist/install");
    for arguments in [["agent", "--token", "upf1.secret"], ["agent", "--token=upf1.secret", "--dry-run"]] {
        let refused = run(Command::new("sh").arg(&script).args(arguments));
        assert_eq!(refused.code, 2);
        assert!(refused.err.contains("--token-file") && !refused.err.contains("secret"), "{refused:?}");
    }
    let nobody = run(Command::new("sh").arg(&script).args(["controller", "--dry-run"]));
    assert!(nobody.code == 2 && nobody.err.contains("--name"), "{nobody:?}");
}
