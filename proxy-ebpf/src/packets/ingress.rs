//! A packet comes in: its destination becomes an endpoint, or the client for which this node stood.

use proxy_abi::connection::{Connection, Key, State, Translation};
use proxy_abi::lookup::{Family, Meaning, NoEndpoint, Target, V4, V6, address_value, endpoint, is_unused, meaning_of};
use proxy_abi::packet::{Packet, protocol};
use proxy_abi::{Address6, AddressBit, AddressValue, BackendRef, Config, Count, Device, Lead, mapped, refusal, same};

use crate::decisions::{DECIDED, clear, count, count_for, decided, finish};
use crate::flows::Tables;
use crate::rewrite::{self, Ports, Side};
use crate::sender::{Sender, seconds};
use crate::skb::{Kind, Skb};
use crate::tables::{Kernel, config};
use crate::tracked::{ADDRESS_BITS, DEVICES, Scratch, scratch};
use crate::{DROP, NEXT, errors, flows, fragments, refuse};

/// No verdicts of the kernel's, as [`DECIDED`]: the packet is to go to the endpoint of the scratch's connection, or to
/// the client of its translation, or it is the first one of a flow.
const FORWARD: i32 = -3;
const RETURN: i32 = -4;
const BEGIN: i32 = -5;
/// The same: the large tables know nothing of a packet of TCP.
const NOT_LARGE: i32 = -6;

#[inline(always)]
pub(crate) fn run<const NETWORK: u32>(skb: &Skb) -> i32 {
    let Some(scratch) = scratch() else { return NEXT };
    match skb.read(NETWORK, &mut scratch.packet) {
        Kind::Packet => {}
        Kind::Message => return errors::come_in(*skb, scratch),
        Kind::Fragment => return fragments::come_in(*skb, scratch),
        Kind::Other => return NEXT,
    }
    let packet = &scratch.packet;
    if !may_be_known(&packet.ends.to) {
        return unless_unused(packet);
    }
    if !skb.is_whole(packet, protocol::header(packet.ends.protocol)) {
        return NEXT;
    }
    fragments::forget(packet);
    let is_new = match go_on(*skb, scratch) {
        DECIDED => false,
        NOT_LARGE => true,
        verdict => return verdict,
    };
    match serve(scratch, is_new) {
        FORWARD => return forward(*skb, scratch),
        RETURN => return to_client(*skb, scratch),
        BEGIN => {}
        verdict => return verdict,
    }
    // Without frames, all is for this node.
    let for_many = NETWORK != 0 && skb.is_for_many();
    match begin(*skb, scratch, for_many) {
        DECIDED => {}
        verdict => return verdict,
    }
    decided(*skb, &scratch.packet.ends, &scratch.connection, scratch.what);
    if scratch.what.refuses() {
        return refuse::refuse::<NETWORK>(*skb, &scratch.packet);
    }
    if scratch.what.begins() { forward(*skb, scratch) } else { DROP }
}

/// Whether `ADDRESSES` may have an address. It has few of those that packets are sent to, and this is the cheaper look.
#[inline(always)]
fn may_be_known(address: &Address6) -> bool {
    let AddressBit { index, mask } = AddressBit::of(address);
    // SAFETY: an element stays readable; the daemon may store at any moment.
    ADDRESS_BITS.get_ptr(index).is_some_and(|word| unsafe { word.read_volatile() } & mask != 0)
}

/// The verdict on a packet of no flow of ours (NE-12).
#[inline(always)]
pub(crate) fn unless_unused(packet: &Packet) -> i32 {
    let begins = packet.ends.protocol != protocol::TCP || packet.opens();
    if !begins || is_leaving() || !is_unused(&Kernel, &packet.ends.to, packet.ends.to_port) {
        return NEXT;
    }
    count(Count::UnusedAddress);
    DROP
}

/// Whether another path serves what these programs do not know.
#[inline(always)]
fn is_leaving() -> bool {
    config(Config::FLAGS) & Config::LEAVING != 0
}

/// Whether an address may stand for clients: one of the node's may that takes no node ports, a cluster IP may not.
#[inline(always)]
pub(crate) fn may_be_of_node(value: AddressValue) -> bool {
    value.takes_node_ports() || !value.refuses_other_ports()
}

