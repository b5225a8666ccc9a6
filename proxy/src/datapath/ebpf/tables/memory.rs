//! The tables in plain memory, read without a kernel by the same lookup that the programs run.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_abi::directory::at;
use proxy_abi::lookup::{self, Meaning, NoEndpoint, V4, V6, Words};
use proxy_abi::{
    Address4, Address6, AffinityKey, AffinityValue, Backend4, Backend6, Directory, Extent, FrontendKey4, FrontendKey6,
    FrontendValue, Port, RangeKey, Terms,
};
#[cfg(test)]
use proxy_abi::{BackendRef, Lead, Slot, SourceNat, bind};
use shunt_model::{Family, Protocol};

use super::super::image;
#[cfg(test)]
use super::super::layout::Dump;
#[cfg(test)]
use super::super::layout::write::{Life, backend_parts};
use super::super::layout::write::{address, address_of};
use super::super::layout::{Capacity, FrontendKey, Full, Layout, Write};
use super::addresses::{self, Addresses};
use crate::datapath::caller::{Caller, Outcome};
#[cfg(test)]
use crate::datapath::packets::PacketOutcome;
use crate::plan::Plan;

/// The tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(in crate::datapath::ebpf) frontends: HashMap<FrontendKey, FrontendValue>,
    pub(in crate::datapath::ebpf) directory: HashMap<u32, Directory>,
    pub(in crate::datapath::ebpf) slots: HashMap<u32, u64>,
    pub(in crate::datapath::ebpf) backends: HashMap<(Family, u32), [u64; 4]>,
    pub(in crate::datapath::ebpf) ranges: BTreeSet<(u32, IpNet)>,
    addresses: HashMap<IpAddr, addresses::Meaning>,
    service_ranges: Vec<IpNet>,
    /// Which endpoint a client had last; a lookup writes here.
    affinity: RefCell<HashMap<AffinityKey, AffinityValue>>,
    /// The node's own DNS is closed.
    own_dns_closed: bool,
}

/// A caller at one moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::datapath::ebpf) struct Call {
    pub(in crate::datapath::ebpf) caller: Caller,
    /// It is no pod of this node, but a client outside with that address.
    pub(in crate::datapath::ebpf) outside: bool,
    pub(in crate::datapath::ebpf) at_socket: bool,
    pub(in crate::datapath::ebpf) left_alone: bool,
    pub(in crate::datapath::ebpf) random: u32,
    pub(in crate::datapath::ebpf) now: u64,
}

impl Call {
    /// A call at time 0.
    pub(in crate::datapath::ebpf) fn by(caller: Caller) -> Self {
        Self { caller, outside: false, at_socket: true, left_alone: false, random: 0, now: 0 }
    }
}

impl lookup::Caller for Call {
    fn is_of_node(&self) -> bool {
        self.caller == Caller::Node
    }

    fn is_socket(&self) -> bool {
        self.at_socket
    }

    fn is_outside(&self) -> bool {
        self.outside
    }

    fn has_opted_out(&self) -> bool {
        self.left_alone
    }

    fn source(&self, ipv4: bool) -> Option<Address6> {
        match self.caller {
            Caller::Pod(ip) if ip.is_ipv4() == ipv4 => Some(address(ip)),
            Caller::Pod(_) | Caller::Node => None,
        }
    }

    /// A pod is known by its address here; the programs take its network namespace.
    fn affinity_key(&self, port: u32) -> AffinityKey {
        match self.caller {
            Caller::Node => AffinityKey::of_namespace(0, port),
            Caller::Pod(ip) => AffinityKey { client: address(ip), port, kind: AffinityKey::ADDRESS },
        }
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn now(&self) -> u64 {
        self.now
    }
}

/// The endpoints for a flow.
struct Served {
    addresses: BTreeSet<SocketAddr>,
    sticky: bool,
    #[cfg(test)]
    source_nat: SourceNat,
}

/// Why there are none.
enum Unserved {
    Foreign,
    Undefined,
    Without(NoEndpoint),
}

/// The words of an element, padded with zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element([u64; 4]);

impl Words for Element {
    fn word(self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or_default()
    }
}

impl lookup::Tables for Memory {
    type Element = Element;

