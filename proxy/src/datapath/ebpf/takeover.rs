//! Takes over what the tables of another version hold, under the same ids: sockets and clients refer to backends and
//! service ports by them, and what they refer to must stay what it was.
//!
//! It reads them before it makes any map, and writes them before it attaches a program of this version.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_abi::directory::at;
use proxy_abi::{Namespace, NodePorts, Terms};

use super::layout::Dump;
use super::layout::rebuild::image;
use super::pins::Former;
use super::tables::addresses::Meaning;
use super::tables::kernel::{TableError, Tables};
use super::tables::node::{OptOuts, v2};
use crate::datapath::SyncError;

/// What another version holds, in the words of this one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Taken {
    dump: Dump,
    addresses: Vec<(IpAddr, Meaning)>,
    namespaces: BTreeMap<u64, Namespace>,
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
            2 => Ok(from_v2(Self::found(former)?, v2::is_silent(&former.maps)?)),
            // No frontend of version 3 falls back, and its programs are at other hooks of `bind()`. Version 4 says
            // nothing of packets.
            3 | 4 => Self::found(former),
            unknown => Err(TakeoverError::Unknown(unknown)),
        }
    }

    /// The elements that have had the same layout since version 2.
    fn found(former: &Former) -> Result<Self, TakeoverError> {
        let (tables, namespaces) = (Tables::open(&former.maps)?, v2::namespaces(&former.maps)?);
        Ok(Self { dump: tables.dump()?, addresses: tables.addresses()?, namespaces })
    }

    /// Writes it to empty tables that no program reads yet. Until the first round of upkeep programs must know all
    /// namespaces: pods that had opted out, and the addresses of all others for source ranges.
    pub(super) fn write(&self, tables: &mut Tables, opt_outs: &mut OptOuts) -> Result<usize, SyncError> {
        let writes = image(&self.dump, tables.capacity());
        for write in &writes {
            tables.write(write)?;
        }
        tables.flush()?;
        tables.set_addresses(&self.addresses)?;
        opt_outs.apply(&self.namespaces)?;
        Ok(self.dump.directory.len())
    }
}

/// In version 2 no address said from which clients it takes node ports, and one flag, `silent`, decided for all service
/// ports whether flows that [`Terms::keeps_destination`] marks keep it. All else was as it is.
fn from_v2(found: Taken, silent: bool) -> Taken {
    let Taken { mut dump, mut addresses, namespaces } = found;
    for (_, words) in &mut dump.directory {
        if let Some(terms) = words.get_mut(at::TERMS) {
            let former = Terms(*terms);
            let timeout = u32::try_from(former.timeout()).unwrap_or(u32::MAX);
            *terms = Terms::new(former.port(), timeout, former.keeps_destination() && silent, false).0;
        }
    }
    for (_, meaning) in addresses.iter_mut().filter(|(address, _)| address.is_loopback()) {
        meaning.node_ports = meaning.node_ports.map(|_| NodePorts::FromNodeOnly);
    }
    Taken { dump, addresses, namespaces }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this version makes of the terms of a service port under version 2.
    #[track_caller]
    fn check_terms(marked: bool, silent: bool, wanted: bool) {
        let entry = |keeps| [7, 8, Terms::new(5, 10_800, keeps, false).0, 9];
        let found = Taken {
            dump: Dump { directory: vec![(5, entry(marked))], ..Dump::default() },
            namespaces: BTreeMap::from([(3, Namespace { flags: Namespace::OPTED_OUT, ..Namespace::default() })]),
            ..Taken::default()
        };
        let taken = from_v2(found.clone(), silent);
        assert_eq!(taken.dump.directory, [(5, entry(wanted))], "marked {marked}, silent {silent}");
        assert_eq!(taken.namespaces, found.namespaces);
    }

    #[test]
    fn one_flag_decided_for_all_whether_a_flow_without_a_local_endpoint_keeps_its_destination() {
        check_terms(false, false, false);
        check_terms(false, true, false);
        check_terms(true, false, false);
        check_terms(true, true, true);
    }

    #[test]
    fn loopback_takes_node_ports_from_the_node_only() {
        let node = |node_ports| Meaning { node_ports: Some(node_ports), ..Meaning::default() };
        let cluster_ip = Meaning { refuses: true, ..Meaning::default() };
        let check = |address: &str, found, wanted| {
            let address: IpAddr = address.parse().unwrap();
            let found = Taken { addresses: vec![(address, found)], ..Taken::default() };
            assert_eq!(from_v2(found, false).addresses, [(address, wanted)]);
        };
        check("127.0.0.1", node(NodePorts::FromAnywhere), node(NodePorts::FromNodeOnly));
        check("::1", node(NodePorts::FromAnywhere), node(NodePorts::FromNodeOnly));
        check("10.0.0.5", node(NodePorts::FromAnywhere), node(NodePorts::FromAnywhere));
        check("10.96.0.1", cluster_ip, cluster_ip);
    }
}
