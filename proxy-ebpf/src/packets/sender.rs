//! Who sent the first packet of a flow.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use proxy_abi::lookup::Caller;
use proxy_abi::packet::Ends;
use proxy_abi::{Address6, AffinityKey};

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

/// The same in seconds. It goes round after 136 years.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it goes round")]
pub(crate) fn seconds() -> u32 {
    (now() / 1_000_000_000) as u32
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
