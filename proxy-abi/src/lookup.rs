//! The one lookup, from what a client dials to an endpoint or a refusal: socket programs run it, and so do tests and
//! `shunt explain` on tables in memory.
//!
//! Generic over [`Tables`], which reads elements, and over [`Caller`], which describes the caller. The lookup calls
//! both as rarely as it can, because in a program each call is one of the kernel.

use crate::directory::at;
use crate::{
    Address4, Address6, AddressValue, AffinityKey, AffinityValue, Backend4, Backend6, BackendRef, Extent, FrontendKey4,
    FrontendKey6, FrontendValue, Lead, MAPPED_PREFIX, Port, RangeKey, RangesWord, Slot, Standing, Terms, mapped, scope,
};

/// The words of one element of a table.
pub trait Words: Copy {
    /// The word at index `at`: one aligned 64-bit load at each call, as the daemon may store at any moment.
    fn word(self, at: usize) -> u64;
}

/// Reads the tables.
pub trait Tables {
    /// An element that was found.
    type Element: Words;

    /// An element of `FRONTENDS4`.
    fn frontend4(&self, key: &FrontendKey4) -> Option<Self::Element>;
    /// An element of `FRONTENDS6`.
    fn frontend6(&self, key: &FrontendKey6) -> Option<Self::Element>;
    /// An element of `ADDRESSES`.
    fn address(&self, address: &Address6) -> Option<Self::Element>;
    /// An element of `DIRECTORY`.
    fn directory(&self, service: u32) -> Option<Self::Element>;
    /// An element of `SLOTS`.
    fn slot(&self, index: u32) -> Option<Self::Element>;
    /// An element of `BACKENDS4`.
    fn backend4(&self, index: u32) -> Option<Self::Element>;
    /// An element of `BACKENDS6`.
    fn backend6(&self, index: u32) -> Option<Self::Element>;
    /// Whether the sockets of the node's own DNS are open.
    fn own_dns_serves(&self) -> bool;
    /// Whether `RANGES` has a prefix of `key`.
    fn in_range(&self, key: &RangeKey) -> bool;
    /// Whether `SERVICE_RANGES` has a prefix of `address`.
    fn in_service_range(&self, address: &Address6) -> bool;
    /// An element of `AFFINITY`.
    fn affinity(&self, key: &AffinityKey) -> Option<Self::Element>;
    /// Writes an element of `AFFINITY`. Without room the client is balanced anew next time.
    fn keep_affinity(&self, key: &AffinityKey, value: AffinityValue);
}

/// The caller.
pub trait Caller {
    /// The client is in the node's own network namespace.
    fn is_of_node(&self) -> bool;
    /// It makes a call at a socket of this node; else it has sent a packet.
    fn is_socket(&self) -> bool;
    /// The client is neither this node nor one of its pods. Only packets can be from there.
    fn is_outside(&self) -> bool;
    /// The client's pod has opted out: nothing is a frontend for it.
    fn has_opted_out(&self) -> bool;
    /// The client's source address, IPv4-mapped for `ipv4`; `None` if it is not known. The lookup does not need it for
    /// the node itself.
    fn source(&self, ipv4: bool) -> Option<Address6>;
    /// The client's key for the service port that directory entry `port` stands for.
    fn affinity_key(&self, port: u32) -> AffinityKey;
    /// A uniform random number.
    fn random(&self) -> u32;
    /// The monotonic clock in nanoseconds.
    fn now(&self) -> u64;
}

/// What a destination means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A frontend.
    Frontend(Lead),
    /// A Service's own address at a port that the Service does not define (NE-11).
    Undefined,
    /// Not ours: the flow keeps its destination.
    Foreign,
}

/// An endpoint to send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<A> {
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: Port,
    /// Its backend.
    pub reference: BackendRef,
}

