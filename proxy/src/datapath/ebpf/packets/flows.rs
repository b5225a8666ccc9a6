//! The flows that the packet programs remember, as the daemon reads and writes them.

pub(super) mod collect;
mod earlier;
pub(in crate::datapath) mod list;
mod timeouts;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::time::{ClockId, clock_gettime};
use proxy_abi::connection::{Connection, Key, STAYS_OPENING, Translation};
use proxy_abi::maps::Map;
use proxy_abi::maps::packets as maps;
use proxy_abi::packet::Ends;
use zerocopy::transmute;

use super::super::EbpfOpenError;
use super::super::layout::write::address_of;
use super::super::pins::MapPins;
use super::super::tables::kernel::{Array, TableError, open};
use crate::datapath::SyncError;
use crate::sys::bpf::{self, Pieces};

pub(in crate::datapath::ebpf) use self::collect::Collector;
pub(in crate::datapath::ebpf) use self::earlier::{EarlierDatagrams, EarlierFlows};
pub use self::timeouts::FlowTimeouts;

/// How many elements are read at once: between two pieces others get the processor, and what is removed of a piece has
/// just been read.
const PIECE: usize = 1024;

const ENDS: usize = size_of::<Ends>();
const CONNECTION: usize = size_of::<Connection>();
const TRANSLATION: usize = size_of::<Translation>();

/// A table of connections, and that of what leads back to them.
#[derive(Debug)]
pub(super) struct Pair {
    connections: OwnedFd,
    translations: OwnedFd,
}

/// All tables of flows.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct FlowTables {
    /// Of connections of TCP whose client has sent one packet.
    pub(super) opening: Pair,
    pub(super) large: Pair,
}

impl FlowTables {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        let pair = |connections: &Map, translations: &Map| {
            Ok(Pair { connections: open(pins, connections)?, translations: open(pins, translations)? })
        };
        Ok(Self {
            opening: pair(&maps::OPENINGS, &maps::OPENING_TRANSLATIONS)?,
            large: pair(&maps::CONNECTIONS, &maps::TRANSLATIONS)?,
        })
    }

    /// The addresses that clients of flows dialled.
    pub(in crate::datapath::ebpf) fn dialled(&self) -> io::Result<HashSet<IpAddr>> {
        let mut dialled = HashSet::new();
        for pair in self.pairs() {
            pair.read_connections(|piece| {
                dialled.extend(piece.iter().map(|(client, _)| IpAddr::V6(address_of(client.to)).to_canonical()));
                Ok(true)
            })?;
        }
        Ok(dialled)
    }

    /// A flow passes from the first to the second, so who reads them in this order misses none.
    pub(super) fn pairs(&self) -> [&Pair; 2] {
        [&self.opening, &self.large]
    }
}

