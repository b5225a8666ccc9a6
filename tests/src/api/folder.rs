//! A folder of manifests as the cluster's objects, kept up to date.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde_json::Value;

use super::Resource;
use super::controllers::Controllers;
use super::serve::Shared;
use super::store::{Name, name_of};

/// Writers that replace several files do so within microseconds.
const QUIET: Duration = Duration::from_millis(1);

/// Follows until dropped.
#[derive(Debug)]
pub(super) struct Follower {
    stop: Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _watcher: RecommendedWatcher,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.stop.send(true).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic in it has been printed already.
            drop(thread.join());
        }
    }
}

/// Loads a folder, and follows it from a thread of its own.
pub(super) fn follow(shared: Arc<Shared>, folder: &Path) -> anyhow::Result<Follower> {
    let (outbox, inbox) = channel();
    let nudges = outbox.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading makes events too. The receiver may have ended, and then needs none.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            nudges.send(false).unwrap_or_default();
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive).with_context(|| format!("watching {}", folder.display()))?;
    let mut mirror =
        Mirror { shared, folder: folder.to_owned(), files: BTreeMap::new(), controllers: Controllers::default() };
    mirror.look()?;
    let thread = std::thread::Builder::new().name("folder".into()).spawn(move || mirror.run(&inbox))?;
    Ok(Follower { stop: outbox, thread: Some(thread), _watcher: watcher })
}

struct Mirror {
    shared: Arc<Shared>,
    folder: PathBuf,
    /// The last good objects of each file, with the text they came from.
    files: BTreeMap<PathBuf, (Vec<u8>, Vec<Value>)>,
    controllers: Controllers,
}

impl Mirror {
    fn run(mut self, inbox: &Receiver<bool>) {
        while let Ok(false) = inbox.recv() {
            loop {
                match inbox.recv_timeout(QUIET) {
                    Ok(false) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Ok(true) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            if let Err(error) = self.look() {
                complain(&error);
            }
        }
    }

    /// Brings the store in line with the folder.
    fn look(&mut self) -> anyhow::Result<()> {
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            if !known || name.starts_with('.') {
                continue;
            }
            // A file that vanishes meanwhile has no objects; this is no error.
            let Ok(text) = fs::read(&path) else { continue };
            let before = self.files.remove(&path);
            let file = match before {
                Some((before, objects)) if before == text => (before, objects),
                before => match objects(&String::from_utf8_lossy(&text)) {
                    Ok(objects) => (text, objects),
                    // The last good version stays.
                    Err(error) => {
                        complain(&error.context(path.display().to_string()));
                        (text, before.map(|(_, objects)| objects).unwrap_or_default())
                    }
                },
            };
            present.insert(path, file);
        }
        self.files = present;
        self.settle()
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<(Resource, Name), Value> = BTreeMap::new();
        for object in self.files.values().flat_map(|(_, objects)| objects) {
            let Ok(resource) = Resource::of_kind(object.get("kind").and_then(Value::as_str).unwrap_or_default()) else {
                continue;
            };
            let name = name_of(resource, object).context("an object without a name")?;
            // The first one counts.
            wanted.entry((resource, name)).or_insert_with(|| object.clone());
        }
        self.controllers.run(&mut wanted);
        {
            let mut store = self.shared.store();
            for resource in Resource::ALL {
                for name in store.names(resource) {
                    if !wanted.contains_key(&(resource, name.clone())) {
                        store.delete(resource, &name);
                    }
                }
            }
            // What decides how others are read comes first, and Services before their slices: as Resource is ordered.
            for ((resource, _), object) in wanted {
                store.apply(resource, object)?;
            }
        }
        self.shared.nudge();
        Ok(())
    }
}

#[expect(clippy::print_stderr, reason = "a thread without a caller can only print what is wrong with a file")]
fn complain(error: &anyhow::Error) {
    eprintln!("lab api: {error:#}");
}

/// The objects of a text with several documents, lists taken apart.
pub(super) fn objects(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in documents(text)? {
        match document.get("items") {
            Some(Value::Array(items)) => objects.extend(items.iter().cloned()),
            _ if document.is_null() => {}
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    // JSON is YAML too, but much faster read as what it is; YAML's braces may hold what JSON's cannot.
    let json: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    if let (true, Ok(documents)) = (text.trim_start().starts_with('{'), json) {
        return Ok(documents);
    }
    let options = serde_saphyr::options! { budget: None };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| anyhow::anyhow!("{error}"))
}
