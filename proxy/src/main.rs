//! `shunt`: the node daemon and its command line.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use shunt_proxy::sys;

fn main() -> ExitCode {
    // Before anything is opened.
    let passed = sys::passed_descriptors();
    cli::main(passed)
}