/// Why a flow gets no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// The service port has no endpoint (NE-1).
    Nowhere,
    /// No endpoint on this node, under policy Local: by these terms (NE-2, NE-3).
    NotHere(Terms),
    /// The source is outside of the Service's source ranges (TP-31).
    Denied,
}

/// Addresses of one family, and the tables that hold them.
pub trait Family {
    /// An address.
    type Address: Copy;
    /// It is IPv4.
    const IPV4: bool;

    /// The address that a call reaches which names `address`: see [`reached4`] and [`reached6`].
    fn reached(address: Self::Address) -> Self::Address;
    /// Where a frontend leads; `None` for the address is a node port.
    fn lead<T: Tables>(tables: &T, address: Option<Self::Address>, port: Port, protocol: u8, scope: u8)
    -> Option<Lead>;
    /// The address as `ADDRESSES` has it: all of IPv4 loopback is one.
    fn listed(address: Self::Address) -> Address6;
    /// The endpoint behind a reference, unless its backend has died.
    fn alive<T: Tables>(tables: &T, reference: BackendRef) -> Option<Target<Self::Address>>;
    /// What the backend is in its service port.
    fn standing<T: Tables>(tables: &T, reference: BackendRef) -> Standing;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub enum V4 {}

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub enum V6 {}

/// How often the choice is tried. A removed backend dies only after its slot is no longer visible, so a reader that
/// finds a dead one has read an old extent and finds a living one at its next try. More than two changes during one
/// choice do not happen.
const TRIES: u32 = 4;

/// Protocol number of UDP in an IP header.
const UDP: u8 = 17;

const LOOPBACK4: Address4 = u32::from_ne_bytes([127, 0, 0, 1]);
const LOOPBACK6: Address6 = [0, 0, 0, 1_u32.to_be()];

/// The address that a call reaches which names `address`. To the kernel the unspecified address is the client's own
/// loopback; as a key it would be that of a node port.
#[inline(always)]
#[must_use]
pub const fn reached4(address: Address4) -> Address4 {
    if address == 0 { LOOPBACK4 } else { address }
}

/// As [`reached4`], also for `::ffff:0.0.0.0`.
#[inline(always)]
#[must_use]
pub const fn reached6(address: Address6) -> Address6 {
    let [a, b, c, d] = address;
    match (a | b | d, c) {
        (0, 0) => LOOPBACK6,
        (0, MAPPED_PREFIX) => mapped(LOOPBACK4),
        _ => address,
    }
}

/// What `address` means to `client`; IPv4-mapped addresses are for [`V4`].
#[inline(always)]
pub fn meaning<F: Family, T: Tables, C: Caller>(
    tables: &T,
    client: &C,
    address: F::Address,
    port: Port,
    protocol: u8,
) -> Meaning {
    let address = F::reached(address);
    meaning_of::<F, T, C>(tables, client, address, port, protocol, || address_value(tables, &F::listed(address)))
}

/// As [`meaning`], of an address that a call reaches. `value` gives what `ADDRESSES` says of it.
#[inline(always)]
pub fn meaning_of<F: Family, T: Tables, C: Caller>(
    tables: &T,
    client: &C,
    address: F::Address,
    port: Port,
    protocol: u8,
    value: impl FnOnce() -> AddressValue,
) -> Meaning {
    if let Some(lead) = lead_for::<F, T, C>(tables, client, Some(address), port, protocol) {
        return unless_opted_out(client, Meaning::Frontend(lead));
    }
    let value = value();
    if value.takes_node_ports()
        && let Some(lead) = lead_for::<F, T, C>(tables, client, None, port, protocol)
        && (!value.for_node_only() || client.is_of_node())
    {
        return unless_opted_out(client, Meaning::Frontend(lead));
    }
    if value.refuses_other_ports() && !is_route_probe(client, port, protocol) {
        return unless_opted_out(client, Meaning::Undefined);
    }
    Meaning::Foreign
}

/// Where a frontend leads this client.
#[inline(always)]
fn lead_for<F: Family, T: Tables, C: Caller>(
    tables: &T,
    client: &C,
    address: Option<F::Address>,
    port: Port,
    protocol: u8,
) -> Option<Lead> {
    if client.is_outside()
        && let Some(lead) = F::lead(tables, address, port, protocol, scope::OUTSIDE)
    {
        return Some(lead);
    }
    F::lead(tables, address, port, protocol, scope::ANY)
}

/// Where a frontend leads, for clients at sockets.
#[inline(always)]
pub fn lead<F: Family, T: Tables>(tables: &T, address: F::Address, port: Port, protocol: u8) -> Option<Lead> {
    match F::lead(tables, Some(address), port, protocol, scope::ANY) {
        Some(lead) => Some(lead),
        None if address_value(tables, &F::listed(address)).takes_node_ports() => {
            F::lead(tables, None, port, protocol, scope::ANY)
        }
        None => None,
    }
}

/// The endpoint that a running flow along `lead` got, if it may go on with it: the endpoint serves, and the frontend
/// still leads to its service port (CT-3, CT-4).
#[inline(always)]
pub fn still_serves<F: Family, T: Tables>(tables: &T, lead: Lead, reference: BackendRef) -> Option<Target<F::Address>> {
    let terms = Terms(tables.directory(lead.service)?.word(at::TERMS));
    let (target, _) = alive_in_port::<F, T>(tables, reference, terms)?;
    Some(target)
}

/// The endpoint behind a reference, and what it is in the service port of `terms`, unless it has died or is of another.
#[inline(always)]
fn alive_in_port<F: Family, T: Tables>(
    tables: &T,
    reference: BackendRef,
    terms: Terms,
) -> Option<(Target<F::Address>, Standing)> {
    let target = F::alive(tables, reference)?;
    let standing = F::standing(tables, reference);
    (standing.port() == terms.port()).then_some((target, standing))
}

/// As [`still_serves`], for a datagram along `lead` that may as well go elsewhere: while the node's own DNS is closed,
/// its clients are led to other endpoints.
#[inline(always)]
pub fn may_go_on<F: Family, T: Tables>(tables: &T, lead: Lead, reference: BackendRef) -> Option<Target<F::Address>> {
    let entry = tables.directory(lead.service)?;
    let (target, standing) = alive_in_port::<F, T>(tables, reference, Terms(entry.word(at::TERMS)))?;
    if lead.falls_back && standing.may_serve(true) {
        let (skipped, _) = part(tables, Extent(entry.word(at::EXTENT)), lead);
        if skipped > 0 {
            return None;
        }
    }
    Some(target)
}

/// Whether the flow from a frontend to an endpoint has ended although its socket is open: the endpoint does not serve
/// any more, or the frontend leads to another service port. A frontend that is gone ends no flow while the endpoint
/// serves.
#[inline(always)]
pub fn has_ended<F: Family, T: Tables>(
    tables: &T,
    address: F::Address,
    port: Port,
    protocol: u8,
    reference: BackendRef,
) -> bool {
    if F::alive(tables, reference).is_none() {
        return true;
    }
    match lead::<F, T>(tables, address, port, protocol) {
        Some(lead) => still_serves::<F, T>(tables, lead, reference).is_none(),
        None => false,
    }
}

/// Whether the call asks only for the route to an address: resolvers connect a socket to port 0 (glibc), or to UDP port
/// 65535 (musl), and send no packet (DP-11).
#[inline(always)]
fn is_route_probe<C: Caller>(client: &C, port: Port, protocol: u8) -> bool {
    port == 0 || (port == u16::MAX && protocol == UDP && client.is_socket())
}

/// The endpoint for a new flow along `lead`: a random one, or with session affinity the one that the client had last.
#[inline(always)]
pub fn endpoint<F: Family, T: Tables, C: Caller>(
    tables: &T,
    client: &C,
    lead: Lead,
) -> Result<Target<F::Address>, NoEndpoint> {
    let Some(entry) = tables.directory(lead.service) else { return Err(NoEndpoint::Nowhere) };
    if lead.filtered && !is_inside(tables, client, RangesWord(entry.word(at::RANGES)), F::IPV4) {
        return Err(NoEndpoint::Denied);
    }
    let terms = Terms(entry.word(at::TERMS));
    if terms.timeout() == 0 {
        return choose::<F, T>(tables, entry, lead, terms, client.random());
    }
    let (key, now) = (client.affinity_key(terms.port()), client.now());
    let record = tables.affinity(&key).map(|record| AffinityValue(record.word(0)));
    let target = match recall::<F, T>(tables, record, lead, terms, now) {
        Some(target) => target,
        None => choose::<F, T>(tables, entry, lead, terms, key.seed(record))?,
    };
    // Every new flow counts from now (SA-3).
    tables.keep_affinity(&key, AffinityValue::new(target.reference, now));
    Ok(target)
}

/// The endpoint along `lead` that `seed`, out of 2^32, chooses. `entry` is the element of the directory, `terms` what
/// it says.
#[inline(always)]
pub fn choose<F: Family, T: Tables>(
    tables: &T,
    entry: T::Element,
    lead: Lead,
    terms: Terms,
    seed: u32,
) -> Result<Target<F::Address>, NoEndpoint> {
    for _ in 0..TRIES {
        let extent = Extent(entry.word(at::EXTENT));
        let (skipped, count) = part(tables, extent, lead);
        if count == 0 {
            return Err(if lead.local { NoEndpoint::NotHere(terms) } else { NoEndpoint::Nowhere });
        }
        let Some(slot) = tables.slot(extent.choice(count, seed).wrapping_add(skipped)) else {
            return Err(NoEndpoint::Nowhere);
        };
        let slot = Slot(slot.word(0));
        // A slot that is not local where only local ones were: the extent is stale (see `Slot::local`).
        if lead.local && skipped == 0 && !slot.local() {
            continue;
        }
        if let Some(target) = F::alive(tables, slot.backend()) {
            return Ok(target);
        }
    }
    Err(NoEndpoint::Nowhere)
}

/// How many slots are skipped along `lead`, and among how many of the next the endpoint is chosen.
#[inline(always)]
pub fn part<T: Tables>(tables: &T, extent: Extent, lead: Lead) -> (u32, u32) {
    let others = extent.all().saturating_sub(extent.local());
    if lead.falls_back && others > 0 && !tables.own_dns_serves() {
        return (extent.local(), others);
    }
    (0, extent.count(lead.local))
}

/// The endpoint that the client had last, if it may still serve the client.
#[inline(always)]
fn recall<F: Family, T: Tables>(
    tables: &T,
    record: Option<AffinityValue>,
    lead: Lead,
    terms: Terms,
    now: u64,
) -> Option<Target<F::Address>> {
    let record = record?;
    if !record.is_valid(now, terms.timeout()) {
        return None;
    }
    let (target, standing) = alive_in_port::<F, T>(tables, record.backend(), terms)?;
    standing.may_serve(lead.local).then_some(target)
}

/// Whether the client lies in the source ranges of a Service.
#[inline(always)]
fn is_inside<T: Tables, C: Caller>(tables: &T, client: &C, ranges: RangesWord, ipv4: bool) -> bool {
    if client.is_of_node() {
        return ranges.node();
    }
    match client.source(ipv4) {
        Some(address) => tables.in_range(&RangeKey { id: ranges.id(), address }),
        None => false,
    }
}

/// Whether a packet that begins a flow meets silence, because its destination lies in a range of services and nothing
/// has it (NE-12). Of packets to port 0 nobody says anything.
#[inline(always)]
pub fn is_unused<T: Tables>(tables: &T, address: &Address6, port: Port) -> bool {
    if port == 0 || !tables.in_service_range(address) {
        return false;
    }
    let value = address_value(tables, address);
    !value.is_known() || value.is_former()
}

/// What `ADDRESSES` says; an element that is recycled for another address this instant does not count.
#[inline(always)]
pub fn address_value<T: Tables>(tables: &T, address: &Address6) -> AddressValue {
    let Some(element) = tables.address(address) else { return AddressValue::default() };
    let value = AddressValue(element.word(0));
    if value.is_of(address) { value } else { AddressValue::default() }
}

#[inline(always)]
fn unless_opted_out<C: Caller>(client: &C, meaning: Meaning) -> Meaning {
    if client.has_opted_out() { Meaning::Foreign } else { meaning }
}

/// The element may be recycled for another key at this moment; the fingerprint shows it.
#[inline(always)]
fn lead_of<E: Words>(element: E, fingerprint: u32) -> Option<Lead> {
    let value = FrontendValue(element.word(0));
    if value.fingerprint() == fingerprint { Some(value.lead()) } else { None }
}

impl Family for V4 {
    type Address = Address4;
    const IPV4: bool = true;