    fn frontend4(&self, key: &FrontendKey4) -> Option<Element> {
        self.frontends.get(&FrontendKey::V4(*key)).map(|value| Element([value.0, 0, 0, 0]))
    }

    fn frontend6(&self, key: &FrontendKey6) -> Option<Element> {
        self.frontends.get(&FrontendKey::V6(*key)).map(|value| Element([value.0, 0, 0, 0]))
    }

    fn address(&self, key: &Address6) -> Option<Element> {
        let meaning = self.addresses.get(&IpAddr::V6(address_of(*key)).to_canonical())?;
        Some(Element([meaning.value(key).0, 0, 0, 0]))
    }

    fn directory(&self, service: u32) -> Option<Element> {
        Some(Element(self.entry(service)))
    }

    fn slot(&self, index: u32) -> Option<Element> {
        self.slots.get(&index).map(|slot| Element([*slot, 0, 0, 0]))
    }

    fn backend4(&self, index: u32) -> Option<Element> {
        self.backends.get(&(Family::V4, index)).map(|words| Element(*words))
    }

    fn backend6(&self, index: u32) -> Option<Element> {
        self.backends.get(&(Family::V6, index)).map(|words| Element(*words))
    }

    fn own_dns_serves(&self) -> bool {
        !self.own_dns_closed
    }

    fn in_range(&self, key: &RangeKey) -> bool {
        let ip = IpAddr::V6(address_of(key.address)).to_canonical();
        self.ranges.iter().any(|(id, prefix)| *id == key.id && prefix.contains(&ip))
    }

    fn in_service_range(&self, key: &Address6) -> bool {
        let ip = IpAddr::V6(address_of(*key)).to_canonical();
        self.service_ranges.iter().any(|range| range.contains(&ip))
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Element> {
        self.affinity.borrow().get(key).map(|value| Element([value.0, 0, 0, 0]))
    }

    fn keep_affinity(&self, key: &AffinityKey, value: AffinityValue) {
        self.affinity.borrow_mut().insert(*key, value);
    }
}

/// A family whose addresses have a form for people.
pub(in crate::datapath::ebpf) trait Readable: lookup::Family {
    fn socket_address(target: lookup::Target<Self::Address>) -> SocketAddr;
}

impl Readable for V4 {
    fn socket_address(target: lookup::Target<Address4>) -> SocketAddr {
        let ip = std::net::Ipv4Addr::from(target.address.to_ne_bytes());
        SocketAddr::new(ip.into(), u16::from_be(target.port))
    }
}

impl Readable for V6 {
    fn socket_address(target: lookup::Target<Address6>) -> SocketAddr {
        SocketAddr::new(address_of(target.address).into(), u16::from_be(target.port))
    }
}

impl Memory {
    /// The tables of `plan`.
    pub(crate) fn of(plan: &Plan) -> Result<Self, Full> {
        let (mut memory, mut addresses) = (Self::default(), Addresses::default());
        let mut layout = Layout::new(Capacity::default());
        for port in plan.ports.values() {
            if let Some(target) = image::target(port) {
                layout.upsert(&port.key, &target, 0)?.iter().for_each(|write| memory.apply(write));
            }
        }
        addresses.follow(&plan.addresses);
        memory.addresses = addresses.take_changes().0.into_iter().collect();
        memory.service_ranges = plan.service_cidrs.to_vec();
        Ok(memory)
    }

