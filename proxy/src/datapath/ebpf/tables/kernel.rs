//! The maps in the kernel: carries out [`Write`]s and reads everything back.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use proxy_abi::directory::at;
use proxy_abi::maps::{self, Map};
use proxy_abi::{
    Address6, AddressValue, Backend4, Backend6, Directory, Extent, FrontendKey4, FrontendKey6, FrontendValue,
};
use shunt_model::Family;
use zerocopy::transmute;

use super::super::layout::write::{address, range_key, range_of};
use super::super::layout::{Capacity, Dump, FrontendKey, Write};
use super::super::pins::MapPins;
use super::addresses::Meaning;
use crate::datapath::SyncError;
use crate::sys::bpf;
use crate::sys::mapped::Mapped;

const DIRECTORY_WORDS: usize = maps::DIRECTORY.words();
const BACKEND4_WORDS: usize = maps::BACKENDS4.words();
const BACKEND6_WORDS: usize = maps::BACKENDS6.words();

/// A map cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// It cannot be opened.
    #[error("opening the map pinned at {}", .path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It has another layout.
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
    directory: Array,
    slots: Array,
    backends4: Array,
    backends6: Array,
    capacity: Capacity,
    /// New frontends that are written in one batch, before anything is taken away.
    pending4: Vec<([u8; size_of::<FrontendKey4>()], u64)>,
    pending6: Vec<([u8; size_of::<FrontendKey6>()], u64)>,
}

/// An array that is mapped to our memory.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Array {
    name: &'static str,
    words: usize,
    memory: Mapped,
}

/// Checks an existing pin against the list of maps; returns its number of elements.
pub(in crate::datapath::ebpf) fn verify(path: &Path, map: &Map) -> Result<u32, TableError> {
    let open = |source| TableError::Open { path: path.to_owned(), source };
    let info = MapInfo::from_pin(path).map_err(|error| open(io::Error::other(error)))?;
    let (key, value) = (info.key_size(), info.value_size());
    if (key, value) == (map.key, map.value) {
        return Ok(info.max_entries());
    }
    Err(TableError::Layout { path: path.to_owned(), key, value, wanted_key: map.key, wanted_value: map.value })
}

/// Opens a pinned map of the list.
pub(in crate::datapath::ebpf) fn open(pins: &MapPins, map: &Map) -> Result<OwnedFd, TableError> {
    let path = pins.of(map);
    verify(&path, map)?;
    bpf::open_pin(&path).map_err(|source| TableError::Open { path, source })
}

impl Tables {
    /// Opens the maps pinned in `pins`.
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        let size = |map: &Map| verify(&pins.of(map), map);
        Ok(Self {
            frontends4: open(pins, &maps::FRONTENDS4)?,
            frontends6: open(pins, &maps::FRONTENDS6)?,
            addresses: open(pins, &maps::ADDRESSES)?,
            ranges: open(pins, &maps::RANGES)?,
            directory: Array::open(pins, &maps::DIRECTORY)?,
            slots: Array::open(pins, &maps::SLOTS)?,
            backends4: Array::open(pins, &maps::BACKENDS4)?,
            backends6: Array::open(pins, &maps::BACKENDS6)?,
            capacity: Capacity {
                frontends: size(&maps::FRONTENDS4)?.min(size(&maps::FRONTENDS6)?),
                services: size(&maps::DIRECTORY)?,
                slots: size(&maps::SLOTS)?,
                backends: size(&maps::BACKENDS4)?.min(size(&maps::BACKENDS6)?),
                ranges: size(&maps::RANGES)?,
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
                Family::V4 => self.backends4.store(index, &[(1, second), (0, first)]),
                Family::V6 => {
                    let life = Backend6::LIFE;
                    let words = [(0, first), (1, second), (3, fourth), (life, third)];
                    self.backends6.store(index, &words)
                }
            },
            Write::Standing { family: Family::V4, index, standing } => {
                self.backends4.store(index, &[(Backend4::STANDING, standing.0)])
            }
            Write::Standing { family: Family::V6, index, standing } => {
                self.backends6.store(index, &[(Backend6::STANDING, standing.0)])
            }
            Write::BackendGone { family, index } => {
                self.flush()?;
                match family {
                    Family::V4 => self.backends4.store(index, &[(0, 0)]),
                    Family::V6 => self.backends6.store(index, &[(Backend6::LIFE, 0)]),
                }
            }
            Write::Slot { index, slot } => self.slots.store(index, &[(0, slot.0)]),
            Write::Extent { service, extent } => {
                if extent == Extent::EMPTY {
                    self.flush()?;
                }
                self.directory.store(service, &[(at::EXTENT, extent.0)])
            }
            Write::Shape { service, shape } => self.directory.store(service, &[(at::SHAPE, shape.0)]),
            Write::Terms { service, terms } => self.directory.store(service, &[(at::TERMS, terms.0)]),
            Write::Ranges { service, ranges } => {
                self.flush()?;
                self.directory.store(service, &[(at::RANGES, ranges.0)])
            }
            Write::Range { id, prefix } => bpf::update(self.ranges.as_fd(), &range_key(id, &prefix), &id.to_ne_bytes())
                .map_err(refused(maps::RANGES.name)),
            Write::RangeGone { id, prefix } => {
                self.flush()?;
                bpf::delete(self.ranges.as_fd(), &range_key(id, &prefix)).map_err(refused(maps::RANGES.name))
            }
            Write::Frontend { key, lead } => {
                match key {
                    FrontendKey::V4(four) => self.pending4.push((transmute!(four), key.value(lead).0)),
                    FrontendKey::V6(six) => self.pending6.push((transmute!(six), key.value(lead).0)),
                }
                Ok(())
            }
            Write::FrontendGone { key } => {
                self.flush()?;
                match key {
                    FrontendKey::V4(four) => bpf::delete(self.frontends4.as_fd(), &bytes4(four)),
                    FrontendKey::V6(six) => bpf::delete(self.frontends6.as_fd(), &bytes6(six)),
                }
                .map_err(refused(key.map().name))
            }
        }
    }

