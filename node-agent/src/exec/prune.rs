//! Pruning: what is temporary goes, and versions that nothing names. What to keep is said by the step.

use std::{io, path::Path};

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    Place,
    files::{failed, remove_if_there},
};
use crate::{
    crash,
    processes::{self, FileId},
};

pub(super) fn prune(place: &Place, keep: &[Digest]) -> Result<(), Reason> {
    let names: Vec<String> = keep.iter().map(Digest::to_string).collect();
    // A process may be started from a version that nobody names any more, as shims are from the agents before: what runs
    // is kept, and goes with a later pruning.
    let running = processes::executables();
    let runs = |name: &str| {
        let looked = std::fs::symlink_metadata(place.versions().join(name));
        looked.is_ok_and(|metadata| metadata.is_file() && running.contains(&FileId::of(&metadata)))
    };
    let pruned = || -> io::Result<()> {
        remove_if_there(&place.temporary)?;
        empty(&place.incoming(), |_| false)?;
        crash::point("prune.some");
        empty(&place.versions(), |name| names.iter().any(|kept| kept == name) || runs(name))
    };
    pruned().map_err(failed(ReasonCode::StageFailed, "remove old versions from", &place.store))
}

/// Removes the files of a directory that `keep` does not want; one that is not there is empty already.
fn empty(dir: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(&keep) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}
