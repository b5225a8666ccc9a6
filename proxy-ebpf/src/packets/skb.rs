//! A packet as the kernel hands it to a program.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_pull_data};
use aya_ebpf::programs::TcContext;
use proxy_abi::icmp::{Quoted, quoted};
use proxy_abi::packet::{Bytes, Packet, Read, read};

use crate::rewrite::bytes;

/// So many bytes of a packet hold all headers that are read, with most options and extensions.
const HEADERS: u32 = 128;
/// `ETH_P_IP` and `ETH_P_IPV6`, as they lie in a packet.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// A packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

/// What a packet is, as [`Read`] has it.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Packet,
    Fragment,
    Message,
    Other,
}

/// The part of it that can be read without a call.
#[derive(Clone, Copy)]
struct Head {
    skb: Skb,
    start: usize,
    end: usize,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// The index of the device.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        // SAFETY: the kernel hands over a valid context.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn head(self) -> Head {
        // SAFETY: as above.
        let start = unsafe { (*self.0).data };
        // SAFETY: as above.
        let end = unsafe { (*self.0).data_end };
        Head { skb: self, start: start as usize, end: end as usize }
    }

    /// Whom the frame is addressed to: one of the kernel's `PACKET_` constants.
    #[inline(always)]
    pub(crate) fn addressee(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).pkt_type }
    }

    /// The frame is for more hosts than this one (`PACKET_BROADCAST`, `PACKET_MULTICAST`).
    #[inline(always)]
    pub(crate) fn is_for_many(self) -> bool {
        matches!(self.addressee(), 1 | 2)
    }

    /// The packet that a message of ICMP is about.
    #[inline(always)]
    pub(crate) fn quoted(self, message: &Packet) -> Option<Quoted> {
        quoted(&self.head(), message)
    }

    /// Two bytes at any place.
    #[inline(always)]
    pub(crate) fn two(self, at: u32) -> Option<u16> {
        self.head().any_two(at)
    }

    /// Four bytes at any place.
    #[inline(always)]
    pub(crate) fn four(self, at: u32) -> Option<u32> {
        self.head().any_four(at)
    }

    /// Whether it has room for so many bytes of its protocol, and ends where its header says or later.
    #[inline(always)]
    pub(crate) fn is_whole(self, packet: &Packet, header: u32) -> bool {
        // SAFETY: as above.
        packet.is_whole(header, unsafe { (*self.0).len })
    }

    /// Reads the packet into `packet`, and says what it is. Not inlined: what follows needs the stack too.
    #[inline(never)]
    pub(crate) fn read(self, network: u32, packet: &mut Packet) -> Kind {
        let (kind, found) = match self.found(network) {
            Read::Packet(found) => (Kind::Packet, found),
            Read::Fragment(found) => (Kind::Fragment, found),
            Read::Message(found) => (Kind::Message, found),
            Read::Other => return Kind::Other,
        };
        *packet = found;
        kind
    }

    #[inline(always)]
    fn found(self, network: u32) -> Read {
        // SAFETY: as above.
        let protocol = unsafe { (*self.0).protocol };
        // SAFETY: as above.
        let length = unsafe { (*self.0).len };
        if protocol != IPV4 && protocol != IPV6 {
            return Read::Other;
        }
        let wanted = if length < HEADERS { length } else { HEADERS };
        for _ in 0..2 {
            let head = self.head();
            match read(&head, network) {
                Read::Other => {}
                found @ (Read::Packet(_) | Read::Fragment(_) | Read::Message(_)) => return found,
            }
            // Some drivers leave all but a few bytes where a program cannot read them.
            if head.end - head.start >= wanted as usize {
                return Read::Other;
            }
            // SAFETY: the context is valid; pointers into the packet are taken anew.
            if unsafe { bpf_skb_pull_data(self.0, wanted) } != 0 {
                return Read::Other;
            }
        }
        Read::Other
    }
}

impl Head {
    #[inline(always)]
    fn at<T: Copy>(&self, at: u32) -> Option<T> {
        let place = self.start + at as usize;
        if place + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: inside of the packet, as the verifier checks; a packet has no alignment.
        Some(unsafe { (place as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn load<T: Copy + Default>(&self, at: u32) -> Option<T> {
        let mut value = T::default();
        let room = core::ptr::from_mut(&mut value).cast();
        // SAFETY: the context is valid, and there is room for so many bytes.
        let result = unsafe { bpf_skb_load_bytes(self.skb.0.cast(), at, room, bytes::<T>()) };
        (result == 0).then_some(value)
    }
}

impl Bytes for Head {
    #[inline(always)]
    fn byte(&self, at: u32) -> Option<u8> {
        self.at(at)
    }

    #[inline(always)]
    fn two(&self, at: u32) -> Option<u16> {
        self.at(at)
    }

    #[inline(always)]
    fn four(&self, at: u32) -> Option<u32> {
        self.at(at)
    }

    #[inline(always)]
    fn any_byte(&self, at: u32) -> Option<u8> {
        self.load(at)
    }

    #[inline(always)]
    fn any_two(&self, at: u32) -> Option<u16> {
        self.load(at)
    }

    #[inline(always)]
    fn any_four(&self, at: u32) -> Option<u32> {
        self.load(at)
    }
}