/// The verdict on the packet of the scratch if nothing is to be noted of it; [`NOT_LARGE`], or else [`DECIDED`]. Not
/// inlined: what the kernel's verifier has to follow grows with each way to what comes next.
#[inline(never)]
fn go_on(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, key, .. } = scratch;
    if !packet.goes_on() {
        return DECIDED;
    }
    let (ports, address) = match flows::connection_in(Tables::Large, &packet.ends) {
        Some((place, _)) => {
            // SAFETY: an element that was found stays readable; one that is recycled this instant is another flow's.
            let connection = unsafe { &*place };
            if !flows::is_steady(connection) {
                return DECIDED;
            }
            (Ports { from: connection.client_port, to: connection.endpoint_port }, &connection.endpoint)
        }
        None => {
            *key = Key::of(&packet.ends);
            let Some(place) = flows::translation_in(Tables::Large, key) else { return NOT_LARGE };
            // SAFETY: as above.
            let translation = unsafe { &*place };
            if !translation.stands_for_client() || translation.seen != seconds() || is_leaving() {
                return DECIDED;
            }
            (Ports { from: packet.ends.from_port, to: translation.port }, &translation.address)
        }
    };
    finish(packet, rewrite::set_tcp(skb, packet, Side::Destination, address, ports))
}

/// The verdict on the packet of the scratch, or one of the above. `not_large`: it has been looked for in the large
/// tables. Not inlined: all calls of a program share 512 bytes of stack, but calls after each other use the same ones.
#[inline(never)]
fn serve(scratch: &mut Scratch, not_large: bool) -> i32 {
    (scratch.what, scratch.value) = (Count::New, None);
    let opens = scratch.packet.opens();
    let protocol = scratch.packet.ends.protocol;
    // While the programs are leaving, another path serves the next datagram of a flow.
    let datagram_left = !protocol::connects(protocol) && is_leaving();
    let looks = !not_large && !datagram_left;
    let mut known = if looks { flows::connection_in(Tables::Large, &scratch.packet.ends) } else { None };
    if known.is_none() {
        let value = address_value(&Kernel, &scratch.packet.ends.to);
        scratch.value = Some(value);
        if !value.is_known() {
            return unless_unused(&scratch.packet);
        }
        // What opens a connection of TCP answers none. Either end of an association of SCTP may begin it anew.
        let answers = !(opens && protocol == protocol::TCP) && may_be_of_node(value);
        if answers && !not_large {
            scratch.key = Key::of(&scratch.packet.ends);
            match answer(scratch, Tables::Large) {
                DECIDED => {}
                verdict => return verdict,
            }
        }
        if protocol == protocol::TCP {
            known = flows::connection_in(Tables::Opening, &scratch.packet.ends);
            if known.is_none() && answers && flows::may_be_opening(&scratch.key) {
                match answer(scratch, Tables::Opening) {
                    DECIDED => {}
                    verdict => return verdict,
                }
            }
        }
    }
    if let Some((place, tables)) = known {
        // SAFETY: an element that was found stays readable.
        let closed = State::of(unsafe { (*place).state }) == State::Closed;
        if closed && opens {
            scratch.what = Count::Reopened;
        } else {
            flows::note(scratch, place, tables);
            if scratch.connection.flags & Connection::FOREIGN != 0 {
                if !opens {
                    return NEXT;
                }
            } else if (protocol::connects(protocol) && !opens) || serves(&scratch.packet, &scratch.connection) {
                return FORWARD;
            }
            scratch.what = Count::Rebalanced;
        }
        if is_leaving() {
            // At egress it shows that the flow has ended.
            return NEXT;
        }
        flows::forget(&scratch.packet.ends, tables);
    }
    if protocol::connects(protocol) && !opens {
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
    BEGIN
}

/// The verdict on a packet with the key of the scratch if it answers one that this node sent in a client's place, or
/// [`DECIDED`]. Not inlined: it is called twice.
#[inline(never)]
fn answer(scratch: &mut Scratch, tables: Tables) -> i32 {
    let Some(place) = flows::translation_in(tables, &scratch.key) else { return DECIDED };
    // SAFETY: an element that was found stays readable.
    scratch.translation = unsafe { place.read() };
    if !scratch.translation.stands_for_client() {
        return DECIDED;
    }
    if is_leaving() && !flows::goes_on(scratch) {
        return NEXT;
    }
    let (now, flags) = (seconds(), scratch.translation.flags);
    if scratch.translation.seen != now || flags & Translation::ANSWERED == 0 {
        // SAFETY: an element that was found stays writable.
        unsafe { (*place).seen = now };
        // SAFETY: as above.
        unsafe { (*place).flags = flags | Translation::ANSWERED };
    }
    RETURN
}

/// Whether the endpoint of a flow is still there. Connections of TCP that are up stay with theirs (CT-6).
#[inline(always)]
fn serves(packet: &Packet, connection: &Connection) -> bool {
    let reference = connection.reference();
    if packet.ipv4 { V4::alive(&Kernel, reference).is_some() } else { V6::alive(&Kernel, reference).is_some() }
}

/// The packet of the scratch from an endpoint to the client. Not inlined, as above.
#[inline(never)]
fn to_client(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, translation, .. } = scratch;
    let ports = Ports { from: packet.ends.from_port, to: translation.port };
    finish(packet, rewrite::set(skb, packet, Side::Destination, &translation.address, ports))
}

