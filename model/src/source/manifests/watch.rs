//! Keeps the view up to date: events of the folder and of its parent, gathered for a moment, then read and published.
//!
//! A file that is being written may be incomplete: its last content stays in force until it is closed, or complete.
//! One thread owns the folder. It watches the parent too, so that a folder that vanishes and comes back is noticed;
//! meanwhile the last view stays. A slow scan of everything finds changes without an event.

mod events;

use std::collections::{BTreeMap, VecDeque};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::RecommendedWatcher;
use tokio::sync::{oneshot, watch};

use super::folder::{Doubtful, Folder, Visit};
use super::{ManifestsError, ManifestsOptions};
use crate::snapshot::Snapshot;
use crate::source::{Source, SourceHealth, report};
use events::{Signal, watcher};

/// A pause this long ends a batch: writers that replace several files do so within microseconds.
const QUIET: Duration = Duration::from_millis(1);
/// The longest batch.
const BATCH: Duration = Duration::from_millis(5);
/// The longest batch while files are being removed: so the removal of a whole folder begins, which must not empty the
/// view.
const REMOVAL: Duration = Duration::from_millis(500);
/// How long a folder must stay empty, or back, until that counts.
const GRACE: Duration = Duration::from_millis(100);
/// A folder that came back is read at the latest after this, even while files still arrive.
const RETURN: Duration = Duration::from_secs(2);
/// A file is read when its writer closes it, or has written nothing for so long. A stalled copy takes a second or two
/// to send its lost packets again.
const UNCLOSED: Duration = Duration::from_secs(2);
/// A new file without a write is a link, and is read after this long.
const LINKED: Duration = Duration::from_millis(200);
/// How long a file that lost its objects is doubted although it was closed: the next writer may have emptied it before
/// it was read, and the event that says so is on its way. 10 ms were too few on a busy machine.
const DOUBT: Duration = Duration::from_millis(100);
/// The interval of the slow scan.
const RESCAN: Duration = Duration::from_secs(30);
/// How often to look for a missing folder.
const RETRY: Duration = Duration::from_secs(1);

type Readers = (watch::Receiver<Arc<Snapshot>>, watch::Receiver<SourceHealth>);

/// Starts the thread and waits for its first view.
pub(super) async fn start(mut options: ManifestsOptions) -> Result<Source, ManifestsError> {
    // The parent must be known even if the folder is given as `.` or as one name.
    options.dir = std::path::absolute(&options.dir)
        .map_err(|source| ManifestsError::Folder { dir: options.dir.clone(), source })?;
    let (signals, inbox) = channel();
    let (ready, first) = oneshot::channel();
    let outbox = signals.clone();
    let thread = std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || Reader::run(&options, &inbox, &outbox, ready))
        .map_err(|source| ManifestsError::Thread { source })?;
    let stop = Stop { signals, thread: Some(thread) };
    let (snapshots, health) = first.await.map_err(|source| ManifestsError::Ended { source })??;
    Ok(Source { snapshots, health, _stop: Box::new(stop) })
}

/// Ends the thread when dropped, and waits until it has.
struct Stop {
    signals: Sender<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        // Either fails only if the thread has ended already.
        if self.signals.send(Signal::Stop).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads the manifests panicked");
        }
    }
}

/// The thread's state.
struct Reader<'a> {
    dir: PathBuf,
    folder: Folder,
    outbox: &'a Sender<Signal>,
    /// Events of the folder, and which folder that is.
    watched: Option<(RecommendedWatcher, Identity)>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    health: watch::Sender<SourceHealth>,
    /// Files that are being written.
    unclosed: BTreeMap<Arc<str>, Unclosed>,
    /// Signals that arrived while the content of a file was in doubt.
    waiting: VecDeque<Signal>,
    next_rescan: Instant,
    /// Since when the folder is empty although files of it are in force.
    empty_since: Option<Instant>,
    /// Since when the folder is back.
    returned: Option<Instant>,
}

/// A file that was written to, or created, and has not been closed since.
#[derive(Clone, Copy, Debug)]
struct Unclosed {
    /// Known to be written; a link is not, and will never be closed.
    written: bool,
    /// When it is read without being closed; `None` after that was tried.
    look: Option<Instant>,
}

impl Unclosed {
    fn written() -> Self {
        Self { written: true, look: Some(Instant::now() + UNCLOSED) }
    }

    fn unknown(patience: Duration) -> Self {
        Self { written: false, look: Some(Instant::now() + patience) }
    }
}

/// Device and inode: they differ between a folder and another one of the same name.
type Identity = (u64, u64);

/// What to read after a few milliseconds of events.
#[derive(Default)]
struct Batch {
    files: BTreeMap<Arc<str>, Visit>,
    rescan: bool,
}

