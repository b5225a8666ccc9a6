//! The BPF programs that hang on interfaces as filters of the queueing discipline clsact.

use std::io;

use super::{Netlink, attribute, push_attribute};

const RTM_DELQDISC: u16 = 37;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// `struct tcmsg`: family, index, handle, parent, priority with protocol.
const MESSAGE: usize = 20;
/// `TC_H_CLSACT`, which stands for the discipline; its two places have numbers of their own.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// A place of clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Packets that come in.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl Parent {
    const fn number(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    /// The name that was given with a program; empty for filters of other kinds.
    pub(crate) name: String,
    /// The id of the program, if the filter is one.
    pub(crate) program: Option<u32>,
}

/// The filters at a place of an interface, in their order; none where there is no clsact.
pub(crate) fn list(netlink: &mut Netlink, interface: u32, parent: Parent) -> io::Result<Vec<Filter>> {
    // A kernel without filters has none.
    match netlink.dump(RTM_GETTFILTER, &message(interface, 0, parent.number()), |entry| Ok(read(entry))) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        found => found,
    }
}

/// Removes clsact from an interface, if no filter is at it: what made it cannot be known. One that has come meanwhile
/// goes too, for which the kernel has no remedy.
pub(crate) fn remove_empty_clsact(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    for parent in [Parent::Ingress, Parent::Egress] {
        if !list(netlink, interface, parent)?.is_empty() {
            return Ok(());
        }
    }
    let mut request = message(interface, CLSACT_HANDLE, CLSACT);
    push_attribute(&mut request, TCA_KIND, b"clsact\0");
    const GONE: [i32; 3] = [libc::ENOENT, libc::EINVAL, libc::ENODEV];
    match netlink.order(RTM_DELQDISC, &request) {
        Err(error) if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) => Ok(()),
        done => done,
    }
}

fn message(interface: u32, handle: u32, parent: u32) -> Vec<u8> {
    let mut request = vec![0; 4];
    for word in [interface, handle, parent, 0] {
        request.extend(word.to_ne_bytes());
    }
    request
}

/// Reads an entry; the kernel also lists the heads of priorities, which have no handle.
fn read(entry: &[u8]) -> Option<Filter> {
    let word = |at: usize| Some(u32::from_ne_bytes(*entry.get(at..)?.first_chunk()?));
    let (handle, priority) = (word(8)?, word(16)? >> 16);
    if handle == 0 {
        return None;
    }
    let options = entry.get(MESSAGE..).and_then(|rest| attribute(rest, TCA_OPTIONS)).unwrap_or_default();
    let name = attribute(options, TCA_BPF_NAME).map(|name| name.strip_suffix(&[0]).unwrap_or(name)).unwrap_or_default();
    let program = attribute(options, TCA_BPF_ID).and_then(|id| id.first_chunk()).map(|id| u32::from_ne_bytes(*id));
    let name = String::from_utf8_lossy(name).into_owned();
    Some(Filter { priority: u16::try_from(priority).ok()?, handle, name, program })
}
