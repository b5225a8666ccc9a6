//! Netlink requests that wait for their answer, for work inside other network namespaces, where no runtime is.

pub(crate) mod addresses;
pub(crate) mod filters;
pub(crate) mod links;
pub(crate) mod routes;

use std::io;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer,
};
use rtnetlink::sys::{Socket, SocketAddr};

/// The kernel answers a dump in pieces of at most 32 KiB.
const RECEIVE: usize = 1 << 16;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// How often a list is read again that changed while the kernel gave it.
const DUMPS: usize = 4;
/// The upper bits of an attribute's type are flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// A list as the kernel gave it.
#[derive(Debug)]
pub(crate) struct Dump<T> {
    /// What was made of its entries.
    pub(crate) entries: Vec<T>,
    /// The list did not change while the kernel gave it, so that nothing is missing.
    pub(crate) whole: bool,
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
            if let Dump { entries, whole: true } = self.dump_once(kind, request, &read)? {
                return Ok(entries);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the list changed each time while it was read"))
    }

    /// Asks for a list once and returns what `read` makes of each entry.
    pub(crate) fn dump_once<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        read: impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<Dump<T>> {
        let mut dump = Dump { entries: Vec::new(), whole: true };
        self.ask(kind, NLM_F_DUMP, request)?;
        self.answer(|entry| {
            dump.whole &= entry.flags() & NLM_F_DUMP_INTR == 0;
            dump.entries.extend(read(entry.payload())?);
            Ok(())
        })?;
        Ok(dump)
    }

    /// Sends a command and waits until the kernel has carried it out.
    pub(crate) fn order(&mut self, kind: u16, request: &[u8]) -> io::Result<()> {
        self.ask(kind, NLM_F_ACK, request)?;
        self.answer(|_| Ok(()))
    }

    /// The same of what it must not have yet: an error says so if it has.
    pub(crate) fn create(&mut self, kind: u16, request: &[u8]) -> io::Result<()> {
        self.ask(kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, request)?;
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

/// The attributes in `bytes`, as far as they are well-formed.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & ATTRIBUTE_TYPE, value))
    })
}

/// The value of the first attribute of this kind in `bytes`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Appends an attribute to a request.
pub(crate) fn push_attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's netlink answer is cut short")
}
