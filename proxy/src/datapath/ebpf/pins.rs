//! What outlives the daemon: the directory tree of pins on the BPF file system, made and removed.
//!
//! `<bpf root>/v<version of the tables>/{maps,programs,links,devices}/<name>` and
//! `<bpf root>/flows-v<version>/maps/<name>`: flows outlive a change of the tables. `links` are those to cgroups.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};
use proxy_abi::maps::{self, Kind, Lifetime, Map};

use super::packets;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Where the BPF file system is mounted by convention, and where we mount it if it is missing.
const BPF_MOUNT: &str = "/sys/fs/bpf";

/// The pins cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum PinError {
    /// No BPF file system.
    #[error("mounting the BPF file system on {BPF_MOUNT}")]
    Mount(#[source] nix::Error),
    /// The root is on another file system.
    #[error(
        "{} is not on a BPF file system: programs and maps could not outlive the daemon; choose a --bpf-root below \
         {BPF_MOUNT} or mount one there (mount -t bpf bpf DIR)",
        .0.display()
    )]
    NotBpf(PathBuf),
    /// A directory or pin.
    #[error("{doing} {}", .path.display())]
    File {
        /// What failed.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where the maps of each lifetime are pinned.
#[derive(Clone, Debug)]
pub(super) struct MapPins {
    tables: PathBuf,
    flows: PathBuf,
}

impl MapPins {
    /// Those of this version below `root`.
    pub(super) fn below(root: &Path) -> Self {
        Self { tables: version(root).join("maps"), flows: flows(root).join("maps") }
    }

    /// The pin of a map.
    pub(super) fn of(&self, map: &Map) -> PathBuf {
        let directory = match map.lifetime {
            Lifetime::Tables => &self.tables,
            Lifetime::Flows => &self.flows,
        };
        directory.join(map.name)
    }

    /// Whether the tables are there, all of them. Storage of sockets in their lifetime only has marks, which each start
    /// writes anew.
    pub(super) fn has_tables(&self) -> bool {
        let is_kept = |map: &Map| map.lifetime == Lifetime::Tables && map.kind != Kind::Sockets;
        maps::ALL.iter().all(|map| !is_kept(map) || self.of(map).exists())
    }
}

/// The directories of the versions that this program works with.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
    pub(super) maps: MapPins,
    pub(super) programs: PathBuf,
    pub(super) links: PathBuf,
    /// Links to network devices.
    pub(super) devices: PathBuf,
}

/// Another version of the tables with programs that are attached.
#[derive(Clone, Debug)]
pub(super) struct Former {
    pub(super) version: u32,
    pub(super) maps: MapPins,
    programs: PathBuf,
    links: PathBuf,
    devices: PathBuf,
}

/// The last version of the tables that had its flows beside them.
const LAST_WITH_FLOWS: u32 = 2;

impl Pins {
    /// The directories below `root`, made if they are missing.
    pub(super) fn create(root: &Path) -> Result<Self, PinError> {
        mount_bpf(root)?;
        Self::at(root)
    }

    fn at(root: &Path) -> Result<Self, PinError> {
        let version = version(root);
        let pins = Self {
            root: root.to_owned(),
            maps: MapPins::below(root),
            programs: version.join("programs"),
            links: version.join("links"),
            devices: version.join("devices"),
            version,
        };
        pins.make()?;
        Ok(pins)
    }

