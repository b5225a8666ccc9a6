//! Ctrl-C as a flag, so that a lab is taken down in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on Ctrl-C and SIGTERM only set a flag, and every wait of the lab ends with an error; a second one kills.
pub fn stop_on_signals() -> anyhow::Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Order matters: this one looks at the flag before the next one sets it.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(flag)).context("handling signals")?;
        signal_hook::flag::register(signal, Arc::clone(flag)).context("handling signals")?;
    }
    Ok(())
}

/// Whether a signal asked to stop.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::SeqCst))
}

/// An error if a signal asked to stop.
pub(crate) fn check() -> anyhow::Result<()> {
    if interrupted() {
        anyhow::bail!("interrupted");
    }
    Ok(())
}
