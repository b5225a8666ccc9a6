//! What the integration tests share.

/// Whether the lab cannot run here; prints why, so that a skipped test is seen.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn skipped() -> bool {
    let missing = lab::missing();
    if let Some(reason) = &missing {
        eprintln!("SKIPPED: {reason}");
    }
    missing.is_some()
}
