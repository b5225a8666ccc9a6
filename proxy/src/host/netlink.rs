//! Netlink requests that wait for their answer, for work inside other network namespaces, where no runtime is.

pub(crate) mod addresses;

use std::io;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};
use rtnetlink::sys::{Socket, SocketAddr};

/// The kernel answers a dump in pieces of at most 32 KiB.
const RECEIVE: usize = 1 << 16;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// How often a list is read again that changed while the kernel gave it.
const DUMPS: usize = 4;

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(protocol)?, buffer: Vec::with_capacity(RECEIVE), sequence: 0 })
    }

    /// Asks for a list and returns what `read` makes of each entry.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        read: impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMPS {
            let (mut found, mut changed) = (Vec::new(), false);
            self.ask(kind, NLM_F_DUMP, request)?;
            self.answer(|entry| {
                changed |= entry.flags() & NLM_F_DUMP_INTR != 0;
                found.extend(read(entry.payload())?);
                Ok(())
            })?;
            if !changed {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the list changed each time while it was read"))
    }

    /// Sends a command and waits until the kernel has carried it out.
    pub(crate) fn order(&mut self, kind: u16, request: &[u8]) -> io::Result<()> {
        self.ask(kind, NLM_F_ACK, request)?;
        self.answer(|_| Ok(()))
    }

    /// Asks for one thing, and returns what `read` makes of the answer.
    pub(crate) fn get<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        read: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        self.ask(kind, NLM_F_ACK, request)?;
        self.answer(|entry| {
            found = Some(read(entry.payload())?);
            Ok(())
        })?;
        Ok(found)
    }

    fn ask(&mut self, kind: u16, flags: u16, request: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(request);
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_flags(NLM_F_REQUEST | flags);
        header.set_sequence_number(self.sequence);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// Reads to the end of the answer to the last question.
    fn answer(&mut self, mut each: impl FnMut(&NetlinkBuffer<&[u8]>) -> io::Result<()>) -> io::Result<()> {
        loop {
            self.buffer.clear();
            let (length, _) = self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC)?;
            if length > self.buffer.len() {
                return Err(malformed());
            }
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                if message.sequence_number() == self.sequence {
                    match message.message_type() {
                        // Both begin with an error number; 0 is success.
                        NLMSG_DONE | NLMSG_ERROR => return outcome(message.payload()),
                        _ => each(&message)?,
                    }
                }
                let length = usize::try_from(message.length()).map_err(io::Error::other)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn outcome(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().ok_or_else(malformed)?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's netlink answer is cut short")
}
