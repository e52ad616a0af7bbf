//! The node agent's program: hands over to the library's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    upfleet_agent::cli::main()
}
