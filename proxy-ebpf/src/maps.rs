//! The maps, declared from the list in `proxy-abi`. All are pinned by the daemon and outlive it.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SkStorage};
use aya_ebpf::macros::btf_map;

/// The daemon writes arrays with plain atomic stores to mapped memory.
pub(crate) const MAPPED: usize = BPF_F_MMAPABLE as usize;

macro_rules! declare {
    () => {};
    ($(#[$doc:meta])* Hash $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { $capacity as usize }> = HashMap::new();
        declare! { $($rest)* }
    };
    ($(#[$doc:meta])* Lru $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[btf_map]
        pub(crate) static $name: LruHashMap<$key, $value, { $capacity as usize }> = LruHashMap::new();
        declare! { $($rest)* }
    };
    ($(#[$doc:meta])* Array $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[btf_map]
        pub(crate) static $name: Array<$value, { $capacity as usize }, MAPPED> = Array::new();
        declare! { $($rest)* }
    };
    ($(#[$doc:meta])* Prefixes $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[btf_map]
        pub(crate) static $name: LpmTrie<$key, $value, { $capacity as usize }> = LpmTrie::new();
        declare! { $($rest)* }
    };
    ($(#[$doc:meta])* Sockets $name:ident: $key:ty => $value:ty, $capacity:expr, $lifetime:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[btf_map]
        pub(crate) static $name: SkStorage<$value> = SkStorage::new();
        declare! { $($rest)* }
    };
}

proxy_abi::for_each_map!(declare);
