//! File system events, reduced to what the reader does about them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use notify::event::{AccessKind, AccessMode, Event, EventKind, ModifyKind, RenameMode};
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};

use super::super::ManifestsError;
use super::super::folder::format;

/// A signal to the reader's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// A file is complete: closed after writing, or renamed to this name.
    Written(Arc<str>),
    /// A file is being written; reading it now might show half of it.
    Opened(Arc<str>),
    /// A file is new: a link, or one that is about to be written.
    Created(Arc<str>),
    /// A file has other permissions or times, which says nothing of its content.
    Touched(Arc<str>),
    /// A file is gone.
    Gone(Arc<str>),
    /// Something about the folder as a whole, or unknown: scan everything.
    Folder,
    /// Events were lost, among them perhaps that a file was closed.
    Missed,
    /// End.
    Stop,
}

impl Signal {
    /// The file that it is about.
    pub(super) fn file(&self) -> Option<&str> {
        match self {
            Self::Written(name) | Self::Opened(name) | Self::Created(name) | Self::Touched(name) | Self::Gone(name) => {
                Some(name)
            }
            Self::Folder | Self::Missed | Self::Stop => None,
        }
    }
}

/// Watches `place` and signals what concerns the folder `dir`.
pub(super) fn watcher(
    place: &Path,
    dir: &Path,
    signals: &Sender<Signal>,
) -> Result<RecommendedWatcher, ManifestsError> {
    let failed = |source| ManifestsError::Watch { dir: dir.to_owned(), source };
    let (folder, signals): (PathBuf, Sender<Signal>) = (dir.to_owned(), signals.clone());
    let handler = move |event: notify::Result<Event>| {
        let signal = match event {
            Ok(event) => signal(&folder, &event),
            Err(error) => {
                tracing::warn!(dir = %folder.display(), %error, "events of the manifests folder may be lost");
                Some(Signal::Missed)
            }
        };
        if let Some(signal) = signal
            && signals.send(signal).is_err()
        {
            tracing::debug!("a file event after the end");
        }
    };
    let mut watcher = RecommendedWatcher::new(handler, Config::default()).map_err(failed)?;
    watcher.watch(place, RecursiveMode::NonRecursive).map_err(failed)?;
    Ok(watcher)
}

/// What an event means for the folder, if anything. Reading a file makes events too; those mean nothing.
fn signal(dir: &Path, event: &Event) -> Option<Signal> {
    if event.need_rescan() {
        return Some(Signal::Missed);
    }
    let path = event.paths.last()?;
    if path == dir {
        let matters = matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(_));
        return matters.then_some(Signal::Folder);
    }
    if path.parent() != Some(dir) {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    if format(name).is_none() {
        // Mounted ConfigMaps swap a link called `..data`; the visible files are links through it.
        let swap = name.starts_with("..") && matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)));
        return swap.then_some(Signal::Folder);
    }
    let name = Arc::from(name);
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Signal::Written(name)),
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Signal::Gone(name)),
        // The two halves of a rename have had events of their own.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) | EventKind::Access(_) => None,
        EventKind::Create(_) => Some(Signal::Created(name)),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Signal::Touched(name)),
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => Some(Signal::Opened(name)),
    }
}
