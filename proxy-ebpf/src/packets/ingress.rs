//! A packet comes in: its destination becomes an endpoint, or the client for which this node stood.

use proxy_abi::connection::{Connection, Key, State, Translation};
use proxy_abi::lookup::{Family, Meaning, NoEndpoint, Target, V4, V6, address_value, endpoint, meaning};
use proxy_abi::packet::{Packet, Read, protocol};
use proxy_abi::{Address6, BackendRef, Config, Device, Lead, mapped, same};

use crate::rewrite::{self, Side};
use crate::sender::{Sender, seconds};
use crate::skb::Skb;
use crate::tables::{Kernel, config};
use crate::tracked::{DEVICES, Scratch, scratch};
use crate::{DROP, NEXT, errors, flows, refuse};

/// No verdict of the kernel's: the packet is to be refused.
const REFUSE: i32 = -2;

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
    match serve(*skb, scratch, value.takes_node_ports()) {
        REFUSE => refuse::refuse::<NETWORK>(*skb, &scratch.packet),
        verdict => verdict,
    }
}

/// The verdict on the packet of the scratch, or [`REFUSE`]. Not inlined: all calls of a program share 512 bytes of
/// stack, but calls after each other use the same ones.
#[inline(never)]
fn serve(skb: Skb, scratch: &mut Scratch, to_node: bool) -> i32 {
    if let Some((place, tables)) = flows::connection(&scratch.packet.ends) {
        // SAFETY: an element that was found stays readable.
        let closed = State::of(unsafe { (*place).state }) == State::Closed;
        if !(closed && scratch.packet.opens()) {
            flows::note(scratch, place, tables);
            let opens = scratch.packet.opens();
            if scratch.connection.flags & Connection::FOREIGN != 0 {
                if !opens {
                    return NEXT;
                }
            } else if (scratch.packet.ends.protocol == protocol::TCP && !opens)
                || serves(&scratch.packet, &scratch.connection)
            {
                return forward(skb, scratch);
            }
        }
        flows::forget(&scratch.packet.ends, tables);
    } else if to_node {
        scratch.key = Key::of(&scratch.packet.ends);
        if let Some(place) = flows::translation(&scratch.key) {
            // SAFETY: as above.
            scratch.translation = unsafe { place.read() };
            let Scratch { packet, translation, .. } = scratch;
            if translation.flags & Translation::OF_NODE != 0 {
                let now = seconds();
                if translation.seen != now {
                    // SAFETY: an element that was found stays writable.
                    unsafe { (*place).seen = now };
                }
                return finish(rewrite::set(skb, packet, Side::Destination, &translation.address, translation.port));
            }
        }
    }
    if scratch.packet.ends.protocol == protocol::TCP && !scratch.packet.opens() {
        // Else the kernel may translate it for an earlier path.
        if config(Config::FLAGS) & Config::OWN_FLOWS == 0 {
            return NEXT;
        }
        // To what a process of this node or a pod behind its address has sent: not to the frontend at this port.
        if scratch.packet.answers() {
            flows::leave_alone(scratch);
            return NEXT;
        }
    }
    begin(skb, scratch)
}

/// Whether the endpoint of a flow is still there. Connections of TCP that are up stay with theirs (CT-6).
#[inline(always)]
fn serves(packet: &Packet, connection: &Connection) -> bool {
    let reference = connection.reference();
    if packet.ipv4 { V4::alive(&Kernel, reference).is_some() } else { V6::alive(&Kernel, reference).is_some() }
}

#[inline(always)]
fn finish(result: Result<(), rewrite::Failed>) -> i32 {
    if result.is_ok() { NEXT } else { DROP }
}

/// The client's packet of the scratch to its endpoint.
#[inline(always)]
fn forward(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    if connection.client_port != packet.ends.from_port {
        let set = rewrite::set(skb, packet, Side::Source, &packet.ends.from, connection.client_port);
        if set.is_err() {
            return DROP;
        }
    }
    finish(rewrite::set(skb, packet, Side::Destination, &connection.endpoint, connection.endpoint_port))
}

/// The first packet of a flow.
#[inline(always)]
fn begin(skb: Skb, scratch: &mut Scratch) -> i32 {
    let chosen = choose(scratch, is_outside(skb));
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
    forward(skb, scratch)
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
fn choose(scratch: &mut Scratch, outside: bool) -> Option<Result<(), NoEndpoint>> {
    let Scratch { packet, connection, .. } = scratch;
    let sender = Sender { ends: &packet.ends, outside };
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
    let first = State::Opening;
    // One that was forgotten is further.
    let state = if packet.opens() || packet.ends.protocol != protocol::TCP { first } else { first.after(true, packet) };
    // A flow to its own client: the answer would not leave it (TP-42).
    let hairpin = same(&address, &packet.ends.from);
    let flags = if hairpin || lead.source_nat.is_for(outside) { Connection::SOURCE_NAT } else { 0 };
    *connection = Connection {
        endpoint: address,
        endpoint_port: port,
        client_port: packet.ends.from_port,
        state: state as u8,
        flags,
        reference: reference.0,
        service: lead.service,
        seen: now,
        begun: now,
        ..Connection::default()
    };
}
