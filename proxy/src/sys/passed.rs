//! Descriptors that a service manager has passed to this process.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first of them (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// They are taken, or this process was given none.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// All descriptors that `LISTEN_FDS` counts, if `LISTEN_PID` is this process; only the first call returns any.
#[must_use]
pub fn passed_descriptors() -> Vec<OwnedFd> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or_default();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let passed = FIRST..FIRST.saturating_add(count);
    let is_open = |fd: &RawFd| {
        // SAFETY: the descriptor is only borrowed for this call, which fails if it is not open.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok()
    };
    // SAFETY: the service manager opened these for this process, which uses them here and, by TAKEN, only once.
    passed.take_while(is_open).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}
