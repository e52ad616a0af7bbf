//! What a rollout changes, from the command line: a release, a patch stack, both together, or a kept state.
//!
//! ```text
//! upfleet rollout start --patch payments@p10                    apply
//! upfleet rollout start --patch payments@p10 --live             apply in the running JVMs as well
//! upfleet rollout start --component payments --remove-patch 9   take one off
//! upfleet rollout start --component payments --to-patch 9       take off what is above 9
//! upfleet rollout start --component payments --no-patches       take all off
//! upfleet rollout start --release payments@2.0 --with-patch payments@p11 --waive-fix ACME-7
//! ```

use upfleet_api::v1::{self, restore_change::Target, rollout_spec::Change};

use super::{
    failure::{Failure, Result},
    resource,
};

/// What is to change.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct ChangeArgs {
    /// Install this release, `COMPONENT@VERSION`.
    #[arg(long, value_name = "RELEASE", conflicts_with = "restore")]
    pub release: Option<String>,
    /// Go back to a kept state: `previous`, `COMPONENT@VERSION`, or `before:ROLLOUT`.
    #[arg(long, value_name = "STATE")]
    pub restore: Option<String>,
    /// Put this patch release on, `COMPONENT@pNUMBER`; several with commas.
    #[arg(long, value_name = "PATCH", value_delimiter = ',', conflicts_with_all = ["release", "restore", "to_patch", "no_patches"])]
    pub patch: Vec<String>,
    /// Take the patch of this number off, from wherever it is in the stack; several with commas.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = number, conflicts_with_all = ["release", "restore", "to_patch", "no_patches"])]
    pub remove_patch: Vec<u32>,
    /// Take off all patches above this number.
    #[arg(long, value_name = "N", value_parser = number, conflicts_with_all = ["release", "restore", "no_patches"])]
    pub to_patch: Option<u32>,
    /// Take off all patches; with `--release`, install it without any.
    #[arg(long, conflicts_with_all = ["restore", "with_patch"])]
    pub no_patches: bool,
    /// Change the running JVMs instead of restarting them; their next start has the stack as well.
    #[arg(long, conflicts_with_all = ["release", "restore"])]
    pub live: bool,
    /// Remove a patch that another is built on, and record that it is still contained in that one.
    #[arg(long, conflicts_with_all = ["release", "restore"])]
    pub contained: bool,
    /// With `--release`: the patches that the new base carries, `COMPONENT@pNUMBER`; all others retire in the same
    /// switch.
    #[arg(long, visible_alias = "carry", value_name = "PATCH", value_delimiter = ',', requires = "release")]
    pub with_patch: Vec<String>,
    /// With `--release`: do without this fix of a patch that retires; several with commas.
    #[arg(long, value_name = "FIX", value_delimiter = ',', requires = "release")]
    pub waive_fix: Vec<String>,
    /// Permit a lower sequence, where the component's configuration permits it too.
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Try a digest that failed on a node before, or that is quarantined.
    #[arg(long)]
    pub allow_failed_digest: bool,
}

impl ChangeArgs {
    /// What is asked for; `None` where nothing is.
    pub fn change(&self) -> Result<Option<Change>> {
        if let Some(release) = &self.release {
            let release = named(release)?;
            let carries = !self.with_patch.is_empty() || !self.waive_fix.is_empty() || self.no_patches;
            return Ok(Some(if carries {
                Change::BaseWithStack(v1::BaseWithStackChange {
                    release,
                    apply: all_named(&self.with_patch)?,
                    waive_fixes: self.waive_fix.clone(),
                    ..Default::default()
                })
            } else {
                Change::Install(v1::InstallChange { release, ..Default::default() })
            }));
        }
        if let Some(restore) = &self.restore {
            return Ok(Some(Change::Restore(v1::RestoreChange { target: Some(target(restore)?) })));
        }
        let asked = !self.patch.is_empty()
            || !self.remove_patch.is_empty()
            || self.to_patch.is_some()
            || self.no_patches;
        Ok(if asked { Some(Change::Stack(self.stack()?)) } else { None })
    }

    fn stack(&self) -> Result<v1::StackChange> {
        Ok(v1::StackChange {
            apply: all_named(&self.patch)?,
            remove: self.remove_patch.clone(),
            to_number: self.to_patch.unwrap_or(0),
            none: self.no_patches,
            ..Default::default()
        })
    }

