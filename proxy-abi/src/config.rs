//! `CONFIG` and `NAMESPACES`: what programs must know of the node beside its services.

use crate::{Address4, Address6};

/// The one element of `CONFIG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Cookie of the node's own network namespace. Sockets in any other are those of pods.
    pub host_cookie: u64,
    /// See the constants.
    pub flags: u64,
}

impl Config {
    /// Size in bytes.
    pub const SIZE: u32 = 16;
    /// Some namespaces are left alone: look them up in `NAMESPACES`.
    pub const OPT_OUTS: u64 = 1;
    /// A flow that no endpoint on this node may serve is left alone and not refused ([`Terms`](crate::Terms)).
    pub const SILENT: u64 = 2;
    /// A process of the node cannot bind a node port.
    pub const BIND_PROTECTION: u64 = 4;
}

/// Value of `NAMESPACES`, whose key is the cookie of a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Namespace {
    /// See the constants.
    pub flags: u32,
    /// Its IPv4 address, 0 without one.
    pub address4: Address4,
    /// Its IPv6 address, 0 without one.
    pub address6: Address6,
}

impl Namespace {
    /// Size in bytes.
    pub const SIZE: u32 = 24;
    /// Its sockets are left alone.
    pub const OPTED_OUT: u32 = 1;

    /// The value as the kernel stores it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 24] {
        let [a, b, c, d] = self.address6;
        let mut bytes = [0; 24];
        for (place, word) in bytes.chunks_exact_mut(4).zip([self.flags, self.address4, a, b, c, d]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

const _: () = assert!(size_of::<Config>() == Config::SIZE as usize);
const _: () = assert!(size_of::<Namespace>() == Namespace::SIZE as usize);
