//! The controller of the next version, for tests: the same program, built with the feature `next`.

use std::process::ExitCode;

fn main() -> ExitCode {
    upfleet_controller::cli::main(std::env::args_os())
}
