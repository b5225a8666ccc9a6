//! The locks of a daemon: one at a time works with the pins below a BPF root, and one at a time writes the rules for
//! packets of a network namespace. `shunt cleanup` removes nothing under them.
//!
//! The lock on the BPF root is flock(2) on the directory itself: a BPF file system takes no regular files, daemons of
//! one root need not agree on any other path, and the kernel ends the lock with the process, also after SIGKILL.

mod namespace;

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use self::namespace::{NamespaceLock, Refusal};
use super::{Chosen, ebpf};

/// How long a lock of a process that has ended is waited for, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// What a daemon works with cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process writes the rules for packets of this network namespace.
    #[error("{holder} serves the packets of this network namespace: stop it first")]
    PacketsHeld {
        /// Who does.
        holder: Holder,
    },
    /// The lock on the rules for packets cannot be had.
    #[error("locking the rules for packets of this network namespace")]
    Packets(#[source] io::Error),
    /// Another process has the lock.
    #[error(
        "{holder} serves with the BPF root {}: stop it, or give this one a --bpf-root and a --control-socket of its own",
        .root.display()
    )]
    Held {
        /// The directory.
        root: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// The directory cannot be made.
    #[error("making the BPF root {}", .root.display())]
    Root {
        /// The directory.
        root: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory cannot be locked.
    #[error("locking the BPF root {}", .root.display())]
    Lock {
        /// The directory.
        root: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The process that holds a lock; without an id if it is in a PID namespace that this process does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub Option<u32>);

impl Holder {
    /// Whether that process has ended. A program that it was about to start when it was killed holds its locks for a
    /// moment longer, until it begins.
    fn has_ended(self) -> bool {
        self.0.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    }
}

/// Takes a lock; one whose holder has ended is waited for.
fn wait_for<T>(mut take: impl FnMut() -> Result<T, LockError>) -> Result<T, LockError> {
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        match take() {
            Err(LockError::Held { holder, .. } | LockError::PacketsHeld { holder }) if holder.has_ended() => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
    take()
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "another daemon (pid {pid})"),
            None => f.write_str("another daemon (of another PID namespace)"),
        }
    }
}

/// The locks, held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    root: PathBuf,
    /// None if there are no pins, and none are made.
    directory: Option<Mutex<File>>,
    /// The directory was not there before.
    made: bool,
    _packets: Option<NamespaceLock>,
}

impl Lock {
    /// Locks what the chosen parts work with. Only if pins are made below `root`, it is made too.
    pub fn take(root: &Path, chosen: &Chosen) -> Result<Self, LockError> {
        let (made, directory) = match chosen.programs().is_some() {
            true => (make(root)?, Some(lock(root)?)),
            false => (false, lock_existing(root)?),
        };
        let packets = chosen.packets.map(|_| lock_packets()).transpose()?;
        Ok(Self { root: root.to_owned(), directory: directory.map(Mutex::new), made, _packets: packets })
    }

    /// Locks all that may be there, on whatever file system, and makes nothing.
    pub fn of_existing(root: &Path) -> Result<Self, LockError> {
        let directory = lock_existing(root)?.map(Mutex::new);
        Ok(Self { root: root.to_owned(), directory, made: false, _packets: Some(lock_packets()?) })
    }

    /// Whether the directory was made for this lock, so that nothing of an earlier daemon can be in it.
    #[must_use]
    pub fn has_made_root(&self) -> bool {
        self.made
    }

    /// Locks the directory that is at the path now: another program may have removed the one that was locked.
    pub(super) fn renew(&self) -> Result<(), LockError> {
        make(&self.root)?;
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut held = directory.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_at(&held, &self.root) {
            *held = lock(&self.root)?;
        }
        drop(held);
        Ok(())
    }
}

fn lock_packets() -> Result<NamespaceLock, LockError> {
    wait_for(|| {
        NamespaceLock::take().map_err(|refusal| match refusal {
            Refusal::Held(holder) => LockError::PacketsHeld { holder },
            Refusal::Failed(error) => LockError::Packets(error),
        })
    })
}

fn make(root: &Path) -> Result<bool, LockError> {
    ebpf::make_root(root).map_err(|error| LockError::Root { root: root.to_owned(), source: error.into() })
}

/// The directory at `root`, locked. A cleanup may remove it at any moment; then it is made again.
fn lock(root: &Path) -> Result<File, LockError> {
    loop {
        if let Some(directory) = lock_existing(root)? {
            return Ok(directory);
        }
        make(root)?;
    }
}

