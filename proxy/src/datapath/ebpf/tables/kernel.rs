//! The maps in the kernel: carries out [`Write`]s and reads everything back.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use proxy_abi::{
    AddressValue, AffinityKey, Backend4, Backend6, Config, DatagramFlows, Directory, Extent, Flow, FrontendKey4,
    FrontendKey6, FrontendValue, Namespace, OverflowKey, RangeKey,
};
use shunt_model::Family;

use super::super::layout::write::{address, range_key, range_of};
use super::super::layout::{Capacity, Dump, FrontendKey, Write};
use super::addresses::Meaning;
use crate::datapath::SyncError;
use crate::sys::bpf;
use crate::sys::mapped::Mapped;

/// Name, key size and value size of every map; the pins of another layout are refused.
pub(in crate::datapath::ebpf) const MAPS: [(&str, u32, u32); 15] = [
    ("FRONTENDS4", 8, 8),
    ("FRONTENDS6", 20, 8),
    ("ADDRESSES", 16, 8),
    ("DIRECTORY", 4, 32),
    ("SLOTS", 4, 8),
    ("BACKENDS4", 4, 16),
    ("BACKENDS6", 4, 32),
    ("RANGES", RangeKey::SIZE, 4),
    ("AFFINITY", AffinityKey::SIZE, 8),
    ("CONFIG", 4, Config::SIZE),
    ("NAMESPACES", 8, Namespace::SIZE),
    ("PEER", 4, Flow::SIZE),
    ("CONNECTED", 8, Flow::SIZE),
    ("DATAGRAMS", 4, DatagramFlows::SIZE),
    ("OVERFLOW", OverflowKey::SIZE, Flow::SIZE),
];

const DIRECTORY_WORDS: usize = 4;
const BACKEND4_WORDS: usize = 2;
const BACKEND6_WORDS: usize = 4;
const CONFIG_WORDS: usize = 2;

/// A map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not to be opened.
    #[error("opening the map pinned at {}", .path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another layout than ours.
    #[error(
        "the map pinned at {} has keys of {key} and values of {value} bytes, not {wanted_key} and {wanted_value}: it is not \
         of this version; `shunt cleanup` removes it",
        .path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Its key size.
        key: u32,
        /// Its value size.
        value: u32,
        /// Our key size.
        wanted_key: u32,
        /// Our value size.
        wanted_value: u32,
    },
}

/// The maps, opened.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Tables {
    frontends4: OwnedFd,
    frontends6: OwnedFd,
    addresses: OwnedFd,
    ranges: OwnedFd,
    config: Array,
    directory: Array,
    slots: Array,
    backends4: Array,
    backends6: Array,
    capacity: Capacity,
    /// New frontends that are written in one batch, before anything is taken away.
    pending4: Vec<([u8; 8], u64)>,
    pending6: Vec<([u8; 20], u64)>,
}

#[derive(Debug)]
struct Array {
    name: &'static str,
    memory: Mapped,
}

/// Checks an existing pin against the layout of this version; returns its number of elements.
pub(in crate::datapath::ebpf) fn verify(path: &Path, wanted_key: u32, wanted_value: u32) -> Result<u32, TableError> {
    let open = |source| TableError::Open { path: path.to_owned(), source };
    let info = MapInfo::from_pin(path).map_err(|error| open(io::Error::other(error)))?;
    let (key, value) = (info.key_size(), info.value_size());
    if (key, value) == (wanted_key, wanted_value) {
        return Ok(info.max_entries());
    }
    Err(TableError::Layout { path: path.to_owned(), key, value, wanted_key, wanted_value })
}

/// How many elements a pinned map has.
pub(in crate::datapath::ebpf) fn size(path: &Path) -> Result<u32, TableError> {
    let open = |error| TableError::Open { path: path.to_owned(), source: io::Error::other(error) };
    Ok(MapInfo::from_pin(path).map_err(open)?.max_entries())
}