    /// Puts what is permitted into a change, also one from a file.
    ///
    /// # Errors
    /// Where a flag does not go with the change.
    pub fn permit(&self, change: &mut Change) -> Result<()> {
        match change {
            Change::Install(install) => {
                install.allow_downgrade |= self.allow_downgrade;
                install.allow_failed_digest |= self.allow_failed_digest;
            }
            Change::BaseWithStack(base) => {
                base.allow_downgrade |= self.allow_downgrade;
                base.allow_failed_digest |= self.allow_failed_digest;
            }
            Change::Stack(stack) => {
                stack.live |= self.live;
                stack.contained |= self.contained;
                stack.allow_failed_digest |= self.allow_failed_digest;
                return Ok(());
            }
            Change::Restore(_) => {}
        }
        if self.live || self.contained {
            return Err(Failure::usage("--live and --contained are for a change of patches only"));
        }
        Ok(())
    }

    /// The component that what is named belongs to.
    pub fn component(&self) -> Option<String> {
        let named = self.release.as_ref().or(self.restore.as_ref()).or(self.patch.first())?;
        let (component, _) = named.trim_start_matches("releases/").split_once('@')?;
        Some(component.to_owned())
    }
}

fn target(restore: &str) -> Result<Target> {
    Ok(match restore {
        "previous" => Target::Previous(v1::PreviousState {}),
        text if text.starts_with("before:") => Target::BeforeRollout(resource("rollouts", &text[7..])),
        text if text.contains('@') => Target::Release(resource("releases", text)),
        text => {
            return Err(Failure::usage(format!("`{text}` is no state to go back to"))
                .hint("write previous, COMPONENT@VERSION or before:ROLLOUT"));
        }
    })
}

fn named(release: &str) -> Result<String> {
    if release.contains('@') {
        return Ok(resource("releases", release));
    }
    Err(Failure::usage(format!("`{release}` is no release: write COMPONENT@VERSION"))
        .hint("upfleet release list"))
}

fn all_named(releases: &[String]) -> Result<Vec<String>> {
    releases.iter().map(|release| named(release)).collect()
}

/// A patch number: `9`, or `p9` as its version says it.
pub(super) fn number(text: &str) -> Result<u32, String> {
    match text.strip_prefix('p').unwrap_or(text).parse() {
        Ok(number @ 1..=upfleet_domain::patch::MAX_NUMBER) => Ok(number),
        _ => Err(format!("a patch number is 1 to {}", upfleet_domain::patch::MAX_NUMBER)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        change: ChangeArgs,
    }

    fn parse(words: &str) -> Result<Change, String> {
        let words = std::iter::once("x").chain(words.split_whitespace());
        let line = <Line as clap::Parser>::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut change =
            line.change.change().map_err(|failure| failure.message)?.ok_or("nothing to change")?;
        line.change.permit(&mut change).map_err(|failure| failure.message)?;
        Ok(change)
    }

    #[test]
    fn stacks_are_changed_as_a_whole() {
        let Ok(Change::Stack(stack)) = parse("--patch app@p10,app@p9 --remove-patch p7,8 --live") else {
            panic!()
        };
        assert_eq!(stack.apply, ["releases/app@p10", "releases/app@p9"]);
        assert_eq!((&stack.remove[..], stack.live, stack.contained), (&[7, 8][..], true, false));
        let Ok(Change::Stack(stack)) = parse("--to-patch 9 --contained") else { panic!() };
        assert_eq!((stack.to_number, stack.contained), (9, true));
        assert!(matches!(parse("--no-patches"), Ok(Change::Stack(v1::StackChange { none: true, .. }))));
        for bad in [
            "--to-patch 9 --no-patches",
            "--patch app@p1 --to-patch 9",
            "--patch p1",
            "--remove-patch 0",
            "--remove-patch x",
            "--live",
            "--release app@2 --live",
            "--with-patch app@p1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_names_the_stack_it_carries() {
        let Ok(Change::BaseWithStack(base)) =
            parse("--release app@2.0 --carry app@p11 --waive-fix ACME-7 --allow-downgrade")
        else {
            panic!()
        };
        assert_eq!(base.apply, ["releases/app@p11"]);
        assert_eq!((base.waive_fixes[0].as_str(), base.allow_downgrade), ("ACME-7", true));
        let bare = parse("--release app@2.0 --no-patches");
        assert!(matches!(bare, Ok(Change::BaseWithStack(base)) if base.apply.is_empty()));
        assert!(matches!(parse("--release app@2.0"), Ok(Change::Install(_))));
    }
}
