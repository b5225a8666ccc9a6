//! Developer commands: set-up, build, demo, test, lint, bench.
#![forbid(unsafe_code)]

mod build;
mod command;
mod deploy;
mod fuzz;
mod gate;
mod guest;
mod lab;
mod linker;
mod lint;
mod packages;
mod phases;
mod setup;
mod tidy;
mod toolchain;
mod ui;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::phases::Phases;
use crate::workspace::Workspace;

/// Developer commands of shunt. Each does the steps before it by itself.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Find or install the BPF tool chain and the programs that the lab runs.
    Setup(SetupOptions),
    /// Build the BPF programs, then the binaries that embed them.
    Build(BuildOptions),
    /// Show it at work on two nodes made of namespaces, in half a minute. Needs root.
    Demo(lab::DemoOptions),
    /// Check formatting, lints, documentation, house rules and licences.
    Lint,
    /// The gate: everything above, then the unit tests and the tests in the lab. Needs root.
    Test,
    /// Measure, side by side and as ratios.
    Bench(lab::BenchOptions),
    /// Run tests of the lab on a kernel of Debian, emulated by qemu.
    Guest(guest::GuestOptions),
    /// Ask any DNS server what ours is tested with, and print what it answers differently.
    DnsCompare(lab::CompareOptions),
}

#[derive(Debug, clap::Args)]
struct SetupOptions {
    /// Also what only the tests run: another DNS forwarder, and guests with other kernels.
    #[arg(long)]
    tests: bool,
}

#[derive(Debug, clap::Args)]
struct BuildOptions {
    /// Build what is shipped: the same as --profile release.
    #[arg(long, conflicts_with = "profile")]
    release: bool,
    /// A profile of the root Cargo.toml.
    #[arg(long, default_value = build::LAB_PROFILE)]
    profile: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            ui::say(format!("\n{} {error:#}", ui::bold("error:")));
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    let workspace = Workspace::discover()?;
    match action {
        Action::Setup(options) => {
            if options.tests {
                setup::for_testing(&workspace)?
            } else {
                setup::for_running(&workspace)?
            };
        }
        Action::Build(options) => {
            let profile = if options.release { "release" } else { &options.profile };
            let toolchain = setup::for_building(&workspace)?;
            build::bpf_objects(&workspace, &toolchain)?;
            build::binaries(&workspace, profile)?;
        }
        Action::Demo(options) => return lab::demo(&workspace, &options),
        Action::Lint => {
            let toolchain = setup::for_building(&workspace)?;
            lint::run(&workspace, &toolchain, &mut Phases::new())?;
        }
        Action::Test => return gate::run(&workspace),
        Action::Bench(options) => return lab::bench(&workspace, &options),
        Action::Guest(options) => guest::run(&workspace, &options)?,
        Action::DnsCompare(options) => return lab::dns_compare(&workspace, &options),
    }
    Ok(ExitCode::SUCCESS)
}
