//! A packet comes in: its destination becomes an endpoint, or the client for which this node stood.

use proxy_abi::connection::{Connection, Key, State, Translation};
use proxy_abi::lookup::{Family, Meaning, NoEndpoint, Target, V4, V6, address_value, endpoint, meaning};
use proxy_abi::packet::{Packet, Read, protocol};
use proxy_abi::{Address6, BackendRef, Count, Device, Lead, mapped, same};

use crate::decisions::{DECIDED, clear, count, count_for, decided};
use crate::rewrite::{self, Side};
use crate::sender::{Sender, seconds};
use crate::skb::Skb;
use crate::tables::Kernel;
use crate::tracked::{DEVICES, Scratch, scratch};
use crate::{DROP, NEXT, errors, flows, refuse};

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let packet = match skb.read(NETWORK) {
        Read::Packet(packet) => packet,
        Read::Message(message) => return errors::come_in(*skb, &message),
        Read::Fragment(_) | Read::Other => return NEXT,
    };
    if packet.fragment != 0 {
        return NEXT;
    }
    let value = address_value(&Kernel, &packet.ends.to);
    if !value.is_known() {
        return NEXT;
    }
    let Some(scratch) = scratch() else { return NEXT };
    scratch.packet = packet;
    let verdict = serve(*skb, scratch, value.takes_node_ports());
    if verdict != DECIDED {
        return verdict;
    }
    decided(*skb, &scratch.packet.ends, &scratch.connection, scratch.what);
    if scratch.what.refuses() {
        return refuse::refuse::<NETWORK>(*skb, &scratch.packet);
    }
    if scratch.what.begins() { NEXT } else { DROP }
}

/// The verdict on the packet of the scratch, or [`DECIDED`]. Not inlined: all calls of a program share 512 bytes of
/// stack, but calls after each other use the same ones.
#[inline(never)]
fn serve(skb: Skb, scratch: &mut Scratch, to_node: bool) -> i32 {
    let mut how = Count::New;
    if let Some((place, tables)) = flows::connection(&scratch.packet.ends) {
        // SAFETY: an element that was found stays readable.
        let closed = State::of(unsafe { (*place).state }) == State::Closed;
        if closed && scratch.packet.opens() {
            how = Count::Reopened;
        } else {
            flows::note(scratch, place, tables);
            if scratch.packet.ends.protocol == protocol::TCP || serves(&scratch.packet, &scratch.connection) {
                return forward(skb, scratch);
            }
            how = Count::Rebalanced;
        }
    } else if to_node {
        scratch.key = Key::of(&scratch.packet.ends);
        if let Some(place) = flows::translation(&scratch.key) {
            // SAFETY: as above.
            scratch.translation = unsafe { place.read() };
            let Scratch { packet, translation, .. } = scratch;
            if translation.flags & Translation::OF_NODE != 0 {
                return finish(rewrite::set(skb, packet, Side::Destination, &translation.address, translation.port));
            }
        }
    }
    if scratch.packet.ends.protocol == protocol::TCP && !scratch.packet.opens() {
        return NEXT;
    }
    begin(skb, scratch, how)
}

/// Whether the endpoint of a flow of datagrams is still there.
#[inline(always)]
fn serves(packet: &Packet, connection: &Connection) -> bool {
    let reference = connection.reference();
    if packet.ipv4 { V4::alive(&Kernel, reference).is_some() } else { V6::alive(&Kernel, reference).is_some() }
}

#[inline(always)]
fn finish(result: Result<(), rewrite::Failed>) -> i32 {
    match result {
        Ok(()) => NEXT,
        Err(rewrite::Failed) => {
            count(Count::NotRewritten);
            DROP
        }
    }
}

/// The client's packet of the scratch to its endpoint.
#[inline(always)]
fn forward(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    if connection.client_port != packet.ends.from_port {
        let set = rewrite::set(skb, packet, Side::Source, &packet.ends.from, connection.client_port);
        if set.is_err() {
            return finish(set);
        }
    }
    finish(rewrite::set(skb, packet, Side::Destination, &connection.endpoint, connection.endpoint_port))
}

