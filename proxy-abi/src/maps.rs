//! The one list of maps: programs declare theirs from it, and the daemon loads, checks, reads and writes by it.

/// How long the content of a map stays meaningful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Services, endpoints and the node, which the daemon can write anew at any time.
    Tables,
    /// What sockets and clients got. Only the kernel knows it, so it outlives a change of the tables.
    Flows,
}

impl Lifetime {
    /// The version of the layouts of this lifetime; each has pins of its own.
    ///
    /// With a new version of the tables the daemon takes over what the former version holds, with all ids that
    /// flows refer to ([`BackendRef`](crate::BackendRef), directory entries, service ports).
    #[must_use]
    pub const fn version(self) -> u32 {
        match self {
            Self::Tables => 5,
            Self::Flows => 1,
        }
    }
}

/// What the kernel makes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Elements by key.
    Hash,
    /// Elements by key; when it is full, the longest unused element is removed.
    Lru,
    /// Elements by index. The daemon maps it to its memory: it writes with plain atomic stores, which an update by
    /// system call is not.
    Array,
    /// Elements by the longest prefix of a key.
    Prefixes,
    /// One element for each socket; the kernel frees it with the socket.
    Sockets,
    /// Elements by index, for each processor one that it alone writes.
    Processors,
    /// A queue of values from programs to the daemon. Its capacity is in bytes.
    Queue,
}

/// A map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its name, in programs and as a pin.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Size of a key in bytes.
    pub key: u32,
    /// Size of a value in bytes.
    pub value: u32,
    /// How many elements it has; for [`Kind::Sockets`] 0, as many as there are sockets.
    pub capacity: u32,
    /// How long its content is meaningful.
    pub lifetime: Lifetime,
}

impl Map {
    /// How many 64-bit words a value has.
    #[must_use]
    pub const fn words(&self) -> usize {
        (self.value / 8) as usize
    }
}

/// Hands the list to a macro, one row after the other: kind, name, key, value, capacity, lifetime.
#[macro_export]
macro_rules! for_each_map {
    ($consumer:ident) => {
        $consumer! {
            /// What clients dial, in IPv4.
            Hash FRONTENDS4: $crate::FrontendKey4 => u64, $crate::capacity::FRONTENDS, Tables;
            /// What clients dial, in IPv6.
            Hash FRONTENDS6: $crate::FrontendKey6 => u64, $crate::capacity::FRONTENDS, Tables;
            /// What addresses mean besides their frontends.
            Hash ADDRESSES: $crate::Address6 => u64, $crate::capacity::ADDRESSES, Tables;
            /// Where the slots of a service are.
            Array DIRECTORY: u32 => $crate::Directory, $crate::capacity::SERVICES, Tables;
            /// The slots of all services.
            Array SLOTS: u32 => u64, $crate::capacity::SLOTS, Tables;
            /// Endpoints in IPv4.
            Array BACKENDS4: u32 => $crate::Backend4, $crate::capacity::BACKENDS, Tables;
            /// Endpoints in IPv6.
            Array BACKENDS6: u32 => $crate::Backend6, $crate::capacity::BACKENDS, Tables;
            /// Source ranges.
            Prefixes RANGES: $crate::RangeKey => u32, $crate::capacity::RANGES, Tables;
            /// The ranges in which the addresses of services lie.
            Prefixes SERVICE_RANGES: $crate::Address6 => u32, $crate::capacity::SERVICE_RANGES, Tables;
            /// What programs must know of the node.
            Array CONFIG: u32 => $crate::Config, 1, Tables;
            /// Marks the sockets of the node's own DNS.
            Sockets OWN_DNS: i32 => u64, 0, Tables;
            /// What is known of network namespaces, by cookie.
            Hash NAMESPACES: u64 => $crate::Namespace, $crate::capacity::NAMESPACES, Tables;
            /// Which endpoint a client had last.
            Lru AFFINITY: $crate::AffinityKey => u64, $crate::capacity::AFFINITY, Flows;
            /// What a connected socket dialled.
            Sockets PEER: i32 => $crate::Flow, 0, Flows;
            /// What an unconnected UDP socket dialled.
            Sockets DATAGRAMS: i32 => $crate::DatagramFlows, 0, Flows;
            /// What an unconnected UDP socket with many destinations dialled before that.
            Sockets FURTHER: i32 => $crate::FurtherFlows, 0, Flows;
        }
    };
}