impl Tables {
    /// Opens the maps pinned below `directory`.
    pub(in crate::datapath::ebpf) fn open(pins: &Path) -> Result<Self, TableError> {
        let mut sizes = HashMap::new();
        for (name, key, value) in MAPS {
            sizes.insert(name, verify(&pins.join(name), key, value)?);
        }
        let size = |name| sizes.get(name).copied().unwrap_or(0);
        let open = |name: &str| {
            let path = pins.join(name);
            bpf::open_pin(&path).map_err(|source| TableError::Open { path, source })
        };
        let array = |name, words: usize| {
            let map = open(name)?;
            let memory = Mapped::new(map.as_fd(), words.saturating_mul(size(name) as usize))
                .map_err(|source| TableError::Open { path: pins.join(name), source })?;
            Ok(Array { name, memory })
        };
        Ok(Self {
            frontends4: open("FRONTENDS4")?,
            frontends6: open("FRONTENDS6")?,
            addresses: open("ADDRESSES")?,
            ranges: open("RANGES")?,
            config: array("CONFIG", CONFIG_WORDS)?,
            directory: array("DIRECTORY", DIRECTORY_WORDS)?,
            slots: array("SLOTS", 1)?,
            backends4: array("BACKENDS4", BACKEND4_WORDS)?,
            backends6: array("BACKENDS6", BACKEND6_WORDS)?,
            capacity: Capacity {
                frontends: size("FRONTENDS4").min(size("FRONTENDS6")),
                services: size("DIRECTORY"),
                slots: size("SLOTS"),
                backends: size("BACKENDS4").min(size("BACKENDS6")),
                ranges: size("RANGES"),
            },
            pending4: Vec::new(),
            pending6: Vec::new(),
        })
    }

    pub(in crate::datapath::ebpf) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Carries out one write. New frontends wait for [`Tables::flush`] or for the next write that takes something away,
    /// which is as safe as in order: until then the frontend leads where it led before.
    pub(in crate::datapath::ebpf) fn write(&mut self, write: &Write) -> Result<(), SyncError> {
        match *write {
            Write::Backend { family, index, words: [first, second, third, fourth] } => match family {
                // The word with the generation last: it makes the rest visible.
                Family::V4 => self.backends4.store(index, BACKEND4_WORDS, &[(1, second), (0, first)]),
                Family::V6 => {
                    let life = Backend6::LIFE;
                    let words = [(0, first), (1, second), (3, fourth), (life, third)];
                    self.backends6.store(index, BACKEND6_WORDS, &words)
                }
            },
            Write::Standing { family: Family::V4, index, standing } => {
                self.backends4.store(index, BACKEND4_WORDS, &[(Backend4::STANDING, standing.0)])
            }
            Write::Standing { family: Family::V6, index, standing } => {
                self.backends6.store(index, BACKEND6_WORDS, &[(Backend6::STANDING, standing.0)])
            }
            Write::BackendGone { family, index } => {
                self.flush()?;
                match family {
                    Family::V4 => self.backends4.store(index, BACKEND4_WORDS, &[(0, 0)]),
                    Family::V6 => self.backends6.store(index, BACKEND6_WORDS, &[(Backend6::LIFE, 0)]),
                }
            }
            Write::Slot { index, slot } => self.slots.store(index, 1, &[(0, slot.0)]),
            Write::Extent { service, extent } => {
                if extent == Extent::EMPTY {
                    self.flush()?;
                }
                self.directory.store(service, DIRECTORY_WORDS, &[(0, extent.0)])
            }
            Write::Shape { service, shape } => self.directory.store(service, DIRECTORY_WORDS, &[(1, shape.0)]),
            Write::Terms { service, terms } => self.directory.store(service, DIRECTORY_WORDS, &[(2, terms.0)]),
            Write::Ranges { service, ranges } => {
                self.flush()?;
                self.directory.store(service, DIRECTORY_WORDS, &[(3, ranges.0)])
            }
            Write::Range { id, prefix } => {
                bpf::update(self.ranges.as_fd(), &range_key(id, &prefix), &id.to_ne_bytes()).map_err(refused("RANGES"))
            }
            Write::RangeGone { id, prefix } => {
                self.flush()?;
                bpf::delete(self.ranges.as_fd(), &range_key(id, &prefix)).map_err(refused("RANGES"))
            }
            Write::Frontend { key, lead } => {
                match key {
                    FrontendKey::V4(four) => self.pending4.push((four.to_bytes(), key.value(lead).0)),
                    FrontendKey::V6(six) => self.pending6.push((six.to_bytes(), key.value(lead).0)),
                }
                Ok(())
            }
            Write::FrontendGone { key } => {
                self.flush()?;
                match key {
                    FrontendKey::V4(four) => bpf::delete(self.frontends4.as_fd(), &four.to_bytes()),
                    FrontendKey::V6(six) => bpf::delete(self.frontends6.as_fd(), &six.to_bytes()),
                }
                .map_err(refused("FRONTENDS"))
            }
        }
    }

