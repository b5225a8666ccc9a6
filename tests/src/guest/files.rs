//! What is in a guest: files of this machine, programs with their libraries, and text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::host::find_tool;

/// Where the lab's own programs are in a guest.
pub(super) const BUILT: &str = "/lab";
/// Directories that may be links, as they are here: libraries and programs name each other by both names.
const TOP: [&str; 4] = ["/bin", "/lib", "/lib64", "/sbin"];
const EMPTY: [&str; 9] = ["/dev", "/etc", "/lab", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp"];

/// One file of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Directory,
    /// The content and mode of a file of this machine.
    File(PathBuf),
    Text(String),
    Link(PathBuf),
}

/// The files of a guest by their path; a directory comes before what is in it.
#[derive(Debug)]
pub(super) struct Files {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Files {
    /// The directories that every system has.
    pub(super) fn new() -> Self {
        let mut files = Self { entries: BTreeMap::new() };
        for path in EMPTY {
            files.add(Path::new(path), Entry::Directory);
        }
        for path in TOP {
            let entry = fs::read_link(path).map_or(Entry::Directory, Entry::Link);
            files.add(Path::new(path), entry);
        }
        files.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        files.text("/etc/group", "root:x:0:\n");
        files.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
        files.text("/etc/resolv.conf", "");
        files
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    /// A text file.
    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.add(Path::new(path), Entry::Text(text.to_owned()));
    }

    /// A file of this machine under another name.
    pub(super) fn copy(&mut self, from: &Path, to: &Path) {
        self.add(to, Entry::File(from.to_owned()));
    }

    /// All files below a directory of this machine.
    pub(super) fn directory(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let entry = entry.with_context(|| format!("reading {}", from.display()))?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            if path.is_dir() {
                self.directory(&path, &to)?;
            } else {
                self.copy(&path, &to);
            }
        }
        Ok(())
    }

    /// A program of this machine with the libraries that it needs.
    pub(super) fn program(&mut self, from: &Path, to: &str) -> anyhow::Result<()> {
        self.copy(from, Path::new(to));
        self.libraries_of(&[from])
    }

    /// A program in this machine's search path, under the same name, with its libraries.
    pub(super) fn found(&mut self, name: &str) -> anyhow::Result<()> {
        let path = find_tool(name).with_context(|| format!("`{name}` is not installed, and guests need it"))?;
        self.as_here(&path)?;
        self.libraries_of(&[&path])
    }

    /// The plug-ins of iptables, if it is here: they are beside the library that loads them.
    pub(super) fn matches_of_iptables(&mut self) -> anyhow::Result<()> {
        let library = self
            .entries
            .keys()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libxtables.so")));
        let Some(plugins) = library.and_then(|path| Some(path.parent()?.join("xtables"))) else { return Ok(()) };
        self.directory(&plugins, &plugins)?;
        let paths = fs::read_dir(&plugins).with_context(|| format!("reading {}", plugins.display()))?;
        let paths: Vec<PathBuf> = paths.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        self.libraries_of(&paths)
    }

    fn libraries_of(&mut self, programs: &[impl AsRef<Path>]) -> anyhow::Result<()> {
        let programs: Vec<&Path> = programs.iter().map(AsRef::as_ref).collect();
        let output = Command::new("ldd").args(&programs).output().context("starting ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A static program has none, and ldd says so by failing.
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(said.contains("not a dynamic executable"), "ldd {programs:?}: {}", said.trim());
            return Ok(());
        }
        if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
            bail!("{programs:?} cannot run here: {}", missing.trim());
        }
        libraries(&text).into_iter().try_for_each(|library| self.as_here(Path::new(library)))
    }

    /// A file of this machine at its own place, and what it is a link to.
    fn as_here(&mut self, path: &Path) -> anyhow::Result<()> {
        let (parent, name) = path.parent().zip(path.file_name()).context("a file's path has a name")?;
        let parent = parent.canonicalize().with_context(|| format!("resolving {}", parent.display()))?;
        let path = parent.join(name);
        let Ok(target) = fs::read_link(&path) else {
            self.add(&path, Entry::File(path.clone()));
            return Ok(());
        };
        self.add(&path, Entry::Link(target.clone()));
        self.as_here(&parent.join(target))
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let path = self.resolved(path);
        for directory in path.ancestors().skip(1).filter(|directory| directory.parent().is_some()) {
            self.entries.entry(directory.to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path, entry);
    }

    /// The path behind the links among the top directories: `/usr/bin/sh` for `/bin/sh`.
    fn resolved(&self, path: &Path) -> PathBuf {
        let mut parts = path.components().filter(|part| *part != Component::RootDir);
        let top: PathBuf = [Component::RootDir].into_iter().chain(parts.next()).collect();
        let rest: PathBuf = parts.collect();
        match self.entries.get(&top) {
            Some(Entry::Link(target)) if !rest.as_os_str().is_empty() => Path::new("/").join(target).join(rest),
            Some(Entry::Link(_) | Entry::Directory | Entry::File(_) | Entry::Text(_)) | None => path.to_owned(),
        }
    }
}

/// The paths in what ldd prints: behind the arrow, or alone for the loader.
fn libraries(text: &str) -> Vec<&str> {
    // Lines that are not indented name the program itself, when ldd was asked about several.
    let lines = text.lines().filter_map(|line| line.strip_prefix('\t'));
    let paths = lines.map(|line| line.split_once("=> ").map_or(line, |(_, found)| found));
    paths.filter(|path| path.starts_with('/')).filter_map(|path| path.split(' ').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_behind_arrows_and_the_loader_alone() {
        let text = "/bin/sh:\n\
                    \tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        assert_eq!(libraries(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn files_stand_behind_the_links_of_the_top_and_after_their_directories() {
        let mut files = Files { entries: BTreeMap::from([("/bin".into(), Entry::Link("usr/bin".into()))]) };
        files.text("/bin/one", "1");
        files.text("/a/b", "2");
        let paths: Vec<_> = files.entries().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/bin", "/usr", "/usr/bin", "/usr/bin/one"]);
    }

    #[test]
    fn a_program_brings_its_libraries_at_their_own_places() {
        let mut files = Files::new();
        files.found("sh").unwrap();
        let has = |part: &str| files.entries().any(|(path, _)| path.to_string_lossy().contains(part));
        assert!(has("/libc.so.6") && has("/ld-linux"), "{files:?}");
    }
}
