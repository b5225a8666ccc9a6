//! Loads the programs and links them to the cgroup.
//!
//! A link that an earlier daemon pinned stays if it runs the same code at the same cgroup. If it runs other code, the
//! program is replaced in the link, so there is no moment without a program.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, Iter, Program, ProgramError, ProgramFd, ProgramInfo, loaded_programs,
};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use proxy_abi::maps::{self, Map};

use super::super::packets;
use super::super::pins::Pins;
use super::super::tables::kernel::{TableError, verify};
use crate::sys::bpf;

/// Hook and program, in the order in which they are attached: programs that translate answers come before those that
/// translate calls.
const PROGRAMS: [(&str, &str); 11] = [
    ("getpeername4", "shunt_getpeer4"),
    ("getpeername6", "shunt_getpeer6"),
    ("recvmsg4", "shunt_recvmsg4"),
    ("recvmsg6", "shunt_recvmsg6"),
    ("sendmsg4", "shunt_sendmsg4"),
    ("sendmsg6", "shunt_sendmsg6"),
    ("connect4", "shunt_connect4"),
    ("connect6", "shunt_connect6"),
    ("bind4", "shunt_bind4"),
    ("bind6", "shunt_bind6"),
    ("sock_release", "shunt_release"),
];

/// The programs that list flows of connected sockets: those that have ended, and those to the address of a frontend.
const LISTS: [&str; 2] = ["shunt_flows_end", "shunt_flows_to"];
/// What these run for.
const ELEMENTS: &str = "bpf_sk_storage_map";

/// How much of the verifier's log is shown: its last lines name the instruction and the reason.
const VERIFIER_LINES: usize = 12;

