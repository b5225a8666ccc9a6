//! Session affinity: which endpoint a client of a service port had last (spec section 5).

use core::ptr::write_volatile;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{AffinityKey, AffinityValue, BackendRef, Terms};

use crate::maps::AFFINITY;
use crate::node::cookie;
use crate::pick::word;

/// EEXIST as helpers return it.
const EXISTS: i32 = -17;

/// A client of a service port at this moment.
pub(crate) struct Client {
    key: AffinityKey,
    now: u64,
    timeout: u64,
}

impl Client {
    #[inline(always)]
    pub(crate) fn of(ctx: &SockAddrContext, terms: Terms) -> Self {
        let key = AffinityKey::of_namespace(cookie(ctx), terms.port());
        // SAFETY: the helper takes and touches nothing.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        Self { key, now, timeout: terms.timeout() }
    }

    /// The backend it had, unless that is too long ago.
    #[inline(always)]
    pub(crate) fn recall(&self) -> Option<BackendRef> {
        let value = AffinityValue(word(AFFINITY.get_ptr(self.key)?, 0));
        value.is_valid(self.now, self.timeout).then_some(value.backend())
    }

    /// Every new flow counts from now (SA-3). False if another socket of the client has chosen in this same moment: what
    /// it chose counts.
    #[inline(always)]
    pub(crate) fn keep(&self, backend: BackendRef) -> bool {
        let value = AffinityValue::new(backend, self.now).0;
        match AFFINITY.get_ptr_mut(self.key) {
            Some(record) => {
                // SAFETY: not null; an aligned word. If the element is recycled this instant, its new owner finds a
                // backend of another service port and does not follow it.
                unsafe { write_volatile(record, value) };
                true
            }
            // Without room the client is balanced anew next time.
            None => AFFINITY.insert(self.key, value, BPF_NOEXIST.into()) != Err(EXISTS),
        }
    }
}
