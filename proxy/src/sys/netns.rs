//! Which network namespace the calling thread is in.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Not in every libc crate's list; the same number on all architectures with the generic socket options.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace: never used again while the kernel runs, unlike the inode
/// number of a namespace. Kernel: 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    // Any socket suffices; one of netlink needs no protocol family in the kernel.
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    let (value, size) = (std::ptr::from_mut(&mut cookie).cast(), std::ptr::from_mut(&mut length));
    // SAFETY: `value` points to the `length` bytes of `cookie`, and both outlive the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