/// The programs cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramsError {
    /// The binary was built without them.
    #[error("this binary was built without BPF programs: run `cargo xtask build` and use target/lab/shunt")]
    Missing,
    /// The object file does not hold one of the programs.
    #[error("the BPF object has no program {0}: it is not the object of this version")]
    NoProgram(&'static str),
    /// The kernel does not describe its own types.
    #[error("reading the types of the kernel (CONFIG_DEBUG_INFO_BTF)")]
    Types(#[source] Box<BtfError>),
    /// A pinned map has another layout.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The object cannot be parsed, or a map cannot be created.
    #[error("loading the BPF object")]
    Object(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel refused program {program}; the verifier's last words:\n{verifier}")]
    Refused {
        /// Which program.
        program: &'static str,
        /// The end of the verifier's log.
        verifier: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A link runs a program that the kernel does not list.
    #[error("pinning {program} again: the kernel does not list the program that its link runs, which has the id {id}")]
    NotListed {
        /// Which program.
        program: &'static str,
        /// Its id.
        id: u32,
    },
    /// Another call of the kernel failed.
    #[error("{doing} {program}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// For which program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cgroup directory.
    #[error("opening the cgroup {}", .path.display())]
    Cgroup {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How many links were kept, replaced and attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Kept as they were.
    pub kept: usize,
    /// Switched to new code in place.
    pub replaced: usize,
    /// Made new.
    pub attached: usize,
}

/// Programs that list flows of connected sockets, on the pinned maps.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct FlowLists {
    /// Of those that have ended although their socket is open.
    pub(in crate::datapath::ebpf) ended: OwnedFd,
    /// Of those whose endpoint has the address of a frontend.
    pub(in crate::datapath::ebpf) to_frontends: OwnedFd,
}

/// The programs of an object, loaded on the pinned maps and accepted by the kernel, but not attached.
pub(in crate::datapath::ebpf) struct Loaded(Ebpf);

impl Loaded {
    /// Loads the programs of `object`; maps that are not pinned yet are made. All are verified before the first is
    /// attached: a kernel that refuses one keeps what it had.
    pub(in crate::datapath::ebpf) fn load(object: &[u8], pins: &Pins) -> Result<Self, ProgramsError> {
        let btf = Btf::from_sys_fs().map_err(|error| ProgramsError::Types(Box::new(error)))?;
        let mut ebpf = load_object(object, pins, &btf, &[])?;
        for (_, name) in PROGRAMS {
            let loaded = program(&mut ebpf, name)?.load();
            accepted(loaded, name)?;
        }
        for name in LISTS {
            let loaded = list(&mut ebpf, name)?.load(ELEMENTS, &btf);
            accepted(loaded, name)?;
        }
        drop(btf);
        // The description of the kernel's types takes 14 MB, all of it in small pieces.
        crate::sys::trim();
        Ok(Self(ebpf))
    }

    /// The programs that list flows; they run when they are asked, and end with the daemon.
    pub(in crate::datapath::ebpf) fn flow_lists(&mut self) -> Result<FlowLists, ProgramsError> {
        let [ended, to_frontends] = LISTS;
        let mut open = |name| {
            let fd = list(&mut self.0, name)?.fd().map_err(kernel("asking about", name))?;
            fd.as_fd().try_clone_to_owned().map_err(kernel("opening", name))
        };
        Ok(FlowLists { ended: open(ended)?, to_frontends: open(to_frontends)? })
    }

    /// Links each program to `cgroup`, or keeps its link.
    pub(in crate::datapath::ebpf) fn attach(mut self, pins: &Pins, cgroup: &Path) -> Result<Links, ProgramsError> {
        let opened = |source| ProgramsError::Cgroup { path: cgroup.to_owned(), source };
        let directory = File::open(cgroup).map_err(opened)?;
        let cgroup_id = directory.metadata().map_err(opened)?.ino();
        let mut links = Links::default();
        for (hook, name) in PROGRAMS {
            let mut program = program(&mut self.0, name)?;
            let pin = pins.links.join(hook);
            match existing(&pin, cgroup_id, name)? {
                Some(link) if runs_as(link.program, &program, name)? => {
                    links.kept = links.kept.saturating_add(1);
                    pin_running(&pins.programs.join(hook), link.program, name)?;
                    continue;
                }
                Some(_) => {
                    replace(&pin, &program, name)?;
                    links.replaced = links.replaced.saturating_add(1);
                }
                None => {
                    attach(&pin, &directory, &mut program, name)?;
                    links.attached = links.attached.saturating_add(1);
                }
            }
            pin_program(&pins.programs.join(hook), &mut program, name)?;
        }
        Ok(links)
    }
}

/// Whether a program that one of our links runs, or one at a device, reads our tables: then they are in charge, and
/// hold more than another version knows.
pub(in crate::datapath::ebpf) fn are_in_charge(pins: &Pins) -> Result<bool, ProgramsError> {
    const NAME: &str = "shunt_connect4";
    let Ok(directory) = MapInfo::from_pin(pins.maps.of(&maps::DIRECTORY)) else { return Ok(false) };
    let ours = our_programs(&pins.links);
    for program in loaded_programs().filter_map(Result::ok).filter(|program| ours.contains(&program.id())) {
        if map_ids(&program, NAME)?.contains(&directory.id()) {
            return Ok(true);
        }
    }
    packets::are_in_charge(pins, &directory)
}

/// The hooks at which this version has programs, by their names as pins.
pub(in crate::datapath::ebpf) fn hooks() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().map(|(hook, _)| hook)
}

/// The hooks whose links are not pinned in `links`, or not attached to the cgroup with this id. One that cannot be
/// asked about counts too: to attach it again says why.
pub(in crate::datapath::ebpf) fn detached(links: &Path, cgroup_id: u64) -> Vec<&'static str> {
    let is_attached = |(hook, name): &(&'static str, &'static str)| {
        existing(&links.join(hook), cgroup_id, name).is_ok_and(|link| link.is_some())
    };
    PROGRAMS.iter().filter(|program| !is_attached(program)).map(|(hook, _)| *hook).collect()
}

/// Pins again the programs that the links to this cgroup run, where they are not pinned; loads and attaches nothing.
pub(in crate::datapath::ebpf) fn pin_attached(pins: &Pins, cgroup_id: u64) -> Result<Links, ProgramsError> {
    let mut links = Links::default();
    for (hook, name) in PROGRAMS {
        if let Some(link) = existing(&pins.links.join(hook), cgroup_id, name)? {
            pin_running(&pins.programs.join(hook), link.program, name)?;
            links.kept = links.kept.saturating_add(1);
        }
    }
    Ok(links)
}

/// The ids of the programs that the links pinned in `links` run now.
pub(in crate::datapath::ebpf) fn our_programs(links: &Path) -> Vec<u32> {
    let programs = PROGRAMS.iter().filter_map(|(hook, _)| bpf::open_pin(&links.join(hook)).ok());
    programs.filter_map(|link| bpf::cgroup_link(link).ok()).map(|link| link.program).collect()
}

/// Loads an object on pinned maps of the list and on these, which are made if they are missing.
pub(in crate::datapath::ebpf) fn load_object(
    object: &[u8],
    pins: &Pins,
    btf: &Btf,
    further: &[Map],
) -> Result<Ebpf, ProgramsError> {
    if object.is_empty() {
        return Err(ProgramsError::Missing);
    }
    let mut loader = EbpfLoader::new();
    loader.btf(Some(btf));
    for map in maps::ALL.iter().chain(further) {
        let pin = pins.maps.of(map);
        if pin.exists() {
            verify(&pin, map)?;
        }
        loader.map_pin_path(map.name, pin);
    }
    loader.load(object).map_err(|error| ProgramsError::Object(Box::new(error)))
}

/// A program of one of the two kinds that a cgroup runs for sockets.
enum Hook<'a> {
    /// At calls with an address.
    Address(&'a mut CgroupSockAddr),
    /// At events in the life of a socket.
    Socket(&'a mut CgroupSock),
}

impl Hook<'_> {
    fn load(&mut self) -> Result<(), ProgramError> {
        match self {
            Self::Address(program) => program.load(),
            Self::Socket(program) => program.load(),
        }
    }

    fn info(&self) -> Result<ProgramInfo, ProgramError> {
        match self {
            Self::Address(program) => program.info(),
            Self::Socket(program) => program.info(),
        }
    }

    fn fd(&self) -> Result<&ProgramFd, ProgramError> {
        match self {
            Self::Address(program) => program.fd(),
            Self::Socket(program) => program.fd(),
        }
    }

    /// The mode must be `Single`, which passes no flags: links always allow several programs, and the kernel refuses
    /// the flag that says so with EINVAL.
    fn attach(&mut self, cgroup: &File) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
        const MODE: CgroupAttachMode = CgroupAttachMode::Single;
        Ok(match self {
            Self::Address(program) => {
                let id = program.attach(cgroup, MODE)?;
                FdLink::try_from(program.take_link(id)?)?
            }
            Self::Socket(program) => {
                let id = program.attach(cgroup, MODE)?;
                FdLink::try_from(program.take_link(id)?)?
            }
        })
    }

    fn pin(&mut self, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::Address(program) => program.pin(path)?,
            Self::Socket(program) => program.pin(path)?,
        }
        Ok(())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<Hook<'a>, ProgramsError> {
    let found = ebpf.program_mut(name).ok_or(ProgramsError::NoProgram(name))?;
    if matches!(found, Program::CgroupSock(_)) {
        return Ok(Hook::Socket(found.try_into().map_err(kernel("reading", name))?));
    }
    Ok(Hook::Address(found.try_into().map_err(kernel("reading", name))?))
}

