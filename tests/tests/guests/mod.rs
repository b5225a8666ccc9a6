//! Tests that run themselves again on another kernel.

use std::io::Write as _;

use anyhow::{Context as _, ensure};
use lab::guest::{Guest, Kernel};

/// A kernel for guests; prints why, if there is none. Past the test harness, which shows what a test prints only if it
/// fails.
pub(crate) fn kernel(name: &str) -> Option<Kernel> {
    match Kernel::find(name) {
        Ok(kernel) => Some(kernel),
        Err(error) => {
            let line = format!("SKIPPED: no guest with the kernel {name}: {error:#}\n");
            // A reader that is gone needs no reason.
            drop(std::io::stderr().write_all(line.as_bytes()));
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
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
    let show = |line: &str| println!("  {kernel_name} | {line}");
    let output = Guest::for_labs(kernel)?.run_tests(&program, &arguments, show)?;
    let has = |words: &str| output.lines.iter().any(|line| line.contains(words));
    // One that is skipped inside counts as passed there, and would prove nothing here.
    let ran = has("1 passed") && !has("SKIPPED");
    ensure!(output.status == 0 && ran, "{name} failed with {kernel_name}:\n{}", output.lines.join("\n"));
    Ok(())
}
