//! State files that can't be obeyed: moved aside and never deleted, and an alarm for as long as they lie there.
//!
//! The alarm is the file itself: it outlasts every restart, and ends when a person has looked and removed it. Nothing
//! here knows what a file means; whoever reads a file decides whether it can be obeyed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use upfleet_domain::{
    id::ComponentId,
    reason::{Reason, ReasonCode},
};

/// What is appended to the name of a file that was moved aside, before a number.
pub(crate) const MARK: &str = ".damaged-";
/// How many moved files of one name are kept.
const MOST: u32 = 1_000;
/// How many alarms one component raises.
const ALARMS: usize = 10;

/// Moves a file, or a directory that lies in a file's place, aside; durable when it returns.
///
/// # Errors
/// Where the directory can't be written, or a thousand damaged ones lie there.
pub fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for number in 1..MOST {
        let aside = path.with_file_name(format!("{name}{MARK}{number}"));
        if aside.symlink_metadata().is_err() {
            fs::rename(path, &aside)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!("{MOST} damaged `{name}` lie there already")))
}

/// Makes room for a file: a directory that lies in its place is moved aside. A file stays.
///
/// # Errors
/// Where it can't be moved.
pub fn clear_directory(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        move_aside(path).map(drop)
    } else {
        Ok(())
    }
}

/// An alarm for each file of the component that was moved aside and still lies there. Blocks.
#[must_use]
pub fn alarms(state_dir: &Path, component: &ComponentId) -> Vec<Reason> {
    let own = |name: &str| name.starts_with(&format!("{component}."));
    let all = |_: &str| true;
    let mut found = aside(&state_dir.join("journals"), own);
    found.extend(aside(&state_dir.join("history"), own));
    found.extend(aside(&state_dir.join("manifests").join(component.as_str()), all));
    found.extend(aside(&state_dir.join("shims").join(component.as_str()), all));
    found.sort();
    found.truncate(ALARMS);
    let alarm = |path: PathBuf| Reason::new(ReasonCode::StateDamaged).with("path", path.display());
    found.into_iter().map(alarm).collect()
}

fn aside(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_aside = |name: &str| name.contains(MARK) && wanted(name);
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_aside))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_aside_is_an_alarm_of_its_component_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (web, web2) = ("web".parse().unwrap(), "web2".parse().unwrap());
        let journals = dir.path().join("journals");
        let shim = dir.path().join("shims/web");
        fs::create_dir_all(&journals).unwrap();
        fs::create_dir_all(shim.join("spec.json")).unwrap();
        for _ in 0..2 {
            fs::write(journals.join("web.journal"), "x").unwrap();
            move_aside(&journals.join("web.journal")).unwrap();
        }
        clear_directory(&shim.join("spec.json")).unwrap();
        clear_directory(&shim.join("record.json")).unwrap();
        let alarms = alarms(dir.path(), &web);
        let paths: Vec<_> = alarms.iter().map(|alarm| alarm.metadata["path"].clone()).collect();
        assert_eq!(paths.len(), 3, "{paths:?}");
        assert!(paths[0].ends_with("web.journal.damaged-1") && paths[1].ends_with("web.journal.damaged-2"));
        assert_eq!(super::alarms(dir.path(), &web2), []);
        for path in paths {
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        assert_eq!(super::alarms(dir.path(), &web), []);
    }
}
