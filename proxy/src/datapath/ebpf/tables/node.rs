//! What programs must know of the node: its words in `CONFIG`, and the network namespaces that are left alone.
//!
//! The daemon writes the flags and the release of sockets another word. Each flag has one owner in the daemon, which
//! changes it in one step: the start those of [`NodeWords`], [`OwnDns`] and [`OptOuts`] one each.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use proxy_abi::maps;
use proxy_abi::{Config, Namespace};
use zerocopy::transmute;

use super::super::pins::MapPins;
use super::kernel::{Array, TableError, open};
use crate::datapath::SyncError;
use crate::sys::bpf;

/// The words of `CONFIG` that a start writes.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct NodeWords(Array);

impl NodeWords {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        Ok(Self(Array::open(pins, &maps::CONFIG)?))
    }

    /// Begins the generation of this start, with these flags and those of the former one that are `kept`. DNS is not
    /// known to serve yet.
    pub(in crate::datapath::ebpf) fn write(&self, host_cookie: u64, flags: u64, kept: u64) -> Result<(), SyncError> {
        self.0.store(0, &[(Config::HOST_COOKIE, host_cookie)])?;
        let closed = self.0.load(0, Config::CLOSED).unwrap_or_default();
        let begun = |former| flags | (former & kept) | Config::next_generation(former, closed);
        self.0.update(0, Config::FLAGS, begun).map_err(refused)
    }

    /// Packet programs that another path had replaced begin flows again.
    pub(in crate::datapath::ebpf) fn end_leave(&self) -> Result<(), SyncError> {
        self.0.update(0, Config::FLAGS, |flags| flags & !Config::LEAVING).map_err(refused)
    }

    fn generation(&self) -> u64 {
        Config::generation(self.0.load(0, Config::FLAGS).unwrap_or_default())
    }
}

/// The sockets of the node's own DNS, as programs know them.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct OwnDns {
    config: NodeWords,
    marks: OwnedFd,
    /// All are marked, and the programs are to be told so after a sync.
    marked: bool,
}

impl OwnDns {
    pub(in crate::datapath::ebpf) fn open(config: NodeWords, pins: &MapPins) -> Result<Self, TableError> {
        Ok(Self { config, marks: open(pins, &maps::OWN_DNS)?, marked: false })
    }

    /// Marks these sockets; the kernel forgets the mark with the socket.
    pub(in crate::datapath::ebpf) fn mark(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        let mark = self.config.generation().to_ne_bytes();
        for socket in sockets {
            let key = socket.as_raw_fd().to_ne_bytes();
            let marked = bpf::update(self.marks.as_fd(), &key, &mark);
            marked.map_err(|source| SyncError::Write { object: maps::OWN_DNS.name, source })?;
        }
        self.marked = !sockets.is_empty();
        Ok(())
    }

    /// After a sync: no frontend that falls back leads to a server that does not know the cluster yet.
    pub(in crate::datapath::ebpf) fn tell(&self) -> Result<(), SyncError> {
        if !self.marked {
            return Ok(());
        }
        self.config.0.update(0, Config::FLAGS, |flags| flags | Config::DNS_SERVES).map_err(refused)
    }
}

/// `NAMESPACES`, and the flag in `CONFIG` that some of them have opted out.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct OptOuts {
    namespaces: OwnedFd,
    config: Array,
    held: BTreeMap<u64, Namespace>,
}

impl OptOuts {
    pub(in crate::datapath::ebpf) fn open(pins: &MapPins) -> Result<Self, TableError> {
        let (namespaces, config) = (open(pins, &maps::NAMESPACES)?, Array::open(pins, &maps::CONFIG)?);
        let failed = |map| move |source| TableError::Open { path: pins.of(map), source };
        let held = all(&namespaces).map_err(failed(&maps::NAMESPACES))?;
        let found = Self { namespaces, config, held };
        found.tell(opted_out(&found.held) != 0).map_err(failed(&maps::CONFIG))?;
        Ok(found)
    }

    fn tell(&self, some: bool) -> io::Result<()> {
        let flag = if some { Config::OPT_OUTS } else { 0 };
        self.config.update(0, Config::FLAGS, |flags| (flags & !Config::OPT_OUTS) | flag)
    }

    /// Makes the programs know exactly `wanted`, by cookie, and writes only what differs. Returns how many of them have
    /// opted out.
    pub(in crate::datapath::ebpf) fn apply(&mut self, wanted: &BTreeMap<u64, Namespace>) -> Result<usize, SyncError> {
        let failed = |source| SyncError::Write { object: maps::NAMESPACES.name, source };
        for (cookie, namespace) in wanted {
            if self.held.get(cookie) != Some(namespace) {
                let value: [u8; size_of::<Namespace>()] = transmute!(*namespace);
                bpf::update(self.namespaces.as_fd(), &cookie.to_ne_bytes(), &value).map_err(failed)?;
                self.held.insert(*cookie, *namespace);
            }
        }
        let gone: Vec<u64> = self.held.keys().filter(|cookie| !wanted.contains_key(cookie)).copied().collect();
        for cookie in gone {
            bpf::delete(self.namespaces.as_fd(), &cookie.to_ne_bytes()).map_err(failed)?;
            self.held.remove(&cookie);
        }
        let opted_out = opted_out(wanted);
        self.tell(opted_out != 0).map_err(refused)?;
        Ok(opted_out)
    }
}

fn refused(source: io::Error) -> SyncError {
    SyncError::Write { object: maps::CONFIG.name, source }
}

fn opted_out(namespaces: &BTreeMap<u64, Namespace>) -> usize {
    namespaces.values().filter(|namespace| namespace.flags & Namespace::OPTED_OUT != 0).count()
}

/// The namespaces that the programs know, by cookie.
fn all(map: &OwnedFd) -> io::Result<BTreeMap<u64, Namespace>> {
    let mut all = BTreeMap::new();
    for cookie in bpf::keys::<8>(map.as_fd())? {
        let found: Option<[u8; size_of::<Namespace>()]> = bpf::lookup(map.as_fd(), &cookie)?;
        all.extend(found.map(|value| (u64::from_ne_bytes(cookie), transmute!(value))));
    }
    Ok(all)
}

/// `CONFIG` as version 2 of the tables had it.
pub(in crate::datapath::ebpf) mod v2 {
    use super::{AsFd as _, BTreeMap, MapPins, Namespace, TableError, all, bpf, maps, open};
    use crate::sys::mapped::Mapped;

    const WORDS: usize = 2;
    /// Index of the flags.
    const FLAGS: usize = 1;
    /// Flows that the terms mark keep their destination; without this flag they are refused.
    const SILENT: u64 = 2;

    /// The namespaces, which have the same form.
    pub(in crate::datapath::ebpf) fn namespaces(pins: &MapPins) -> Result<BTreeMap<u64, Namespace>, TableError> {
        let failed = |source| TableError::Open { path: pins.of(&maps::NAMESPACES), source };
        all(&open(pins, &maps::NAMESPACES)?).map_err(failed)
    }

    pub(in crate::datapath::ebpf) fn is_silent(pins: &MapPins) -> Result<bool, TableError> {
        let path = pins.of(&maps::CONFIG);
        let memory = bpf::open_pin(&path).and_then(|map| Mapped::new(map.as_fd(), WORDS));
        let flags = memory.map_err(|source| TableError::Open { path, source })?.load(FLAGS).unwrap_or_default();
        Ok(flags & SILENT != 0)
    }
}