impl<'a> Reader<'a> {
    fn run(
        options: &ManifestsOptions,
        inbox: &Receiver<Signal>,
        outbox: &'a Sender<Signal>,
        ready: oneshot::Sender<Result<Readers, ManifestsError>>,
    ) {
        let parent = options.dir.parent().map(|parent| watcher(parent, &options.dir, outbox)).transpose();
        let (mut reader, parent) = match parent.and_then(|parent| Ok((Self::first(options, outbox)?, parent))) {
            Ok(both) => both,
            Err(error) => {
                if ready.send(Err(error)).is_err() {
                    tracing::debug!("the first view has no receiver any more");
                }
                return;
            }
        };
        if ready.send(Ok((reader.snapshots.subscribe(), reader.health.subscribe()))).is_ok() {
            reader.follow(inbox);
        }
        drop(parent);
    }

    /// Reads the folder for the first time. The watch is set before, so that no change is missed.
    fn first(options: &ManifestsOptions, outbox: &'a Sender<Signal>) -> Result<Self, ManifestsError> {
        let failed = |source| ManifestsError::Folder { dir: options.dir.clone(), source };
        let identity = identity(&options.dir).map_err(failed)?;
        let watched = watcher(&options.dir, &options.dir, outbox)?;
        let mut folder = Folder::new(options);
        folder.load().map_err(failed)?;
        let snapshot = folder.assembly.settle();
        if folder.is_empty() {
            tracing::warn!(dir = %options.dir.display(), "no manifests in the folder yet");
        }
        let reader = Self {
            dir: options.dir.clone(),
            folder,
            outbox,
            watched: Some((watched, identity)),
            snapshots: watch::Sender::new(Arc::new(snapshot)),
            health: watch::Sender::new(SourceHealth::default()),
            unclosed: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_rescan: Instant::now() + RESCAN,
            empty_since: None,
            returned: None,
        };
        reader.report(None);
        Ok(reader)
    }

