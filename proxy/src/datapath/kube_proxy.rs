//! What kube-proxy leaves on a node when it stops, and its removal: rules of iptables and nftables, address sets, the
//! interface of its IPVS mode (SY-15). Connections that are up go on, since conntrack keeps what was decided for them.

mod process;
mod retiring;
mod rules;
mod tools;

use super::{RemoveError, Removed};
use crate::host::netlink::links;

pub use self::process::running;
pub(super) use self::retiring::Retiring;

/// kube-proxy makes it in IPVS mode, and gives it the addresses of all Services.
const IPVS_INTERFACE: &str = "kube-ipvs0";
/// Both families, as `iptables` calls them.
const IPTABLES: [&str; 2] = ["iptables", "ip6tables"];
/// As `nft` calls them.
const NFTABLES: [&str; 2] = ["ip", "ip6"];
const NFT_TABLE: &str = "kube-proxy";
const SETS: &str = "KUBE-";

/// Removes what kube-proxy has left in the present network namespace. Missing tools are no error, and a failure does
/// not keep it from the rest. What the kubelet has made stays.
pub fn remove() -> Result<Vec<Removed>, RemoveError> {
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    let mut note = |outcome: Result<Vec<Removed>, tools::ToolError>| match outcome {
        Ok(done) => removed.extend(done),
        Err(error) => failures.push(shunt_model::with_causes(&error)),
    };
    for family in IPTABLES {
        for variant in tools::variants(family) {
            note(remove_rules(&variant));
        }
    }
    note(remove_tables());
    // Rules name them, so they go last.
    note(remove_sets());
    note(remove_interface());
    if failures.is_empty() {
        return Ok(removed);
    }
    Err(RemoveError { what: "what kube-proxy left", source: failures.join("; ").into() })
}

fn remove_rules(variant: &tools::Variant) -> Result<Vec<Removed>, tools::ToolError> {
    let saved = variant.save()?;
    let removals = rules::removals(&saved);
    if removals.is_empty() {
        return Ok(Vec::new());
    }
    let script: String = removals.iter().map(|removal| removal.script.as_str()).collect();
    variant.restore(&script)?;
    let removed = removals.into_iter().map(|removal| Removed {
        count: removal.chains,
        what: "chains of kube-proxy",
        place: format!("in table {} of {variant}", removal.table),
    });
    Ok(removed.collect())
}

fn remove_tables() -> Result<Vec<Removed>, tools::ToolError> {
    let Some(listed) = tools::run("nft", &["list", "tables"], "")? else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for family in NFTABLES {
        if listed.lines().any(|line| line.split_whitespace().eq(["table", family, NFT_TABLE])) {
            tools::run("nft", &["delete", "table", family, NFT_TABLE], "")?;
            let place = format!("{family} {NFT_TABLE} of nftables");
            removed.push(Removed { count: 1, what: "table", place });
        }
    }
    Ok(removed)
}

fn remove_sets() -> Result<Vec<Removed>, tools::ToolError> {
    let Some(listed) = tools::run("ipset", &["list", "-name"], "")? else { return Ok(Vec::new()) };
    let mut count = 0_usize;
    for set in listed.lines().map(str::trim).filter(|name| name.starts_with(SETS)) {
        tools::run("ipset", &["destroy", set], "")?;
        count = count.saturating_add(1);
    }
    let removed = Removed { count, what: "sets of kube-proxy", place: "in ipset".to_owned() };
    Ok((count > 0).then_some(removed).into_iter().collect())
}

fn remove_interface() -> Result<Vec<Removed>, tools::ToolError> {
    let gone = links::remove(IPVS_INTERFACE).map_err(|source| tools::ToolError::Interface { source })?;
    let removed = Removed { count: 1, what: "interface", place: IPVS_INTERFACE.to_owned() };
    Ok(gone.then_some(removed).into_iter().collect())
}
