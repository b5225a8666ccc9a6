//! `CONFIG` and `NAMESPACES`: what programs must know of the node beside its services.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address4, Address6};

/// The one element of `CONFIG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Cookie of the node's own network namespace. Sockets in any other are those of pods. Written by the daemon alone.
    pub host_cookie: u64,
    /// See the constants; above them the [generation](Self::generation). Written by the daemon alone.
    pub flags: u64,
    /// The last generation of which a DNS socket has closed. Written by the program at the release of sockets alone.
    pub closed: u64,
}

impl Config {
    /// Index of [`Config::host_cookie`] among the words.
    pub const HOST_COOKIE: usize = 0;
    /// Index of [`Config::flags`] among the words.
    pub const FLAGS: usize = 1;
    /// Index of [`Config::closed`] among the words.
    pub const CLOSED: usize = 2;
    /// A flag: a process of the node cannot bind a node port.
    pub const BIND_PROTECTION: u64 = 1;
    /// A flag: the kernel keeps `IPV6_V6ONLY` of a socket at [`V6ONLY_BIT`](Self::V6ONLY_BIT); without the flag
    /// programs take each IPv6 socket for one of both families.
    pub const KNOWS_V6ONLY: u64 = 4;
    /// The bit of the kernel's `struct sock_common` that holds `IPV6_V6ONLY`; no hook is told of the option.
    pub const V6ONLY_BIT: u32 = 157;
    /// A flag: this generation of the node's own DNS is marked and knows the cluster.
    pub const DNS_SERVES: u64 = 2;
    /// A flag: some of `NAMESPACES` have opted out; programs look them up only then.
    pub const OPT_OUTS: u64 = 8;
    /// A flag: the kernel translates no connection of TCP of an earlier path any more, so that a packet in the middle
    /// of one belongs to a flow that the packet programs have forgotten. Without the flag such packets pass.
    pub const OWN_FLOWS: u64 = 16;
    /// A flag: somebody listens to the decisions of the packet programs, which they tell only then.
    pub const LISTENED_TO: u64 = 32;
    /// A flag: another path serves packets. The packet programs go on with the connections they know, and begin
    /// nothing.
    pub const LEAVING: u64 = 64;
    /// Where the generation begins in the flags.
    const GENERATION: u32 = 32;

    /// Which start of the daemon wrote these flags. It marks the sockets of its DNS with it; sockets of an earlier
    /// start that are closed later, because a service manager kept them, say nothing about those that serve now.
    #[must_use]
    pub const fn generation(flags: u64) -> u64 {
        flags >> Self::GENERATION
    }

    /// The flags of the next generation after that of `flags`; never one of which a socket may be marked as closed.
    #[must_use]
    pub const fn next_generation(flags: u64, closed: u64) -> u64 {
        let mut next = Self::generation(flags);
        loop {
            next = (next + 1) & (u64::MAX >> Self::GENERATION);
            if next != 0 && next != closed {
                return next << Self::GENERATION;
            }
        }
    }

    /// Whether all sockets of the node's own DNS are open and it knows the cluster. While it does not,
    /// [`falling back`](crate::Lead::falls_back) frontends lead to other endpoints.
    #[must_use]
    #[inline(always)]
    pub const fn dns_serves(flags: u64, closed: u64) -> bool {
        flags & Self::DNS_SERVES != 0 && Self::generation(flags) != closed
    }
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

#[cfg(test)]
mod tests {
    use super::Config;

    const FLAGS: u64 = Config::BIND_PROTECTION | Config::OPT_OUTS | Config::DNS_SERVES;

    #[track_caller]
    fn check(flags: u64, closed: u64, serves: bool) {
        assert_eq!(Config::dns_serves(flags, closed), serves, "{flags:#x}, closed {closed}");
    }

    #[test]
    fn dns_serves_until_a_socket_of_its_own_generation_closes() {
        check(FLAGS | 5 << 32, 0, true);
        check(FLAGS | 5 << 32, 4, true);
        check(FLAGS | 5 << 32, 5, false);
        check((FLAGS & !Config::DNS_SERVES) | 5 << 32, 4, false);
        check(0, 0, false);
    }

    #[test]
    fn a_generation_is_neither_the_former_one_nor_one_that_has_closed() {
        for (flags, closed, next) in
            [(0, 0, 1), (FLAGS, 1, 2), (FLAGS | 5 << 32, 5, 6), (5 << 32, 6, 7), (u64::MAX, 0, 1), (u64::MAX, 1, 2)]
        {
            assert_eq!(Config::next_generation(flags, closed), next << 32, "{flags:#x}, closed {closed}");
        }
    }
}
