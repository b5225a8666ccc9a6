//! Two ways to attach a program to a device: a TCX link, which is pinned, and a filter of clsact, which stays as it is.
//!
//! Programs of TCX run before those of clsact. With either way ours is the first of its kind where packets come in, and
//! the last where they leave: others see client and endpoint.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, tc};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::PROGRAMS;
use crate::host::netlink::Netlink;
use crate::host::netlink::filters::{self, Filter, Parent};
use crate::host::netlink::links;
use crate::sys::bpf;

/// The handle of our filters, by which one is replaced in place.
const HANDLE: TcHandle = TcHandle::new(0, 0x5348);

/// Where packets pass a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// They come in.
    Ingress,
    /// They leave.
    Egress,
}

impl Direction {
    /// What translates answers is attached before what translates calls.
    pub(super) const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn of_aya(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    const fn parent(self) -> Parent {
        match self {
            Self::Ingress => Parent::Ingress,
            Self::Egress => Parent::Egress,
        }
    }

    /// Before all others, or after them.
    fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::first(),
            Self::Egress => LinkOrder::last(),
        }
    }

    /// The same of filters: the lowest number is the first.
    const fn priority(self) -> u16 {
        match self {
            Self::Ingress => 1,
            Self::Egress => u16::MAX,
        }
    }
}

/// One place of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) index: u32,
    pub(super) device: String,
    pub(super) direction: Direction,
}

impl fmt::Display for Hook {
    /// `the ingress of eth0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} of {}", self.direction.as_str(), self.device)
    }
}

