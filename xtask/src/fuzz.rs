//! Bounded runs of the fuzzer on the DNS server. Stable Rust is enough: what is fuzzed is compiled with the coverage
//! that the fuzzer follows, and without a sanitizer, as the crate has no unsafe code.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::visible;
use crate::ui::say;
use crate::workspace::Workspace;

/// What `cargo fuzz` gives to the compiler, but for the sanitizer.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What is fuzzed: messages of clients, and replies of upstreams.
const FUZZED: [&str; 2] = ["answer", "upstream"];

/// Each in turn, with the same part of the time. Begins with the corpus in the tree; what is found on the way is kept
/// with the build output.
pub(crate) fn run(workspace: &Workspace, seconds: u32) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        say("   SKIPPED: the fuzz target is built for x86_64 only; elsewhere use: cargo fuzz run answer, and upstream");
        return Ok(());
    }
    let folder = workspace.root().join("dns/fuzz");
    let output = workspace.target().join("fuzz");
    // A target of its own keeps the flags away from build scripts.
    let mut command = workspace.cargo(&["build", "--release", "--target", TARGET, "--manifest-path"]);
    command.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(&output).env("RUSTFLAGS", FLAGS.join(" "));
    visible(command, "building the fuzz targets", "see dns/fuzz")?;
    let each = seconds / u32::try_from(FUZZED.len())?;
    FUZZED.iter().try_for_each(|fuzzed| fuzz(fuzzed, &folder, &output, each))
}

fn fuzz(fuzzed: &str, folder: &Path, output: &Path, seconds: u32) -> Result<()> {
    let found = output.join("found").join(fuzzed);
    fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
    let mut command = Command::new(output.join(TARGET).join("release").join(fuzzed));
    command.arg(format!("-max_total_time={seconds}")).args([
        "-max_len=1500",
        "-timeout=5",
        "-verbosity=0",
        "-print_final_stats=1",
    ]);
    command.arg(format!("-artifact_prefix={}/", output.display()));
    command.arg(&found).arg(folder.join("corpus").join(fuzzed));
    visible(
        command,
        &format!("fuzzing {fuzzed}"),
        &format!("the message that broke it is in target/fuzz; put it into dns/fuzz/corpus/{fuzzed}"),
    )
}
