//! The `upfleet` executable: hands its arguments to the command line and ends with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    upfleet_controller::cli::main(std::env::args_os())
}