/// The directory at `root`, locked, if there is one.
fn lock_existing(root: &Path) -> Result<Option<File>, LockError> {
    wait_for(|| try_existing(root))
}

fn try_existing(root: &Path) -> Result<Option<File>, LockError> {
    let failed = |source| LockError::Lock { root: root.to_owned(), source };
    loop {
        let directory = match File::open(root) {
            Ok(directory) => directory,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(failed(source)),
        };
        match directory.try_lock() {
            // A cleanup may have removed it in between: then the next process locks another directory at this path.
            Ok(()) if is_at(&directory, root) => return Ok(Some(directory)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { root: root.to_owned(), holder: holder(&directory) });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

fn is_at(directory: &File, path: &Path) -> bool {
    let id = |found: io::Result<std::fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    let found = id(std::fs::metadata(path));
    found.is_some() && found == id(directory.metadata())
}

fn holder(directory: &File) -> Holder {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    Holder(directory.metadata().ok().and_then(|found| holder_in(&locks, found.dev(), found.ino())))
}

/// The process that holds flock(2) on an inode, by the text of `/proc/locks`, which has lines such as
/// `1: FLOCK  ADVISORY  WRITE 4044 00:27:10045400 0 EOF`; those that wait have `->` behind the number.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let holds = words.next() == Some("FLOCK");
        let (pid, file) = (words.nth(2)?, words.next()?);
        if holds && file == wanted { pid.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_named_by_its_pid() {
        const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 11 00:27:77 0 EOF\n\
                             2: FLOCK  ADVISORY  WRITE 4044 00:27:77 0 EOF\n\
                             2: -> FLOCK  ADVISORY  WRITE 4045 00:27:77 0 EOF\n\
                             3: FLOCK  ADVISORY  READ 12 fd:01:78 0 EOF\n";
        let device = nix::sys::stat::makedev(0, 0x27);
        assert_eq!(holder_in(LOCKS, device, 77), Some(4044));
        assert_eq!(holder_in(LOCKS, nix::sys::stat::makedev(0xfd, 1), 78), Some(12));
        assert_eq!(holder_in(LOCKS, device, 78), None);
        assert_eq!(Holder(Some(4044)).to_string(), "another daemon (pid 4044)");
        assert_eq!(Holder(None).to_string(), "another daemon (of another PID namespace)");
    }

    #[test]
    fn a_second_lock_is_refused_with_what_to_do_until_the_first_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let first = lock(place.path()).unwrap();
        let error = lock(place.path()).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.starts_with(&format!("another daemon (pid {pid}) serves with the BPF root /")), "{error}");
        assert!(error.contains("stop it") && error.contains("--bpf-root"), "{error}");
        drop(first);
        lock(place.path()).unwrap();
    }

    #[test]
    fn a_holder_that_has_ended_is_told_from_one_that_runs() {
        assert!(!Holder(Some(std::process::id())).has_ended());
        assert!(Holder(Some(u32::MAX)).has_ended());
        assert!(!Holder(None).has_ended(), "it cannot be seen");
    }

    #[test]
    fn a_lock_is_waited_for_only_if_its_holder_has_ended() {
        let check = |holder: u32, taken_at: usize, wanted: usize| {
            let mut tries = 0;
            let outcome = wait_for(|| {
                tries += 1;
                if tries == taken_at { Ok(()) } else { Err(LockError::PacketsHeld { holder: Holder(Some(holder)) }) }
            });
            assert_eq!((tries, outcome.is_ok()), (wanted, taken_at == wanted));
        };
        check(u32::MAX, 3, 3);
        check(std::process::id(), 3, 1);
    }

    #[test]
    fn what_exists_is_locked_on_any_file_system_and_what_does_not_is_not_made() {
        let place = tempfile::tempdir().unwrap();
        let held = lock_existing(place.path()).unwrap();
        assert!(held.is_some());
        assert!(matches!(lock_existing(place.path()), Err(LockError::Held { .. })));
        drop(held);
        std::fs::write(place.path().join("file"), "").unwrap();
        for missing in ["missing", "file/below"] {
            let root = place.path().join(missing);
            assert!(lock_existing(&root).unwrap().is_none() && !root.exists(), "{missing}");
        }
    }

    #[test]
    fn a_directory_that_was_removed_holds_no_lock_at_its_path() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let first = lock(&root).unwrap();
        std::fs::remove_dir(&root).unwrap();
        assert!(!is_at(&first, &root));
        std::fs::create_dir(&root).unwrap();
        let second = lock(&root).unwrap();
        assert!(is_at(&second, &root) && !is_at(&first, &root));
    }
}
