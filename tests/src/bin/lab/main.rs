//! What `cargo xtask demo`, `bench` and `dns-compare` run once everything is built; they pass every option and path.
#![forbid(unsafe_code)]

mod bench;
mod dns_compare;
mod guest;

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::demo::{self, DemoOptions};

use bench::BenchOptions;
use dns_compare::CompareOptions;
use guest::GuestOptions;

/// What needs the lab, behind the commands of xtask with the same names.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Show the daemon at work on two nodes made of namespaces.
    Demo(DemoOptions),
    /// Measure, side by side and as ratios.
    Bench(BenchOptions),
    /// Ask any DNS server what ours is tested with, and print what it answers differently.
    DnsCompare(CompareOptions),
    /// Run a test program on another kernel.
    Guest(GuestOptions),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        LabCommand::Demo(options) => demo::run(options),
        LabCommand::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        LabCommand::DnsCompare(options) => dns_compare::run(&options),
        LabCommand::Guest(options) => guest::run(&options),
    };
    result.unwrap_or_else(|error| {
        let title = if stderr().is_terminal() { "\x1b[1merror:\x1b[0m" } else { "error:" };
        say(format!("\n{title} {error:#}"));
        ExitCode::FAILURE
    })
}

/// Prints one line beside the results, as xtask does.
#[expect(clippy::print_stderr, reason = "one line for the developer, in every log setting")]
fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}
