//! Every agent returns at once.

use super::Bench;
use crate::report::Report;

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(_bench: &Bench, _args: &Args) -> anyhow::Result<Report> {
    anyhow::bail!("this row is not measured yet")
}
