//! The maps, as laid out by `proxy-abi`. All are pinned by the daemon and outlive it.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SkStorage};
use aya_ebpf::macros::btf_map;
use proxy_abi::{
    Address6, AffinityKey, Backend4, Backend6, Config, DatagramFlows, Directory, Flow, FrontendKey4, FrontendKey6,
    Namespace, OverflowKey, RangeKey, capacity,
};

/// The daemon writes arrays with plain atomic stores to mapped memory, which an update by syscall is not.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(crate) static FRONTENDS4: HashMap<FrontendKey4, u64, { capacity::FRONTENDS as usize }> = HashMap::new();

#[btf_map]
pub(crate) static FRONTENDS6: HashMap<FrontendKey6, u64, { capacity::FRONTENDS as usize }> = HashMap::new();

#[btf_map]
pub(crate) static ADDRESSES: HashMap<Address6, u64, { capacity::ADDRESSES as usize }> = HashMap::new();

#[btf_map]
pub(crate) static DIRECTORY: Array<Directory, { capacity::SERVICES as usize }, MAPPED> = Array::new();

#[btf_map]
pub(crate) static SLOTS: Array<u64, { capacity::SLOTS as usize }, MAPPED> = Array::new();

#[btf_map]
pub(crate) static BACKENDS4: Array<Backend4, { capacity::BACKENDS as usize }, MAPPED> = Array::new();

#[btf_map]
pub(crate) static BACKENDS6: Array<Backend6, { capacity::BACKENDS as usize }, MAPPED> = Array::new();

#[btf_map]
pub(crate) static RANGES: LpmTrie<RangeKey, u32, { capacity::RANGES as usize }> = LpmTrie::new();

#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, u64, { capacity::AFFINITY as usize }> = LruHashMap::new();

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1, MAPPED> = Array::new();

#[btf_map]
pub(crate) static NAMESPACES: HashMap<u64, Namespace, { capacity::NAMESPACES as usize }> = HashMap::new();

/// What a connected socket dialled.
#[btf_map]
pub(crate) static PEER: SkStorage<Flow> = SkStorage::new();

/// The same for connected UDP sockets by cookie: the kernel does not show the daemon the storage of UDP sockets.
#[btf_map]
pub(crate) static CONNECTED: LruHashMap<u64, Flow, { capacity::CONNECTED as usize }> = LruHashMap::new();

/// What an unconnected UDP socket dialled.
#[btf_map]
pub(crate) static DATAGRAMS: SkStorage<DatagramFlows> = SkStorage::new();

/// What unconnected UDP sockets with many destinations dialled before that.
#[btf_map]
pub(crate) static OVERFLOW: LruHashMap<OverflowKey, Flow, { capacity::OVERFLOW as usize }> = LruHashMap::new();
