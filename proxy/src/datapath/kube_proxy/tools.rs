//! The commands that read and change rules, by name.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use shunt_model::Family;

use crate::datapath::command::{self, CommandError};
use crate::datapath::iptables;

/// Why what kube-proxy left is still there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// It did not run to its end.
    #[error(transparent)]
    Run(#[from] CommandError),
    /// It failed.
    #[error("{program} {arguments}: {said}")]
    Failed { program: String, arguments: String, said: String },
    /// The kernel refused.
    #[error("removing the interface kube-ipvs0")]
    Interface {
        #[source]
        source: io::Error,
    },
}

/// How long other programs may hold the lock of iptables: seconds.
const LOCK: &str = "5";

/// One of the two kinds of iptables, which do not see each other's rules, for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    family: &'static str,
    kind: iptables::Variant,
    save: PathBuf,
    restore: PathBuf,
}

impl fmt::Display for Variant {
    /// `ip6tables-legacy`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family, self.kind)
    }
}

/// The kinds of iptables that are installed and of which the kernel can have rules now.
pub(super) fn variants() -> Vec<Variant> {
    let families = Family::BOTH.into_iter().flat_map(|family| iptables::Variant::BOTH.map(|kind| (family, kind)));
    let of = |(family, kind): (Family, iptables::Variant)| {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let program = |what| kind.is_in_kernel(family).then(|| iptables::in_path(kind, name, what)).flatten();
        Some(Variant { family: name, kind, save: program("save")?, restore: program("restore")? })
    };
    families.filter_map(of).collect()
}

impl Variant {
    /// All rules that there are. It makes no table that is not there yet.
    pub(super) fn save(&self) -> Result<String, ToolError> {
        run(&self.save, &[], "")
    }

    /// Changes rules: table by table, each at once or not at all.
    pub(super) fn restore(&self, script: &str) -> Result<(), ToolError> {
        run(&self.restore, &["--noflush", "--wait", LOCK], script).map(drop)
    }
}

/// The tables of nftables, as `nft` names them. Without it or what it needs of the kernel there are none.
pub(super) fn nft_tables() -> Result<String, ToolError> {
    match command::find("nft").filter(|_| iptables::Variant::Nft.is_in_kernel(Family::V4)) {
        Some(nft) => run(&nft, &["list", "tables"], ""),
        None => Ok(String::new()),
    }
}

/// What a command prints; nothing if it is not installed.
pub(super) fn call(program: &str, arguments: &[&str]) -> Result<String, ToolError> {
    command::find(program).map_or_else(|| Ok(String::new()), |file| run(&file, arguments, ""))
}

fn run(file: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let said = command::run(file, arguments, input.as_bytes(), command::limit(input), |_| {})?;
    if !said.status.success() {
        let program = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let words = said.stderr.trim().replace('\n', " ");
        return Err(ToolError::Failed { program, arguments: arguments.join(" "), said: words });
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}
