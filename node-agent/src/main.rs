//! Starts the agent's command line.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "shim", "--dir", dir] => upfleet_agent::shim::main(Path::new(dir)),
        _ => ExitCode::from(2),
    }
}
