//! A test program in a guest: what `cargo xtask guest` has cargo run in place of the program itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use lab::guest::{Guest, Kernel};

/// Which program, and where.
#[derive(Debug, Args)]
pub(crate) struct GuestOptions {
    /// The kernel.
    #[arg(long)]
    kernel: String,
    /// The test program.
    program: PathBuf,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs it; the exit code is the program's own.
#[expect(clippy::print_stdout, reason = "the output of the program is ours")]
pub(crate) fn run(options: &GuestOptions) -> anyhow::Result<ExitCode> {
    let guest = Guest::for_labs(Kernel::find(&options.kernel)?)?;
    let output = guest.run_tests(&options.program, &options.arguments, |line| println!("{line}"))?;
    Ok(u8::try_from(output.status).map_or(ExitCode::FAILURE, ExitCode::from))
}