/// The client's packet of the scratch to its endpoint. Not inlined, as above.
#[inline(never)]
fn forward(skb: Skb, scratch: &Scratch) -> i32 {
    let Scratch { packet, connection, .. } = scratch;
    let ports = Ports { from: connection.client_port, to: connection.endpoint_port };
    finish(packet, rewrite::set(skb, packet, Side::Destination, &connection.endpoint, ports))
}

/// The first packet of a flow, which begins as the scratch says if it finds an endpoint. Not inlined, as above.
#[inline(never)]
fn begin(skb: Skb, scratch: &mut Scratch, for_many: bool) -> i32 {
    if is_leaving() {
        return NEXT;
    }
    let value = scratch.value.unwrap_or_else(|| address_value(&Kernel, &scratch.packet.ends.to));
    let device = device(skb);
    let chosen = choose(scratch, value, is_outside(device), for_many);
    let Some(chosen) = chosen else { return unless_unused(&scratch.packet) };
    let pod = device.map_or(0, |device| device.pod);
    let what = match chosen.and_then(|()| flows::begin(skb, scratch, pod)) {
        Ok(()) => scratch.what,
        Err(why) => why,
    };
    count(what);
    count_for(scratch.connection.service, what);
    scratch.what = what;
    DECIDED
}

/// The device by which a packet came in.
#[inline(always)]
pub(crate) fn device(skb: Skb) -> Option<&'static Device> {
    // SAFETY: an element is replaced and not rewritten.
    unsafe { DEVICES.get(skb.device()) }
}

/// Whether packets that come in by a device are not of pods of this node.
#[inline(always)]
pub(crate) fn is_outside(device: Option<&Device>) -> bool {
    device.is_none_or(|device| device.flags & Device::PODS == 0)
}

/// An endpoint, and where its frontend led.
type Chosen<A> = (Lead, Target<A>);

/// Chooses the endpoint of the flow of the scratch; `None` if it is none of ours.
#[inline(always)]
fn choose(scratch: &mut Scratch, value: AddressValue, outside: bool, for_many: bool) -> Option<Result<(), Count>> {
    let Scratch { packet, connection, .. } = scratch;
    clear(connection);
    let answerable = refusal::may_be_told(&packet.ends.from) && !for_many;
    let sender = Sender { ends: &packet.ends, outside, answerable };
    if packet.ipv4 {
        let [_, _, _, to] = packet.ends.to;
        let (lead, target) = match choose_in::<V4>(&sender, to, value, &mut connection.service)? {
            Ok(chosen) => chosen,
            Err(why) => return Some(Err(why)),
        };
        start(connection, packet, &lead, outside, (mapped(target.address), target.port, target.reference));
    } else {
        let (lead, target) = match choose_in::<V6>(&sender, packet.ends.to, value, &mut connection.service)? {
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
    value: AddressValue,
    service: &mut u32,
) -> Option<Result<Chosen<F::Address>, Count>> {
    let ends = sender.ends;
    match meaning_of::<F, _, _>(&Kernel, sender, to, ends.to_port, ends.protocol, || value) {
        Meaning::Frontend(lead) => {
            *service = lead.service;
            if !sender.answerable {
                return Some(Err(Count::Martian));
            }
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