/// A program cannot be attached to a device, or not detached.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum AttachError {
    /// The kernel does not know this way.
    #[error("this kernel has no TCX (6.6)")]
    NoTcx,
    /// aya or the kernel.
    #[error("attaching the program to {hook}")]
    Program {
        /// Where.
        hook: String,
        /// What was said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another call.
    #[error("{doing} {hook}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// Where.
        hook: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A way to attach programs.
pub(super) trait Way: fmt::Debug + Send {
    /// The id of the program of ours that runs at a place, if one does.
    fn running(&mut self, hook: &Hook) -> Result<Option<u32>, AttachError>;
    /// Attaches where none of ours runs.
    fn attach(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError>;
    /// Lets another program run where one of ours does, with no moment without one.
    fn replace(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError>;
    /// The programs of others that run on the wrong side of ours: before it where packets come in, behind it where they
    /// leave.
    fn misplaced(&mut self, hook: &Hook, own: u32) -> Result<Vec<u32>, AttachError>;
    /// Detaches, if one of ours runs there.
    fn detach(&mut self, hook: &Hook) -> Result<(), AttachError>;
}

/// By links, pinned in a directory by the indices of devices, which no later device has.
#[derive(Debug)]
pub(super) struct Tcx {
    pub(super) links: PathBuf,
}

impl Tcx {
    fn pin(&self, hook: &Hook) -> PathBuf {
        self.links.join(format!("{}-{}", hook.index, hook.direction.as_str()))
    }

    /// Removes the pins of all devices that are not `wanted`. Returns how many that were.
    pub(super) fn remove_others(&self, wanted: impl Fn(u32) -> bool) -> io::Result<usize> {
        let mut removed = 0_usize;
        for entry in std::fs::read_dir(&self.links)? {
            let name = entry?.file_name();
            let index = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
            if !index.is_some_and(&wanted) {
                remove(&self.links.join(name))?;
                removed = removed.saturating_add(1);
            }
        }
        Ok(removed)
    }
}

impl Way for Tcx {
    fn running(&mut self, hook: &Hook) -> Result<Option<u32>, AttachError> {
        let failed = failed("asking about the link at", hook);
        let link = match bpf::open_pin(&self.pin(hook)) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let link = bpf::device_link(link).map_err(failed)?;
        Ok((link.device == hook.index).then_some(link.program))
    }

    /// The pin is replaced only once the new link is in effect.
    fn attach(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError> {
        let order = TcAttachOptions::TcxOrder(hook.direction.order());
        let id = match program.attach_with_options(&hook.device, hook.direction.of_aya(), order) {
            Err(ProgramError::SyscallError(error)) if is_unknown(&error.io_error) => return Err(AttachError::NoTcx),
            attached => attached.map_err(program_failed(hook))?,
        };
        let link = FdLink::try_from(program.take_link(id).map_err(program_failed(hook))?);
        let pin = self.pin(hook);
        let fresh = pin.with_file_name(format!("{}-new", hook.index));
        remove(&fresh).map_err(failed("removing an old pin of", hook))?;
        let pinned = link.map_err(program_failed(hook))?.pin(&fresh).map_err(program_failed(hook))?;
        drop(pinned);
        std::fs::rename(&fresh, &pin).map_err(failed("pinning the link at", hook))
    }

    fn replace(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError> {
        let failed = failed("switching the link at", hook);
        let link = bpf::open_pin(&self.pin(hook)).map_err(&failed)?;
        let program = program.fd().map_err(program_failed(hook))?;
        bpf::replace_program(link, program).map_err(failed)
    }

    fn misplaced(&mut self, hook: &Hook, own: u32) -> Result<Vec<u32>, AttachError> {
        let queried = SchedClassifier::query_tcx(&hook.device, hook.direction.of_aya());
        let (_, programs) = queried.map_err(program_failed(hook))?;
        let ids: Vec<u32> = programs.iter().map(ProgramInfo::id).collect();
        let Some(place) = ids.iter().position(|id| *id == own) else { return Ok(Vec::new()) };
        let (before, behind) = ids.split_at(place);
        Ok(match hook.direction {
            Direction::Ingress => before.to_vec(),
            Direction::Egress => behind.iter().copied().filter(|id| *id != own).collect(),
        })
    }

    fn detach(&mut self, hook: &Hook) -> Result<(), AttachError> {
        remove(&self.pin(hook)).map_err(failed("removing the link at", hook))
    }
}

/// The error of an attach type that the kernel does not know.
fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| [libc::EINVAL, libc::EOPNOTSUPP].contains(&code))
}

/// By filters. The kernel keeps them as long as the device.
#[derive(Debug)]
pub(super) struct Clsact {
    netlink: Netlink,
}

impl Clsact {
    /// In the calling thread's network namespace, which must also be that of the later calls.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open(NETLINK_ROUTE)? })
    }

    /// Whether others have filters at a place.
    pub(super) fn has_foreign(&mut self, hook: &Hook) -> Result<bool, AttachError> {
        Ok(self.filters(hook)?.iter().any(|filter| !is_ours(filter)))
    }

    fn filters(&mut self, hook: &Hook) -> Result<Vec<Filter>, AttachError> {
        let filters = filters::list(&mut self.netlink, hook.index, hook.direction.parent());
        filters.map_err(failed("listing the filters at", hook))
    }
}

fn is_ours(filter: &Filter) -> bool {
    filter.program.is_some() && PROGRAMS.contains(&filter.name.as_str())
}

impl Way for Clsact {
    fn running(&mut self, hook: &Hook) -> Result<Option<u32>, AttachError> {
        Ok(self.filters(hook)?.iter().find(|filter| is_ours(filter)).and_then(|filter| filter.program))
    }

    fn attach(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError> {
        // One that is there already will do; if there is none at all, the filter says so.
        if let Err(error) = qdisc_add_clsact(&hook.device) {
            tracing::debug!(%hook, %error, "clsact is not added");
        }
        let options = NlOptions { priority: hook.direction.priority(), handle: HANDLE, classid: None };
        let options = TcAttachOptions::Netlink(options);
        let attached = program.attach_with_options(&hook.device, hook.direction.of_aya(), options);
        leave(program, attached, hook)
    }

    fn replace(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), AttachError> {
        let (direction, priority) = (hook.direction.of_aya(), hook.direction.priority());
        let link = SchedClassifierLink::attached(&hook.device, direction, priority, HANDLE, None);
        let replaced = program.attach_to_link(link.map_err(failed("finding the filter at", hook))?);
        leave(program, replaced, hook)
    }

    /// The numbers of filters are their order, whenever they come.
    fn misplaced(&mut self, _hook: &Hook, _own: u32) -> Result<Vec<u32>, AttachError> {
        Ok(Vec::new())
    }

    fn detach(&mut self, hook: &Hook) -> Result<(), AttachError> {
        let filters = self.filters(hook)?;
        let ours = filters.iter().filter(|filter| is_ours(filter)).map(|filter| filter.name.as_str());
        for name in ours.collect::<BTreeSet<_>>() {
            let detached = tc::qdisc_detach_program(&hook.device, hook.direction.of_aya(), name);
            detached.map_err(program_failed(hook))?;
        }
        filters::remove_empty_clsact(&mut self.netlink, hook.index).map_err(failed("removing clsact from", hook))
    }
}

/// Leaves a filter in the kernel: aya would remove it when the daemon ends.
fn leave(
    program: &mut SchedClassifier,
    attached: Result<tc::SchedClassifierLinkId, ProgramError>,
    hook: &Hook,
) -> Result<(), AttachError> {
    let id = attached.map_err(program_failed(hook))?;
    std::mem::forget(program.take_link(id).map_err(program_failed(hook))?);
    Ok(())
}

fn failed(doing: &'static str, hook: &Hook) -> impl Fn(io::Error) -> AttachError + use<> {
    let hook = hook.to_string();
    move |source| AttachError::Kernel { doing, hook: hook.clone(), source }
}

fn program_failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    hook: &Hook,
) -> impl FnOnce(E) -> AttachError + use<E> {
    let hook = hook.to_string();
    move |source| AttachError::Program { hook, source: source.into() }
}

/// Removes a pin, if it is there.
fn remove(pin: &Path) -> io::Result<()> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes our filters from all devices of the calling thread's network namespace. Returns how many that were.
pub(super) fn remove_filters() -> io::Result<usize> {
    let mut clsact = Clsact::open()?;
    let mut removed = 0_usize;
    for link in links::list(&mut clsact.netlink)? {
        for direction in Direction::ALL {
            let hook = Hook { index: link.index, device: link.name.clone(), direction };
            if clsact.running(&hook).map_err(io::Error::other)?.is_some() {
                clsact.detach(&hook).map_err(io::Error::other)?;
                removed = removed.saturating_add(1);
            }
        }
    }
    Ok(removed)
}
