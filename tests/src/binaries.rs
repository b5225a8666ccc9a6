//! Where the programs are that a lab runs: the daemon and the peer.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Paths of the programs a lab runs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `shunt`, if there is one; only [`Node::daemon`](crate::Node::daemon) needs it.
    pub shunt: Option<PathBuf>,
    /// `lab-peer`.
    pub peer: PathBuf,
}

impl Binaries {
    /// Finds them through `SHUNT_BIN` and `LAB_PEER_BIN`, else next to the running executable.
    pub fn find() -> anyhow::Result<Self> {
        let peer = locate("LAB_PEER_BIN", "lab-peer")?
            .context("lab-peer is not built: run `cargo build -p lab`, or name it in LAB_PEER_BIN")?;
        Ok(Self { shunt: locate("SHUNT_BIN", "shunt")?, peer })
    }

    /// The daemon, or an error that says how to get it.
    pub fn shunt(&self) -> anyhow::Result<&Path> {
        self.shunt.as_deref().context("shunt is not built: run `cargo xtask build`, or name it in SHUNT_BIN")
    }
}

fn locate(variable: &str, name: &str) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = env::var_os(variable).map(PathBuf::from) {
        if !path.is_file() {
            bail!("{variable} names {}, which is not a file", path.display());
        }
        return Ok(Some(path.canonicalize().with_context(|| format!("resolving {}", path.display()))?));
    }
    let own = env::current_exe().context("finding the running executable")?;
    // Tests run from target/<profile>/deps, binaries from target/<profile>.
    Ok(own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file()))
}