    /// Makes the directories that are missing.
    pub(super) fn make(&self) -> Result<(), PinError> {
        for path in [&self.maps.tables, &self.maps.flows, &self.programs, &self.links, &self.devices] {
            let failed = |source| PinError::File { doing: "making the directory", path: path.clone(), source };
            std::fs::create_dir_all(path).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether a link of `former` is one of ours too: an earlier start was interrupted while it shared them.
    pub(super) fn shares_links_with(&self, former: &Former) -> Result<bool, PinError> {
        let inode = |path: &Path| std::fs::metadata(path).ok().map(|found| found.ino());
        for (theirs, ours) in [(&former.links, &self.links), (&former.devices, &self.devices)] {
            let shared = |theirs: &PathBuf| {
                let ours = theirs.file_name().map(|name| ours.join(name));
                ours.and_then(|ours| inode(&ours)).is_some_and(|ours| inode(theirs) == Some(ours))
            };
            if list(theirs)?.iter().any(shared) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest other version whose programs are attached.
    pub(super) fn former(&self) -> Result<Option<Former>, PinError> {
        let mut found = None;
        for path in list(&self.root)?.into_iter().filter(|path| *path != self.version) {
            let Some(version) = number(&path, "v") else { continue };
            let (links, devices) = (path.join("links"), path.join("devices"));
            let newer = found.as_ref().is_none_or(|known: &Former| known.version < version);
            if newer && !(list(&links)?.is_empty() && list(&devices)?.is_empty()) {
                let tables = path.join("maps");
                let flows = if version <= LAST_WITH_FLOWS { tables.clone() } else { self.maps.flows.clone() };
                let (maps, programs) = (MapPins { tables, flows }, path.join("programs"));
                found = Some(Former { version, maps, programs, links, devices });
            }
        }
        Ok(found)
    }

    /// Removes tables that no program reads, as an earlier start that failed leaves them.
    pub(super) fn discard_tables(&self) -> Result<(), PinError> {
        self.discard(Lifetime::Tables)
    }

    /// Removes flows: the new tables do not hold what these flows refer to.
    pub(super) fn discard_flows(&self) -> Result<(), PinError> {
        self.discard(Lifetime::Flows)
    }

    fn discard(&self, lifetime: Lifetime) -> Result<(), PinError> {
        for map in all_maps().filter(|map| map.lifetime == lifetime) {
            let path = self.maps.of(map);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(PinError::File { doing: "removing the pin", path, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Shares the flows of `former`, which refer to what is in its tables. It keeps its own pins until it is removed,
    /// so that a daemon of that version can still start again.
    pub(super) fn adopt_flows(&self, former: &Former) -> Result<(), PinError> {
        if former.maps.flows == self.maps.flows {
            return Ok(());
        }
        // Those of an even earlier time refer to other tables.
        self.discard_flows()?;
        for map in maps::ALL.iter().filter(|map| map.lifetime == Lifetime::Flows) {
            share(&former.maps.of(map), &self.maps.of(map))?;
        }
        Ok(())
    }

    /// Shares the links of `former`; they run its programs until the programs are replaced.
    pub(super) fn adopt_links(&self, former: &Former) -> Result<(), PinError> {
        let all = [(&former.programs, &self.programs), (&former.links, &self.links), (&former.devices, &self.devices)];
        for (from, to) in all {
            for pin in list(from)? {
                if let Some(name) = pin.file_name() {
                    share(&pin, &to.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Removes the links and programs at hooks that are not among `used`: another build of this version of the tables
    /// used them. Returns how many links that were.
    pub(super) fn remove_other_hooks(&self, used: &[&str]) -> Result<usize, PinError> {
        let mut links = 0_usize;
        for directory in [&self.links, &self.programs] {
            let is_used = |path: &PathBuf| used.iter().any(|name| path.file_name().is_some_and(|found| found == *name));
            for pin in list(directory)?.into_iter().filter(|path| !is_used(path)) {
                remove_file(&pin)?;
                links = links.saturating_add(usize::from(directory == &self.links));
            }
        }
        Ok(links)
    }

    /// Removes what daemons of other versions pinned, links first, and maps beside ours that no program of ours reads.
    /// Returns how many links that were.
    pub(super) fn remove_other_versions(&self) -> Result<usize, PinError> {
        for path in list(&self.maps.flows)?.into_iter().chain(list(&self.maps.tables)?) {
            if all_maps().all(|map| path != self.maps.of(map)) {
                remove_file(&path)?;
            }
        }
        let ours = [&self.version, &flows(&self.root)];
        let others = list(&self.root)?.into_iter().filter(|path| is_version(path) && !ours.contains(&path));
        Ok(remove_versions(&others.collect::<Vec<_>>())?.links)
    }
}

/// Those of the packet programs too.
pub(super) fn all_maps() -> impl Iterator<Item = &'static Map> {
    maps::ALL.iter().chain(maps::packets::ALL)
}

fn version(root: &Path) -> PathBuf {
    root.join(format!("v{}", Lifetime::Tables.version()))
}

fn flows(root: &Path) -> PathBuf {
    root.join(format!("flows-v{}", Lifetime::Flows.version()))
}

/// Pins what is pinned at `from` at `to` as well, unless something is pinned there.
fn share(from: &Path, to: &Path) -> Result<(), PinError> {
    match std::fs::hard_link(from, to) {
        // A pin that the former version lacks is made anew.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => Ok(()),
        Err(source) => Err(PinError::File { doing: "taking over the pin", path: from.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

/// Whether the nearest existing directory above or at `path` is on a BPF file system.
#[must_use]
pub(super) fn on_bpf(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.and_then(|existing| statfs(existing).ok()).is_some_and(|found| found.filesystem_type() == BPF_FS)
}

fn mount_bpf(root: &Path) -> Result<(), PinError> {
    if on_bpf(root) {
        return Ok(());
    }
    if root.starts_with(BPF_MOUNT) && !on_bpf(Path::new(BPF_MOUNT)) {
        mount(Some("bpf"), BPF_MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(PinError::Mount)?;
    }
    if on_bpf(root) { Ok(()) } else { Err(PinError::NotBpf(root.to_owned())) }
}

/// Makes `root` if it is missing, and mounts the BPF file system that it is to be on. True if it was missing.
pub(super) fn make_root(root: &Path) -> Result<bool, PinError> {
    mount_bpf(root)?;
    let missing = !root.exists();
    let failed = |source| PinError::File { doing: "making the directory", path: root.to_owned(), source };
    std::fs::create_dir_all(root).map_err(failed)?;
    Ok(missing)
}

/// How many pins [`remove`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RemovedPins {
    /// Links; each removal detached a program.
    pub(super) links: usize,
    /// Programs.
    pub(super) programs: usize,
    /// Maps.
    pub(super) maps: usize,
}

/// Programs that share the tables with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// At sockets.
    Sockets,
    /// At network devices.
    Devices,
}

/// Removes the pins of one owner below `root`, of all versions, links first: programs stop before their tables go. The
/// tables stay as long as the other owner has links or programs. What is not there counts as removed. Only directories
/// laid out by us are touched.
pub(super) fn remove(root: &Path, owner: Owner) -> Result<RemovedPins, PinError> {
    if !on_bpf(root) {
        return Ok(RemovedPins::default());
    }
    remove_from(root, owner)
}

fn remove_from(root: &Path, owner: Owner) -> Result<RemovedPins, PinError> {
    let versions: Vec<PathBuf> = list(root)?.into_iter().filter(|path| is_version(path)).collect();
    let mut shared = false;
    for version in &versions {
        shared |= match owner {
            Owner::Sockets => !list(&version.join("devices"))?.is_empty() || packets::are_left(version),
            Owner::Devices => !list(&version.join("links"))?.is_empty(),
        };
    }
    if shared {
        return remove_of(owner, &versions);
    }
    let removed = remove_versions(&versions)?;
    remove_directory(root)?;
    Ok(removed)
}

/// Removes what belongs to one owner alone.
fn remove_of(owner: Owner, versions: &[PathBuf]) -> Result<RemovedPins, PinError> {
    let mut removed = RemovedPins::default();
    for version in versions {
        let links = match owner {
            Owner::Sockets => "links",
            Owner::Devices => "devices",
        };
        removed.links = removed.links.saturating_add(remove_files(&version.join(links))?);
        let of_devices = |path: &PathBuf| packets::PROGRAMS.iter().any(|name| path.ends_with(name));
        for pin in list(&version.join("programs"))?.iter().filter(|pin| of_devices(pin) == (owner == Owner::Devices)) {
            remove_file(pin)?;
            removed.programs = removed.programs.saturating_add(1);
        }
        let of_devices = |path: &PathBuf| maps::packets::ALL.iter().any(|map| path.ends_with(map.name));
        for pin in list(&version.join("maps"))?.iter().filter(|pin| owner == Owner::Devices && of_devices(pin)) {
            remove_file(pin)?;
            removed.maps = removed.maps.saturating_add(1);
        }
    }
    Ok(removed)
}

fn remove_versions(versions: &[PathBuf]) -> Result<RemovedPins, PinError> {
    let mut removed = RemovedPins::default();
    for version in versions {
        for links in ["links", "devices"] {
            removed.links = removed.links.saturating_add(remove_files(&version.join(links))?);
        }
    }
    for version in versions {
        removed.programs = removed.programs.saturating_add(remove_files(&version.join("programs"))?);
        removed.maps = removed.maps.saturating_add(remove_files(&version.join("maps"))?);
        remove_directory(version)?;
    }
    Ok(removed)
}

fn is_version(path: &Path) -> bool {
    number(path, "v").or_else(|| number(path, "flows-v")).is_some()
}

/// The number behind `prefix` in the name of a directory.
fn number(path: &Path, prefix: &str) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    let failed = |source| PinError::File { doing: "reading the directory", path: directory.to_owned(), source };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn remove_files(directory: &Path) -> Result<usize, PinError> {
    let files = list(directory)?;
    for path in &files {
        remove_file(path)?;
    }
    remove_directory(directory)?;
    Ok(files.len())
}

fn remove_file(path: &Path) -> Result<(), PinError> {
    let failed = |source| PinError::File { doing: "removing the pin", path: path.to_owned(), source };
    std::fs::remove_file(path).map_err(failed)
}

/// Removes a directory unless it holds something that is not ours.
fn remove_directory(path: &Path) -> Result<(), PinError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        Err(source) => Err(PinError::File { doing: "removing the directory", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Files in the place of pins: the directories and what is in them are the same.
    struct PinFolder {
        root: TempDir,
        pins: Pins,
    }

    impl PinFolder {
        fn new(files: &[&str]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let pins = Pins::at(root.path()).unwrap();
            let found = Self { root, pins };
            files.iter().for_each(|file| found.make(file));
            found
        }

        fn make(&self, file: &str) {
            let path = self.root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }

        /// What was pinned at `file` first.
        fn holds(&self, file: &str) -> Option<String> {
            std::fs::read_to_string(self.root.path().join(file)).ok()
        }

        fn former(&self) -> Option<u32> {
            self.pins.former().unwrap().map(|former| former.version)
        }
    }

    #[test]
    fn the_newest_other_version_with_links_is_the_former_one() {
        assert_eq!(PinFolder::new(&[]).former(), None);
        assert_eq!(PinFolder::new(&["v2/maps/SLOTS", "v5/links/connect4", "other/links/connect4"]).former(), None);
        assert_eq!(PinFolder::new(&["v1/links/connect4", "v2/links/connect4"]).former(), Some(2));
        assert_eq!(PinFolder::new(&["v1/links/connect4", "v2/maps/SLOTS"]).former(), Some(1));
    }

    #[test]
    fn flows_beside_the_former_tables_are_shared_in_place_of_older_ones() {
        let found =
            PinFolder::new(&["v2/links/connect4", "v2/maps/AFFINITY", "flows-v1/maps/AFFINITY", "flows-v1/maps/PEER"]);
        found.pins.adopt_flows(&found.pins.former().unwrap().unwrap()).unwrap();
        assert_eq!(found.holds("flows-v1/maps/AFFINITY").as_deref(), Some("v2/maps/AFFINITY"));
        assert_eq!(found.holds("flows-v1/maps/PEER"), None, "it belongs to other tables, and is made anew");
        assert_eq!(found.holds("v2/maps/AFFINITY").as_deref(), Some("v2/maps/AFFINITY"), "v2 can start again");
    }

    #[test]
    fn links_are_shared_and_an_interrupted_takeover_is_known_by_them() {
        let found = PinFolder::new(&["v2/links/connect4", "v2/links/connect6", "v2/programs/connect4"]);
        let former = found.pins.former().unwrap().unwrap();
        found.make("v5/links/sendmsg4");
        found.make("v5/links/connect4-new");
        assert!(!found.pins.shares_links_with(&former).unwrap(), "these were made anew");
        std::fs::hard_link(found.root.path().join("v2/links/connect4"), found.root.path().join("v5/links/connect4"))
            .unwrap();
        assert!(found.pins.shares_links_with(&former).unwrap());
        found.pins.adopt_links(&former).unwrap();
        assert_eq!(found.holds("v5/links/connect6").as_deref(), Some("v2/links/connect6"));
        assert_eq!(found.holds("v5/programs/connect4").as_deref(), Some("v2/programs/connect4"));
        assert_eq!(found.pins.remove_other_versions().unwrap(), 2);
        assert_eq!((found.former(), found.holds("v2/links/connect4")), (None, None));
        assert_eq!(found.holds("v5/links/connect4").as_deref(), Some("v2/links/connect4"), "ours stay");
    }

    #[test]
    fn maps_that_only_an_earlier_release_read_are_removed() {
        let found =
            PinFolder::new(&["flows-v1/maps/CONNECTED", "flows-v1/maps/PEER", "v5/maps/SLOTS", "v5/maps/STRAY"]);
        found.pins.remove_other_versions().unwrap();
        let held = ["flows-v1/maps/CONNECTED", "flows-v1/maps/PEER", "v5/maps/SLOTS", "v5/maps/STRAY"];
        assert_eq!(held.map(|file| found.holds(file).is_some()), [false, true, true, false]);
    }

    #[test]
    fn links_at_hooks_that_are_not_used_any_more_are_removed() {
        let found =
            PinFolder::new(&["v5/links/bind4", "v5/links/post_bind4", "v5/programs/bind4", "v5/programs/post_bind4"]);
        assert_eq!(found.pins.remove_other_hooks(&["bind4", "bind6"]).unwrap(), 1);
        assert_eq!((found.holds("v5/links/post_bind4"), found.holds("v5/programs/post_bind4")), (None, None));
        assert_eq!(found.holds("v5/links/bind4").as_deref(), Some("v5/links/bind4"));
        assert_eq!(found.holds("v5/programs/bind4").as_deref(), Some("v5/programs/bind4"));
        assert_eq!(found.pins.remove_other_hooks(&["bind4", "bind6"]).unwrap(), 0);
    }

    #[test]
    fn tables_are_there_only_if_all_of_them_are() {
        let names =
            maps::ALL.iter().filter(|map| map.lifetime == Lifetime::Tables).map(|map| format!("v5/maps/{}", map.name));
        let all: Vec<String> = names.collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert!(PinFolder::new(&all).pins.maps.has_tables());
        assert!(!PinFolder::new(&all[1..]).pins.maps.has_tables());
        let found = PinFolder::new(&all);
        found.pins.discard_tables().unwrap();
        assert_eq!(found.holds(all[0]), None);
    }

    #[test]
    fn each_owner_takes_its_own_and_the_last_one_takes_the_tables() {
        let of_sockets = ["v5/links/connect4", "v5/programs/connect4"];
        let of_devices = ["v5/devices/2-ingress", "v5/programs/shunt_ingress"];
        let own_maps = ["v5/maps/DEVICES", "flows-v1/maps/CONNECTIONS"];
        let shared = ["v5/maps/SLOTS", "flows-v1/maps/PEER"];
        let check = |owner, counts: [usize; 3], left: &[&str]| {
            let found = PinFolder::new(&[of_sockets, of_devices, own_maps, shared].concat());
            let removed = remove_from(found.root.path(), owner).unwrap();
            assert_eq!([removed.links, removed.programs, removed.maps], counts, "{owner:?}");
            let all = [of_sockets, of_devices, own_maps, shared].concat();
            let held: Vec<&str> = all.into_iter().filter(|file| found.holds(file).is_some()).collect();
            assert_eq!(held, left, "{owner:?}");
            found
        };
        let found = check(Owner::Devices, [1, 1, 2], &[of_sockets, shared].concat());
        remove_from(found.root.path(), Owner::Sockets).unwrap();
        assert!(!found.root.path().exists());
        let found = check(Owner::Sockets, [1, 1, 0], &[of_devices, own_maps, shared].concat());
        // By filters: no link is pinned, but the programs are.
        std::fs::remove_file(found.root.path().join("v5/devices/2-ingress")).unwrap();
        assert_eq!(remove_from(found.root.path(), Owner::Sockets).unwrap().maps, 0);
        remove_from(found.root.path(), Owner::Devices).unwrap();
        assert!(!found.root.path().exists());
    }
}
