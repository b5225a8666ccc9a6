//! Which service port has which entry of the directory, for those who read what programs count and tell by entry.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use imbl::OrdMap;
use proxy_abi::maps;
use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::debug;

use super::super::layout::Layout;
use super::super::pins::Pins;
use crate::plan::PortKey;

/// Owners of entries, by entry.
pub(in crate::datapath::ebpf) type Owned = OrdMap<u32, PortKey>;

/// Follows the layout. An entry that loses its owner begins to count anew.
pub(in crate::datapath::ebpf) struct Owners {
    served: PerCpuArray<MapData, [u64; 2]>,
    processors: usize,
    now: Owned,
    told: watch::Sender<Owned>,
}

/// The counters of services cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum OwnersError {
    /// The map.
    #[error("opening the counters pinned at {}", .path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// The processors.
    #[error("reading how many processors this host can have ({place})")]
    Processors {
        /// The file.
        place: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How many processors this host can have: so many elements have arrays with one for each.
pub(in crate::datapath::ebpf) fn processors() -> Result<usize, OwnersError> {
    nr_cpus().map_err(|(place, source)| OwnersError::Processors { place, source })
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Owners {
    pub(in crate::datapath::ebpf) fn open(pins: &Pins) -> Result<Self, OwnersError> {
        let path = pins.maps.of(&maps::packets::SERVED);
        let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(PerCpuArray::try_from);
        let served = opened.map_err(|source| OwnersError::Map { path, source: Box::new(source) })?;
        Ok(Self { served, processors: processors()?, now: Owned::new(), told: watch::channel(Owned::new()).0 })
    }

    pub(in crate::datapath::ebpf) fn subscribe(&self) -> watch::Receiver<Owned> {
        self.told.subscribe()
    }

    /// `owner` has been written.
    pub(in crate::datapath::ebpf) fn follow(&mut self, layout: &Layout, owner: &PortKey) {
        for service in layout.entries(owner) {
            if self.now.get(&service) != Some(owner) {
                self.now.insert(service, owner.clone());
            }
        }
    }

    /// An entry is not in use any more.
    pub(in crate::datapath::ebpf) fn gone(&mut self, service: u32) {
        self.now.remove(&service);
        let zero = PerCpuValues::try_from(vec![[0; 2]; self.processors]).map_err(MapError::from);
        if let Err(error) = zero.and_then(|zero| self.served.set(service, zero, 0)) {
            debug!(service, reason = with_causes(&error), "its next owner begins with the counters of the former one");
        }
    }

    /// All has been written.
    pub(in crate::datapath::ebpf) fn tell(&self) {
        self.told.send_if_modified(|told| {
            let modified = !told.ptr_eq(&self.now);
            told.clone_from(&self.now);
            modified
        });
    }
}
