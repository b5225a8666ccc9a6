//! What programs must know of the node: its words in `CONFIG`, each with one writer, and the network namespaces.

use std::os::fd::{AsFd, OwnedFd};

use proxy_abi::maps;
use proxy_abi::{Config, Namespace};
use zerocopy::transmute;

use super::super::pins::MapPins;
use super::kernel::{Array, TableError, open};
use crate::datapath::SyncError;
use crate::sys::bpf;

/// `CONFIG`.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct NodeConfig(Array);

impl NodeConfig {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        Ok(Self(Array::open(pins, &maps::CONFIG)?))
    }

    /// Written at the start, and by nothing else.
    pub(in crate::datapath::ebpf) fn set_node(&self, host_cookie: u64, flags: u64) -> Result<(), SyncError> {
        self.0.store(0, &[(Config::HOST_COOKIE, host_cookie), (Config::FLAGS, flags)])
    }

    /// Written by upkeep, and by nothing else; only if it is another number.
    pub(in crate::datapath::ebpf) fn set_opt_outs(&self, count: u64) -> Result<(), SyncError> {
        if self.0.load(0, Config::OPT_OUTS) == Some(count) {
            return Ok(());
        }
        self.0.store(0, &[(Config::OPT_OUTS, count)])
    }
}

/// `NAMESPACES`.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Namespaces(OwnedFd);

impl Namespaces {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        Ok(Self(open(pins, &maps::NAMESPACES)?))
    }

    /// Those that are known, by cookie.
    pub(in crate::datapath::ebpf) fn all(&self) -> Result<Vec<(u64, Namespace)>, SyncError> {
        let failed = |source| SyncError::Read { object: maps::NAMESPACES.name, source };
        let mut all = Vec::new();
        for cookie in bpf::keys::<8>(self.0.as_fd()).map_err(failed)? {
            let found: Option<[u8; size_of::<Namespace>()]> = bpf::lookup(self.0.as_fd(), &cookie).map_err(failed)?;
            all.extend(found.map(|value| (u64::from_ne_bytes(cookie), transmute!(value))));
        }
        Ok(all)
    }

    pub(in crate::datapath::ebpf) fn set(&self, cookie: u64, namespace: Namespace) -> Result<(), SyncError> {
        let value: [u8; size_of::<Namespace>()] = transmute!(namespace);
        let written = bpf::update(self.0.as_fd(), &cookie.to_ne_bytes(), &value);
        written.map_err(|source| SyncError::Write { object: maps::NAMESPACES.name, source })
    }

    pub(in crate::datapath::ebpf) fn remove(&self, cookie: u64) -> Result<(), SyncError> {
        let removed = bpf::delete(self.0.as_fd(), &cookie.to_ne_bytes());
        removed.map_err(|source| SyncError::Write { object: maps::NAMESPACES.name, source })
    }
}

/// `CONFIG` as version 2 of the tables had it.
pub(in crate::datapath::ebpf) mod v2 {
    use super::{AsFd as _, MapPins, TableError, bpf, maps};
    use crate::sys::mapped::Mapped;

    const WORDS: usize = 2;
    /// Index of the flags.
    const FLAGS: usize = 1;
    /// Some namespaces are left alone.
    const OPT_OUTS: u64 = 1;
    /// Flows that the terms leave alone keep their address; without this flag they are refused.
    const SILENT: u64 = 2;

    /// What the flags say.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::datapath::ebpf) struct Flags {
        pub(in crate::datapath::ebpf) opt_outs: bool,
        pub(in crate::datapath::ebpf) silent: bool,
    }

    pub(in crate::datapath::ebpf) fn flags(pins: &MapPins) -> Result<Flags, TableError> {
        let path = pins.of(&maps::CONFIG);
        let memory = bpf::open_pin(&path).and_then(|map| Mapped::new(map.as_fd(), WORDS));
        let flags = memory.map_err(|source| TableError::Open { path, source })?.load(FLAGS).unwrap_or_default();
        Ok(Flags { opt_outs: flags & OPT_OUTS != 0, silent: flags & SILENT != 0 })
    }
}
