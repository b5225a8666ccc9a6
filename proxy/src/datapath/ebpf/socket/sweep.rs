//! Ends sockets that would go on with an endpoint that left, or past a Service, so that their owners connect anew.
//!
//! It ends only connected UDP sockets, which would wait for answers for ever, and TCP sockets that are still
//! connecting. Established TCP connections stay (CT-6, UC-12), but for one that its endpoint accepts in the instant
//! between the list and the order. Two kinds of sockets are found:
//!
//! - with a flow that has ended: the endpoint left, or the frontend leads to another service port (CT-3, CT-4). The
//!   programs keep the flow of a socket in its storage; a program lists those that have ended, of all namespaces. Only
//!   the second look ends them: at the first, the answer of an endpoint that leaves may be on its way.
//! - older than their frontend: they are connected to the very address of a Service, from a time at which it was none
//!   (CT-5). They have no flow, so the sockets of each namespace are compared with the tables.
//!
//! A socket that dialled an endpoint itself is left alone.

mod diag;
mod served;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use proxy_abi::directory::at;
use proxy_abi::lookup::{self, Meaning, Tables as _, V4, V6, Words as _};
use proxy_abi::{Address6, AffinityKey, Extent, Flow, Lead, ListedFlow, maps};
use zerocopy::FromBytes as _;

use self::diag::{Diag, Socket};
use self::served::Served;
use super::super::layout::write::{address, address_of, address4};
use super::super::pins::Pins;
use super::super::tables::kernel::{TableError, open};
use super::super::tables::reader::Reader;
use super::programs::FlowLists;
use crate::host::netns::{self, Inventory, Namespace};
use crate::sys::bpf;

const UDP: u8 = 17;
const TCP: u8 = 6;

/// A socket whose program has just run is in no list yet: the first look may miss it.
const LOOKS: u8 = 2;
/// How long after the first look for a flow the second one comes.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(100);

/// What one sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// How many flows have ended although their socket was open.
    pub(super) ended: usize,
    /// How many flows want another look: at their first one the socket may still get an answer, and a flow that was in
    /// the last list and is not in this one may be in the next.
    pub(super) pending: usize,
    /// How many sockets were destroyed.
    pub(super) destroyed: usize,
    /// Namespaces, by cookie, that could not be searched, and why; 0 stands for all. Those that are gone do not count.
    pub(super) failed: Vec<(u64, String)>,
}

/// Which sockets are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// Those whose flow has ended.
    Ended,
    /// Those, and sockets older than their frontend.
    EndedAndOlder,
}

/// Finds and ends sockets.
#[derive(Debug)]
pub(super) struct Sweeper {
    lists: FlowLists,
    peers: OwnedFd,
    tables: Reader,
    served: Served,
    /// The ended flows that were listed, by cookie and reference.
    looked: HashMap<(u64, u32), Looked>,
}

/// What is known of an ended flow.
#[derive(Clone, Copy, Debug)]
struct Looked {
    /// When it was listed first.
    since: Instant,
    /// How often it has been looked for in all namespaces. After [`LOOKS`] it is known to need nothing more: its socket
    /// is destroyed, is connected elsewhere, or is an established connection.
    looks: u8,
    /// It is not in the last list. While sockets come and go, the kernel leaves a flow out of a list now and then.
    absent: bool,
    /// It has had its second look in some namespaces at least: that it is absent means that its socket is closed.
    seen_twice: bool,
}

impl Looked {
    fn for_long(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= SECOND_LOOK
    }
}

/// A flow that has ended.
#[derive(Clone, Copy, Debug)]
struct EndedFlow {
    flow: Flow,
    /// It had ended a while ago too: whoever still waits for an answer waits in vain.
    for_long: bool,
}

/// What a sweep looks for in each namespace.
struct Wanted<'a> {
    ended: HashMap<u64, EndedFlow>,
    older: Option<Older<'a>>,
}

/// How sockets that are older than their frontend are known.
struct Older<'a> {
    tables: &'a Reader,
    /// The program that lists flows to the address of a frontend, and what it runs on.
    flows: (&'a OwnedFd, &'a OwnedFd),
    served: served::Cgroups,
}

impl Sweeper {
    /// Works on the maps pinned in `pins`, for sockets of processes below `cgroup`.
    pub(super) fn open(pins: &Pins, lists: FlowLists, cgroup: &std::path::Path) -> Result<Self, TableError> {
        Ok(Self {
            lists,
            peers: open(&pins.maps, &maps::PEER)?,
            tables: Reader::open(&pins.maps)?,
            served: Served::new(cgroup),
            looked: HashMap::new(),
        })
    }

