//! The context that leads to a dev fleet, and its removal when the fleet ends, by whatever cause.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::cli::{
    config::{self, Config},
    failure::Result,
};

/// The context's name.
pub(super) const CONTEXT: &str = "dev";
/// Where the janitor finds what to forget.
const NOTE: &str = "context.json";

/// Where the context was written, and what was selected before.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct DevContext {
    /// The file of contexts.
    pub config: PathBuf,
    /// Selected before; selected again at the end.
    pub selected_before: Option<String>,
}

impl DevContext {
    /// Writes it down for the janitor.
    pub(super) fn note(&self, root: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).expect("a path and a name have a JSON form");
        Ok(config::write_private(&root.join(NOTE), &text)?)
    }

    /// Removes the context, unless another fleet has taken its name meanwhile.
    ///
    /// A context that leads nowhere is a nuisance, not an error: what fails here is left.
    pub(super) fn forget(&self, root: &Path) {
        let Ok(mut config) = Config::load_from(self.config.clone()) else { return };
        let Ok((_, context)) = config.resolve(Some(CONTEXT)) else { return };
        let own = fs::read(root.join("controller/ca/ca.crt")).ok();
        if own.is_none() || fs::read(&context.ca).ok() != own {
            return;
        }
        let was_selected = config.current() == Some(CONTEXT);
        let _ = config.remove(CONTEXT);
        if let Some(before) = self.selected_before.as_deref().filter(|name| was_selected && *name != CONTEXT)
        {
            let _ = config.select(before);
        }
    }
}

/// What the janitor does for a fleet that was killed.
pub(super) fn forget(root: &Path) {
    let note =
        fs::read(root.join(NOTE)).ok().and_then(|text| serde_json::from_slice::<DevContext>(&text).ok());
    if let Some(context) = note {
        context.forget(root);
    }
}
