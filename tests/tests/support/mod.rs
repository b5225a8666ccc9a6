//! What the integration tests share.

/// Whether the lab cannot run here; says so loudly.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn skipped() -> bool {
    let missing = lab::missing();
    if let Some(reason) = &missing {
        eprintln!("SKIPPED: {reason}");
    }
    missing.is_some()
}