    /// What a socket of `caller` gets that dials `to`, over all random numbers and clients.
    #[must_use]
    pub(crate) fn outcome(&self, caller: Caller, to: SocketAddr, protocol: Protocol) -> Outcome {
        match self.read(Call::by(caller), to, protocol) {
            Ok(Served { addresses, sticky, .. }) => Outcome::Endpoints { addresses, sticky },
            Err(Unserved::Foreign) => Outcome::Foreign,
            Err(Unserved::Without(NoEndpoint::NotHere(terms))) if terms.keeps_destination() => {
                Outcome::KeepsDestination
            }
            Err(Unserved::Undefined | Unserved::Without(NoEndpoint::NotHere(_) | NoEndpoint::Nowhere)) => {
                Outcome::Refused
            }
            Err(Unserved::Without(NoEndpoint::Denied)) => Outcome::Denied,
        }
    }

    /// What a new flow of packets gets from a pod or, if `outside`, from elsewhere, and whether its source becomes an
    /// address of this node.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn packet_outcome(
        &self,
        outside: bool,
        from: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
    ) -> (PacketOutcome, bool) {
        let call = Call { outside, at_socket: false, ..Call::by(Caller::Pod(from)) };
        let outcome = match self.read(call, to, protocol) {
            Ok(Served { addresses, sticky, source_nat }) => {
                return (PacketOutcome::Endpoints { addresses, sticky }, source_nat.is_for(outside));
            }
            Err(Unserved::Foreign) if lookup::is_unused(self, &address(to.ip().to_canonical()), to.port().to_be()) => {
                PacketOutcome::Drop
            }
            Err(Unserved::Foreign) => PacketOutcome::Pass,
            Err(Unserved::Without(NoEndpoint::NotHere(terms))) if terms.silent() => PacketOutcome::Drop,
            Err(Unserved::Undefined | Unserved::Without(NoEndpoint::NotHere(_) | NoEndpoint::Nowhere)) => {
                PacketOutcome::Reject
            }
            Err(Unserved::Without(NoEndpoint::Denied)) => PacketOutcome::Drop,
        };
        (outcome, false)
    }

    fn read(&self, call: Call, to: SocketAddr, protocol: Protocol) -> Result<Served, Unserved> {
        let (port, protocol) = (to.port().to_be(), protocol.number());
        match to.ip().to_canonical() {
            IpAddr::V4(_) => self.read_in::<V4>(call, v4(to.ip()), port, protocol),
            IpAddr::V6(six) => self.read_in::<V6>(call, address(six.into()), port, protocol),
        }
    }

    fn read_in<F: Readable>(
        &self,
        call: Call,
        address: F::Address,
        port: Port,
        protocol: u8,
    ) -> Result<Served, Unserved> {
        let lead = match lookup::meaning::<F, _, _>(self, &call, address, port, protocol) {
            Meaning::Frontend(lead) => lead,
            Meaning::Undefined => return Err(Unserved::Undefined),
            Meaning::Foreign => return Err(Unserved::Foreign),
        };
        lookup::endpoint::<F, _, _>(self, &call, lead).map_err(Unserved::Without)?;
        let entry = self.entry(lead.service);
        let (extent, terms) = (Extent(word(entry, at::EXTENT)), Terms(word(entry, at::TERMS)));
        let (_, count) = lookup::part(self, extent, lead);
        let seed = |nth: u32| u32::try_from((u64::from(nth) << 32) / u64::from(count) + 1).unwrap_or(u32::MAX);
        let choose = |nth| lookup::choose::<F, _>(self, Element(entry), lead, terms, seed(nth)).ok();
        let addresses = (0..count).filter_map(choose).map(F::socket_address).collect();
        Ok(Served {
            addresses,
            sticky: terms.timeout() != 0,
            #[cfg(test)]
            source_nat: lead.source_nat,
        })
    }

    /// The same tables with the node's own DNS closed.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn with_own_dns_closed(&self) -> Self {
        Self { own_dns_closed: true, ..self.clone() }
    }