fn list<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Iter, ProgramsError> {
    let found = ebpf.program_mut(name).ok_or(ProgramsError::NoProgram(name))?;
    found.try_into().map_err(kernel("reading", name))
}

pub(in crate::datapath::ebpf) fn accepted(
    loaded: Result<(), ProgramError>,
    name: &'static str,
) -> Result<(), ProgramsError> {
    match loaded {
        Ok(()) => Ok(()),
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            Err(ProgramsError::Refused { program: name, verifier: tail(&verifier_log.to_string()), source: io_error })
        }
        Err(error) => Err(kernel("loading", name)(error)),
    }
}

/// The last lines of the verifier's log, indented.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(VERIFIER_LINES));
    shown.map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

pub(in crate::datapath::ebpf) fn kernel<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: &'static str,
    program: &'static str,
) -> impl FnOnce(E) -> ProgramsError {
    move |error| ProgramsError::Kernel { doing, program, source: error.into() }
}

/// The pinned link, if there is one at this cgroup; the kernel shows cgroup 0 once the directory was removed.
fn existing(pin: &Path, cgroup_id: u64, name: &'static str) -> Result<Option<bpf::CgroupLink>, ProgramsError> {
    let link = match bpf::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(kernel("opening the link of", name)(error)),
    };
    let link = bpf::cgroup_link(link).map_err(kernel("asking about the link of", name))?;
    Ok((link.cgroup == cgroup_id).then_some(link))
}

