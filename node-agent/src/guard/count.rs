//! Counting the starts of a new agent. Whoever starts the agent calls this first, from the last good executable, so that an
//! agent which can't even be executed is counted as well. Where the starts are used up, the old agent lies in its place
//! again when this returns, and it is the old one that is started.

use std::path::Path;

use upfleet_domain::guard::{self, Verdict};

use super::{GuardError, restore};
use crate::{crash, itself::marker::Markers};

/// Counts one start of the agent whose state is in `state_dir`, where its upgrade is under watch. Blocks.
///
/// # Errors
/// Where the marker can't be read or written; the agent can be started all the same.
pub fn count(state_dir: &Path) -> Result<(), GuardError> {
    let markers = Markers::new(state_dir);
    let failed = |operation: &'static str| {
        let dir = state_dir.display().to_string();
        move |source| GuardError::Marker { operation, dir, source }
    };
    let Some(marker) = markers.read().map_err(failed("read"))? else { return Ok(()) };
    if marker.put_back.is_some() {
        return restored(&marker);
    }
    let lies = marker.executor().inspect().ok().and_then(|lying| lying.installed);
    if lies == Some(marker.old) {
        return Ok(());
    }
    crash::point("guard.counts");
    let words = markers.last_words();
    let counted = markers.change(|marker| {
        marker.starts = marker.starts.saturating_add(1);
        if let Verdict::PutBack(reason) = guard::judge(&marker.rules(), &marker.seen(), None, &words) {
            marker.put_back = Some(reason);
        }
    });
    match counted.map_err(failed("write"))? {
        Some(marker) if marker.put_back.is_some() => {
            crash::point("guard.counted");
            restored(&marker)
        }
        _ => Ok(()),
    }
}

fn restored(marker: &crate::itself::marker::Marker) -> Result<(), GuardError> {
    restore(&marker.executor(), marker.old).map_err(|reason| GuardError::Marker {
        operation: "put the old agent back by",
        dir: marker.path.display().to_string(),
        source: std::io::Error::other(reason.to_string()),
    })
}
