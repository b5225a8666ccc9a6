//! Developer commands: set-up, build, demo, test, lint, bench.
#![forbid(unsafe_code)]

fn main() {}
