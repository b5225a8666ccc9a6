//! Who sent the first packet of a flow.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use proxy_abi::lookup::Caller;
use proxy_abi::packet::Ends;
use proxy_abi::{Address6, AffinityKey};

/// A tick of the kernel, and the clock then.
struct Tick {
    number: u64,
    seconds: u64,
}

/// The last tick in which this processor asked.
#[btf_map]
static TICK: PerCpuArray<Tick, 1> = PerCpuArray::new();

/// The sender of a packet that came in.
pub(crate) struct Sender<'a> {
    pub(crate) ends: &'a Ends,
    pub(crate) outside: bool,
    /// An answer can reach it: it is one host, and its frame was for this one alone.
    pub(crate) answerable: bool,
}

/// The monotonic clock in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes and touches nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The same in seconds. It goes round after 136 years. The clock is asked once in each tick of the kernel, of which the
/// kernel's own number costs no call.
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    let Some(place) = TICK.get_ptr_mut(0) else { return 0 };
    // SAFETY: an element of this processor's own.
    let tick = unsafe { &mut *place };
    // SAFETY: the helper takes and touches nothing.
    let number = unsafe { bpf_jiffies64() };
    if tick.number != number {
        *tick = Tick { number, seconds: now() / 1_000_000_000 };
    }
    #[expect(clippy::cast_possible_truncation, reason = "it goes round")]
    let seconds = tick.seconds as u32;
    seconds
}

impl Caller for Sender<'_> {
    /// What this node sends does not come in.
    #[inline(always)]
    fn is_of_node(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_socket(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_outside(&self) -> bool {
        self.outside
    }

    /// A pod that has opted out at its sockets is served here.
    #[inline(always)]
    fn has_opted_out(&self) -> bool {
        false
    }

    #[inline(always)]
    fn source(&self, _ipv4: bool) -> Option<Address6> {
        Some(self.ends.from)
    }

    #[inline(always)]
    fn affinity_key(&self, port: u32) -> AffinityKey {
        AffinityKey { client: self.ends.from, port, kind: AffinityKey::ADDRESS }
    }

    /// Of the flow, so that one whose connection was forgotten goes on with the same endpoint.
    #[inline(always)]
    fn random(&self) -> u32 {
        self.ends.digest(0)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }
}
