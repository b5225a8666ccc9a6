//! Descriptors that a service manager has passed to this process.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first of them (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// They are taken, or this process was given none.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// All descriptors that `LISTEN_FDS` counts, if `LISTEN_PID` is this process; only the first call returns any. To be
/// called before anything else is opened: if fewer were passed than are counted, what is opened first has their
/// numbers.
#[must_use]
pub fn passed_descriptors() -> Vec<OwnedFd> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or_default();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let passed = FIRST..FIRST.saturating_add(count);
    // SAFETY: the descriptor came through exec, so nothing in this process owns it, and by TAKEN it is taken only once.
    passed.take_while(|fd| came_through_exec(*fd)).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// Whether it is open and can have come through exec, which those that this process opens cannot: they are to be closed
/// there. From now on this one is too.
fn came_through_exec(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only borrowed for these calls, which fail if it is not open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let stays_open = fcntl(fd, FcntlArg::F_GETFD).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0);
    stays_open && fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_this_process_opened_was_not_passed_to_it() {
        let own = std::fs::File::open("/").unwrap();
        assert!(!came_through_exec(own.as_raw_fd()));
        fcntl(&own, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        assert!(came_through_exec(own.as_raw_fd()), "as it is after an exec");
        assert!(!came_through_exec(own.as_raw_fd()), "it is closed at the next exec");
        assert!(!came_through_exec(RawFd::MAX), "not open");
    }
}
