//! Hands the compiled BPF objects to the daemon, which embeds them.
//!
//! They are made by `cargo xtask build`. Without one an empty file is embedded, so that checks and unit tests need
//! no BPF tool chain; the daemon then says at run time what is missing.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const OBJECTS: [&str; 2] = ["shunt-socket.o", "shunt-packets.o"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=SHUNT_BPF_OBJECTS");
    println!("cargo::rerun-if-changed=build.rs");
    let folder = env::var_os("SHUNT_BPF_OBJECTS").map_or_else(default_folder, PathBuf::from);
    OBJECTS.iter().try_for_each(|object| embed(&folder.join(object), object))
}

fn embed(source: &Path, name: &str) -> io::Result<()> {
    // Cargo takes a path that does not exist for one that has changed: the object is found as soon as it is built.
    println!("cargo::rerun-if-changed={}", source.display());
    let object = match fs::read(source) {
        Ok(object) => object,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io::Error::new(error.kind(), format!("reading {}: {error}", source.display()))),
    };
    fs::write(directory("OUT_DIR")?.join(name), object)
}

/// Where `cargo xtask build` puts them, unless cargo's target directory was moved.
fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf")
}

fn directory(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("{variable} is not set")))
}
