//! The initramfs of a guest: its files as an archive that the kernel unpacks.

use std::fs::{self, File};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use cpio::newc::{Builder, ModeFileType, trailer};

use super::files::{Entry, Files};

/// Writes the archive.
pub(super) fn write(files: &Files, image: &Path) -> anyhow::Result<()> {
    let file = File::create(image).with_context(|| format!("creating {}", image.display()))?;
    let mut out = BufWriter::new(file);
    for (number, (path, entry)) in files.entries().enumerate() {
        let number = u32::try_from(number).context("numbering the files of a guest")?;
        append(&mut out, number, path, entry).with_context(|| format!("putting {} into a guest", path.display()))?;
    }
    trailer(out).and_then(|mut out| out.flush()).with_context(|| format!("writing {}", image.display()))
}

fn append(out: &mut impl Write, number: u32, path: &Path, entry: &Entry) -> anyhow::Result<()> {
    let name = path.strip_prefix("/").context("a guest's paths begin at its root")?;
    let header = Builder::new(name.to_str().context("a path is not UTF-8")?).ino(number);
    match entry {
        Entry::Directory => add(out, header.mode(0o755).set_mode_file_type(ModeFileType::Directory), 0, io::empty()),
        Entry::Link(target) => {
            let target = target.as_os_str().as_bytes();
            let header = header.mode(0o777).set_mode_file_type(ModeFileType::Symlink);
            add(out, header, target.len().try_into()?, Cursor::new(target))
        }
        Entry::Text(text) => {
            let header = header.mode(0o644).set_mode_file_type(ModeFileType::Regular);
            add(out, header, text.len().try_into()?, Cursor::new(text))
        }
        Entry::File(source) => {
            let content = File::open(source).with_context(|| format!("opening {}", source.display()))?;
            let metadata = fs::metadata(source).with_context(|| format!("reading {}", source.display()))?;
            let header = header.mode(metadata.permissions().mode()).set_mode_file_type(ModeFileType::Regular);
            add(out, header, metadata.len(), content)
        }
    }
}

fn add(out: &mut impl Write, header: Builder, length: u64, mut content: impl Read) -> anyhow::Result<()> {
    let length = u32::try_from(length).context("a file of a guest is smaller than 4 GB")?;
    let mut writer = header.write(out, length);
    io::copy(&mut content, &mut writer)?;
    writer.finish()?;
    Ok(())
}
