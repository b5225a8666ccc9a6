//! The socket data path: tables that say who answers, and programs at the cgroup that read them at `connect()`.
//!
//! Flow: plan of a service port → `image` (pure) → [`layout::Layout`] (pure) → `tables` (thin).

mod image;
pub mod layout;
pub mod pins;
pub mod probe;
pub mod programs;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use imbl::ordmap::DiffItem;

use self::layout::pool::Moment;
use self::layout::{Layout, Write};
use self::pins::Pins;
pub use self::pins::{PinError, Removed, remove as cleanup};
pub use self::programs::{Links, ProgramsError};
pub use self::tables::TableError;
use self::tables::Tables;
use super::{Datapath, SyncError, Synced};
use crate::plan::{Plan, PortKey, PortPlan};

/// The programs, compiled in by the build script; empty in a build without the BPF tool chain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-socket.o"));

/// Where things are.
#[derive(Clone, Debug)]
pub struct EbpfOptions {
    /// The directory of the cgroup v2 tree below which all pods and the node's own processes are.
    pub cgroup_root: PathBuf,
    /// Where pins are kept, on a BPF file system.
    pub bpf_root: PathBuf,
    /// Load the programs from this file and not from the binary; for development.
    pub object: Option<PathBuf>,
}

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The object file given.
    #[error("reading the BPF object {}", .path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The maps.
    #[error(transparent)]
    Tables(#[from] TableError),
    /// What an earlier life of the daemon left.
    #[error(transparent)]
    Read(#[from] SyncError),
}

/// What was found from an earlier life of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Services in the tables.
    pub services: usize,
    /// Frontends in the tables.
    pub frontends: usize,
    /// Backends in the tables.
    pub backends: usize,
    /// The links.
    pub links: Links,
}

/// The socket data path of this node.
#[derive(Debug)]
pub struct Ebpf {
    tables: Tables,
    layout: Layout,
    /// What the tables hold; empty after a start or a failure, when every service port is looked at again.
    synced: Plan,
    /// No complete plan has been written since the tables were read: what nobody has claimed stays.
    incomplete: bool,
    /// A write failed: what we believe about the tables may be wrong.
    failed: bool,
    refused: BTreeMap<PortKey, String>,
    started: Instant,
}

impl Ebpf {
    /// Loads the programs or adopts those that run, opens the tables and reads what is in them. Nothing that balances
    /// traffic now is changed before the first [`Datapath::sync`].
    pub fn open(options: &EbpfOptions) -> Result<(Self, Adopted), OpenError> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|source| OpenError::Object { path: path.clone(), source });
        let object = options.object.as_ref().map(read).transpose()?;
        let pins = Pins::create(&options.bpf_root)?;
        let links = programs::install(object.as_deref().unwrap_or(OBJECT), &pins, &options.cgroup_root)?;
        let tables = Tables::open(&pins.maps)?;
        let layout = Layout::restored(tables.capacity(), &tables.dump()?);
        let (services, frontends, backends) = layout.usage();
        let ebpf = Self {
            tables,
            layout,
            synced: Plan::default(),
            incomplete: true,
            failed: false,
            refused: BTreeMap::new(),
            started: Instant::now(),
        };
        Ok((ebpf, Adopted { services, frontends, backends, links }))
    }

    /// The layout's clock.
    fn now(&self) -> Moment {
        Moment::try_from(self.started.elapsed().as_millis()).unwrap_or(Moment::MAX)
    }

    fn read_back(&mut self) -> Result<(), SyncError> {
        self.layout = Layout::restored(self.tables.capacity(), &self.tables.dump()?);
        self.synced = Plan::default();
        self.incomplete = true;
        self.failed = false;
        Ok(())
    }

    fn write(&mut self, writes: &[Write]) -> Result<u64, SyncError> {
        for write in writes {
            self.tables.write(write)?;
        }
        Ok(u64::try_from(writes.len()).unwrap_or(u64::MAX))
    }

    fn upsert(&mut self, port: &PortPlan) -> Result<u64, SyncError> {
        let now = self.now();
        let Some(target) = image::target(port) else { return self.remove(&port.key) };
        match self.layout.upsert(&port.key, &target, now) {
            Ok(writes) => {
                self.refused.remove(&port.key);
                self.write(&writes)
            }
            Err(full) => {
                self.refused.insert(port.key.clone(), full.to_string());
                // Nothing is left undone but what the tables have no room for.
                let writes = self.layout.shrink(&port.key, target.endpoints, now);
                self.write(&writes)
            }
        }
    }

    fn remove(&mut self, key: &PortKey) -> Result<u64, SyncError> {
        self.refused.remove(key);
        let writes = self.layout.remove(key, self.now());
        self.write(&writes)
    }

    /// Adds and changes before removals, so that a frontend which moves from one service port to another is switched
    /// over and never missing.
    fn write_difference(&mut self, plan: &Plan) -> Result<u64, SyncError> {
        let (upserts, removals) = difference(&self.synced, plan, &self.refused);
        let mut written = 0_u64;
        for port in upserts {
            written = written.saturating_add(self.upsert(&port)?);
        }
        for key in removals {
            written = written.saturating_add(self.remove(&key)?);
        }
        if std::mem::take(&mut self.incomplete) {
            let writes = self.layout.remove_unclaimed(self.now());
            written = written.saturating_add(self.write(&writes)?);
        }
        self.tables.flush()?;
        Ok(written)
    }
}

/// The service ports to write and those to remove; ports refused earlier are tried again.
fn difference(old: &Plan, new: &Plan, refused: &BTreeMap<PortKey, String>) -> (Vec<Arc<PortPlan>>, Vec<PortKey>) {
    let mut upserts: BTreeMap<&PortKey, &Arc<PortPlan>> =
        refused.keys().filter_map(|key| new.ports.get_key_value(key)).collect();
    let mut removals = Vec::new();
    for item in old.ports.diff(&new.ports) {
        match item {
            DiffItem::Add(key, port) | DiffItem::Update { new: (key, port), .. } => drop(upserts.insert(key, port)),
            DiffItem::Remove(key, _) => removals.push(key.clone()),
        }
    }
    (upserts.into_values().cloned().collect(), removals)
}

impl Datapath for Ebpf {
    fn mode(&self) -> &'static str {
        "ebpf"
    }

    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        if self.failed {
            self.read_back()?;
        }
        match self.write_difference(plan) {
            Ok(writes) => {
                self.synced = plan.clone();
                let refused = self.refused.iter().map(|(key, why)| (key.clone(), why.clone())).collect();
                Ok(Synced { writes, refused })
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }
}
