//! The sockets of the bundled DNS in the file descriptor store of the service manager (systemd's `FDSTORE`): it keeps
//! them while no daemon runs, so queries wait for the next one and do not fail.
//!
//! Own code and no crate: two messages and two variables of sd_notify(3) and sd_listen_fds(3).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket};

/// The name that our sockets have in the store.
const NAME: &str = "shunt-dns";
/// Ours are the only ones with the name: forget those of an earlier start that are not open any more.
const FORGET: &str = "FDSTOREREMOVE=1\nFDNAME=shunt-dns";
/// Without polling: an error of a client's address would make systemd drop the socket. Kernel: systemd 246.
const KEEP: &str = "FDSTORE=1\nFDNAME=shunt-dns\nFDPOLL=0";
/// The kernel passes at most 253 in one message.
const AT_ONCE: usize = 250;

/// What the service manager says in the environment of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manager {
    /// `NOTIFY_SOCKET`.
    notify: Option<OsString>,
    /// `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`.
    listen: [Option<String>; 3],
}

impl Manager {
    /// From the environment.
    #[must_use]
    pub fn of_environment() -> Self {
        let listen = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| std::env::var(name).ok());
        Self { notify: std::env::var_os("NOTIFY_SOCKET"), listen }
    }

    /// The sockets of the bundled DNS that it has kept, among the descriptors that it has passed.
    #[must_use]
    pub fn kept(&self, passed: Vec<OwnedFd>) -> Vec<OwnedFd> {
        let positions = self.positions(std::process::id());
        passed.into_iter().zip(0..).filter_map(|(fd, at)| positions.contains(&at).then_some(fd)).collect()
    }

    /// The positions of our sockets among those that are passed to the process `pid`.
    fn positions(&self, pid: u32) -> Vec<usize> {
        let [for_pid, count, names] = &self.listen;
        let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<usize>().ok());
        if for_pid.as_ref().and_then(|text| text.parse().ok()) != Some(pid) {
            return Vec::new();
        }
        let names = names.as_deref().unwrap_or_default().split(':');
        let names = names.take(number(count).unwrap_or_default()).enumerate();
        names.filter(|(_, name)| *name == NAME).map(|(at, _)| at).collect()
    }

    /// Asks it to keep exactly these sockets. False if there is no service manager that could.
    pub fn keep(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let Some(path) = self.notify.as_ref().map(|path| path.as_bytes()) else { return Ok(false) };
        let address = match path {
            [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
            [b'/', ..] => UnixAddr::new(path)?,
            // Such as vsock, over which no descriptors can be passed.
            _ => return Ok(false),
        };
        let from = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let send = |text: &str, sockets: &[BorrowedFd<'_>]| {
            let raw: Vec<i32> = sockets.iter().map(|fd| fd.as_raw_fd()).collect();
            let passed = [ControlMessage::ScmRights(&raw)];
            let passed = if raw.is_empty() { &[][..] } else { &passed };
            let text = [io::IoSlice::new(text.as_bytes())];
            sendmsg(from.as_raw_fd(), &text, passed, MsgFlags::MSG_NOSIGNAL, Some(&address)).map(drop)
        };
        send(FORGET, &[])?;
        for some in sockets.chunks(AT_ONCE) {
            send(KEEP, some)?;
        }
        Ok(!sockets.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[track_caller]
    fn check(pid: &str, count: &str, names: &str, wanted: &[usize]) {
        let listen = [pid, count, names].map(|text| (!text.is_empty()).then(|| text.to_owned()));
        assert_eq!(Manager { notify: None, listen }.positions(7), wanted);
    }

    #[test]
    fn only_our_sockets_that_are_meant_for_this_process_are_taken() {
        check("7", "2", "shunt-dns:shunt-dns", &[0, 1]);
        check("7", "3", "other:shunt-dns:shunt-dns", &[1, 2]);
        check("7", "1", "shunt-dns:shunt-dns", &[0]);
        check("8", "2", "shunt-dns:shunt-dns", &[]); // a child of the one that they were passed to
        check("7", "2", "", &[]);
        check("7", "", "shunt-dns", &[]);
        check("", "", "", &[]);
    }

    #[test]
    fn those_of_before_are_forgotten_before_new_ones_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 256];
        let mut heard = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let ours = Manager { notify: Some(path.into_os_string()), ..Manager::default() };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(ours.keep(&[std::os::fd::AsFd::as_fd(&socket)]).unwrap());
        assert_eq!((heard(), heard()), (FORGET.to_owned(), KEEP.to_owned()));
        assert!(!ours.keep(&[]).unwrap());
        assert_eq!(heard(), FORGET);
        assert!(!Manager::default().keep(&[]).unwrap(), "no service manager");
        let elsewhere = Manager { notify: Some("vsock:2:9".into()), ..Manager::default() };
        assert!(!elsewhere.keep(&[]).unwrap());
    }
}
