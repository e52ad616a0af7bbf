//! `upfleet-agent check-config`.

use super::{Done, Exit, Global};
use crate::config::check_config;

pub(super) fn run(global: &Global) -> Done {
    let problems = check_config(&global.config);
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if problems.is_empty() {
        println!("The configuration in {} is sound.", global.config.display());
        return Ok(Exit::Done);
    }
    Ok(Exit::Usage)
}