    /// The endpoint of one call.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn endpoint<F: Readable>(
        &self,
        call: Call,
        address: F::Address,
        port: u16,
        protocol: Protocol,
    ) -> Option<SocketAddr> {
        match lookup::meaning::<F, _, _>(self, &call, address, port.to_be(), protocol.number()) {
            Meaning::Frontend(lead) => lookup::endpoint::<F, _, _>(self, &call, lead).ok().map(F::socket_address),
            Meaning::Undefined | Meaning::Foreign => None,
        }
    }

    /// Whether a process of the node may not bind this; `v6only`: by an IPv6 socket with that option.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn is_node_port(&self, to: SocketAddr, protocol: Protocol, v6only: bool) -> bool {
        let (port, protocol) = (to.port().to_be(), protocol.number());
        match to.ip() {
            IpAddr::V4(four) => bind::is_node_port::<V4, _>(self, v4(four.into()), port, protocol),
            IpAddr::V6(six) => bind::is_node_port_of_ipv6_socket(self, address(six.into()), || v6only, port, protocol),
        }
    }

    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn lead(&self, key: &FrontendKey) -> Option<Lead> {
        self.frontends.get(key).map(|value| value.lead())
    }

    pub(in crate::datapath::ebpf) fn entry(&self, service: u32) -> Directory {
        self.directory.get(&service).copied().unwrap_or_default()
    }

    /// The backend behind a slot, unless it is dead.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn alive(&self, family: Family, slot: Slot) -> Option<Life> {
        self.life(family, slot.backend())
    }

    /// The backend behind a reference, unless its generation has ended.
    #[cfg(test)]
    pub(in crate::datapath::ebpf) fn life(&self, family: Family, reference: BackendRef) -> Option<Life> {
        let words = self.backends.get(&(family, reference.index()))?;
        let life = backend_parts(family, *words);
        (life.generation != 0 && life.generation == reference.generation()).then_some(life)
    }

    /// Carries out a write.
    pub(crate) fn apply(&mut self, write: &Write) {
        let mut entry = |service: u32, at: usize, value: u64| {
            if let Some(word) = self.directory.entry(service).or_default().get_mut(at) {
                *word = value;
            }
        };
        match *write {
            Write::Extent { service, extent } => entry(service, at::EXTENT, extent.0),
            Write::Shape { service, shape } => entry(service, at::SHAPE, shape.0),
            Write::Terms { service, terms } => entry(service, at::TERMS, terms.0),
            Write::Ranges { service, ranges } => entry(service, at::RANGES, ranges.0),
            Write::Range { id, prefix } => drop(self.ranges.insert((id, prefix))),
            Write::RangeGone { id, prefix } => drop(self.ranges.remove(&(id, prefix))),
            Write::Backend { family, index, words } => drop(self.backends.insert((family, index), words)),
            Write::Standing { family, index, standing } => {
                self.set_backend(family, index, (Backend4::STANDING, Backend6::STANDING), standing.0);
            }
            Write::BackendGone { family, index } => {
                self.set_backend(family, index, (Backend4::LIFE, Backend6::LIFE), 0);
            }
            Write::Slot { index, slot } => drop(self.slots.insert(index, slot.0)),
            Write::Frontend { key, lead } => drop(self.frontends.insert(key, key.value(lead))),
            Write::FrontendGone { key } => drop(self.frontends.remove(&key)),
        }
    }

    /// `at`: which word, in an IPv4 and in an IPv6 backend.
    fn set_backend(&mut self, family: Family, index: u32, (four, six): (usize, usize), value: u64) {
        let at = if family == Family::V4 { four } else { six };
        if let Some(word) = self.backends.get_mut(&(family, index)).and_then(|words| words.get_mut(at)) {
            *word = value;
        }
    }

    /// What a daemon would read back.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> Dump {
        let of = |wanted| {
            let of_family = self.backends.iter().filter(move |((family, _), _)| *family == wanted);
            of_family.map(|((_, at), words)| (*at, *words)).collect()
        };
        Dump {
            frontends: self.frontends.iter().map(|(key, value)| (*key, *value)).collect(),
            directory: self.directory.iter().map(|(service, entry)| (*service, *entry)).collect(),
            slots: self.slots.clone(),
            backends4: of(Family::V4),
            backends6: of(Family::V6),
            ranges: self.ranges.iter().copied().collect(),
        }
    }
}

