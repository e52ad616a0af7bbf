//! The drop-in that brings a patched JVM's options to its unit, and has its files hashed before each start. The one file
//! of systemd's that the agent writes; without patches in force there is none.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use upfleet_domain::id::ComponentId;

use super::process::STACK;
use crate::{exec::Place, supervise::Launch};

/// Its name: late enough to have the last word over an operator's own drop-ins with lower numbers.
const NAME: &str = "50-upfleet.conf";
/// Says in the file what was added to which variable, so that it can be told from the operator's part.
const ADDED: &str = "# added to ";

/// The drop-in of one unit. Everything here blocks.
#[derive(Clone, Debug)]
pub(super) struct DropIn {
    dir: PathBuf,
    place: Place,
    component: ComponentId,
    /// Checks the files of a stack before each start: program and arguments, but for the stack.
    check: Vec<String>,
}

impl DropIn {
    pub(super) fn new(
        units: &Path,
        unit: &str,
        component: &ComponentId,
        path: &Path,
        program: &Path,
    ) -> Self {
        let words = [
            program.display().to_string(),
            "check-stack".to_owned(),
            "--quiet".to_owned(),
            component.to_string(),
            "--path".to_owned(),
            path.display().to_string(),
        ];
        Self {
            dir: units.join(format!("{unit}.d")),
            place: Place::new(component, path),
            component: component.clone(),
            check: words.to_vec(),
        }
    }

    /// Where it lies.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Makes the unit's next start use the stack of `launch`. `own` is what the operator has in that variable. Says
    /// whether anything was changed, so that systemd has to read it.
    pub(super) fn put(&self, launch: &Launch, variable: &str, own: &str) -> io::Result<bool> {
        let path = self.path();
        let present = fs::read_to_string(&path).ok();
        let Some(stack) = launch.stack else {
            return match fs::remove_file(&path) {
                Ok(()) => {
                    // It would come back after a power cut, and name a set that is gone.
                    fs::File::open(&self.dir)?.sync_all()?;
                    // Where the operator has others there, the directory stays.
                    let _ = fs::remove_dir(&self.dir);
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            };
        };
        let value = launch.env.get(variable).map_or("", String::as_str);
        let added = value.strip_prefix(own).unwrap_or(value).trim_start();
        // The very set that the options name: by the next start another may be in force.
        let set = fs::read_link(self.place.current_stack())?;
        let text = self.text(&set, &stack.to_string(), variable, value, added);
        if present.as_deref() == Some(&text) {
            return Ok(false);
        }
        fs::create_dir_all(&self.dir)?;
        // systemd reads what ends in `.conf`, and nothing half-written.
        let temporary = self.dir.join(format!(".{NAME}-tmp"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(&self.dir)?.sync_all()?;
        Ok(true)
    }

    fn text(&self, set: &Path, stack: &str, variable: &str, value: &str, added: &str) -> String {
        let set = ["--set".to_owned(), set.display().to_string()];
        let check: Vec<String> = self.check.iter().chain(&set).map(|word| quoted(word, true)).collect();
        format!(
            "# Written by upfleet-agent for component `{}`, whose patches are in force; removed with them.\n\
             {ADDED}{variable}: {added}\n\
             [Service]\n\
             Environment={}\n\
             Environment={}\n\
             ExecStartPre=+{}\n",
            self.component,
            quoted(&format!("{STACK}={stack}"), false),
            quoted(&format!("{variable}={value}"), false),
            check.join(" "),
        )
    }

    /// The operator's part of a variable that systemd says the unit has.
    pub(super) fn own(&self, variable: &str, environment: &[String]) -> Option<String> {
        let prefix = format!("{variable}=");
        let whole = environment.iter().rev().find_map(|word| word.strip_prefix(&prefix))?;
        let present = fs::read_to_string(self.path()).unwrap_or_default();
        let ours = format!("{ADDED}{variable}: ");
        let added = present.lines().find_map(|line| line.strip_prefix(&ours)).unwrap_or_default();
        let own = whole.strip_suffix(added).filter(|_| !added.is_empty()).unwrap_or(whole).trim();
        (!own.is_empty()).then(|| own.to_owned())
    }
}

/// A word as systemd reads it: `%` are specifiers everywhere, `$` only in commands.
fn quoted(word: &str, command: bool) -> String {
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '%' => text.push_str("%%"),
            '$' if command => text.push_str("$$"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use upfleet_domain::digest::Digest;

    use super::*;
    use crate::config::ComponentConfig;

    #[test]
    fn it_comes_with_patches_and_goes_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let config: ComponentConfig = toml::from_str("name = \"shop\"\npath = \"/opt/shop.jar\"").unwrap();
        let agent = Path::new("/usr/bin/upfleet-agent");
        let path = dir.path().join("100%/shop.jar");
        let drop_in = DropIn::new(dir.path(), "shop.service", &config.name, &path, agent);
        let current = Place::new(&config.name, &path).current_stack();
        fs::create_dir_all(current.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("0a1b", current).unwrap();
        let mut launch = Launch::of(&config, None);
        assert!(!drop_in.put(&launch, "JDK_JAVA_OPTIONS", "").unwrap(), "there was none");
        launch.stack = Some(Digest::of(b"s"));
        launch.env.insert("JDK_JAVA_OPTIONS".into(), "-Da=\"b c\" -javaagent:/x/a.jar=/x/r".into());
        assert!(drop_in.put(&launch, "JDK_JAVA_OPTIONS", "-Da=\"b c\"").unwrap());
        assert!(!drop_in.put(&launch, "JDK_JAVA_OPTIONS", "-Da=\"b c\"").unwrap(), "it is that already");
        let text = fs::read_to_string(drop_in.path()).unwrap();
        assert!(
            text.contains("Environment=\"JDK_JAVA_OPTIONS=-Da=\\\"b c\\\" -javaagent:/x/a.jar=/x/r\"\n"),
            "{text}"
        );
        let check =
            "ExecStartPre=+\"/usr/bin/upfleet-agent\" \"check-stack\" \"--quiet\" \"shop\" \"--path\" ";
        let of = "/100%%/shop.jar\" \"--set\" \"0a1b\"\n";
        assert!(text.contains(check) && text.contains(of), "{text}");
        let effective = ["JDK_JAVA_OPTIONS=-Da=\"b c\" -javaagent:/x/a.jar=/x/r".to_owned()];
        assert_eq!(drop_in.own("JDK_JAVA_OPTIONS", &effective).as_deref(), Some("-Da=\"b c\""));
        assert_eq!(drop_in.own("OTHER", &effective), None);
        launch.stack = None;
        assert!(drop_in.put(&launch, "JDK_JAVA_OPTIONS", "").unwrap());
        assert!(!dir.path().join("shop.service.d").exists(), "nothing is left behind");
    }
}