/// The first packet of a flow, which begins as `how` says if it finds an endpoint.
#[inline(always)]
fn begin(skb: Skb, scratch: &mut Scratch, how: Count) -> i32 {
    let Some(chosen) = choose(scratch, is_outside(skb)) else { return NEXT };
    let what = match chosen.and_then(|()| flows::begin(scratch)) {
        Ok(()) => how,
        Err(why) => why,
    };
    count(what);
    count_for(scratch.connection.service, what);
    scratch.what = what;
    if what.begins() && forward(skb, scratch) != NEXT { DROP } else { DECIDED }
}

/// Whether packets that come in by its device are not of pods of this node.
#[inline(always)]
pub(crate) fn is_outside(skb: Skb) -> bool {
    // SAFETY: an element is replaced and not rewritten.
    let device = unsafe { DEVICES.get(&skb.device()) };
    device.is_none_or(|device| device.flags & Device::PODS == 0)
}

/// Chooses the endpoint of the flow of the scratch; `None` if it is none of ours.
#[inline(always)]
fn choose(scratch: &mut Scratch, outside: bool) -> Option<Result<(), Count>> {
    let Scratch { packet, connection, .. } = scratch;
    clear(connection);
    let sender = Sender { ends: &packet.ends, outside };
    if packet.ipv4 {
        let [_, _, _, to] = packet.ends.to;
        let (lead, target) = match choose_in::<V4>(&sender, to, &mut connection.service)? {
            Ok(chosen) => chosen,
            Err(why) => return Some(Err(why)),
        };
        start(connection, packet, &lead, outside, (mapped(target.address), target.port, target.reference));
    } else {
        let (lead, target) = match choose_in::<V6>(&sender, packet.ends.to, &mut connection.service)? {
            Ok(chosen) => chosen,
            Err(why) => return Some(Err(why)),
        };
        start(connection, packet, &lead, outside, (target.address, target.port, target.reference));
    }
    Some(Ok(()))
}

#[inline(always)]
fn choose_in<F: Family>(
    sender: &Sender<'_>,
    to: F::Address,
    service: &mut u32,
) -> Option<Result<(Lead, Target<F::Address>), Count>> {
    let ends = sender.ends;
    match meaning::<F, _, _>(&Kernel, sender, to, ends.to_port, ends.protocol) {
        Meaning::Frontend(lead) => {
            *service = lead.service;
            Some(match endpoint::<F, _, _>(&Kernel, sender, lead) {
                Ok(target) => Ok((lead, target)),
                Err(why) => Err(unserved(why)),
            })
        }
        Meaning::Undefined => Some(Err(Count::UndefinedPort)),
        Meaning::Foreign => None,
    }
}

/// What becomes of a packet whose flow gets no endpoint. Under policy Local, others have one if it is to be silent.
#[inline(always)]
fn unserved(why: NoEndpoint) -> Count {
    match why {
        NoEndpoint::NotHere(terms) if terms.silent() => Count::NoLocalEndpoint,
        NoEndpoint::NotHere(_) | NoEndpoint::Nowhere => Count::NoEndpoint,
        NoEndpoint::Denied => Count::SourceRange,
    }
}

#[inline(always)]
fn start(
    connection: &mut Connection,
    packet: &Packet,
    lead: &Lead,
    outside: bool,
    (address, port, reference): (Address6, u16, BackendRef),
) {
    let now = seconds();
    // A flow to its own client: the answer would not leave it (TP-42).
    let hairpin = same(&address, &packet.ends.from);
    let flags = if hairpin || lead.source_nat.is_for(outside) { Connection::SOURCE_NAT } else { 0 };
    *connection = Connection {
        endpoint: address,
        endpoint_port: port,
        client_port: packet.ends.from_port,
        state: State::Opening as u8,
        flags,
        reference: reference.0,
        service: lead.service,
        seen: now,
        begun: now,
        ..Connection::default()
    };
}
