//! The files of the folder: which there are, which changed, and their content into the assembly.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::ManifestsOptions;
use super::assemble::Assembly;
use super::object::declare;
use super::parse::{Format, ParseError, parse};
use crate::source::convert::Conversion;

/// The folder as last read.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    stamps: BTreeMap<Arc<str>, Stamp>,
    conversion: Conversion,
    pub(super) assembly: Assembly,
}

/// What differs whenever a file's content does, short of a rewrite within one tick of the clock by one who keeps the
/// length; events catch that case, as they read the file whatever its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// How a file of this name is read; none if it is not ours.
pub(super) fn format(name: &str) -> Option<Format> {
    let (stem, extension) = name.rsplit_once('.')?;
    if stem.is_empty() || name.starts_with('.') {
        return None;
    }
    match extension {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

impl Folder {
    pub(super) fn new(options: &ManifestsOptions) -> Self {
        Self {
            dir: options.dir.clone(),
            stamps: BTreeMap::new(),
            conversion: Conversion::keeping(&options.pod_annotations),
            assembly: Assembly::new(options),
        }
    }

    /// No file with manifests is there.
    pub(super) fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }

    /// The files that are there now. An error says that the folder itself cannot be read.
    pub(super) fn listing(&self) -> io::Result<Vec<Arc<str>>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            match name.to_str() {
                Some(name) if format(name).is_some() => names.push(Arc::from(name)),
                Some(_) => {}
                None => tracing::debug!(?name, "ignoring a file whose name is not UTF-8"),
            }
        }
        names.sort();
        Ok(names)
    }

    /// Looks at every file and reads those that changed. Nothing is changed if the folder cannot be listed.
    pub(super) fn rescan(&mut self) -> io::Result<()> {
        let names = self.listing()?;
        let gone: Vec<Arc<str>> =
            self.stamps.keys().filter(|name| names.binary_search(name).is_err()).map(Arc::clone).collect();
        for name in gone {
            self.forget(&name);
        }
        for name in names {
            self.visit(&name, Visit::IfStampDiffers);
        }
        Ok(())
    }

    /// Reads one file again, or forgets it if it is gone.
    pub(super) fn visit(&mut self, name: &Arc<str>, visit: Visit) {
        let Some(format) = format(name) else { return };
        let path = self.dir.join(&**name);
        // Follows links: mounted ConfigMaps are links into a folder that is swapped as a whole.
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // Folders and pipes, whatever they are called.
            Ok(_) => return self.forget(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.forget(name),
            Err(error) => return self.fail(name, None, format!("cannot read the file: {error}")),
        };
        let stamp = Stamp::of(&metadata);
        if visit == Visit::IfStampDiffers && self.stamps.get(name) == Some(&stamp) {
            return;
        }
        // The stamp is older than the content, so what is written in between is noticed by the next look.
        self.stamps.insert(Arc::clone(name), stamp);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.forget(name),
            Err(error) => return self.fail(name, None, format!("cannot read the file: {error}")),
        };
        let mut declared = Vec::new();
        let sink = |parsed| declared.push(declare(parsed, &mut self.conversion));
        match text(&bytes).and_then(|text| parse(text, format, sink)) {
            Ok(()) => self.assembly.replace(name, declared),
            Err(error) => self.fail(name, error.line, error.reason),
        }
    }

    fn fail(&mut self, name: &Arc<str>, line: Option<usize>, reason: String) {
        self.assembly.fail(name, ParseError { line, reason });
    }

    fn forget(&mut self, name: &Arc<str>) {
        self.stamps.remove(name);
        self.assembly.remove(name);
    }
}

/// When a visit reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    Always,
    IfStampDiffers,
}

fn text(bytes: &[u8]) -> Result<&str, ParseError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        ParseError { line: Some(line), reason: format!("the file is not UTF-8 text: {error}") }
    })
}
