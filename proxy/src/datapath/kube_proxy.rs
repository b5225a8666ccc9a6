//! What kube-proxy leaves on a node when it stops, and its removal: rules of iptables and nftables, address sets, the
//! interface of its IPVS mode (SY-15). Connections that are up go on, since conntrack keeps what was decided for them.

mod process;
mod retiring;
mod rules;
mod tools;

use std::path::Path;

use self::rules::Forward;
use super::{RemoveError, Removed};
use crate::host::netlink::links;

pub use self::process::running;
pub(super) use self::retiring::Retiring;

/// kube-proxy makes it in IPVS mode, and gives it the addresses of all Services.
const IPVS_INTERFACE: &str = "kube-ipvs0";
/// The families, as `nft` calls them.
const NFTABLES: [&str; 2] = ["ip", "ip6"];
const NFT_TABLE: &str = "kube-proxy";
const SETS: &str = "KUBE-";

/// What a removal came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// What is gone.
    pub removed: Vec<Removed>,
    /// What stays on purpose, each with what to do.
    pub kept: Vec<String>,
}

/// Removes what kube-proxy has left in the present network namespace. Missing tools are no error, and a failure does
/// not keep it from the rest. What the kubelet has made stays.
pub fn remove() -> Result<Retired, RemoveError> {
    let (mut retired, mut failures) = (Retired::default(), Vec::new());
    let mut note = |outcome: Result<(), tools::ToolError>| {
        failures.extend(outcome.err().map(|error| shunt_model::with_causes(&error)));
    };
    let variants = tools::variants();
    let mut tables = String::new();
    note(tools::nft_tables().map(|listed| tables = listed));
    let forward = match served_by_nftables(&tables) {
        true => Forward::KeepWhereDropped,
        false => Forward::Remove,
    };
    for variant in &variants {
        note(remove_rules(variant, forward, &mut retired));
    }
    note(remove_tables(&tables, &mut retired.removed));
    // Rules name them, so they go last.
    note(remove_sets(&variants, &mut retired.removed));
    note(remove_interface(&mut retired.removed));
    if failures.is_empty() {
        return Ok(retired);
    }
    Err(RemoveError { what: "what kube-proxy left", source: failures.join("; ").into() })
}

/// What rules of nftables cannot accept since iptables drops it, for each chain that does (TP-45); changes nothing.
#[must_use]
pub fn drops_of_iptables() -> Vec<String> {
    let variants = tools::variants().into_iter();
    let dropping = variants.filter(|variant| variant.save().is_ok_and(|saved| rules::drops_forwarded(&saved)));
    dropping.map(|variant| dropped(&variant)).collect()
}

/// What may drop packets that programs have translated although it accepts those that rules have; changes nothing.
pub(super) fn drops_of_untracked() -> Vec<String> {
    let variants = tools::variants().into_iter();
    let dropping = variants.filter(|variant| variant.save().is_ok_and(|saved| rules::has_policy_drop(&saved)));
    let mut drops: Vec<String> = dropping
        .map(|variant| {
            format!(
                "the FORWARD chain of {variant} drops what it does not accept, and it knows packets to Services by a \
                 mark, or as translated by the kernel"
            )
        })
        .collect();
    if tools::nft_tables().is_ok_and(|tables| has_table(&tables, "inet", "firewalld")) {
        drops.push(
            "firewalld drops what it does not accept, and it knows packets to Services as translated by the kernel"
                .to_owned(),
        );
    }
    drops
}

fn dropped(variant: &tools::Variant) -> String {
    format!(
        "the FORWARD chain of iptables drops what it does not accept: rules of nftables cannot accept packets to \
         Services for it ({variant}); let your firewall accept packets that carry the masquerade mark and those of \
         connections that are up, or take --proxy-mode iptables"
    )
}

fn served_by_nftables(tables: &str) -> bool {
    NFTABLES.iter().any(|family| has_table(tables, family, "shunt"))
}

fn has_table(tables: &str, family: &str, name: &str) -> bool {
    tables.lines().any(|line| line.split_whitespace().eq(["table", family, name]))
}

fn remove_rules(variant: &tools::Variant, forward: Forward, retired: &mut Retired) -> Result<(), tools::ToolError> {
    let saved = variant.save()?;
    if rules::keeps_forward(&saved, forward) {
        retired.kept.push(format!(
            "the chain KUBE-FORWARD of {variant} stays: its chain FORWARD drops what it does not accept, and rules of \
             nftables cannot accept it; `shunt check` says what to do"
        ));
    }
    let removals = rules::removals(&saved, forward);
    if removals.is_empty() {
        return Ok(());
    }
    let script: String = removals.iter().map(|removal| removal.script.as_str()).collect();
    variant.restore(&script)?;
    retired.removed.extend(removals.into_iter().map(|removal| Removed {
        count: removal.chains,
        what: "chains of kube-proxy",
        place: format!("in table {} of {variant}", removal.table),
    }));
    Ok(())
}

fn remove_tables(listed: &str, removed: &mut Vec<Removed>) -> Result<(), tools::ToolError> {
    for family in NFTABLES.into_iter().filter(|family| has_table(listed, family, NFT_TABLE)) {
        tools::call("nft", &["delete", "table", family, NFT_TABLE])?;
        let place = format!("{family} {NFT_TABLE} of nftables");
        removed.push(Removed { count: 1, what: "table", place });
    }
    Ok(())
}

/// Those that rules of others still name stay.
fn remove_sets(variants: &[tools::Variant], removed: &mut Vec<Removed>) -> Result<(), tools::ToolError> {
    // `ipset` fails where the kernel has no sets. The module has this folder when it is built in, too.
    if Path::new("/sys/module").exists() && !Path::new("/sys/module/ip_set").exists() {
        return Ok(());
    }
    let listed = tools::call("ipset", &["list", "-name"])?;
    let sets: Vec<&str> = listed.lines().map(str::trim).filter(|name| name.starts_with(SETS)).collect();
    if sets.is_empty() {
        return Ok(());
    }
    let saved = variants.iter().map(tools::Variant::save).collect::<Result<String, _>>()?;
    let mut count = 0_usize;
    for set in sets.into_iter().filter(|set| !saved.split_whitespace().any(|word| word == *set)) {
        tools::call("ipset", &["destroy", set])?;
        count = count.saturating_add(1);
    }
    let gone = Removed { count, what: "sets of kube-proxy", place: "in ipset".to_owned() };
    removed.extend((count > 0).then_some(gone));
    Ok(())
}

fn remove_interface(removed: &mut Vec<Removed>) -> Result<(), tools::ToolError> {
    let gone = links::remove(IPVS_INTERFACE).map_err(|source| tools::ToolError::Interface { source })?;
    let interface = Removed { count: 1, what: "interface", place: IPVS_INTERFACE.to_owned() };
    removed.extend(gone.then_some(interface));
    Ok(())
}
