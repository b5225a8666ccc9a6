//! The kernels that guests can boot, where `cargo xtask test` has put them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::files::Files;

/// Names the folder with qemu and the kernels.
const FOLDER: &str = "LAB_GUEST";
/// The modules that a lab and the daemon can ask for, and what these depend on.
const MODULES: [&str; 7] =
    ["net", "lib", "crypto", "arch/x86/crypto", "drivers/net/veth", "drivers/net/dummy", "drivers/net/vxlan"];

/// A kernel of Debian with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    name: String,
    folder: PathBuf,
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The kernel of this name, such as `debian-6.1`, or why there is none.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        let folder = folder()?;
        let place = folder.join(name);
        ensure!(place.is_dir(), "there is no {}; `cargo xtask setup --tests` fetches it", place.display());
        let only = |directory: &str, begins: &str| -> anyhow::Result<PathBuf> {
            let directory = place.join(directory);
            let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
            let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            let found = names.find(|name| name.starts_with(begins));
            found.map(|name| directory.join(name)).with_context(|| format!("{} is empty", directory.display()))
        };
        let (image, modules) = (only("boot", "vmlinuz-")?, only("lib/modules", "")?);
        Ok(Self { name: name.to_owned(), folder, image, modules })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    pub(super) fn qemu(&self) -> PathBuf {
        self.folder.join("qemu")
    }

    /// The modules, and `modprobe` where the kernel looks for it when a program asks for a module that is not loaded.
    pub(super) fn add_to(&self, files: &mut Files) -> anyhow::Result<()> {
        files.program(&self.folder.join("modprobe"), "/sbin/modprobe")?;
        let version = self.modules.file_name().context("a kernel's folder of modules has a name")?;
        let to = Path::new("/lib/modules").join(version);
        let index = fs::read_dir(&self.modules).with_context(|| format!("reading {}", self.modules.display()))?;
        for entry in index.flatten().filter(|entry| entry.path().is_file()) {
            files.copy(&entry.path(), &to.join(entry.file_name()));
        }
        for part in MODULES {
            let part = Path::new("kernel").join(part);
            let from = self.modules.join(&part);
            if from.is_dir() {
                files.directory(&from, &to.join(&part))?;
                continue;
            }
            // Modules of some kernels are compressed.
            for end in ["ko", "ko.xz"].map(|end| part.with_extension(end)) {
                if self.modules.join(&end).is_file() {
                    files.copy(&self.modules.join(&end), &to.join(&end));
                }
            }
        }
        Ok(())
    }
}

fn folder() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os(FOLDER).map(PathBuf::from) {
        ensure!(
            named.is_dir(),
            "{FOLDER} names {}, which `cargo xtask setup --tests` fills, and it is not there",
            named.display()
        );
        return Ok(named);
    }
    let own = env::current_exe().context("finding the running executable")?;
    // Tests run from target/<profile>/deps, binaries from target/<profile>.
    let found = own.ancestors().skip(2).take(2).map(|target| target.join("tools/guest")).find(|path| path.is_dir());
    found.context(
        "qemu and its kernels are not there; `cargo xtask setup --tests` fetches them, LAB_GUEST names their folder",
    )
}