/// Hands the list of the maps that only the packet programs have to a macro, as [`for_each_map`].
#[macro_export]
macro_rules! for_each_packet_map {
    ($consumer:ident) => {
        $consumer! {
            /// The devices that packets come in and leave by, by index.
            Hash DEVICES: u32 => $crate::Device, $crate::capacity::DEVICES, Tables;
            /// A bit for each address of `ADDRESSES`; see `AddressBit`.
            Array ADDRESS_BITS: u32 => u64, $crate::capacity::ADDRESS_BITS, Tables;
            /// Until when an element of `OPENING_TRANSLATIONS` may be there, in seconds of the monotonic clock, by the
            /// number that its key has here.
            Array OPENED: u32 => u64, $crate::capacity::OPENED, Flows;
            /// Flows, by the ends of their clients' packets.
            Lru CONNECTIONS: $crate::packet::Ends => $crate::connection::Connection, $crate::capacity::CONNECTIONS, Flows;
            /// What leads back to them.
            Lru TRANSLATIONS: $crate::packet::Ends => $crate::connection::Translation, 2 * $crate::capacity::CONNECTIONS, Flows;
            /// Connections of TCP whose client has sent one packet so far: a flood of those removes no other.
            Lru OPENINGS: $crate::packet::Ends => $crate::connection::Connection, $crate::capacity::OPENINGS, Flows;
            /// What leads back to those.
            Lru OPENING_TRANSLATIONS: $crate::packet::Ends => $crate::connection::Translation, 2 * $crate::capacity::OPENINGS, Flows;
            /// The ports of datagrams in fragments.
            Lru FRAGMENTS: $crate::fragment::FragmentKey => $crate::fragment::Ports, $crate::capacity::FRAGMENTS, Flows;
            /// What was counted, by the number of a `Count`.
            Processors COUNTERS: u32 => u64, $crate::capacity::COUNTERS, Tables;
            /// The flows of each service, by its entry of the directory.
            Processors SERVED: u32 => $crate::Served, $crate::capacity::SERVICES, Tables;
            /// What was decided, while somebody listens.
            Queue EVENTS: () => $crate::Event, $crate::capacity::EVENTS, Tables;
        }
    };
}

/// The size of a key as the kernel has it: a prefix has its length in front.
const fn key_size(kind: Kind, size: usize) -> u32 {
    let before = match kind {
        Kind::Prefixes => 4,
        Kind::Hash | Kind::Lru | Kind::Array | Kind::Sockets | Kind::Processors | Kind::Queue => 0,
    };
    bytes(size) + before
}

/// The size of a value as the kernel has it: it does not know what is in a queue.
const fn value_size(kind: Kind, size: usize) -> u32 {
    match kind {
        Kind::Queue => 0,
        Kind::Hash | Kind::Lru | Kind::Array | Kind::Prefixes | Kind::Sockets | Kind::Processors => bytes(size),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the size of a type of this crate")]
const fn bytes(size: usize) -> u32 {
    size as u32
}

macro_rules! describe {
    ($($(#[$doc:meta])* $kind:ident $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident;)*) => {
        $(
            $(#[$doc])*
            pub const $name: Map = Map {
                name: stringify!($name),
                kind: Kind::$kind,
                key: key_size(Kind::$kind, size_of::<$key>()),
                value: value_size(Kind::$kind, size_of::<$value>()),
                capacity: $capacity,
                lifetime: Lifetime::$lifetime,
            };
        )*
        /// All maps of this list.
        pub const ALL: &[Map] = &[$($name),*];
    };
}

for_each_map!(describe);

/// The maps that only the packet programs have.
pub mod packets {
    use super::{Kind, Lifetime, Map, key_size, value_size};

    for_each_packet_map!(describe);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maps pinned under these versions have these layouts: to change one, take another version of its lifetime.
    #[track_caller]
    fn check(map: Map, key: u32, value: u32) {
        assert_eq!((map.key, map.value), (key, value), "{}", map.name);
    }

    #[test]
    fn layouts_of_these_versions() {
        assert_eq!((Lifetime::Tables.version(), Lifetime::Flows.version()), (5, 1));
        check(FRONTENDS4, 8, 8);
        check(FRONTENDS6, 20, 8);
        check(ADDRESSES, 16, 8);
        check(DIRECTORY, 4, 32);
        check(SLOTS, 4, 8);
        check(BACKENDS4, 4, 16);
        check(BACKENDS6, 4, 32);
        check(RANGES, 24, 4);
        check(SERVICE_RANGES, 20, 4);
        check(CONFIG, 4, 24);
        check(NAMESPACES, 8, 24);
        check(AFFINITY, 24, 8);
        check(PEER, 4, 44);
        check(DATAGRAMS, 4, 180);
        check(FURTHER, 4, 1412);
        check(OWN_DNS, 4, 8);
        assert_eq!(ALL.len(), 16);
        check(packets::DEVICES, 4, 28);
        check(packets::ADDRESS_BITS, 4, 8);
        check(packets::OPENED, 4, 8);
        check(packets::CONNECTIONS, 40, 56);
        check(packets::TRANSLATIONS, 40, 32);
        check(packets::FRAGMENTS, 40, 4);
        check(packets::COUNTERS, 4, 8);
        check(packets::SERVED, 4, 16);
        check(packets::EVENTS, 0, 0);
        assert_eq!(size_of::<crate::Event>(), 72);
        assert_eq!(packets::ALL.len(), 11);
    }
}
