//! The maps that only these programs have.

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use proxy_abi::connection::{Connection, Key, Translation};
use proxy_abi::icmp::Quoted;
use proxy_abi::packet::{Ends, Packet};
use proxy_abi::{AddressValue, Count};

use crate::maps::MAPPED;

/// What does not fit on the stack of a program, of which there are 512 bytes. A processor runs one of these programs at
/// a time.
pub(crate) struct Scratch {
    pub(crate) packet: Packet,
    /// What the packet is about, if it is an error of ICMP.
    pub(crate) quoted: Quoted,
    /// The ends of the client's packets as they come in.
    pub(crate) client: Ends,
    pub(crate) connection: Connection,
    pub(crate) key: Key,
    pub(crate) translation: Translation,
    /// What the address means to which the packet is sent, if that has been looked up.
    pub(crate) value: Option<AddressValue>,
    /// What was decided, if something was.
    pub(crate) what: Count,
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The scratch of this processor. To be taken once in a program.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    let place = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: an element of this processor's own, which no other program uses before this one ends.
    Some(unsafe { &mut *place })
}

macro_rules! declare {
    ($($(#[$doc:meta])* $kind:ident $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident;)*) => {
        $(
            $(#[$doc])*
            #[btf_map]
            pub(crate) static $name: declare!(@$kind $key, $value, $capacity) = <declare!(@$kind $key, $value, $capacity)>::new();
        )*
    };
    (@Hash $key:ty, $value:ty, $capacity:expr) => { HashMap<$key, $value, { $capacity as usize }> };
    (@Lru $key:ty, $value:ty, $capacity:expr) => { LruHashMap<$key, $value, { $capacity as usize }> };
    // As in the list of sockets.
    (@Array $key:ty, $value:ty, $capacity:expr) => { Array<$value, { $capacity as usize }, MAPPED> };
    (@Processors $key:ty, $value:ty, $capacity:expr) => { PerCpuArray<$value, { $capacity as usize }> };
    // The kernel knows no size of what is in it.
    (@Queue $key:ty, $value:ty, $capacity:expr) => { RingBuf<(), { $capacity as usize }> };
}

proxy_abi::for_each_packet_map!(declare);
