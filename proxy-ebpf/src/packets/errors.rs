//! Errors of ICMP about packets that were translated: their receiver sees them as about its own packets.
//!
//! The header of the error is translated as all others: its destination at ingress, its source at egress. The packet
//! that it quotes was once at both hooks too, so it is taken back in the same two steps: between the hooks it has the
//! ends of client and endpoint, as the flow itself, and filters and the kernel's tracking know it. What came in is
//! brought there at ingress; what leaves is brought from there at egress, errors of this node itself included. An error
//! says nothing about whether its flow is alive, so it leaves no trace in the tables.
//!
//! A redirect tells the sender of a packet a better next hop. A node sends one if it forwards a client's packet out of
//! the device by which it came; but its answers must come back by this node, whoever would hear of the other way. So
//! none leaves about a flow of ours. What comes in is for this node's own routes, and goes on.

use proxy_abi::connection::{Connection, Key, Translation};
use proxy_abi::lookup::address_value;
use proxy_abi::packet::{Ends, Packet};
use proxy_abi::{Address6, Count, same};

use crate::decisions::count;
use crate::rewrite::{self, Failed, Side};
use crate::skb::Skb;
use crate::tables::Kernel;
use crate::tracked::Scratch;
use crate::{DROP, NEXT, flows, ingress, quoted};

/// An error comes in, that of the scratch.
#[inline(always)]
pub(crate) fn come_in(skb: Skb, scratch: &mut Scratch) -> i32 {
    let value = address_value(&Kernel, &scratch.packet.ends.to);
    if value.is_known() { bring(skb, scratch, ingress::may_be_of_node(value)) } else { NEXT }
}

/// Gives one end of an error another address.
#[inline(always)]
fn set_address(skb: Skb, message: &Packet, side: Side, address: &Address6) -> Result<(), Failed> {
    rewrite::set_address(skb, message, side, address, rewrite::checksum(message))
}

#[inline(always)]
fn verdict(result: Result<(), Failed>) -> i32 {
    match result {
        Ok(()) => {
            count(Count::ErrorTranslated);
            NEXT
        }
        Err(Failed) => {
            count(Count::NotRewritten);
            DROP
        }
    }
}

/// The error of the scratch, which has come in, gets the ends of client and endpoint. Not inlined: it has a stack of
/// its own.
#[inline(never)]
fn bring(skb: Skb, scratch: &mut Scratch, to_node: bool) -> i32 {
    let Scratch { packet, quoted, client, connection, key, translation, .. } = scratch;
    let Some(found) = skb.quoted(packet) else { return NEXT };
    *quoted = found;
    if quoted.redirects {
        return NEXT;
    }
    *client = quoted.packet.ends.reversed();
    if let Some((place, _)) = flows::connection(client) {
        // About an answer: it left with what the client dialled as its source.
        // SAFETY: an element that was found stays readable.
        *connection = unsafe { place.read() };
        if connection.flags & Connection::FOREIGN != 0 {
            return NEXT;
        }
        return verdict(about_answer(skb, scratch));
    }
    if !to_node {
        return NEXT;
    }
    *key = Key::of(&quoted.packet.ends);
    let Some(place) = flows::translation(key) else { return NEXT };
    // SAFETY: as above.
    *translation = unsafe { place.read() };
    if !translation.stands_for_client() || !translation.is_from_client(key) {
        return NEXT;
    }
    // About a packet for whose client this node stood.
    let (client, port) = (&translation.address, translation.port);
    let set = quoted::set(skb, packet, quoted, Side::Source, client, port);
    verdict(set.and_then(|()| set_address(skb, packet, Side::Destination, client)))
}

#[inline(always)]
fn about_answer(skb: Skb, scratch: &Scratch) -> Result<(), Failed> {
    let Scratch { packet, quoted, connection, .. } = scratch;
    let client = &quoted.packet.ends.to;
    quoted::set(skb, packet, quoted, Side::Source, &connection.endpoint, connection.endpoint_port)?;
    quoted::set(skb, packet, quoted, Side::Destination, client, connection.client_port)?;
    set_address(skb, packet, Side::Destination, &connection.endpoint)
}

/// The error of the scratch, which leaves, gets the ends of the packet as its receiver had sent it.
#[inline(never)]
pub(crate) fn leave(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, quoted, key, translation, .. } = scratch;
    let Some(found) = skb.quoted(packet) else { return NEXT };
    *quoted = found;
    *key = Key::of(&quoted.packet.ends);
    let Some(place) = flows::translation(key) else { return NEXT };
    // SAFETY: an element that was found stays readable.
    *translation = unsafe { place.read() };
    if translation.flags & Translation::OF_NODE != 0 {
        return NEXT;
    }
    if quoted.redirects {
        return DROP;
    }
    if translation.is_from_client(key) {
        return verdict(to_client(skb, scratch));
    }
    if translation.flags & Translation::SOURCE_NAT == 0 {
        return NEXT;
    }
    let ends = &quoted.packet.ends;
    scratch.client = translation.dialled(ends.to, ends.protocol);
    let Some((place, _)) = flows::connection(&scratch.client) else { return NEXT };
    // SAFETY: as above.
    scratch.connection = unsafe { place.read() };
    if scratch.connection.source_port == 0 {
        return NEXT;
    }
    verdict(to_endpoint(skb, scratch))
}

/// About a packet of the client's. The endpoint's address is not one that the client has dialled. Routers on the way
/// keep theirs, unless this node stands for the client: then the error may have to pass its own router again, which
/// drops what comes from its own address.
#[inline(always)]
fn to_client(skb: Skb, scratch: &Scratch) -> Result<(), Failed> {
    let Scratch { packet, quoted, translation, .. } = scratch;
    let Ends { from: client, to: endpoint, .. } = &quoted.packet.ends;
    quoted::set(skb, packet, quoted, Side::Destination, &translation.address, translation.port)?;
    quoted::set(skb, packet, quoted, Side::Source, client, translation.client_port)?;
    if same(&packet.ends.from, endpoint) || translation.flags & Translation::SOURCE_NAT != 0 {
        set_address(skb, packet, Side::Source, &translation.address)?;
    }
    Ok(())
}

/// About an answer to a client for which this node stands. The endpoint's network knows the node alone, so the node
/// stands for routers before the client too.
#[inline(always)]
fn to_endpoint(skb: Skb, scratch: &Scratch) -> Result<(), Failed> {
    let Scratch { packet, quoted, connection, .. } = scratch;
    quoted::set(skb, packet, quoted, Side::Destination, &connection.source, connection.source_port)?;
    set_address(skb, packet, Side::Source, &connection.source)
}