fn runs_as(running: u32, program: &Hook<'_>, name: &'static str) -> Result<bool, ProgramsError> {
    let new = program.info().map_err(kernel("asking about", name))?;
    is_same(running, &new, name, &BTreeSet::new())
}

/// Whether the running program has the same instructions (the kernel's tag) as the one just loaded, and reads the same
/// maps, of which the tag says nothing: after a change of the tables the same code may run on those of another version.
/// `own`: maps that the new program alone has, since nothing in them outlives it.
pub(in crate::datapath::ebpf) fn is_same(
    running: u32,
    new: &ProgramInfo,
    name: &'static str,
    own: &BTreeSet<u32>,
) -> Result<bool, ProgramsError> {
    let Some(old) = loaded_programs().filter_map(Result::ok).find(|found| found.id() == running) else {
        return Ok(false);
    };
    let (held, wanted) = (map_ids(&old, name)?, map_ids(new, name)?);
    Ok(old.tag() == new.tag() && wanted.difference(own).all(|map| held.contains(map)))
}

pub(in crate::datapath::ebpf) fn map_ids(
    program: &ProgramInfo,
    name: &'static str,
) -> Result<BTreeSet<u32>, ProgramsError> {
    let ids = program.map_ids().map_err(kernel("asking about the maps of", name))?;
    Ok(ids.unwrap_or_default().into_iter().collect())
}

fn replace(pin: &Path, program: &Hook<'_>, name: &'static str) -> Result<(), ProgramsError> {
    let link = bpf::open_pin(pin).map_err(kernel("opening the link of", name))?;
    let fd = program.fd().map_err(kernel("asking about", name))?;
    bpf::replace_program(link, fd).map_err(kernel("switching the link to", name))
}

/// Attaches and pins; a pin of a link to another cgroup is replaced only once the new link is in effect.
fn attach(pin: &Path, cgroup: &File, program: &mut Hook<'_>, name: &'static str) -> Result<(), ProgramsError> {
    let link = program.attach(cgroup).map_err(kernel("attaching", name))?;
    // Not an extension: bpffs refuses names with a dot, with EPERM.
    let fresh = pin.with_file_name(format!("{name}-new"));
    remove(&fresh, name)?;
    let pinned = link.pin(&fresh).map_err(kernel("pinning the link of", name))?;
    drop(pinned);
    std::fs::rename(&fresh, pin).map_err(kernel("pinning the link of", name))
}

fn pin_program(pin: &Path, program: &mut Hook<'_>, name: &'static str) -> Result<(), ProgramsError> {
    remove(pin, name)?;
    program.pin(pin).map_err(kernel("pinning", name))
}

/// Pins the program with this id, unless something is pinned there.
fn pin_running(pin: &Path, id: u32, name: &'static str) -> Result<(), ProgramsError> {
    if pin.exists() {
        return Ok(());
    }
    let running = loaded_programs().filter_map(Result::ok).find(|found| found.id() == id);
    let running = running.ok_or(ProgramsError::NotListed { program: name, id })?;
    let fd = running.fd().map_err(kernel("opening", name))?;
    bpf::pin(&fd, pin).map_err(kernel("pinning", name))
}

pub(in crate::datapath::ebpf) fn remove(pin: &Path, name: &'static str) -> Result<(), ProgramsError> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(kernel("removing the old pin of", name)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_verifier_log_is_shown() {
        let log: String = (0..100).map(|line| format!("{line}: (85) call\n\n")).collect();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), VERIFIER_LINES);
        assert!(shown.ends_with("    99: (85) call"));
    }
}