    /// Whether the tables look as if `write` had just been carried out; prefixes of ranges are not looked at, as a
    /// lookup finds a shorter one too.
    pub(in crate::datapath::ebpf) fn holds(&self, write: &Write) -> Result<bool, SyncError> {
        let word = |array: &Array, index: u32, words: usize, at: usize| {
            array.memory.load((index as usize).saturating_mul(words).saturating_add(at))
        };
        let entry = |service, at, value| word(&self.directory, service, DIRECTORY_WORDS, at) == Some(value);
        Ok(match *write {
            Write::Backend { family: Family::V4, index, words } => {
                (0..BACKEND4_WORDS).all(|at| word(&self.backends4, index, BACKEND4_WORDS, at) == words.get(at).copied())
            }
            Write::Backend { family: Family::V6, index, words } => {
                (0..BACKEND6_WORDS).all(|at| word(&self.backends6, index, BACKEND6_WORDS, at) == words.get(at).copied())
            }
            Write::Slot { index, slot } => word(&self.slots, index, 1, 0) == Some(slot.0),
            Write::Extent { service, extent } => entry(service, 0, extent.0),
            Write::Shape { service, shape } => entry(service, 1, shape.0),
            Write::Terms { service, terms } => entry(service, 2, terms.0),
            Write::Ranges { service, ranges } => entry(service, 3, ranges.0),
            Write::Frontend { key, lead } => {
                let found = match key {
                    FrontendKey::V4(four) => bpf::lookup_word(self.frontends4.as_fd(), &four.to_bytes()),
                    FrontendKey::V6(six) => bpf::lookup_word(self.frontends6.as_fd(), &six.to_bytes()),
                };
                found.map_err(|source| SyncError::Read { object: "FRONTENDS", source })? == Some(key.value(lead).0)
            }
            Write::Range { .. }
            | Write::RangeGone { .. }
            | Write::Standing { .. }
            | Write::BackendGone { .. }
            | Write::FrontendGone { .. } => true,
        })
    }

    /// Says what an address means; no meaning removes it.
    pub(in crate::datapath::ebpf) fn set_address(
        &mut self,
        ip: IpAddr,
        meaning: Option<Meaning>,
    ) -> Result<(), SyncError> {
        let (key, map) = (address(ip), self.addresses.as_fd());
        let bytes = address_bytes(key);
        match meaning {
            Some((node, cluster)) => bpf::update_word(map, &bytes, AddressValue::new(&key, node, cluster).0),
            None => bpf::delete(map, &bytes),
        }
        .map_err(refused("ADDRESSES"))
    }

    /// Says what many addresses mean, in one call.
    pub(in crate::datapath::ebpf) fn set_addresses(&mut self, meanings: &[(IpAddr, Meaning)]) -> Result<(), SyncError> {
        let element = |(ip, (node, cluster)): &(IpAddr, Meaning)| {
            let key = address(*ip);
            (address_bytes(key), AddressValue::new(&key, *node, *cluster).0)
        };
        let elements: Vec<([u8; 16], u64)> = meanings.iter().map(element).collect();
        update(&self.addresses, &elements).map_err(refused("ADDRESSES"))
    }

    /// All addresses that mean something, with node and cluster.
    pub(in crate::datapath::ebpf) fn addresses(&self) -> Result<Vec<(IpAddr, Meaning)>, SyncError> {
        let found = bpf::read_words(self.addresses.as_fd())
            .map_err(|source| SyncError::Read { object: "ADDRESSES", source })?;
        let element = |(key, value): ([u8; 16], u64)| {
            let value = AddressValue(value);
            (IpAddr::from(key).to_canonical(), (value.node(), value.cluster()))
        };
        Ok(found.into_iter().map(element).collect())
    }