    /// Whether the tables hold what `write` writes. Prefixes of ranges are not compared, as a lookup finds a shorter
    /// one too.
    pub(in crate::datapath::ebpf) fn holds(&self, write: &Write) -> Result<bool, SyncError> {
        let entry = |service, at, value| self.directory.load(service, at) == Some(value);
        Ok(match *write {
            Write::Backend { family: Family::V4, index, words } => {
                (0..BACKEND4_WORDS).all(|at| self.backends4.load(index, at) == words.get(at).copied())
            }
            Write::Backend { family: Family::V6, index, words } => {
                (0..BACKEND6_WORDS).all(|at| self.backends6.load(index, at) == words.get(at).copied())
            }
            Write::Slot { index, slot } => self.slots.load(index, 0) == Some(slot.0),
            Write::Extent { service, extent } => entry(service, at::EXTENT, extent.0),
            Write::Shape { service, shape } => entry(service, at::SHAPE, shape.0),
            Write::Terms { service, terms } => entry(service, at::TERMS, terms.0),
            Write::Ranges { service, ranges } => entry(service, at::RANGES, ranges.0),
            Write::Frontend { key, lead } => {
                let found = match key {
                    FrontendKey::V4(four) => bpf::lookup_word(self.frontends4.as_fd(), &bytes4(four)),
                    FrontendKey::V6(six) => bpf::lookup_word(self.frontends6.as_fd(), &bytes6(six)),
                };
                found.map_err(|source| SyncError::Read { object: key.map().name, source })? == Some(key.value(lead).0)
            }
            Write::Range { .. }
            | Write::RangeGone { .. }
            | Write::Standing { .. }
            | Write::BackendGone { .. }
            | Write::FrontendGone { .. } => true,
        })
    }

    /// Writes the meaning of an address; without a meaning, removes it.
    pub(in crate::datapath::ebpf) fn set_address(
        &mut self,
        ip: IpAddr,
        meaning: Option<Meaning>,
    ) -> Result<(), SyncError> {
        let (key, map) = (address(ip), self.addresses.as_fd());
        let bytes: [u8; size_of::<Address6>()] = transmute!(key);
        match meaning {
            Some(meaning) => bpf::update_word(map, &bytes, meaning.value(&key).0),
            None => bpf::delete(map, &bytes),
        }
        .map_err(refused(maps::ADDRESSES.name))
    }

    /// Writes the meanings of many addresses in one call.
    pub(in crate::datapath::ebpf) fn set_addresses(&mut self, meanings: &[(IpAddr, Meaning)]) -> Result<(), SyncError> {
        let element = |(ip, meaning): &(IpAddr, Meaning)| {
            let key = address(*ip);
            (transmute!(key), meaning.value(&key).0)
        };
        let elements: Vec<([u8; size_of::<Address6>()], u64)> = meanings.iter().map(element).collect();
        update(&self.addresses, &elements).map_err(refused(maps::ADDRESSES.name))
    }

