//! Listens to the kernel's reports of nftables changes: what others did to our tables, and who.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::{AsyncSocket as _, TokioSocket};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::nft::Ours;
use super::script::TABLE;
use crate::datapath::iptables::watch::nftables_generation;

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

/// How many processes are told apart.
const PROCESSES: usize = 64;
/// How long it is not tried again to listen.
const DEAF: Duration = Duration::from_secs(1);

/// What others did to our tables since it was last asked.
#[derive(Clone, Default)]
pub(super) struct Disturbances {
    found: Arc<Mutex<Found>>,
    ours: Ours,
    hearing: Arc<Mutex<Hearing>>,
}

/// What was found since it was last asked.
#[derive(Clone, Debug, Default)]
struct Found {
    /// Reports were lost.
    lost: bool,
    /// Processes that changed something, with their names. A report may come before it is known that its process is
    /// one of ours: so that is asked again at the end.
    by: BTreeMap<u32, String>,
}

/// Where reports come in.
#[derive(Default)]
enum Hearing {
    /// Not listening, and nobody should.
    #[default]
    Off,
    On(Arc<TokioSocket>),
    /// The socket is there, but gets no reports.
    Left(Arc<TokioSocket>),
    /// There is no socket, for this reason.
    Deaf(String),
}

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

impl fmt::Debug for Disturbances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disturbances").field(&self.found).finish()
    }
}

impl Disturbances {
    /// What happened since the last call.
    pub(super) fn take(&self) -> Disturbance {
        let Found { lost, by } = std::mem::take(&mut *self.found());
        let mut others = by.into_iter().filter(|(process, _)| !self.ours.contain(*process));
        match (self.join(), others.next(), lost) {
            (false, _, _) | (true, None, true) => Disturbance::Unknown,
            (true, Some((_, name)), _) => Disturbance::By(name),
            (true, None, false) => Disturbance::None,
        }
    }

    /// Notes that reports were lost.
    pub(super) fn put_lost(&self) {
        self.found().lost = true;
    }

