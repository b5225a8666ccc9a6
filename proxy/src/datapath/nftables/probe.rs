//! What this host offers to the nftables data path, found out by trying and without changing anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, ObjectKey, Protocol, with_causes};

use super::Rendering;
use super::collection::Collection;
use super::difference::{Change, Image};
use super::installed::Installed;
use super::nft::{Nft, NftError};
use super::script::{Around, Script, TABLE};
use crate::datapath::{Check, CheckState, Options};
use crate::plan::{
    Empty, EmptyAtSocket, Endpoint, Frontend, FrontendKind, List, Plan, PortKey, PortPlan, Rule, SourceRanges,
};

/// What to do without the command.
pub(super) const NO_COMMAND: &str = "no command nft in PATH, /usr/sbin or /sbin: install the package nftables";
/// The first version that reads what we write and whose listing we read.
const OLDEST: [u32; 3] = [1, 0, 1];

/// What serves, by family.
pub(super) struct Found {
    pub(super) families: BTreeSet<Family>,
    /// Why there is no IPv6.
    without_v6: Option<String>,
    version: String,
}

/// Checks everything that opening needs.
pub(super) fn checks(options: &Options) -> Vec<Check> {
    const NAME: &str = "nftables";
    let check = |state, detail| vec![Check { name: NAME, state, detail }];
    let Some(nft) = Nft::find() else { return check(CheckState::Missing, NO_COMMAND.to_owned()) };
    let file = nft.file().display().to_string();
    match look(&nft, options) {
        Ok(Found { without_v6: None, version, families: _ }) => {
            check(CheckState::Ok, format!("{file} {version}; the kernel takes all rules, for IPv4 and IPv6"))
        }
        Ok(Found { without_v6: Some(why), version, families: _ }) => check(
            CheckState::Ok,
            format!("{file} {version}; the kernel takes all rules for IPv4, and none for IPv6: {why}"),
        ),
        Err(error) => check(CheckState::Missing, with_causes(&error)),
    }
}

/// The families whose rules the kernel takes; an error if those for IPv4 are not taken.
pub(super) fn look(nft: &Nft, options: &Options) -> Result<Found, NftError> {
    let version = String::from_utf8_lossy(&nft.run(&["--version"], "")?).trim().to_owned();
    let refused = |reason| NftError::Refused { reason, line: None };
    if numbers(&version).is_some_and(|found| found < OLDEST) {
        let [major, minor, patch] = OLDEST;
        return Err(refused(format!("{version} is too old: {major}.{minor}.{patch} or later is needed")));
    }
    // What is installed is read back as JSON, which nft can lack.
    nft.run(&["-j", "list", "tables"], "")?;
    attempt(nft, Family::V4, options).map_err(refused)?;
    let without_v6 = attempt(nft, Family::V6, options).err();
    let families = Family::BOTH.into_iter().filter(|family| *family == Family::V4 || without_v6.is_none()).collect();
    Ok(Found { families, without_v6, version })
}

/// `nftables v1.0.6 (Lester Gooch #5)`
fn numbers(version: &str) -> Option<[u32; 3]> {
    let (_, version) = version.split_once(" v")?;
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()])
}

/// Whether the kernel would take our rules; if not, which one, and why.
fn attempt(nft: &Nft, family: Family, options: &Options) -> Result<(), String> {
    let script = sample(family, options);
    match nft.check(&script) {
        Ok(()) => Ok(()),
        Err(NftError::Refused { reason, line: Some(line) }) => {
            let rule = script.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            Err(format!("{reason}: {rule}"))
        }
        Err(error) => Err(with_causes(&error)),
    }
}

/// A rule set with all that ours is made of, in a table of another name: what is in ours must not count.
fn sample(family: Family, options: &Options) -> String {
    let mut plan = Plan::default();
    for affinity in [None, NonZeroU32::new(10)] {
        let port = sample_port(family, affinity);
        plan.ports.insert(port.key.clone(), Arc::new(port));
    }
    let rendering = Rendering::of(&plan, options.packets, &BTreeSet::from([family]));
    let (image, _) = Image::of(&plan, &rendering);
    let collections = Collection::all().map(|collection| (family, collection)).collect();
    let around = Around { tables: vec![family], collections, ..Around::default() };
    let script = Script::of(&Change::from_installed(&Installed::default(), image), &around);
    script.text.replace(&format!(" {TABLE}"), &format!(" {TABLE}-probe"))
}

/// A service port whose frontends have endpoints for some sources only, and source NAT for others.
fn sample_port(family: Family, affinity: Option<NonZeroU32>) -> PortPlan {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let rule = |list, masquerade| Rule { list, empty: Empty::Reject, masquerade };
    let frontend = |address: Option<IpAddr>| Frontend {
        falls_back: false,
        address,
        port: if affinity.is_some() { NonZeroU16::MIN } else { NonZeroU16::MAX },
        kind: FrontendKind::LoadBalancer,
        filtered: address.is_some(),
        at_sockets: List::Cluster,
        from_pods: rule(List::Cluster, false),
        from_node: rule(List::Cluster, true),
        from_outside: rule(List::Local, false),
    };
    let name = if affinity.is_some() { "sticky" } else { "plain" };
    let service = ObjectKey::new("shunt", name);
    PortPlan {
        key: PortKey { service, port: Arc::default(), protocol: Protocol::Tcp, family },
        frontends: vec![frontend(None), frontend(Some(address))],
        cluster: [80, 81].map(|port| Endpoint { address: SocketAddr::new(address, port), local: true }).into(),
        local: Vec::new(),
        affinity,
        draining: Vec::new(),
        source_ranges: Some(Arc::new(SourceRanges { ranges: vec![IpNet::from(address)], node: false })),
        empty_local_at_sockets: EmptyAtSocket::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(numbers("nftables v1.0.6 (Lester Gooch #5)"), Some([1, 0, 6]));
        assert_eq!(numbers("nftables v0.9.8 (E.D.S.)"), Some([0, 9, 8]));
        assert_eq!(numbers("nftables v1.1 (x)"), Some([1, 1, 0]));
        assert_eq!(numbers("something else"), None);
        assert!(numbers("nftables v1.0.10 (x)") > Some(OLDEST) && Some([1, 0, 0]) < Some(OLDEST));
    }
}
