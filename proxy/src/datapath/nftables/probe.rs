//! What this host offers to the nftables data path, found out by trying and without changing anything.

use std::collections::BTreeSet;

use shunt_model::{Family, with_causes};

use super::Rendering;
use super::collection::Collection;
use super::difference::{Change, Image};
use super::installed::Installed;
use super::nft::{Nft, NftError};
use super::script::{Around, Script};
use crate::datapath::{Check, CheckState, Options};
use crate::plan::Plan;

/// What to do without the command.
pub(super) const NO_COMMAND: &str = "no command nft in PATH, /usr/sbin or /sbin: install the package nftables";

/// Checks everything that opening needs.
pub(super) fn checks(options: &Options) -> Vec<Check> {
    const NAME: &str = "nftables";
    let check = |state, detail| vec![Check { name: NAME, state, detail }];
    let Some(nft) = Nft::find() else { return check(CheckState::Missing, NO_COMMAND.to_owned()) };
    match families(&nft, options) {
        Ok(families) if families.contains(&Family::V6) => {
            check(CheckState::Ok, format!("{}, both families", nft.file().display()))
        }
        Ok(_) => check(CheckState::Ok, format!("{}, IPv4 only", nft.file().display())),
        Err(error) => check(CheckState::Missing, with_causes(&error)),
    }
}

/// The families whose rules the kernel takes; an error if it takes none for IPv4.
pub(super) fn families(nft: &Nft, options: &Options) -> Result<BTreeSet<Family>, NftError> {
    nft.check(&sample(Family::V4, options))?;
    let mut families = BTreeSet::from([Family::V4]);
    if nft.check(&sample(Family::V6, options)).is_ok() {
        families.insert(Family::V6);
    }
    Ok(families)
}

/// A rule set with all that ours is made of.
fn sample(family: Family, options: &Options) -> String {
    let families = BTreeSet::from([family]);
    let plan = Plan::default();
    let rendering = Rendering::of(&plan, options.packets, &families);
    let (image, _) = Image::of(&plan, &rendering);
    let collections = Collection::all().map(|collection| (family, collection)).collect();
    let around = Around { tables: vec![family], collections, ..Around::default() };
    Script::of(&Change::from_installed(&Installed::default(), image), &around).text
}
