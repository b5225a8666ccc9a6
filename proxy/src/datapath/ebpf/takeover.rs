//! Takes over what the tables of another version hold, under the same ids: sockets and clients refer to backends and
//! service ports by them, and what they refer to must stay what it was.
//!
//! It reads them before it makes any map, and writes them before it attaches a program of this version.

use std::net::IpAddr;

use proxy_abi::directory::at;
use proxy_abi::{Namespace, NodePorts, Terms};

use super::layout::Dump;
use super::layout::rebuild::image;
use super::pins::Former;
use super::tables::addresses::Meaning;
use super::tables::kernel::{TableError, Tables};
use super::tables::node::{Namespaces, NodeConfig, v2};
use crate::datapath::SyncError;

/// What another version holds, in the words of this one.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    dump: Dump,
    addresses: Vec<(IpAddr, Meaning)>,
    namespaces: Vec<(u64, Namespace)>,
}

/// The tables of another version cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeoverError {
    /// This program does not know the layout of that version.
    #[error("the layout of version {0} is not known to this program")]
    Unknown(u32),
    /// A map does not have the layout of that version.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The kernel refused a read.
    #[error(transparent)]
    Read(#[from] SyncError),
}

impl Taken {
    /// Reads what `former` holds.
    pub(super) fn read(former: &Former) -> Result<Self, TakeoverError> {
        match former.version {
            2 => Self::read_v2(former),
            unknown => Err(TakeoverError::Unknown(unknown)),
        }
    }

    /// In version 2 one word of `CONFIG` had two writers, no address said from which clients it takes node ports, and
    /// one flag decided for all service ports whether flows that [`Terms::leaves_alone`] marks are left alone. All else
    /// is the same.
    fn read_v2(former: &Former) -> Result<Self, TakeoverError> {
        let tables = Tables::open(&former.maps)?;
        let v2::Flags { opt_outs, silent } = v2::flags(&former.maps)?;
        let mut dump = tables.dump()?;
        for (_, words) in &mut dump.directory {
            if let Some(terms) = words.get_mut(at::TERMS) {
                let former = Terms(*terms);
                let timeout = u32::try_from(former.timeout()).unwrap_or(u32::MAX);
                *terms = Terms::new(former.port(), timeout, former.leaves_alone() && silent).0;
            }
        }
        let mut addresses = tables.addresses()?;
        for (_, meaning) in addresses.iter_mut().filter(|(address, _)| address.is_loopback()) {
            meaning.node_ports = meaning.node_ports.map(|_| NodePorts::FromNodeOnly);
        }
        let namespaces = if opt_outs { Namespaces::open(&former.maps)?.all()? } else { Vec::new() };
        Ok(Self { dump, addresses, namespaces })
    }

    /// Writes it to empty tables that no program reads yet.
    pub(super) fn write(
        &self,
        tables: &mut Tables,
        namespaces: &Namespaces,
        config: &NodeConfig,
    ) -> Result<usize, SyncError> {
        let writes = image(&self.dump, tables.capacity());
        for write in &writes {
            tables.write(write)?;
        }
        tables.flush()?;
        tables.set_addresses(&self.addresses)?;
        for (cookie, namespace) in &self.namespaces {
            namespaces.set(*cookie, *namespace)?;
        }
        let opted_out = self.namespaces.iter().filter(|(_, value)| value.flags & Namespace::OPTED_OUT != 0).count();
        // The first round of upkeep writes the same. Until then programs must not translate for pods that had opted
        // out.
        config.set_opt_outs(u64::try_from(opted_out).unwrap_or(u64::MAX))?;
        Ok(self.dump.directory.len())
    }
}
