//! Hands the compiled BPF object to the daemon, which embeds it.
//!
//! The object is made by `cargo xtask build`. Without it an empty file is embedded, so that checks and unit tests need
//! no BPF tool chain; the daemon then says at run time what is missing.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const OBJECT: &str = "shunt-socket.o";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=SHUNT_BPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let source = env::var_os("SHUNT_BPF_OBJECT").map_or_else(default_object, PathBuf::from);
    // Cargo takes a path that does not exist for one that has changed: the object is found as soon as it is built.
    println!("cargo::rerun-if-changed={}", source.display());
    let object = match fs::read(&source) {
        Ok(object) => object,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io::Error::new(error.kind(), format!("reading {}: {error}", source.display()))),
    };
    fs::write(directory("OUT_DIR")?.join(OBJECT), object)
}

/// Where `cargo xtask build` puts it, unless cargo's target directory was moved.
fn default_object() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf").join(OBJECT)
}

fn directory(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("{variable} is not set")))
}
