//! Removing a component's file, where nothing was installed before. Its kept version stays until it is pruned.

use upfleet_domain::reason::{Reason, ReasonCode};

use super::{
    Place,
    files::{failed, remove_if_there, sync_dir},
};
use crate::crash;

pub(super) fn remove(place: &Place) -> Result<(), Reason> {
    remove_if_there(&place.path).map_err(failed(ReasonCode::SwapFailed, "remove", &place.path))?;
    crash::point("remove.unlinked");
    sync_dir(&place.parent).map_err(failed(ReasonCode::SwapFailed, "write to the disk", &place.parent))
}
