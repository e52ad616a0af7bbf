//! Removing a component's file, where nothing was installed before. Its kept version stays until it is pruned.
//!
//! Only the named version is removed: whatever else lies there is somebody's.

use std::io::ErrorKind;

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    Place,
    files::{failed, hash_file, remove_if_there, sync_dir},
};
use crate::crash;

pub(super) fn remove(place: &Place, digest: Option<Digest>) -> Result<(), Reason> {
    match hash_file(&place.path) {
        Ok(installed) if Some(installed) != digest => {
            let recorded = digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
            return Err(Reason::new(ReasonCode::Drifted)
                .with("actual", installed)
                .with("recorded", recorded));
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed(ReasonCode::SwapFailed, "read", &place.path)(error));
        }
        _ => {}
    }
    remove_if_there(&place.path).map_err(failed(ReasonCode::SwapFailed, "remove", &place.path))?;
    crash::point("remove.unlinked");
    sync_dir(&place.parent).map_err(failed(ReasonCode::SwapFailed, "write to the disk", &place.parent))
}
