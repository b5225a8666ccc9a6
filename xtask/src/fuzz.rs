//! A bounded run of the fuzzer on the DNS server. Stable Rust is enough: the fuzz target is compiled with the coverage
//! that the fuzzer follows, and without a sanitizer, as the crate has no unsafe code.

use std::fs;

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

/// Begins with the corpus in the tree; what is found on the way is kept with the build output.
pub(crate) fn run(workspace: &Workspace, seconds: u32) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        say("   SKIPPED: the fuzz target is built for x86_64 only; elsewhere use: cargo fuzz run answer");
        return Ok(());
    }
    let folder = workspace.root().join("dns/fuzz");
    let output = workspace.target().join("fuzz");
    let found = output.join("found");
    fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
    // A target of its own keeps the flags away from build scripts.
    let mut command = workspace.cargo(&["build", "--release", "--target", TARGET, "--manifest-path"]);
    command.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(&output).env("RUSTFLAGS", FLAGS.join(" "));
    visible(command, "building the fuzz target", "see dns/fuzz")?;
    let mut command = std::process::Command::new(output.join(TARGET).join("release/answer"));
    command.arg(format!("-max_total_time={seconds}")).args([
        "-max_len=1500",
        "-timeout=5",
        "-verbosity=0",
        "-print_final_stats=1",
    ]);
    command.arg(format!("-artifact_prefix={}/", output.display())).arg(&found).arg(folder.join("corpus/answer"));
    visible(command, "fuzzing", "the message that broke it is in target/fuzz; put it into dns/fuzz/corpus/answer")
}
