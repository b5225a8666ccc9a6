//! A packet comes in: its destination becomes an endpoint, or the client for which this node stood.

use proxy_abi::connection::{Connection, Key, State, Translation};
use proxy_abi::lookup::{Family, Meaning, NoEndpoint, Target, V4, V6, address_value, endpoint, meaning};
use proxy_abi::packet::{Packet, Read, protocol};
use proxy_abi::{Address6, BackendRef, Device, Lead, mapped, refusal, same};

use crate::rewrite::{self, Side};
use crate::sender::{Sender, seconds};
use crate::skb::Skb;
use crate::tables::Kernel;
use crate::tracked::{DEVICES, Scratch, scratch};
use crate::{DROP, NEXT, errors, flows, fragments, refuse};

/// No verdicts of the kernel's: the packet is to be refused, to go to the endpoint of the scratch's connection, or to
/// the client of its translation.
const REFUSE: i32 = -2;
const FORWARD: i32 = -3;
const RETURN: i32 = -4;

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let packet = match skb.read(NETWORK) {
        Read::Packet(packet) => packet,
        Read::Message(message) => return errors::come_in(*skb, &message),
        Read::Fragment(fragment) => return fragments::come_in(*skb, &fragment),
        Read::Other => return NEXT,
    };
    let value = address_value(&Kernel, &packet.ends.to);
    if !value.is_known() || !skb.is_whole(&packet, protocol::header(packet.ends.protocol)) {
        return NEXT;
    }
    let Some(scratch) = scratch() else { return NEXT };
    scratch.packet = packet;
    fragments::forget(&scratch.packet);
    // Without frames, all is for this node.
    let for_many = NETWORK != 0 && skb.is_for_many();
    match serve(*skb, scratch, value.takes_node_ports(), for_many) {
        REFUSE => refuse::refuse::<NETWORK>(*skb, &scratch.packet),
        FORWARD => forward(*skb, scratch),
        RETURN => to_client(*skb, scratch),
        verdict => verdict,
    }
}

/// The verdict on the packet of the scratch, or one of the above. Not inlined: all calls of a program share 512 bytes
/// of stack, but calls after each other use the same ones.
#[inline(never)]
fn serve(skb: Skb, scratch: &mut Scratch, to_node: bool, for_many: bool) -> i32 {
    if let Some((place, tables)) = flows::connection(&scratch.packet.ends) {
        // SAFETY: an element that was found stays readable.
        let closed = State::of(unsafe { (*place).state }) == State::Closed;
        if !(closed && scratch.packet.opens()) {
            flows::note(scratch, place, tables);
            if protocol::connects(scratch.packet.ends.protocol) || serves(&scratch.packet, &scratch.connection) {
                return FORWARD;
            }
        }
    } else if to_node {
        scratch.key = Key::of(&scratch.packet.ends);
        if let Some(place) = flows::translation(&scratch.key) {
            // SAFETY: as above.
            scratch.translation = unsafe { place.read() };
            if scratch.translation.flags & Translation::OF_NODE != 0 {
                return RETURN;
            }
        }
    }
    if protocol::connects(scratch.packet.ends.protocol) && !scratch.packet.opens() {
        return NEXT;
    }
    begin(skb, scratch, for_many)
}

/// Whether the endpoint of a flow of datagrams is still there.
#[inline(always)]
fn serves(packet: &Packet, connection: &Connection) -> bool {
    let reference = connection.reference();
    if packet.ipv4 { V4::alive(&Kernel, reference).is_some() } else { V6::alive(&Kernel, reference).is_some() }
}

#[inline(always)]
fn finish(packet: &Packet, result: Result<(), rewrite::Failed>) -> i32 {
    if result.is_err() {
        return DROP;
    }
    fragments::remember(packet);
    NEXT
}

/// The packet of the scratch from an endpoint to the client. Not inlined, as above.
#[inline(never)]
fn to_client(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, translation, .. } = scratch;
    finish(packet, rewrite::set(skb, packet, Side::Destination, &translation.address, translation.port))
}

/// The client's packet of the scratch to its endpoint. Not inlined, as above.
#[inline(never)]
fn forward(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    if connection.client_port != packet.ends.from_port {
        let set = rewrite::set(skb, packet, Side::Source, &packet.ends.from, connection.client_port);
        if set.is_err() {
            return DROP;
        }
    }
    finish(packet, rewrite::set(skb, packet, Side::Destination, &connection.endpoint, connection.endpoint_port))
}

/// The first packet of a flow.
#[inline(always)]
fn begin(skb: Skb, scratch: &mut Scratch, for_many: bool) -> i32 {
    let chosen = choose(scratch, is_outside(skb), for_many);
    match chosen {
        Some(Ok(())) => {}
        Some(Err(NoEndpoint::NotHere(terms))) if terms.silent() => return DROP,
        Some(Err(NoEndpoint::Denied)) => return DROP,
        Some(Err(NoEndpoint::NotHere(_) | NoEndpoint::Nowhere)) => return REFUSE,
        None => return NEXT,
    }
    if !flows::begin(scratch) {
        return DROP;
    }
    FORWARD
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
fn choose(scratch: &mut Scratch, outside: bool, for_many: bool) -> Option<Result<(), NoEndpoint>> {
    let Scratch { packet, connection, .. } = scratch;
    let answerable = refusal::may_be_told(&packet.ends.from) && !for_many;
    let sender = Sender { ends: &packet.ends, outside, answerable };
    if packet.ipv4 {
        let [_, _, _, to] = packet.ends.to;
        let (lead, target) = match choose_in::<V4>(&sender, to)? {
            Ok(chosen) => chosen,
            Err(why) => return Some(Err(why)),
        };
        start(connection, packet, &lead, outside, (mapped(target.address), target.port, target.reference));
    } else {
        let (lead, target) = match choose_in::<V6>(&sender, packet.ends.to)? {
            Ok(chosen) => chosen,
            Err(why) => return Some(Err(why)),
        };
        start(connection, packet, &lead, outside, (target.address, target.port, target.reference));
    }
    Some(Ok(()))
}

#[inline(always)]
fn choose_in<F: Family>(sender: &Sender<'_>, to: F::Address) -> Option<Result<(Lead, Target<F::Address>), NoEndpoint>> {
    let ends = sender.ends;
    match meaning::<F, _, _>(&Kernel, sender, to, ends.to_port, ends.protocol) {
        Meaning::Frontend(_) if !sender.answerable => Some(Err(NoEndpoint::Denied)),
        Meaning::Frontend(lead) => Some(match endpoint::<F, _, _>(&Kernel, sender, lead) {
            Ok(target) => Ok((lead, target)),
            Err(why) => Err(why),
        }),
        Meaning::Undefined => Some(Err(NoEndpoint::Nowhere)),
        Meaning::Foreign => None,
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
