//! Counts what is decided, and tells it while somebody listens.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use proxy_abi::connection::Connection;
use proxy_abi::packet::{Ends, Packet};
use proxy_abi::refusal::Bucket;
use proxy_abi::{Config, Count, Event, Served};

use crate::rewrite::Failed;
use crate::sender::now;
use crate::skb::Skb;
use crate::tables::config;
use crate::tracked::{COUNTERS, EVENTS, SERVED};
use crate::{DROP, NEXT, fragments};

/// What pays for events on this processor.
#[btf_map]
static EVENT_PACE: PerCpuArray<Bucket, 1> = PerCpuArray::new();

/// No verdict of the kernel's: the scratch has what was decided.
pub(crate) const DECIDED: i32 = -2;

/// Makes it a connection of which nothing is known. Not a constant: programs have those in a map of their own, and a
/// program that runs is told from another one by its code alone.
#[inline(always)]
pub(crate) fn clear(connection: &mut Connection) {
    *connection = Connection::default();
    connection.service = Event::NO_SERVICE;
}

/// Counts something on this processor.
#[inline(always)]
pub(crate) fn count(what: Count) {
    if let Some(place) = COUNTERS.get_ptr_mut(what as u32) {
        add_one(place);
    }
}

/// Counts the first packet of a flow for its service.
#[inline(always)]
pub(crate) fn count_for(service: u32, what: Count) {
    if let Some(served) = SERVED.get_ptr_mut(service) {
        // SAFETY: an element of this processor's own.
        let Served { begun, unserved } = unsafe { &mut *served };
        add_one(if what.begins() { begun } else { unserved });
    }
}

/// What becomes of a packet that was translated, or could not be.
#[inline(always)]
pub(crate) fn finish(packet: &Packet, result: Result<(), Failed>) -> i32 {
    if result.is_err() {
        count(Count::NotRewritten);
        return DROP;
    }
    fragments::remember(packet);
    NEXT
}

/// Tells a decision about the flow of a client, if somebody listens. `connection` is what is known of the flow. To be
/// called where the stack is low.
#[inline(always)]
pub(crate) fn decided(skb: Skb, client: &Ends, connection: &Connection, what: Count) {
    if config(Config::FLAGS) & Config::LISTENED_TO != 0 {
        tell(skb, client, connection, what as u32);
    }
}

#[inline(always)]
fn add_one(place: *mut u64) {
    // SAFETY: an element of this processor's own.
    let place = unsafe { &mut *place };
    *place = place.wrapping_add(1);
}

/// Not inlined: it is rare, and has a stack of its own.
#[inline(never)]
fn tell(skb: Skb, client: &Ends, connection: &Connection, what: u32) {
    let place = if is_paid() { EVENTS.reserve_untyped::<Event>(0) } else { None };
    let Some(mut place) = place else { return count(Count::EventLeftOut) };
    place.write(Event {
        client: *client,
        endpoint: connection.endpoint,
        endpoint_port: connection.endpoint_port,
        padding: 0,
        device: skb.device(),
        service: connection.service,
        what,
    });
    place.submit(0);
}

/// Takes one event of those that this processor may tell.
#[inline(always)]
fn is_paid() -> bool {
    let Some(bucket) = EVENT_PACE.get_ptr_mut(0) else { return false };
    // SAFETY: an element of this processor's own.
    let Some(after) = (unsafe { *bucket }).take(now()) else { return false };
    // SAFETY: as above.
    unsafe { *bucket = after };
    true
}
