//! The caller at a socket, known by its network namespace: the daemon writes which one is the node's and which are
//! pods'.

use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::lookup::Caller;
use proxy_abi::{Address6, AffinityKey, Config, Namespace, mapped};

use crate::maps::NAMESPACES;
use crate::tables::config;

/// The socket of a program's context.
pub(crate) struct Socket<'a>(pub(crate) &'a SockAddrContext);

/// Cookie of the node's own network namespace.
#[inline(always)]
pub(crate) fn host_cookie() -> u64 {
    config(Config::HOST_COOKIE)
}

impl Socket<'_> {
    /// Cookie of the network namespace of the socket.
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid; the helper only reads.
        unsafe { bpf_get_netns_cookie(self.0.sock_addr.cast()) }
    }

    /// What the daemon wrote about the namespace.
    #[inline(always)]
    fn namespace(&self) -> Option<Namespace> {
        // SAFETY: an element is replaced and not rewritten; one recycled this instant belonged to a namespace that is
        // gone.
        unsafe { NAMESPACES.get(self.cookie()) }.copied()
    }
}

impl Caller for Socket<'_> {
    #[inline(always)]
    fn is_of_node(&self) -> bool {
        self.cookie() == host_cookie()
    }

    #[inline(always)]
    fn is_socket(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_outside(&self) -> bool {
        false
    }

    #[inline(always)]
    fn has_opted_out(&self) -> bool {
        config(Config::FLAGS) & Config::OPT_OUTS != 0
            && self.namespace().is_some_and(|namespace| namespace.flags & Namespace::OPTED_OUT != 0)
    }

    /// The address of the pod, as the daemon wrote it: at this moment the kernel has not chosen a source yet.
    #[inline(always)]
    fn source(&self, ipv4: bool) -> Option<Address6> {
        let namespace = self.namespace()?;
        Some(if ipv4 { mapped(namespace.address4) } else { namespace.address6 })
    }

    #[inline(always)]
    fn affinity_key(&self, port: u32) -> AffinityKey {
        AffinityKey::of_namespace(self.cookie(), port)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes and touches nothing.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes and touches nothing.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