    #[inline(always)]
    fn reached(address: Address4) -> Address4 {
        reached4(address)
    }

    #[inline(always)]
    fn lead<T: Tables>(tables: &T, address: Option<Address4>, port: Port, protocol: u8, scope: u8) -> Option<Lead> {
        let key = FrontendKey4 { address: address.unwrap_or(0), port, protocol, scope };
        lead_of(tables.frontend4(&key)?, key.fingerprint())
    }

    #[inline(always)]
    fn listed(address: Address4) -> Address6 {
        let [first, ..] = address.to_ne_bytes();
        mapped(if first == 127 { LOOPBACK4 } else { address })
    }

    #[inline(always)]
    fn alive<T: Tables>(tables: &T, reference: BackendRef) -> Option<Target<Address4>> {
        let backend = tables.backend4(reference.index())?;
        let life = backend.word(Backend4::LIFE);
        let (address, port) = (Backend4::address(life), Backend4::port(life));
        let alive = Backend4::generation(life) == reference.generation();
        if alive { Some(Target { address, port, reference }) } else { None }
    }

    #[inline(always)]
    fn standing<T: Tables>(tables: &T, reference: BackendRef) -> Standing {
        match tables.backend4(reference.index()) {
            Some(backend) => Standing(backend.word(Backend4::STANDING)),
            None => Standing::default(),
        }
    }
}

impl Family for V6 {
    type Address = Address6;
    const IPV4: bool = false;

