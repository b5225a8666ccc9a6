//! The files of the folder: which there are, which changed, and their content into the assembly.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::ManifestsOptions;
use super::assemble::Assembly;
use super::object::{Declared, declare};
use super::parse::{Format, ParseError, parse};
use crate::source::convert::{Conversion, Origin};
use crate::stamp::Stamp;

/// The folder as last read.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    /// A change that leaves the stamp equal is found by its event: events read the file whatever its stamp.
    stamps: BTreeMap<Arc<str>, Stamp>,
    conversion: Conversion,
    pub(super) assembly: Assembly,
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
            conversion: Conversion::keeping(&options.pod_annotations).of(Origin::Folder),
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

    /// Reads every file for the first time.
    pub(super) fn load(&mut self) -> io::Result<()> {
        for read in self.rescan(|_| false)? {
            self.take(read);
        }
        Ok(())
    }

    /// Checks every file except those that are `being_written`, and reads those that changed. Changes nothing if the
    /// folder cannot be listed.
    pub(super) fn rescan(&mut self, being_written: impl Fn(&str) -> bool) -> io::Result<Vec<Doubtful>> {
        let names = self.listing()?;
        let gone: Vec<Arc<str>> =
            self.stamps.keys().filter(|name| names.binary_search(name).is_err()).map(Arc::clone).collect();
        for name in gone {
            self.forget(&name);
        }
        let free = names.iter().filter(|name| !being_written(name));
        Ok(free.filter_map(|name| self.visit(name, Visit::IfStampDiffers)).collect())
    }

    /// Reads one file again, or forgets it if it is gone. Content that looks incomplete has no effect; if it may still
    /// be complete, it is returned for a later decision.
    #[must_use]
    pub(super) fn visit(&mut self, name: &Arc<str>, visit: Visit) -> Option<Doubtful> {
        let content = self.content(name, visit)?;
        let halved = self.assembly.has(name).then(|| half(&content)).flatten();
        let doubtful = Doubtful { name: Arc::clone(name), content };
        match (halved, visit) {
            (None, _) => self.take(doubtful),
            (Some(_), Visit::Always | Visit::IfStampDiffers) => return Some(doubtful),
            (Some(half), Visit::Unclosed) => {
                let reason = format!("it is still open for writing, and {}", half.reason);
                self.fail(name, half.line, reason);
            }
        }
        None
    }

    /// Whether the file is unchanged since it was read. A change is found by an event or by the next scan of the
    /// folder.
    pub(super) fn is_as_read(&self, read: &Doubtful) -> bool {
        let now = std::fs::metadata(self.dir.join(&*read.name)).map(|metadata| Stamp::of(&metadata)).ok();
        now.is_some() && now.as_ref() == self.stamps.get(&read.name)
    }

    /// The content takes effect.
    pub(super) fn take(&mut self, read: Doubtful) {
        let Doubtful { name, content } = read;
        match content {
            Ok(declared) => self.assembly.replace(&name, declared),
            Err(error) => self.assembly.fail(&name, error),
        }
    }

    /// The content of the file if it has to be read and can be; all other cases are handled here.
    fn content(&mut self, name: &Arc<str>, visit: Visit) -> Option<Content> {
        let format = format(name)?;
        let path = self.dir.join(&**name);
        // Follows links: mounted ConfigMaps are links into a folder that is swapped as a whole.
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // Folders and pipes are ignored, also with such names.
            Ok(_) => return self.forget(name),
            Err(error) => return self.unread(name, &error),
        };
        let stamp = Stamp::of(&metadata);
        if visit == Visit::IfStampDiffers && self.stamps.get(name) == Some(&stamp) {
            return None;
        }
        // The stamp is taken before the content is read, so a write in between is found by the next check.
        self.stamps.insert(Arc::clone(name), stamp);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return self.unread(name, &error),
        };
        let mut declared = Vec::new();
        let sink = |parsed| declared.push(declare(parsed, &mut self.conversion));
        Some(text(&bytes).and_then(|text| parse(text, format, sink)).map(|()| declared))
    }

    fn unread(&mut self, name: &Arc<str>, error: &io::Error) -> Option<Content> {
        if error.kind() == io::ErrorKind::NotFound {
            return self.forget(name);
        }
        self.fail(name, None, format!("cannot read the file: {error}"));
        None
    }

    fn fail(&mut self, name: &Arc<str>, line: Option<usize>, reason: String) {
        self.assembly.fail(name, ParseError { line, reason });
    }

    fn forget(&mut self, name: &Arc<str>) -> Option<Content> {
        self.stamps.remove(name);
        self.assembly.remove(name);
        None
    }
}

/// Why a file is visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// It was closed, or renamed to this name: it is read whatever its stamp.
    Always,
    /// It may have changed.
    IfStampDiffers,
    /// Its writer has written nothing for a while, but has not closed it.
    Unclosed,
}

/// What a file declares, or why it declares nothing.
type Content = Result<Vec<Declared>, ParseError>;

/// Content that may be incomplete, if the file is being written. It is kept as read: a second read could find another
/// incomplete state.
#[derive(Debug)]
pub(super) struct Doubtful {
    pub(super) name: Arc<str>,
    content: Content,
}

/// Why content looks incomplete, if it does: truncated files are empty or end in the middle of an object.
fn half(content: &Content) -> Option<ParseError> {
    match content {
        Err(error) => Some(error.clone()),
        Ok(declared) if declared.is_empty() => {
            Some(ParseError { line: None, reason: "there is no object in it yet".to_owned() })
        }
        Ok(declared) => declared.iter().find_map(|declared| {
            let why = declared.useless()?;
            let object = declared.id.describe().map(|object| format!("{object}: ")).unwrap_or_default();
            Some(ParseError { line: Some(declared.line), reason: format!("{object}{why}") })
        }),
    }
}

fn text(bytes: &[u8]) -> Result<&str, ParseError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        ParseError { line: Some(line), reason: format!("the file is not UTF-8 text: {error}") }
    })
}