    /// Ends the sockets of all namespaces that `search` asks for. Nothing is a frontend for those that opted out.
    pub(super) fn sweep(
        &mut self,
        Inventory { namespaces, unreadable, proc: _ }: &Inventory,
        opted_out: &(dyn Fn(&Namespace) -> bool + Sync),
        search: Search,
    ) -> Swept {
        let failed =
            |error: io::Error| Swept { failed: vec![(0, format!("listing flows: {error}"))], ..Swept::default() };
        let began = Instant::now();
        let listed = self.ended(began).and_then(|ended| Ok(Wanted { ended, older: self.older(search)? }));
        let wanted = match listed {
            Ok(wanted) => wanted,
            Err(error) => return failed(error),
        };
        let fresh = wanted.ended.values().filter(|flow| !flow.for_long).count();
        let absent = self.looked.values().filter(|looked| looked.absent && !looked.seen_twice).count();
        let pending = fresh.saturating_add(absent);
        let mut swept = Swept { ended: wanted.ended.len(), pending, ..Swept::default() };
        if wanted.ended.is_empty() && wanted.older.is_none() {
            return swept;
        }
        let outcomes = netns::within_each(namespaces, |namespace| wanted.sweep_here(namespace, opted_out(namespace)));
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => return failed(error),
        };
        let mut complete = *unreadable == 0;
        for (namespace, outcome) in namespaces.iter().zip(outcomes) {
            match outcome {
                Ok((destroyed, failure)) => {
                    swept.destroyed = swept.destroyed.saturating_add(destroyed);
                    swept.failed.extend(failure.map(|error| (namespace.cookie, error)));
                }
                // Or all processes are gone by which it was found: the next scan knows.
                Err(error) if netns::is_gone(&error) => complete = false,
                Err(error) => swept.failed.push((namespace.cookie, error.to_string())),
            }
        }
        let complete = complete && swept.failed.is_empty();
        for (cookie, EndedFlow { flow, for_long }) in wanted.ended {
            let first = Looked { since: began, looks: 0, absent: false, seen_twice: false };
            let looked = self.looked.entry((cookie, flow.reference)).or_insert(first);
            looked.seen_twice |= for_long;
            if complete && (looked.looks == 0 || for_long) {
                looked.looks = looked.looks.saturating_add(1);
            }
        }
        if let Some(error) = self.tables.take_failure() {
            swept.failed.push((0, format!("reading the tables: {error}")));
        }
        swept
    }

    /// The ended flows, without those of sockets that may go on.
    fn ended(&mut self, now: Instant) -> io::Result<HashMap<u64, EndedFlow>> {
        let listed = listed(&self.lists.ended, &self.peers)?;
        self.looked.retain(|(cookie, reference), looked| {
            let is_listed = listed.get(cookie).is_some_and(|flow| flow.reference == *reference);
            let stays = is_listed || !looked.absent;
            looked.absent = !is_listed;
            stays
        });
        let ended = listed.into_iter().filter_map(|(cookie, flow)| {
            let looked = self.looked.get(&(cookie, flow.reference));
            let for_long = looked.is_some_and(|looked| looked.for_long(now));
            looked.is_none_or(|looked| looked.looks < LOOKS).then_some((cookie, EndedFlow { flow, for_long }))
        });
        Ok(ended.collect())
    }

    fn older(&self, search: Search) -> io::Result<Option<Older<'_>>> {
        match search {
            Search::Ended => Ok(None),
            Search::EndedAndOlder => Ok(Some(Older {
                tables: &self.tables,
                flows: (&self.lists.to_frontends, &self.peers),
                served: self.served.now()?,
            })),
        }
    }
}

/// Flows by the cookie of their socket, as a program lists them.
fn listed(program: &OwnedFd, peers: &OwnedFd) -> io::Result<HashMap<u64, Flow>> {
    let mut bytes = Vec::new();
    bpf::iterate(program.as_fd(), peers.as_fd())?.read_to_end(&mut bytes)?;
    let entries =
        bytes.chunks_exact(size_of::<ListedFlow>()).filter_map(|entry| ListedFlow::read_from_bytes(entry).ok());
    Ok(entries.map(|ListedFlow { cookie, flow, padding: _ }| (cookie, flow)).collect())
}

