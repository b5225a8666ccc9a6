//! What outlives the daemon: the directory tree of pins on the BPF file system, made and removed.
//!
//! `<bpf root>/v<layout version>/{maps,programs,links}/<name>`

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Where the BPF file system is mounted by convention, and by us if nobody did.
const BPF_MOUNT: &str = "/sys/fs/bpf";

/// The pins cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum PinError {
    /// No BPF file system.
    #[error("mounting the BPF file system on {BPF_MOUNT}")]
    Mount(#[source] nix::Error),
    /// The root is elsewhere.
    #[error(
        "{} is not on a BPF file system: programs and maps could not outlive the daemon; choose a --bpf-root below \
         {BPF_MOUNT} or mount one there (mount -t bpf bpf DIR)",
        .0.display()
    )]
    NotBpf(PathBuf),
    /// A directory or pin.
    #[error("{doing} {}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The directories of one version of the layout.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
    pub(super) maps: PathBuf,
    pub(super) programs: PathBuf,
    pub(super) links: PathBuf,
}

impl Pins {
    /// The directories below `root`, made if they are missing.
    pub(super) fn create(root: &Path) -> Result<Self, PinError> {
        mount_bpf(root)?;
        let version = root.join(format!("v{}", proxy_abi::VERSION));
        let pins = Self {
            root: root.to_owned(),
            maps: version.join("maps"),
            programs: version.join("programs"),
            links: version.join("links"),
            version,
        };
        for path in [&pins.maps, &pins.programs, &pins.links] {
            let failed = |source| PinError::File { doing: "making the directory", path: path.clone(), source };
            std::fs::create_dir_all(path).map_err(failed)?;
        }
        Ok(pins)
    }

    /// Removes what daemons of other versions of the layout pinned, links first. Returns how many links that were.
    pub(super) fn remove_other_versions(&self) -> Result<usize, PinError> {
        let others = list(&self.root)?.into_iter().filter(|path| is_version(path) && *path != self.version);
        Ok(remove_versions(&others.collect::<Vec<_>>())?.links)
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

/// Removes every pin below `root`, of all versions, links first: programs stop before their tables go. What is not
/// there counts as removed. Only directories laid out by us are touched.
pub(super) fn remove(root: &Path) -> Result<RemovedPins, PinError> {
    if !on_bpf(root) {
        return Ok(RemovedPins::default());
    }
    let versions: Vec<PathBuf> = list(root)?.into_iter().filter(|path| is_version(path)).collect();
    let removed = remove_versions(&versions)?;
    remove_directory(root)?;
    Ok(removed)
}

fn remove_versions(versions: &[PathBuf]) -> Result<RemovedPins, PinError> {
    let mut removed = RemovedPins::default();
    for version in versions {
        removed.links = removed.links.saturating_add(remove_files(&version.join("links"))?);
    }
    for version in versions {
        removed.programs = removed.programs.saturating_add(remove_files(&version.join("programs"))?);
        removed.maps = removed.maps.saturating_add(remove_files(&version.join("maps"))?);
        remove_directory(version)?;
    }
    Ok(removed)
}

fn is_version(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix('v')).is_some_and(|number| number.parse::<u32>().is_ok())
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
        std::fs::remove_file(path).map_err(|source| PinError::File {
            doing: "removing the pin",
            path: path.clone(),
            source,
        })?;
    }
    remove_directory(directory)?;
    Ok(files.len())
}

/// Removes a directory unless it holds something that is not ours.
fn remove_directory(path: &Path) -> Result<(), PinError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        Err(source) => Err(PinError::File { doing: "removing the directory", path: path.to_owned(), source }),
    }
}
