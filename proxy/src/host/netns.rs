//! The network namespaces of this node: which there are, which addresses they have, and work done inside them.
//!
//! A namespace is known by its cookie. Its inode number is given to the next namespace as soon as it is gone, and to
//! keep it open would keep a deleted pod's interfaces alive; so namespaces are opened by path, each time, and the
//! cookie says whether it is still the same one. To look again at 500 namespaces takes some 20 ms.

mod places;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use self::places::{Inode, Place, Places};
use crate::host::netlink::addresses;
use crate::sys::netns_cookie;

/// The calling thread's own namespace, in whatever process namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// How long known addresses of a namespace are used before they are read again.
const ADDRESSES_AGE: Duration = Duration::from_secs(30);

/// A network namespace of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// What the kernel calls it, never used again.
    pub cookie: u64,
    /// Its addresses without those of loopback and link-local ones, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// The lowest process in it, as numbered in the `proc` that was read.
    pub process: Option<u32>,
    /// It is the namespace of the thread that made the inventory.
    pub own: bool,
    paths: Vec<PathBuf>,
}

/// The network namespaces that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Each once, by cookie.
    pub namespaces: Vec<Namespace>,
    /// How many could not be read; those that vanished meanwhile do not count.
    pub unreadable: usize,
    /// The `proc` that was searched for processes.
    pub proc: PathBuf,
}

/// Finds the network namespaces of this node, and remembers their addresses for a while.
#[derive(Debug)]
pub struct Scanner {
    proc: PathBuf,
    named: Vec<PathBuf>,
    /// By cookie.
    known: HashMap<u64, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    read: Instant,
}

impl Scanner {
    /// Will look for processes in `proc` and for bind mounts of namespaces in the directories `named` (usually
    /// `/run/netns` and `/var/run/netns`; they may be the same, or absent).
    #[must_use]
    pub fn new(proc: &Path, named: &[PathBuf]) -> Self {
        Self { proc: proc.to_owned(), named: named.to_vec(), known: HashMap::new() }
    }

    /// Finds the present namespaces. Needs `CAP_SYS_ADMIN`; without it all namespaces but the own are unreadable.
    /// Kernel: 5.14.
    pub fn scan(&mut self) -> io::Result<Inventory> {
        self.scan_at(Instant::now())
    }

    fn scan_at(&mut self, now: Instant) -> io::Result<Inventory> {
        let mut places = Places::find(&self.proc, &self.named)?;
        let own = places.take(inode(&fs::metadata(OWN)?)).with_path(OWN);
        let own = self.look(own, netns_cookie()?, true, now)?;
        let mut inventory = Inventory { namespaces: vec![own], unreadable: places.unreadable, proc: self.proc.clone() };
        let found = on_a_thread(|| {
            let look = |(inode, place): (Inode, Place)| {
                let cookie = first(&place.paths, |path| {
                    let file = File::open(path)?;
                    if self::inode(&file.metadata()?) == inode { enter(file) } else { Err(gone()) }
                })?;
                self.look(place, cookie, false, now)
            };
            places.all.into_iter().map(look).collect::<Vec<_>>()
        })?;
        for namespace in found {
            match namespace {
                Ok(namespace) => inventory.namespaces.push(namespace),
                Err(error) if is_gone(&error) => {}
                Err(_) => inventory.unreadable = inventory.unreadable.saturating_add(1),
            }
        }
        inventory.namespaces.sort_unstable_by_key(|namespace| namespace.cookie);
        self.known.retain(|cookie, _| inventory.namespaces.binary_search_by_key(cookie, |n| n.cookie).is_ok());
        Ok(inventory)
    }

    /// Reads the namespace at `place`, which the calling thread has entered.
    fn look(&mut self, place: Place, cookie: u64, own: bool, now: Instant) -> io::Result<Namespace> {
        // Without addresses it may be new.
        let fresh = |known: &&Known| !known.addresses.is_empty() && now.duration_since(known.read) < ADDRESSES_AGE;
        let addresses = match self.known.get(&cookie).filter(fresh) {
            Some(known) => known.addresses.clone(),
            None => {
                let addresses = addresses::reachable(addresses::list()?);
                self.known.insert(cookie, Known { addresses: addresses.clone(), read: now });
                addresses
            }
        };
        Ok(Namespace { cookie, addresses, process: place.process, own, paths: place.paths })
    }
}

/// Finds the network namespaces of this node, once; see [`Scanner`].
pub fn inventory(proc: &Path, named: &[PathBuf]) -> io::Result<Inventory> {
    Scanner::new(proc, named).scan()
}

/// Does `work` inside a namespace, on a thread of its own that ends with it. The error is that of entering; [`is_gone`]
/// says whether the namespace is no longer there.
pub fn within<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| namespace.enter().map(|()| work()))?
}

/// Does `work` inside each of `namespaces`, one after the other on one thread that goes from one to the next.
pub fn within_each<T: Send>(
    namespaces: &[Namespace],
    mut work: impl FnMut(&Namespace) -> T + Send,
) -> io::Result<Vec<io::Result<T>>> {
    on_a_thread(|| namespaces.iter().map(|namespace| namespace.enter().map(|()| work(namespace))).collect())
}

/// Whether entering failed because the namespace, or the path to it, is gone.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl Namespace {
    fn enter(&self) -> io::Result<()> {
        first(&self.paths, |path| if enter(File::open(path)?)? == self.cookie { Ok(()) } else { Err(gone()) })
    }
}

/// Moves the calling thread to a namespace and gives its cookie.
fn enter(namespace: File) -> io::Result<u64> {
    // The name of a namespace that is no longer mounted is an ordinary file.
    if fstatfs(&namespace)?.filesystem_type() != NSFS_MAGIC {
        return Err(gone());
    }
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    netns_cookie()
}

/// The first success, or the last failure.
fn first<T>(paths: &[PathBuf], attempt: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let mut result = Err(gone());
    for path in paths {
        result = attempt(path);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the network namespace is gone")
}

/// A thread that changes its namespace must not be used for anything else.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}
