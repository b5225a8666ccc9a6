//! This data path behind the door: it opens it, and removes what it has installed.

use std::collections::BTreeSet;
use std::sync::Arc;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use shunt_model::Family;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::collection::word;
use super::disturbance::Listener;
use super::installed::{Installed, Maker};
use super::nft::{Nft, NftError};
use super::probe::{self, checks};
use super::script::{self, TABLE};
use super::{Nftables, foreign, is_missing};
use crate::datapath::handover::Retired;
use crate::datapath::packets::conntrack;
use crate::datapath::{Check, Looking, OpenedPart, Options, RemoveError, Removed, Report};
use crate::host::netlink::{Netlink, push_attribute};

/// Why the data path cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum NftablesOpenError {
    /// The command is missing.
    #[error("{}", probe::NO_COMMAND)]
    NoCommand,
    /// It does not work.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Its answer is not understood.
    #[error("understanding what nft lists")]
    Listing(#[from] serde_json::Error),
    /// The kernel does not tell of changes.
    #[error("listening to the kernel's reports of nftables changes")]
    Listen(#[source] std::io::Error),
    /// A table of our name is somebody else's.
    #[error("{0}")]
    Foreign(String),
    /// A table is to be removed, and the command is missing.
    #[error(
        "the table {0} shunt is there and the command nft is not: install the package nftables and run this again, or \
         reboot the node"
    )]
    Stays(&'static str),
}

/// Checks everything that [`open`] needs.
pub(in crate::datapath) fn probe(options: &Options) -> Vec<Check> {
    checks(options)
}

/// Finds the command and looks at what an earlier daemon left. The first sync adopts it.
pub(in crate::datapath) fn open(options: &Options, disturbed: &Arc<Notify>) -> Result<OpenedPart, NftablesOpenError> {
    let nft = Nft::find().ok_or(NftablesOpenError::NoCommand)?;
    let families = probe::look(&nft, options)?.families;
    // Before anything is read, so that no change is missed.
    let listener = Listener::open(nft.ours(), Arc::clone(disturbed)).map_err(NftablesOpenError::Listen)?;
    let mut tables = BTreeSet::new();
    for family in &families {
        let Some(listing) = list(&nft, *family)? else { continue };
        match listing.tables.get(family) {
            Some(Maker::Foreign) => return Err(NftablesOpenError::Foreign(foreign(*family))),
            Some(Maker::Us | Maker::OtherVersion) | None => tables.insert(word(*family)),
        };
    }
    let adopted = match tables.is_empty() {
        true => "no nftables table of an earlier daemon".to_owned(),
        false => format!("nftables tables of an earlier daemon: {}", Vec::from_iter(tables).join(" and ")),
    };
    let (reports, report) = watch::channel(Report { checked: true, ..Report::default() });
    let path = Nftables::new(nft, options.packets, families, listener.disturbances(), reports);
    let beside = Box::new(|stop| Handle::current().block_on(listener.run(stop)));
    Ok(OpenedPart {
        path: Box::new(path),
        adopted,
        reports: vec![report],
        looking: Looking::default(),
        beside: vec![beside],
    })
}

/// What there is of a table, without the elements of its sets; `None` if there is none.
fn list(nft: &Nft, family: Family) -> Result<Option<Installed>, NftablesOpenError> {
    match nft.run(&["-j", "-t", "list", "table", word(family), TABLE], "") {
        Ok(listing) => {
            let mut installed = Installed::default();
            installed.add(family, &listing)?;
            Ok(Some(installed))
        }
        Err(NftError::Refused { reason, .. }) if is_missing(&reason) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What rules leave where programs serve packets in their place, our own rules and those of others. While conntrack has
/// flows that rules began, each family has a table of ours that keeps the kernel translating them: without a chain of
/// its type it does so no more. Once these flows have ended nothing is left.
pub(in crate::datapath) fn retire() -> Result<Retired, RemoveError> {
    let failed = |source: NftablesOpenError| RemoveError { what: "nftables tables", source: source.into() };
    let unread = |source: std::io::Error| RemoveError { what: "nftables tables", source: source.into() };
    let [v4, v6] = Family::BOTH.map(conntrack::translated_connections);
    let flows = [v4.map_err(unread)?, v6.map_err(unread)?];
    if flows == [0, 0] {
        return remove().map(Retired::Gone);
    }
    let Some(nft) = Nft::find() else { return without_command().map(|()| Retired::Gone(Vec::new())).map_err(failed) };
    for (family, flows) in Family::BOTH.into_iter().zip(flows) {
        let listing = list(&nft, family).map_err(failed)?;
        let maker = listing.as_ref().and_then(|listing| listing.tables.get(&family));
        let may = match maker {
            None => flows > 0,
            Some(Maker::Us | Maker::OtherVersion) => true,
            Some(Maker::Foreign) => false,
        };
        if may && !listing.is_some_and(|listing| listing.is_retired(family)) {
            nft.run(&["-f", "-"], &script::retired(family)).map_err(|error| failed(error.into()))?;
        }
    }
    Ok(Retired::Waits(flows.into_iter().sum()))
}

/// Removes our tables.
pub(in crate::datapath) fn remove() -> Result<Vec<Removed>, RemoveError> {
    let failed = |source: NftablesOpenError| RemoveError { what: "nftables tables", source: source.into() };
    let Some(nft) = Nft::find() else { return without_command().map(|()| Vec::new()).map_err(failed) };
    let mut removed = Vec::new();
    for family in Family::BOTH {
        let ip = word(family);
        let Some(listing) = list(&nft, family).map_err(failed)? else { continue };
        match listing.tables.get(&family) {
            Some(Maker::Us | Maker::OtherVersion) => {
                nft.run(&["delete", "table", ip, TABLE], "").map_err(|error| failed(error.into()))?;
                removed.push(format!("{ip} {TABLE}"));
            }
            Some(Maker::Foreign) | None => {}
        }
    }
    let place = format!("({})", removed.join(", "));
    let tables = Removed { count: removed.len(), what: "nftables tables", place };
    Ok(Some(tables).filter(|tables| tables.count > 0).into_iter().collect())
}

/// The command may be in another place than the daemon was: the kernel knows whether there is something to remove.
pub(super) fn without_command() -> Result<(), NftablesOpenError> {
    match Family::BOTH.into_iter().find(|family| has_table(*family)) {
        Some(family) => Err(NftablesOpenError::Stays(word(family))),
        None => Ok(()),
    }
}

/// Whether the kernel has a table of our name. One without nftables has none.
fn has_table(family: Family) -> bool {
    /// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`
    const GET_TABLE: u16 = 10 << 8 | 1;
    const NFTA_TABLE_NAME: u16 = 1;
    let protocol = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // `struct nfgenmsg`
    let mut request = vec![u8::try_from(protocol).unwrap_or_default(), 0, 0, 0];
    push_attribute(&mut request, NFTA_TABLE_NAME, &[TABLE.as_bytes(), b"\0"].concat());
    let asked = Netlink::open(NETLINK_NETFILTER).and_then(|mut kernel| kernel.get(GET_TABLE, &request, |_| Ok(())));
    asked.is_ok_and(|found| found.is_some())
}
