//! Programs of other tools at the hooks that we use: each program sees the address that the one before it wrote, so two
//! load balancers disturb each other (DP-15).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::loaded_programs;

use super::programs::our_programs;
use crate::sys::bpf;

/// Hooks with the number of their attach type in linux/bpf.h.
const HOOKS: [(&str, u32); 10] = [
    ("bind4", 8),
    ("bind6", 9),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// A program that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::datapath::ebpf) struct Foreign {
    /// Where it is attached.
    pub(in crate::datapath::ebpf) hook: &'static str,
    /// Its id, as bpftool shows it.
    pub(in crate::datapath::ebpf) id: u32,
    /// Its name.
    pub(in crate::datapath::ebpf) name: String,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (id {}) at {}", self.name, self.id, self.hook)
    }
}

/// The programs of other tools that are in effect at `cgroup`. `links`: where ours are pinned.
pub(super) fn foreign(cgroup: &Path, links: &Path) -> io::Result<Vec<Foreign>> {
    let directory = File::open(cgroup)?;
    let ours: BTreeSet<u32> = our_programs(links).into_iter().collect();
    let mut found = Vec::new();
    for (hook, attach_type) in HOOKS {
        let attached = bpf::attached_programs(directory.as_fd(), attach_type)?;
        found.extend(attached.into_iter().filter(|id| !ours.contains(id)).map(|id| (hook, id)));
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<(u32, String)> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let name = |id| names.iter().find(|(known, _)| *known == id).map_or("unnamed", |(_, name)| name.as_str());
    Ok(found.into_iter().map(|(hook, id)| Foreign { hook, id, name: name(id).to_owned() }).collect())
}
