//! What the kernel says of a table of legacy iptables, without reading its rules.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const SO_GET_INFO: libc::c_int = 64;
/// The name of a table in `struct ipt_getinfo`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: the name; hooks, where their chains begin and end; the number of entries, and their size.
const INFO: usize = NAME + 4 + 2 * 5 * 4 + 4 + 4;

/// The shape of a table: it differs after nearly every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableInfo([u8; INFO]);

/// The shape of a table in the calling thread's network namespace. The kernel makes a table that was not in use.
pub fn table_info(ipv6: bool, table: &str) -> io::Result<TableInfo> {
    let (family, level) = match ipv6 {
        true => (AddressFamily::Inet6, libc::SOL_IPV6),
        false => (AddressFamily::Inet, libc::SOL_IP),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = [0_u8; INFO];
    let name = info.get_mut(..NAME - 1).and_then(|name| name.get_mut(..table.len()));
    name.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(table.as_bytes());
    let mut length = libc::socklen_t::try_from(INFO).map_err(io::Error::other)?;
    let (value, size) = (info.as_mut_ptr().cast(), std::ptr::from_mut(&mut length));
    // SAFETY: `value` points to the `length` bytes of `info`, and both outlive the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, SO_GET_INFO, value, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(TableInfo(info)) }
}