    /// All addresses in the map.
    pub(in crate::datapath::ebpf) fn addresses(&self) -> Result<Vec<(IpAddr, Meaning)>, SyncError> {
        let found = bpf::read_words(self.addresses.as_fd())
            .map_err(|source| SyncError::Read { object: maps::ADDRESSES.name, source })?;
        let element = |(key, value): ([u8; size_of::<Address6>()], u64)| {
            (IpAddr::from(key).to_canonical(), Meaning::of(AddressValue(value)))
        };
        Ok(found.into_iter().map(element).collect())
    }

    /// All frontends in the maps.
    pub(in crate::datapath::ebpf) fn frontends(&self) -> Result<Vec<(FrontendKey, FrontendValue)>, SyncError> {
        let failed = |object| move |source| SyncError::Read { object, source };
        let four: Vec<([u8; size_of::<FrontendKey4>()], u64)> =
            bpf::read_words(self.frontends4.as_fd()).map_err(failed(maps::FRONTENDS4.name))?;
        let six: Vec<([u8; size_of::<FrontendKey6>()], u64)> =
            bpf::read_words(self.frontends6.as_fd()).map_err(failed(maps::FRONTENDS6.name))?;
        let four = four.into_iter().map(|(key, value)| (FrontendKey::V4(transmute!(key)), value));
        let six = six.into_iter().map(|(key, value)| (FrontendKey::V6(transmute!(key)), value));
        Ok(four.chain(six).map(|(key, value)| (key, FrontendValue(value))).collect())
    }

    /// Drops the frontends that wait, after a failure.
    pub(in crate::datapath::ebpf) fn forget_pending(&mut self) {
        self.pending4.clear();
        self.pending6.clear();
    }

    /// Writes the frontends that wait.
    pub(in crate::datapath::ebpf) fn flush(&mut self) -> Result<(), SyncError> {
        let failed = |object| move |source| SyncError::Write { object, source };
        let four = std::mem::take(&mut self.pending4);
        update(&self.frontends4, &four).map_err(failed(maps::FRONTENDS4.name))?;
        let six = std::mem::take(&mut self.pending6);
        update(&self.frontends6, &six).map_err(failed(maps::FRONTENDS6.name))
    }

    /// Everything that is in the tables.
    pub(in crate::datapath::ebpf) fn dump(&self) -> Result<Dump, SyncError> {
        let ranges =
            bpf::keys(self.ranges.as_fd()).map_err(|source| SyncError::Read { object: maps::RANGES.name, source })?;
        let directory: Vec<(u32, Directory)> = self.directory.elements::<DIRECTORY_WORDS>();
        let extents = directory.iter().map(|(_, [extent, ..])| Extent(*extent));
        let indexes = extents.flat_map(|extent| (0..extent.all()).map(move |at| extent.base().saturating_add(at)));
        let slots = indexes.filter_map(|index| Some((index, self.slots.load(index, 0)?))).collect();
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

fn bytes4(key: FrontendKey4) -> [u8; size_of::<FrontendKey4>()] {
    transmute!(key)
}

fn bytes6(key: FrontendKey6) -> [u8; size_of::<FrontendKey6>()] {
    transmute!(key)
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
    /// Opens a pinned array of the list and maps it.
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins, map: &Map) -> Result<Self, TableError> {
        let path = pins.of(map);
        let size = verify(&path, map)? as usize;
        let memory = bpf::open_pin(&path).and_then(|fd| Mapped::new(fd.as_fd(), map.words().saturating_mul(size)));
        let memory = memory.map_err(|source| TableError::Open { path, source })?;
        Ok(Self { name: map.name, words: map.words(), memory })
    }

    /// The word at `at` of the element at `index`.
    pub(in crate::datapath::ebpf) fn load(&self, index: u32, at: usize) -> Option<u64> {
        self.memory.load((index as usize).saturating_mul(self.words).saturating_add(at))
    }

    /// Stores words of the element at `index`, each with its place, in this order.
    pub(in crate::datapath::ebpf) fn store(&self, index: u32, values: &[(usize, u64)]) -> Result<(), SyncError> {
        let start = (index as usize).saturating_mul(self.words);
        for (at, value) in values {
            self.memory
                .store(start.saturating_add(*at), *value)
                .map_err(|source| SyncError::Write { object: self.name, source })?;
        }
        Ok(())
    }

    /// Changes a word of the element at `index` in one step.
    pub(in crate::datapath::ebpf) fn update(
        &self,
        index: u32,
        at: usize,
        change: impl Fn(u64) -> u64,
    ) -> io::Result<()> {
        self.memory.update((index as usize).saturating_mul(self.words).saturating_add(at), change)
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