    #[inline(always)]
    fn reached(address: Address6) -> Address6 {
        reached6(address)
    }

    #[inline(always)]
    fn lead<T: Tables>(tables: &T, address: Option<Address6>, port: Port, protocol: u8, scope: u8) -> Option<Lead> {
        let key = FrontendKey6 { address: address.unwrap_or([0; 4]), port, protocol, scope };
        lead_of(tables.frontend6(&key)?, key.fingerprint())
    }

    #[inline(always)]
    fn listed(address: Address6) -> Address6 {
        address
    }

    #[inline(always)]
    fn alive<T: Tables>(tables: &T, reference: BackendRef) -> Option<Target<Address6>> {
        let backend = tables.backend6(reference.index())?;
        let life = backend.word(Backend6::LIFE);
        let (first, second) = (backend.word(0), backend.word(1));
        let (address, port) = (Backend6::address(first, second), Backend6::port(life));
        let alive = Backend6::generation(life) == reference.generation();
        if alive { Some(Target { address, port, reference }) } else { None }
    }

    #[inline(always)]
    fn standing<T: Tables>(tables: &T, reference: BackendRef) -> Standing {
        match tables.backend6(reference.index()) {
            Some(backend) => Standing(backend.word(Backend6::STANDING)),
            None => Standing::default(),
        }
    }
}