    /// Notes that a process changed something.
    pub(super) fn put(&self, process: u32, name: String) {
        let mut found = self.found();
        match found.by.len() < PROCESSES {
            true => drop(found.by.insert(process, name)),
            false => found.lost = true,
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why others are not noticed, if they are not.
    pub(super) fn deaf(&self) -> Option<String> {
        match &*self.hearing() {
            Hearing::Deaf(reason) => Some(reason.clone()),
            Hearing::Off | Hearing::On(_) | Hearing::Left(_) => None,
        }
    }

    /// Makes one transaction of ours without reports of it: the kernel makes one for each element, and waits for the
    /// reader of each. What others do meanwhile shows in the number of changes.
    pub(super) fn unheard<T, E>(&self, transaction: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = nftables_generation().ok();
        self.leave();
        let outcome = transaction();
        let joined = self.join();
        let after = nftables_generation().ok();
        if !joined || !is_alone(before, outcome.is_ok(), after) {
            self.put_lost();
        }
        outcome
    }

    fn leave(&self) {
        let mut hearing = self.hearing();
        if let Hearing::On(socket) = &*hearing
            && socket.socket_ref().drop_membership(GROUP).is_ok()
        {
            *hearing = Hearing::Left(Arc::clone(socket));
        }
    }

    /// Whether there are reports again, if there should be.
    fn join(&self) -> bool {
        let mut hearing = self.hearing();
        if let Hearing::Left(socket) = &*hearing {
            if let Err(error) = socket.socket_ref().add_membership(GROUP) {
                tracing::debug!(%error, "no reports of nftables changes; trying again before each look at the tables");
                return false;
            }
            *hearing = Hearing::On(Arc::clone(socket));
        }
        true
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether at most one transaction, which is ours, happened between two looks.
fn is_alone(before: Option<u32>, done: bool, after: Option<u32>) -> bool {
    before.is_some_and(|before| Some(before.wrapping_add(u32::from(done))) == after)
}

/// The socket that gets the reports of this network namespace.
pub(super) struct Listener {
    socket: Arc<TokioSocket>,
    ours: Ours,
    disturbances: Disturbances,
    disturbed: Arc<Notify>,
    /// A change that has not ended touched a table of ours.
    touched: bool,
}

impl Listener {
    /// Listens from now on.
    pub(super) fn open(ours: Ours, disturbed: Arc<Notify>) -> io::Result<Self> {
        let socket = Arc::new(listen()?);
        let disturbances = Disturbances { ours: ours.clone(), ..Disturbances::default() };
        *disturbances.hearing() = Hearing::On(Arc::clone(&socket));
        Ok(Self { socket, ours, disturbances, disturbed, touched: false })
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
                Some(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => self.tell_lost(),
                Some(Err(error)) => {
                    warn!(%error, "reading the kernel's reports of nftables changes failed; opening them again");
                    if stop.run_until_cancelled(self.reopen()).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Listens with another socket, as soon as there is one.
    async fn reopen(&mut self) {
        loop {
            sleep(DEAF).await;
            let opened = listen();
            let is_open = opened.is_ok();
            *self.disturbances.hearing() = match opened {
                Ok(socket) => {
                    self.socket = Arc::new(socket);
                    self.touched = false;
                    Hearing::On(Arc::clone(&self.socket))
                }
                Err(error) => Hearing::Deaf(format!(
                    "the kernel's reports of nftables changes cannot be opened, so that what others do to our tables \
                     is found late: {error}; trying again"
                )),
            };
            self.tell_lost();
            if is_open {
                return;
            }
        }
    }

    fn tell_lost(&self) {
        self.disturbances.put_lost();
        self.disturbed.notify_one();
    }

    /// Looks at the reports of one datagram.
    fn hear(&mut self, mut rest: &[u8]) {
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let kind = message.message_type();
            // The number of a socket is that of its process, unless that is taken.
            let process = message.port_number();
            if kind >> 8 == NFTABLES && !self.ours.contain(process) {
                self.look(kind & 0xff, process, message.payload());
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn look(&mut self, kind: u16, process: u32, payload: &[u8]) {
        let attributes = payload.get(GENERAL..).unwrap_or_default();
        if kind != NEW_GENERATION {
            self.touched |= text(attributes, TABLE_NAME).is_some_and(|table| table == TABLE);
        } else if std::mem::take(&mut self.touched) {
            let name = text(attributes, PROCESS_NAME).unwrap_or_else(|| "a process".to_owned());
            self.disturbances.put(process, name);
            self.disturbed.notify_one();
        }
    }
}

/// A socket that gets the reports.
fn listen() -> io::Result<TokioSocket> {
    let mut listening = TokioSocket::new(NETFILTER)?;
    let socket = listening.socket_mut();
    socket.bind_auto()?;
    // Without CAP_NET_ADMIN it is as large as the host allows; then a change of others may be read back twice.
    let forced = setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(io::Error::from);
    if let Err(error) = forced.or_else(|_refused| socket.set_rx_buf_sz(RECEIVE_BUFFER)) {
        tracing::debug!(%error, "the buffer for reports of nftables changes stays as it is");
    }
    socket.add_membership(GROUP)?;
    Ok(listening)
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

    #[test]
    fn one_transaction_is_ours() {
        assert!(is_alone(Some(7), true, Some(8)));
        assert!(is_alone(Some(7), false, Some(7)));
        assert!(!is_alone(Some(7), true, Some(9)));
        assert!(!is_alone(Some(7), false, Some(8)));
        assert!(!is_alone(None, true, None));
    }

    #[tokio::test]
    async fn changes_of_our_tables_by_others_are_told_with_the_name_of_the_process() {
        check(&["filter", "shunt"], 7, &Disturbance::By("firewalld".to_owned()));
        check(&["filter", "shunt-other"], 7, &Disturbance::None);
        check(&["shunt"], 8, &Disturbance::None);
        check(&[], 7, &Disturbance::None);
    }

    #[test]
    fn a_process_that_turns_out_to_be_ours_hides_no_other() {
        let check = |changes: &[(u32, &str)], lost: bool, wanted: &Disturbance| {
            let disturbances = Disturbances::default();
            for (process, name) in changes {
                disturbances.put(*process, (*name).to_owned());
            }
            if lost {
                disturbances.put_lost();
            }
            disturbances.ours.add(8);
            assert_eq!(disturbances.take(), *wanted, "{changes:?} {lost}");
            assert_eq!(disturbances.take(), Disturbance::None);
        };
        check(&[(8, "nft")], false, &Disturbance::None);
        check(&[(8, "nft")], true, &Disturbance::Unknown);
        check(&[(8, "nft"), (9, "firewalld")], true, &Disturbance::By("firewalld".to_owned()));
        let many: Vec<(u32, &str)> = (100..200).map(|process| (process, "a")).collect();
        check(&many, false, &Disturbance::By("a".to_owned()));
    }
}
