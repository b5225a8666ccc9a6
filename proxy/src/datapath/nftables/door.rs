//! This data path behind the door: it opens it, and removes what it has installed.

use std::collections::BTreeSet;
use std::sync::Arc;

use shunt_model::Family;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::collection::word;
use super::disturbance::Listener;
use super::installed::{Installed, Maker};
use super::nft::{Nft, NftError};
use super::probe::{self, checks};
use super::script::TABLE;
use super::{Nftables, foreign, is_missing};
use crate::datapath::{Check, OpenedPart, Options, RemoveError, Removed, Report};

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
    Ok(OpenedPart { path: Box::new(path), adopted, report, beside: vec![beside] })
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

/// Removes our tables.
pub(in crate::datapath) fn remove() -> Result<Vec<Removed>, RemoveError> {
    let failed = |source: NftablesOpenError| RemoveError { what: "nftables tables", source: source.into() };
    // Without the command nothing of ours is there.
    let Some(nft) = Nft::find() else { return Ok(Vec::new()) };
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
