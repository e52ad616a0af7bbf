//! The node agent of the next version, for tests: the same program, built with the feature `next`.

use std::process::ExitCode;

fn main() -> ExitCode {
    upfleet_agent::cli::main()
}
