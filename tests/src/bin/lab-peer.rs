//! A server or client placed inside a node or pod of the lab.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

#[expect(clippy::print_stderr, reason = "one line with the error, in every log setting")]
fn main() -> ExitCode {
    match lab::peer::Peer::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