/// The IPv4 address as a packet has it; 0 for any other.
fn v4(ip: IpAddr) -> Address4 {
    let [_, _, _, four] = address(ip.to_canonical());
    four
}

fn word(entry: Directory, at: usize) -> u64 {
    entry.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::plan::fixture::{cluster, ip, options, service, slice};
    use crate::plan::plan;

    const SECOND: u64 = 1_000_000_000;
    const PODS: [&str; 4] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"];

    /// The tables of a Service with affinity of 60 s.
    fn sticky(endpoints: &str, affinity: Memory) -> Memory {
        let service = service("web", "ip=10.96.0.1 aff=60");
        let (plan, _) = plan(&cluster([service], [slice("web", "a", "http:80/tcp", endpoints)]), &options());
        assert_eq!(plan.ports.values().next().unwrap().affinity, NonZeroU32::new(60));
        Memory { affinity: affinity.affinity, ..Memory::of(&plan).unwrap() }
    }

    /// Where a pod comes out that dials at `now`.
    fn dial(memory: &Memory, pod: &str, now: u64) -> Option<SocketAddr> {
        let call = Call { now, ..Call::by(Caller::Pod(ip(pod))) };
        memory.endpoint::<V4>(call, v4(ip("10.96.0.1")), 80, Protocol::Tcp)
    }

    #[test]
    fn a_client_stays_with_its_endpoint_until_the_timeout_after_its_last_flow() {
        let memory = sticky("e1:R; e2:R; e3:R", Memory::default());
        for pod in PODS {
            let first = dial(&memory, pod, 0);
            assert!(first.is_some());
            for now in (1..20).map(|turn| turn * 50 * SECOND) {
                assert_eq!(dial(&memory, pod, now), first, "{pod} at {now}"); // SA-3
            }
        }
        let met: BTreeSet<_> = (0..100).filter_map(|turn| dial(&memory, PODS[0], turn * 1000 * SECOND)).collect();
        assert_eq!(met.len(), 3, "after the timeout it is balanced anew: {met:?}");
    }

    #[test]
    fn a_record_is_not_followed_to_an_endpoint_that_no_longer_serves() {
        let memory = sticky("e1:R; e2:R; e3:R", Memory::default());
        let before: Vec<_> = PODS.iter().map(|pod| dial(&memory, pod, 0).unwrap()).collect();
        // Another list takes other elements, so the records lead to strangers or to nothing.
        let memory = sticky("e2:R; e3:R", memory);
        for (pod, before) in PODS.iter().zip(before) {
            let now = dial(&memory, pod, SECOND).unwrap();
            assert_ne!(now.ip(), ip("10.244.0.1"), "{pod} had {before}"); // SA-5
            assert_eq!(dial(&memory, pod, 2 * SECOND), Some(now), "{pod} stays with the new one");
        }
    }

    #[test]
    fn a_caller_that_has_opted_out_meets_no_frontend() {
        let memory = sticky("e1:R", Memory::default());
        let call = Call { left_alone: true, ..Call::by(Caller::Pod(ip(PODS[0]))) };
        assert_eq!(memory.endpoint::<V4>(call, v4(ip("10.96.0.1")), 80, Protocol::Tcp), None);
        for port in [80_u16, 81] {
            let found = lookup::meaning::<V4, _, _>(&memory, &call, v4(ip("10.96.0.1")), port.to_be(), 6);
            assert_eq!(found, Meaning::Foreign);
        }
    }
}
