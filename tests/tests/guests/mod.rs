//! Tests that run themselves again on another kernel.

use anyhow::{Context as _, ensure};
use lab::guest::{Guest, Kernel};

/// A kernel for guests; prints why, if there is none.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn kernel(name: &str) -> Option<Kernel> {
    match Kernel::find(name) {
        Ok(kernel) => Some(kernel),
        Err(error) => {
            eprintln!("SKIPPED: no guest with the kernel {name}: {error:#}");
            None
        }
    }
}

/// Runs a test of this test program in a guest, where [`lab::guest::inside`] names the kernel. It fails if the test
/// does not run there, or fails.
#[expect(clippy::print_stdout, reason = "who reads a test wants to see what its guest says")]
pub(crate) fn run_test(kernel: Kernel, name: &str) -> anyhow::Result<()> {
    let kernel_name = kernel.name().to_owned();
    let program = std::env::current_exe().context("finding the running executable")?;
    let output = Guest::for_labs(kernel)?.run_test(&program, name, |line| println!("  {kernel_name} | {line}"))?;
    let ran = output.lines.iter().any(|line| line.contains("1 passed"));
    ensure!(output.status == 0 && ran, "{name} failed with {kernel_name}:\n{}", output.lines.join("\n"));
    Ok(())
}