    fn follow(&mut self, inbox: &Receiver<Signal>) {
        loop {
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            let mut batch = Batch::default();
            match self.receive(inbox, wait) {
                Ok(first) => {
                    if !self.gather(first, inbox, &mut batch) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.add_overdue(&mut batch);
            self.take(batch, inbox);
        }
    }

    fn next_deadline(&self) -> Instant {
        let looks = self.unclosed.values().filter_map(|unclosed| unclosed.look);
        looks.chain([self.next_rescan]).min().unwrap_or(self.next_rescan)
    }

    fn receive(&mut self, inbox: &Receiver<Signal>, wait: Duration) -> Result<Signal, RecvTimeoutError> {
        self.waiting.pop_front().map_or_else(|| inbox.recv_timeout(wait), Ok)
    }

    /// Collects the signals of one batch; false after the signal to stop.
    fn gather(&mut self, first: Signal, inbox: &Receiver<Signal>, batch: &mut Batch) -> bool {
        let begin = Instant::now();
        let mut signal = first;
        loop {
            let vanishing = matches!(signal, Signal::Gone(_));
            if !self.note(signal, batch) {
                return false;
            }
            let limit = if vanishing { REMOVAL } else { BATCH };
            if begin.elapsed() >= limit {
                return true;
            }
            match self.receive(inbox, QUIET) {
                Ok(next) => signal = next,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Adds a signal's file to the batch, or removes it; false after the signal to stop.
    fn note(&mut self, signal: Signal, batch: &mut Batch) -> bool {
        match signal {
            Signal::Stop => return false,
            Signal::Written(name) | Signal::Gone(name) => {
                self.unclosed.remove(&name);
                batch.files.insert(name, Visit::Always);
            }
            // The content that was closed is being replaced.
            Signal::Opened(name) => {
                batch.files.remove(&name);
                self.unclosed.insert(name, Unclosed::written());
            }
            Signal::Created(name) => {
                batch.files.remove(&name);
                self.unclosed.insert(name, Unclosed::unknown(LINKED));
            }
            Signal::Touched(name) => {
                if !self.unclosed.contains_key(&name) {
                    batch.files.entry(name).or_insert(Visit::IfStampDiffers);
                }
            }
            Signal::Folder => batch.rescan = true,
            Signal::Missed => {
                self.unclosed.values_mut().for_each(|unclosed| *unclosed = Unclosed::unknown(UNCLOSED));
                batch.rescan = true;
            }
        }
        true
    }

    fn add_overdue(&mut self, batch: &mut Batch) {
        let now = Instant::now();
        let overdue = self.unclosed.iter_mut().filter(|(_, unclosed)| unclosed.look.is_some_and(|at| at <= now));
        for (name, unclosed) in overdue {
            // For the case that the batch is postponed.
            unclosed.look = Some(now + UNCLOSED);
            batch.files.entry(Arc::clone(name)).or_insert(Visit::Unclosed);
        }
        batch.rescan |= self.next_rescan <= now;
    }

    /// Updates the view with a batch, or postpones it while the folder is missing or being filled.
    fn take(&mut self, mut batch: Batch, inbox: &Receiver<Signal>) {
        if batch.files.is_empty() && !batch.rescan {
            return;
        }
        match self.present() {
            Ok(Presence::Same) => {}
            Ok(Presence::Returned) => {
                // The creator of the new folder needs a moment to fill it.
                let since = *self.returned.get_or_insert_with(Instant::now);
                self.next_rescan = Instant::now() + GRACE.min(RETURN.saturating_sub(since.elapsed()));
                return;
            }
            Ok(Presence::Settled) => batch.rescan = true,
            Err(error) => return self.lost(&error),
        }
        match self.read(&batch) {
            Ok(doubtful) => self.doubt(doubtful, inbox),
            Err(error) => return self.lost(&error),
        }
        self.publish();
    }

    /// Whether the folder exists and is still the watched one.
    fn present(&mut self) -> io::Result<Presence> {
        let identity = identity(&self.dir)?;
        if self.watched.as_ref().is_some_and(|(_, watched)| *watched == identity) {
            return Ok(match self.returned {
                None => Presence::Same,
                Some(_) if self.next_rescan <= Instant::now() => {
                    self.returned = None;
                    Presence::Settled
                }
                Some(_) => Presence::Returned,
            });
        }
        self.watched = None;
        let watched = watcher(&self.dir, &self.dir, self.outbox).map_err(io::Error::other)?;
        self.watched = Some((watched, identity));
        self.returned = None;
        Ok(Presence::Returned)
    }

    fn read(&mut self, batch: &Batch) -> io::Result<Vec<Doubtful>> {
        // All files are gone: perhaps the folder itself is being removed.
        if !self.folder.is_empty() && self.folder.listing()?.is_empty() {
            let since = *self.empty_since.get_or_insert_with(Instant::now);
            if since.elapsed() < GRACE {
                self.next_rescan = since + GRACE;
                return Ok(Vec::new());
            }
            tracing::warn!(dir = %self.dir.display(), "no manifests in the folder any more");
        }
        let held_back = self.empty_since.take().is_some();
        let mut doubtful = Vec::new();
        if batch.rescan || held_back {
            self.next_rescan = Instant::now() + RESCAN;
            doubtful = self.folder.rescan(|name| self.unclosed.contains_key(name))?;
        }
        for (name, visit) in &batch.files {
            doubtful.extend(self.folder.visit(name, *visit));
            if *visit == Visit::Unclosed {
                self.looked_at(name);
            }
        }
        Ok(doubtful)
    }

    /// An unclosed file is read once: further content comes with an event.
    fn looked_at(&mut self, name: &str) {
        match self.unclosed.get_mut(name) {
            Some(unclosed) if unclosed.written => unclosed.look = None,
            Some(_) | None => drop(self.unclosed.remove(name)),
        }
    }

    /// Applies doubtful content once it is certain that the file is not being written.
    fn doubt(&mut self, doubtful: Vec<Doubtful>, inbox: &Receiver<Signal>) {
        if doubtful.is_empty() {
            return;
        }
        let end = Instant::now() + DOUBT;
        while let Ok(signal) = inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.waiting.push_back(signal);
        }
        for read in doubtful {
            let signalled = self.waiting.iter().any(|signal| signal.file() == Some(&*read.name));
            if !signalled && self.folder.is_as_read(&read) {
                self.folder.take(read);
            }
        }
    }

    fn publish(&mut self) {
        let snapshot = self.folder.assembly.settle();
        self.snapshots.send_if_modified(|known| {
            let changed = !known.ptr_eq(&snapshot);
            if changed {
                *known = Arc::new(snapshot);
            }
            changed
        });
        // After the view is published: readers need not wait for the report.
        self.report(None);
    }

    fn lost(&mut self, error: &io::Error) {
        self.watched = None;
        self.returned = None;
        self.empty_since = None;
        self.unclosed.clear();
        self.next_rescan = Instant::now() + RETRY;
        let dir = self.dir.display();
        self.report(Some(format!(
            "cannot read the manifests folder {dir}: {error}; the last good view stays in force; create the folder again"
        )));
    }

    fn report(&self, unreachable: Option<String>) {
        let problems = self.folder.assembly.problems();
        self.health.send_if_modified(|health| {
            let unreachable = unreachable.map(|reason| report::Unreachable { reason, is_told: false });
            report::update(health, unreachable, problems)
        });
    }
}

enum Presence {
    /// The folder that is watched.
    Same,
    /// A new folder of that name, which is perhaps being filled.
    Returned,
    /// A new folder that had time to be filled.
    Settled,
}

fn identity(dir: &Path) -> io::Result<Identity> {
    let metadata: Metadata = std::fs::metadata(dir)?;
    if metadata.is_dir() { Ok((metadata.dev(), metadata.ino())) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests;
