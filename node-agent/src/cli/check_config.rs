//! `upfleet-agent check-config`.

use std::path::Path;

use super::{Done, Exit, Global};
use crate::{
    config::{Config, RunMode, check_config},
    supervise::Supervisor,
};

pub(super) fn run(global: &Global) -> Done {
    let problems = check_config(&global.config);
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if !problems.is_empty() {
        return Ok(Exit::Usage);
    }
    units(&Config::load(&global.config)?)?;
    println!("The configuration in {} is sound.", global.config.display());
    Ok(Exit::Done)
}

/// Whether systemd can run what is said to be run by units. That can change without the configuration, so it is a warning.
fn units(config: &Config) -> Result<(), super::Failure> {
    let by_units = config.components.iter().filter(|component| component.run.mode == RunMode::Systemd);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for component in by_units {
        let program = Path::new("/proc/self/exe");
        let supervisor = Supervisor::build(&config.state_dir, component, program, None);
        let unit = component.run.unit.as_deref().unwrap_or_default();
        match runtime.block_on(supervisor.ready()) {
            Ok(()) => println!("component \"{}\": unit {unit} is there and runs it", component.name),
            Err(fault) => {
                let hint = fault.reason.code.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                eprintln!("warning: component \"{}\": {}{hint}", component.name, fault.reason);
            }
        }
    }
    Ok(())
}
