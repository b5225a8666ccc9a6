//! The end of a socket: when one of the node's own DNS closes, also because the daemon was killed, clients of the
//! cluster DNS address are led to other endpoints at once.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::SockContext;
use proxy_abi::Config;

use crate::PROCEED;
use crate::maps::{CONFIG, OWN_DNS};

pub(crate) fn release(ctx: &SockContext) -> i32 {
    // SAFETY: the kernel passes a valid context; the helper returns null or this socket's own storage, and makes none.
    let mark = unsafe {
        bpf_sk_storage_get((&raw const OWN_DNS).cast_mut().cast(), ctx.sock.cast(), core::ptr::null_mut(), 0)
    };
    if mark.is_null() {
        return PROCEED;
    }
    // SAFETY: not null, and a value of this map is one aligned word.
    let mark = unsafe { read_volatile(mark.cast::<u64>()) };
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        let words = config.cast::<u64>();
        // SAFETY: the verifier checks that the value has this word.
        let flags = unsafe { read_volatile(words.wrapping_add(Config::FLAGS)) };
        // One that an earlier start opened and a service manager kept says nothing about those that serve now.
        if Config::generation(flags) == mark {
            // SAFETY: as above; only this program writes the word.
            unsafe { write_volatile(words.wrapping_add(Config::CLOSED), mark) };
        }
    }
    PROCEED
}