impl Pair {
    /// Hands over the connections, piece by piece, until `each` returns false.
    pub(super) fn read_connections(
        &self,
        mut each: impl FnMut(Vec<(Ends, Connection)>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let element = |(key, value): (&[u8; ENDS], &[u8; CONNECTION])| -> (Ends, Connection) {
            (transmute!(*key), transmute!(*value))
        };
        let mut pieces = Pieces::<ENDS, CONNECTION>::of(self.connections.as_fd(), PIECE);
        while let Some((keys, values)) = pieces.next_piece()? {
            if !each(keys.iter().zip(values).map(element).collect())? {
                break;
            }
        }
        Ok(())
    }

    /// The same of what leads back to them.
    pub(super) fn read_translations(
        &self,
        mut each: impl FnMut(Vec<(Ends, Translation)>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let element = |(key, value): (&[u8; ENDS], &[u8; TRANSLATION])| -> (Ends, Translation) {
            (transmute!(*key), transmute!(*value))
        };
        let mut pieces = Pieces::<ENDS, TRANSLATION>::of(self.translations.as_fd(), PIECE);
        while let Some((keys, values)) = pieces.next_piece()? {
            if !each(keys.iter().zip(values).map(element).collect())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn translation(&self, key: &Ends) -> io::Result<Option<Translation>> {
        let found: Option<[u8; TRANSLATION]> = bpf::lookup(self.translations.as_fd(), &bytes(key))?;
        Ok(found.map(|value| transmute!(value)))
    }

    pub(super) fn take_connection(&self, client: &Ends) -> io::Result<Option<Connection>> {
        let found: Option<[u8; CONNECTION]> = bpf::take(self.connections.as_fd(), &bytes(client))?;
        Ok(found.map(|value| transmute!(value)))
    }

    /// Removes these, whatever they are by now.
    pub(super) fn remove_connections(&self, clients: &[Ends]) -> io::Result<()> {
        let keys: Vec<_> = clients.iter().map(bytes).collect();
        bpf::delete_all(self.connections.as_fd(), &keys)
    }

    /// As [`Pair::remove_connections`].
    pub(super) fn remove_translations(&self, keys: &[Ends]) -> io::Result<()> {
        let keys: Vec<_> = keys.iter().map(bytes).collect();
        bpf::delete_all(self.translations.as_fd(), &keys)
    }

    /// Writes it unless there is one. False if there is.
    pub(super) fn add_connection(&self, client: &Ends, connection: &Connection) -> io::Result<bool> {
        let value: [u8; CONNECTION] = transmute!(*connection);
        bpf::insert_new(self.connections.as_fd(), &bytes(client), &value)
    }

    /// Writes that the kernel stands for a client with this port, unless a flow of ours has it.
    pub(super) fn set_taken(&self, key: &Ends, taken: &Translation) -> io::Result<()> {
        if self.add_translation(key, taken)? {
            return Ok(());
        }
        match self.translation(key)? {
            Some(found) if found.flags & Translation::TAKEN != 0 => {
                let value: [u8; TRANSLATION] = transmute!(*taken);
                bpf::update(self.translations.as_fd(), &bytes(key), &value)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Writes it unless there is one. False if there is.
    pub(super) fn add_translation(&self, key: &Ends, translation: &Translation) -> io::Result<bool> {
        let value: [u8; TRANSLATION] = transmute!(*translation);
        bpf::insert_new(self.translations.as_fd(), &bytes(key), &value)
    }
}

/// Makes the programs look for what leads back to any opening connection until those that programs of an earlier
/// version began, which did not note them in `OPENED`, are up or gone. To be called before programs are attached.
pub(in crate::datapath::ebpf) fn expect_opening(pins: &MapPins) -> Result<(), EbpfOpenError> {
    let opened = Array::open(pins, &maps::OPENED)?;
    let mut indices = 0..maps::OPENED.capacity;
    // Programs write no 0.
    if indices.clone().any(|index| opened.load(index, 0) != Some(0)) {
        return Ok(());
    }
    let now = now().map_err(|source| SyncError::Read { object: maps::OPENED.name, source })?;
    let until = u64::from(now).saturating_add(STAYS_OPENING.into());
    Ok(indices.try_for_each(|index| opened.store(index, &[(0, until)]))?)
}

fn bytes(ends: &Ends) -> [u8; ENDS] {
    transmute!(*ends)
}

/// What leads back to a flow, with its keys.
pub(super) fn leading_back(
    client: &Ends,
    connection: &Connection,
) -> impl Iterator<Item = (Ends, Translation)> + use<> {
    let ours = connection.flags & Connection::FOREIGN == 0;
    let to_client = ours.then(|| {
        let key = Key::of(&connection.inner(client));
        (key.ends, connection.leading_back(client, &key))
    });
    let of_node = (ours && connection.source_port != 0).then(|| {
        let key = Key::of(&connection.of_node(client.protocol));
        (key.ends, connection.for_client(client, &key))
    });
    to_client.into_iter().chain(of_node)
}

/// The programs' clock.
pub(super) fn now() -> io::Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    u32::try_from(now.tv_sec() & i64::from(u32::MAX)).map_err(io::Error::other)
}
