//! Measurements side by side, as ratios: what design budgets promise is read off here.

use anyhow::{Result, bail};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchOptions {}

/// Runs the measurements.
pub(crate) fn run(_options: &BenchOptions) -> Result<()> {
    bail!("there are no measurements yet")
}