impl Wanted<'_> {
    /// How many sockets of the present namespace it destroyed, and what failed. A failure is kept as text: a kernel
    /// that lists no UDP sockets says ENOENT, as does a namespace that is gone.
    fn sweep_here(&self, namespace: &Namespace, opted_out: bool) -> (usize, Option<String>) {
        let listed = Diag::open().and_then(|mut diag| Ok((self.found_here(&mut diag)?, diag)));
        let (sockets, mut diag) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                let what = "listing its sockets (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)";
                return (0, Some(format!("{what}: {error}")));
            }
        };
        let ended: Vec<&Socket> = sockets.iter().filter(|socket| self.has_ended(socket)).collect();
        let older = self.older.as_ref().filter(|_| !opted_out);
        let (older, mut failed) = match older.map_or(Ok(Vec::new()), |older| older.among(&sockets, namespace)) {
            Ok(older) => (older, None),
            Err(error) => (Vec::new(), Some(format!("listing flows: {error}"))),
        };
        let mut destroyed = 0_usize;
        for socket in ended.into_iter().chain(older) {
            match diag.destroy(socket) {
                Ok(true) => destroyed = destroyed.saturating_add(1),
                Ok(false) => {}
                // Go on with the other sockets.
                Err(error) => failed = Some(format!("destroying a socket (CONFIG_INET_DIAG_DESTROY): {error}")),
            }
        }
        (destroyed, failed)
    }

    /// The sockets of the present namespace among which there may be some to end.
    fn found_here(&self, diag: &mut Diag) -> io::Result<Vec<Socket>> {
        let any = |excluded: u8| self.ended.values().any(|ended| ended.flow.protocol() != excluded);
        let mut found = Vec::new();
        if self.older.is_some() || any(TCP) {
            found.extend(diag.connected()?);
        }
        if any(UDP) {
            found.extend(diag.connecting()?);
        }
        Ok(found)
    }

    /// Whether the socket is still connected to an endpoint that it may not go on with: it may have connected again.
    fn has_ended(&self, socket: &Socket) -> bool {
        let ended = self.ended.get(&socket.cookie()).filter(|ended| ended.for_long);
        ended.is_some_and(|ended| backend(&ended.flow) == socket.destination())
    }
}

fn backend(flow: &Flow) -> SocketAddr {
    let ip = IpAddr::V6(address_of(flow.backend)).to_canonical();
    SocketAddr::new(ip, u16::from_be(flow.backend_port))
}

impl Older<'_> {
    /// Those of `sockets` that are connected to the address of a frontend and so pass by its endpoints. Flows are
    /// listed after sockets: the program writes a flow before the kernel connects the socket.
    fn among<'s>(&self, sockets: &'s [Socket], namespace: &Namespace) -> io::Result<Vec<&'s Socket>> {
        let udp = sockets.iter().filter(|socket| socket.is_udp());
        let mut found: Vec<&Socket> = udp.filter(|socket| self.passes_by(socket, namespace)).collect();
        if !found.is_empty() {
            let (program, peers) = self.flows;
            let flows = listed(program, peers)?;
            // What such a socket is connected to is its endpoint, whatever else it may be.
            found.retain(|socket| flows.get(&socket.cookie()).is_none_or(|flow| backend(flow) != socket.destination()));
        }
        Ok(found)
    }

    fn passes_by(&self, socket: &Socket, namespace: &Namespace) -> bool {
        let to = socket.destination();
        let port = to.port().to_be();
        let meaning = match to.ip() {
            IpAddr::V4(ip) => lookup::meaning::<V4, _, _>(&self.tables, &Client(namespace), address4(ip), port, UDP),
            IpAddr::V6(_) => lookup::meaning::<V6, _, _>(&self.tables, &Client(namespace), address(to.ip()), port, UDP),
        };
        match meaning {
            Meaning::Frontend(lead) => self.has_endpoint(lead) && self.served.hold(socket.cgroup),
            Meaning::Undefined | Meaning::Foreign => false,
        }
    }

    fn has_endpoint(&self, lead: Lead) -> bool {
        let entry = self.tables.directory(lead.service);
        entry.is_some_and(|entry| lookup::part(&self.tables, Extent(entry.word(at::EXTENT)), lead).1 > 0)
    }
}

/// The owner of a socket, for the lookup; only its namespace matters to what an address means.
struct Client<'a>(&'a Namespace);

impl lookup::Caller for Client<'_> {
    fn is_of_node(&self) -> bool {
        self.0.own
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn is_outside(&self) -> bool {
        false
    }

    /// The sweep asks before.
    fn has_opted_out(&self) -> bool {
        false
    }

    fn source(&self, ipv4: bool) -> Option<Address6> {
        self.0.addresses.iter().find(|ip| ip.is_ipv4() == ipv4).map(|ip| address(*ip))
    }

    fn affinity_key(&self, port: u32) -> AffinityKey {
        AffinityKey::of_namespace(self.0.cookie, port)
    }

    fn random(&self) -> u32 {
        0
    }

    fn now(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests;
