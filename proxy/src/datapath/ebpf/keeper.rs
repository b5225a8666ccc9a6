//! Keeps the programs attached and everything pinned: what another program removes is back within a second.
//!
//! It holds every map open, so that tables and flows survive the loss of their pins and of all programs: they are
//! pinned again as they are, and the programs are loaded on them and attached anew. No sync is needed for it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proxy_abi::maps::{self, Map};
use shunt_model::with_causes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::pins::{PinError, Pins};
use super::socket::programs::{self, Links, ProgramsError};
use super::tables::kernel::{TableError, open};
use super::{EbpfOpenError, EbpfOptions, SocketOptions, object};
use crate::datapath::lock::{Lock, LockError};
use crate::datapath::report::{Installed, Report};
use crate::sys::bpf;

/// How often it looks; a look is about forty system calls.
const EVERY: Duration = Duration::from_millis(500);
/// The pause after it failed: to load the programs costs more than to look.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks after links and pins until the daemon stops.
#[derive(Debug)]
pub(super) struct Keeper {
    options: EbpfOptions,
    pins: Pins,
    maps: Vec<(&'static Map, OwnedFd)>,
    lock: Arc<Lock>,
    installed: Installed,
}

/// Why something cannot be put back.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// Another daemon has the BPF root now.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directories.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A map.
    #[error("pinning the map {map} again")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The object file.
    #[error(transparent)]
    Object(#[from] Box<EbpfOpenError>),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
}

/// What is not there any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lost {
    /// The hooks whose links are gone, or no longer attached to the cgroup.
    hooks: Vec<&'static str>,
    /// How many pins of programs and maps are gone, which do not matter before the next start.
    pins: usize,
}

impl Lost {
    fn is_none(&self) -> bool {
        self.hooks.is_empty() && self.pins == 0
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hooks, pins } = self;
        if hooks.is_empty() {
            return write!(f, "{pins} pins of programs and maps were removed");
        }
        if hooks.len() == programs::hooks().count() {
            write!(f, "no program is attached")?;
        } else {
            write!(f, "the programs at {} are not attached", hooks.join(", "))?;
        }
        f.write_str(": another program removed or detached their links")
    }
}

impl Keeper {
    /// Holds the maps that are pinned now.
    pub(super) fn new(options: EbpfOptions, pins: Pins, lock: Arc<Lock>) -> Result<Self, TableError> {
        let further = if options.packets.is_some() { maps::packets::ALL } else { &[] };
        let all = maps::ALL.iter().chain(further);
        let maps = all.map(|map| Ok((map, open(&pins.maps, map)?))).collect::<Result<_, TableError>>()?;
        Ok(Self { options, pins, maps, lock, installed: Installed::default() })
    }

    /// Looks again and again until stopped. What it calls blocks, so this wants a thread of its own.
    pub(super) async fn run(mut self, reports: watch::Sender<Report>, stop: CancellationToken) {
        let mut pause = EVERY;
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = if self.look(&reports) { EVERY } else { PAUSE };
        }
    }

    /// Puts back what is lost; false if that failed.
    fn look(&mut self, reports: &watch::Sender<Report>) -> bool {
        let lost = self.lost();
        if lost.is_none() {
            self.tell(reports, None);
            return true;
        }
        if !lost.hooks.is_empty() && self.installed.fault.is_none() {
            self.tell(reports, Some(lost.to_string()));
        }
        match self.put_back(&lost) {
            Ok(Links { kept, replaced, attached }) => {
                self.installed.restored = self.installed.restored.saturating_add(1);
                self.tell(reports, None);
                warn!(%lost, kept, replaced, attached, "everything is attached and pinned again");
                true
            }
            Err(error) => {
                let reason = format!("{lost}, and it cannot be put back: {}", with_causes(&error));
                if self.installed.fault.as_ref() != Some(&reason) {
                    warn!(reason, "the daemon retries it");
                }
                self.tell(reports, Some(reason));
                false
            }
        }
    }

    /// Publishes whether all is in place.
    fn tell(&mut self, reports: &watch::Sender<Report>, fault: Option<String>) {
        self.installed.fault = fault;
        reports.send_if_modified(|report| {
            let modified = report.installed != self.installed;
            report.installed = self.installed.clone();
            modified
        });
    }

    fn lost(&self) -> Lost {
        let missing = |path: PathBuf| !path.exists();
        let (mut hooks, mut programs) = (Vec::new(), 0);
        if let Some(cgroup) = self.cgroup() {
            hooks = programs::detached(&self.pins.links, cgroup);
            programs = programs::hooks().filter(|hook| missing(self.pins.programs.join(hook))).count();
        }
        let maps = self.maps.iter().filter(|(map, _)| missing(self.pins.maps.of(map))).count();
        Lost { hooks, pins: programs.saturating_add(maps) }
    }

    /// The id of the cgroup, if sockets are served; one that was made again under the same name has another.
    fn cgroup(&self) -> Option<u64> {
        let SocketOptions { cgroup_root, .. } = self.options.sockets.as_ref()?;
        Some(std::fs::metadata(cgroup_root).map(|found| found.ino()).unwrap_or_default())
    }

    /// Pins the maps first: the programs are loaded on what is pinned. While all are attached there is nothing to load.
    fn put_back(&self, lost: &Lost) -> Result<Links, KeepError> {
        self.lock.renew()?;
        let pins = Pins::create(&self.options.bpf_root)?;
        for (map, held) in &self.maps {
            let path = pins.maps.of(map);
            if !path.exists() {
                bpf::pin(held, &path).map_err(|source| KeepError::Map { map: map.name, source })?;
            }
        }
        let (Some(options), Some(cgroup)) = (&self.options.sockets, self.cgroup()) else {
            return Ok(Links::default());
        };
        if lost.hooks.is_empty() {
            return Ok(programs::pin_attached(&pins, cgroup)?);
        }
        let object = object(&self.options).map_err(Box::new)?;
        let loaded = programs::Loaded::load(&object, &pins)?;
        Ok(loaded.attach(&pins, &options.cgroup_root)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_named() {
        let said = |hooks: &[&'static str], pins| Lost { hooks: hooks.to_vec(), pins }.to_string();
        const WHY: &str = ": another program removed or detached their links";
        assert_eq!(
            said(&["connect4", "connect6"], 2),
            format!("the programs at connect4, connect6 are not attached{WHY}")
        );
        assert_eq!(said(&programs::hooks().collect::<Vec<_>>(), 25), format!("no program is attached{WHY}"));
        assert_eq!(said(&[], 3), "3 pins of programs and maps were removed");
        assert!(Lost::default().is_none() && !Lost { hooks: vec![], pins: 1 }.is_none());
    }
}
