//! Session affinity: which endpoint a client of a service port had last (spec section 5).

use core::ptr::write_volatile;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{AffinityKey, AffinityValue, BackendRef, Terms};

use crate::maps::AFFINITY;
use crate::node::cookie;
use crate::pick::word;

/// A client of a service port at this moment.
pub(crate) struct Client {
    key: AffinityKey,
    record: Option<AffinityValue>,
    now: u64,
    timeout: u64,
}

impl Client {
    #[inline(always)]
    pub(crate) fn of(ctx: &SockAddrContext, terms: Terms) -> Self {
        let key = AffinityKey::of_namespace(cookie(ctx), terms.port());
        // SAFETY: the helper takes and touches nothing.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        let record = AFFINITY.get_ptr(key).map(|record| AffinityValue(word(record, 0)));
        Self { key, record, now, timeout: terms.timeout() }
    }

    /// The backend it had, unless that is too long ago.
    #[inline(always)]
    pub(crate) fn recall(&self) -> Option<BackendRef> {
        let record = self.record?;
        record.is_valid(self.now, self.timeout).then_some(record.backend())
    }

    /// What to choose by instead.
    #[inline(always)]
    pub(crate) fn seed(&self) -> u32 {
        self.key.seed(self.record)
    }

    /// Every new flow counts from now (SA-3).
    #[inline(always)]
    pub(crate) fn keep(&self, backend: BackendRef) {
        let value = AffinityValue::new(backend, self.now).0;
        match AFFINITY.get_ptr_mut(self.key) {
            // SAFETY: not null; an aligned word. If the element is recycled this instant, its new owner finds a backend
            // of another service port and does not follow it.
            Some(record) => unsafe { write_volatile(record, value) },
            // Without room the client is balanced anew next time.
            None => drop(AFFINITY.insert(self.key, value, BPF_ANY.into())),
        }
    }
}
