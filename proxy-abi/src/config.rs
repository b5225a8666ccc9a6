//! `CONFIG` and `NAMESPACES`: what programs must know of the node beside its services.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address4, Address6};

/// The one element of `CONFIG`. Each word has one writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Cookie of the node's own network namespace. Sockets in any other are those of pods. Written at the start.
    pub host_cookie: u64,
    /// See the constants. Written at the start and after the first sync; the release of a socket clears one bit.
    pub flags: u64,
    /// How many of `NAMESPACES` have opted out; programs look them up only if it is not 0. Written by upkeep alone.
    pub opt_outs: u64,
}

impl Config {
    /// Index of [`Config::host_cookie`] among the words.
    pub const HOST_COOKIE: usize = 0;
    /// Index of [`Config::flags`] among the words.
    pub const FLAGS: usize = 1;
    /// Index of [`Config::opt_outs`] among the words.
    pub const OPT_OUTS: usize = 2;
    /// A flag: a process of the node cannot bind a node port.
    pub const BIND_PROTECTION: u64 = 1;
    /// A flag: the kernel keeps `IPV6_V6ONLY` of a socket at [`V6ONLY_BIT`](Self::V6ONLY_BIT); without the flag programs
    /// take each IPv6 socket for one of both families.
    pub const KNOWS_V6ONLY: u64 = 4;
    /// The bit of the kernel's `struct sock_common` that holds `IPV6_V6ONLY`; no hook is told of the option.
    pub const V6ONLY_BIT: u32 = 157;
    /// A flag: all sockets of the node's own DNS are open. The program at the release of one clears it, also if the
    /// daemon was killed, and [`falling back`](crate::Lead::falls_back) frontends lead to other endpoints at once.
    pub const DNS_SERVES: u64 = 2;
}

/// Value of `NAMESPACES`, whose key is the cookie of a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
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
    /// Its sockets are left alone.
    pub const OPTED_OUT: u32 = 1;
}