    /// Tells the programs of the node.
    pub(in crate::datapath::ebpf) fn configure(&mut self, config: Config) -> Result<(), SyncError> {
        self.config.store(0, CONFIG_WORDS, &[(0, config.host_cookie), (1, config.flags)])
    }

    /// All frontends in the maps.
    pub(in crate::datapath::ebpf) fn frontends(&self) -> Result<Vec<(FrontendKey, FrontendValue)>, SyncError> {
        let failed = |object| move |source| SyncError::Read { object, source };
        let four = bpf::read_words(self.frontends4.as_fd()).map_err(failed("FRONTENDS4"))?;
        let six = bpf::read_words(self.frontends6.as_fd()).map_err(failed("FRONTENDS6"))?;
        let four = four.into_iter().map(|(key, value)| (FrontendKey::V4(FrontendKey4::from_bytes(key)), value));
        let six = six.into_iter().map(|(key, value)| (FrontendKey::V6(FrontendKey6::from_bytes(key)), value));
        Ok(four.chain(six).map(|(key, value)| (key, FrontendValue(value))).collect())
    }

    /// Writes the frontends that wait.
    pub(in crate::datapath::ebpf) fn flush(&mut self) -> Result<(), SyncError> {
        let failed = |object| move |source| SyncError::Write { object, source };
        let four = std::mem::take(&mut self.pending4);
        update(&self.frontends4, &four).map_err(failed("FRONTENDS4"))?;
        let six = std::mem::take(&mut self.pending6);
        update(&self.frontends6, &six).map_err(failed("FRONTENDS6"))
    }

    /// Everything that is in the tables.
    pub(in crate::datapath::ebpf) fn dump(&self) -> Result<Dump, SyncError> {
        let ranges = bpf::keys(self.ranges.as_fd()).map_err(|source| SyncError::Read { object: "RANGES", source })?;
        let directory: Vec<(u32, Directory)> = self.directory.elements::<DIRECTORY_WORDS>();
        let extents = directory.iter().map(|(_, [extent, ..])| Extent(*extent));
        let indexes = extents.flat_map(|extent| (0..extent.all()).map(move |at| extent.base().saturating_add(at)));
        let slots = indexes.filter_map(|index| Some((index, self.slots.memory.load(index as usize)?))).collect();
        let backends4 = self.backends4.elements::<BACKEND4_WORDS>();
        Ok(Dump {
            frontends: self.frontends()?,
            ranges: ranges.iter().filter_map(range_of).collect(),
            directory,
            slots,
            backends4: backends4.into_iter().map(|(index, [first, second])| (index, [first, second, 0, 0])).collect(),
            backends6: self.backends6.elements::<BACKEND6_WORDS>(),
        })
    }
}

fn refused(object: &'static str) -> impl FnOnce(io::Error) -> SyncError {
    move |source| SyncError::Write { object, source }
}

fn address_bytes(address: proxy_abi::Address6) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(address) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// One element by a plain update, more by a batch.
fn update<const K: usize>(map: &OwnedFd, elements: &[([u8; K], u64)]) -> io::Result<()> {
    match elements {
        [] => Ok(()),
        [(key, value)] => bpf::update_word(map.as_fd(), key, *value),
        many => bpf::update_words(map.as_fd(), many),
    }
}

impl Array {
    fn store(&self, index: u32, words: usize, values: &[(usize, u64)]) -> Result<(), SyncError> {
        let start = (index as usize).saturating_mul(words);
        for (at, value) in values {
            self.memory
                .store(start.saturating_add(*at), *value)
                .map_err(|source| SyncError::Write { object: self.name, source })?;
        }
        Ok(())
    }

    /// The elements that are not all zero.
    fn elements<const W: usize>(&self) -> Vec<(u32, [u64; W])> {
        let mut found = Vec::new();
        for index in 0..self.memory.len() / W {
            let mut words = [0; W];
            for (at, word) in words.iter_mut().enumerate() {
                *word = self.memory.load(index.saturating_mul(W).saturating_add(at)).unwrap_or(0);
            }
            if let (true, Ok(index)) = (words.iter().any(|word| *word != 0), u32::try_from(index)) {
                found.push((index, words));
            }
        }
        found
    }
}
