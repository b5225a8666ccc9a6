//! Whether a client lies in the source ranges of a load balancer's Service (spec 3.5).

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{RangeKey, RangesWord, mapped};

use crate::maps::RANGES;
use crate::node::{cookie, host_cookie, namespace};

/// Judged by the address of the pod, which the daemon told: at this moment the kernel has not chosen a source yet. A
/// pod that the daemon does not know is outside. `ipv4`: the family of the frontend.
#[inline(always)]
pub(crate) fn is_inside(ctx: &SockAddrContext, ranges: RangesWord, ipv4: bool) -> bool {
    let cookie = cookie(ctx);
    if cookie == host_cookie() {
        return ranges.node();
    }
    let Some(namespace) = namespace(cookie) else { return false };
    let address = if ipv4 { mapped(namespace.address4) } else { namespace.address6 };
    RANGES.get(&Key::new(RangeKey::BITS, RangeKey { id: ranges.id(), address })).is_some()
}
