//! Listens to the kernel's reports of nftables changes: what others did to our tables, and who.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::{AsyncSocket as _, TokioSocket};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::nft::Ours;
use super::script::TABLE;

/// `NETLINK_NETFILTER`
const NETFILTER: isize = 12;
/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a type.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the end of a change.
const NEW_GENERATION: u16 = 15;
/// `NFTA_GEN_PROC_NAME`
const PROCESS_NAME: u16 = 3;
/// Every report about a thing in a table has the table's name as its first attribute.
const TABLE_NAME: u16 = 1;
/// `struct nfgenmsg`
const GENERAL: usize = 4;
/// The kernel reports each of ten thousands of elements; what does not fit is lost.
const RECEIVE_BUFFER: usize = 16 << 20;
const RECEIVE: usize = 1 << 16;

/// What others did to our tables since it was last asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Disturbances(Arc<Mutex<Disturbance>>);

/// What others did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// Nothing.
    #[default]
    None,
    /// Nobody knows: reports were lost.
    Unknown,
    /// A process of this name changed something in a table of ours.
    By(String),
}

impl Disturbances {
    /// What happened since the last call.
    pub(super) fn take(&self) -> Disturbance {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put(&self, found: Disturbance) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Disturbance::None | Disturbance::Unknown => *known = found,
            Disturbance::By(_) => {}
        }
    }
}

/// The socket that gets the reports of this network namespace.
pub(super) struct Listener {
    socket: TokioSocket,
    ours: Ours,
    disturbances: Disturbances,
    disturbed: Arc<Notify>,
    /// A change that has not ended touched a table of ours.
    touched: bool,
}

impl Listener {
    /// Listens from now on.
    pub(super) fn open(ours: Ours, disturbed: Arc<Notify>) -> io::Result<Self> {
        let mut listening = TokioSocket::new(NETFILTER)?;
        let socket = listening.socket_mut();
        socket.bind_auto()?;
        // Without CAP_NET_ADMIN it is as large as the host allows; then a large change of ours is read back once.
        let forced = setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(io::Error::from);
        if let Err(error) = forced.or_else(|_refused| socket.set_rx_buf_sz(RECEIVE_BUFFER)) {
            tracing::debug!(%error, "the buffer for reports of nftables changes stays as it is");
        }
        socket.add_membership(GROUP)?;
        Ok(Self { socket: listening, ours, disturbances: Disturbances::default(), disturbed, touched: false })
    }

    pub(super) fn disturbances(&self) -> Disturbances {
        self.disturbances.clone()
    }

    /// Tells of every change that is not ours, until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut buffer = Vec::with_capacity(RECEIVE);
        loop {
            buffer.clear();
            let read = poll_fn(|context| self.socket.poll_recv_from(context, &mut buffer));
            match stop.run_until_cancelled(read).await {
                None => return,
                Some(Ok(_)) => self.hear(&buffer),
                Some(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => self.tell(Disturbance::Unknown),
                Some(Err(error)) => {
                    warn!(%error, "reading the kernel's reports of nftables changes failed; no more are read");
                    return;
                }
            }
        }
    }

    fn tell(&self, found: Disturbance) {
        self.disturbances.put(found);
        self.disturbed.notify_one();
    }

    /// Looks at the reports of one datagram.
    fn hear(&mut self, mut rest: &[u8]) {
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let kind = message.message_type();
            // The number of a socket is that of its process, unless that is taken.
            let ours = self.ours.contain(message.port_number());
            if kind >> 8 == NFTABLES && !ours {
                self.look(kind & 0xff, message.payload());
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn look(&mut self, kind: u16, payload: &[u8]) {
        let attributes = payload.get(GENERAL..).unwrap_or_default();
        if kind != NEW_GENERATION {
            self.touched |= text(attributes, TABLE_NAME).is_some_and(|table| table == TABLE);
        } else if std::mem::take(&mut self.touched) {
            let name = text(attributes, PROCESS_NAME).unwrap_or_else(|| "a process".to_owned());
            self.tell(Disturbance::By(name));
        }
    }
}

/// The first attribute of this type, as text.
fn text(mut attributes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if kind & 0x3fff == wanted {
            let bytes = attributes.get(4..length)?;
            let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(bytes).into_owned());
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let length = u16::try_from(text.len() + 5).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(text.bytes().chain([0]));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, process: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let payload = [vec![2, 0, 0, 0], attributes.concat()].concat();
        let length = u32::try_from(payload.len() + 16).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend((NFTABLES << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(process.to_ne_bytes());
        [bytes, payload].concat()
    }

    /// What is told after a change of these tables by process 7; ours is process 8.
    #[track_caller]
    fn check(tables: &[&str], process: u32, wanted: &Disturbance) {
        let ours = Ours::default();
        ours.add(8);
        let mut listener = Listener::open(ours, Arc::default()).unwrap();
        let changes = tables.iter().map(|table| message(6, process, &[attribute(1, table), attribute(2, "chain")]));
        let end = message(NEW_GENERATION, process, &[attribute(1, "123"), attribute(3, "firewalld")]);
        listener.hear(&changes.chain([end]).flatten().collect::<Vec<_>>());
        assert_eq!(listener.disturbances().take(), *wanted);
        assert_eq!(listener.disturbances().take(), Disturbance::None);
    }

    #[tokio::test]
    async fn changes_of_our_tables_by_others_are_told_with_the_name_of_the_process() {
        check(&["filter", "shunt"], 7, &Disturbance::By("firewalld".to_owned()));
        check(&["filter", "shunt-other"], 7, &Disturbance::None);
        check(&["shunt"], 8, &Disturbance::None);
        check(&[], 7, &Disturbance::None);
    }
}
