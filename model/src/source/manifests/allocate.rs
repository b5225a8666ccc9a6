//! Cluster IPs: which Service keeps a contested one, and which one a Service without one gets.
//!
//! Every node reads the same files and must compute the same addresses without communication, so an address depends on
//! the files only: a hash of `namespace/name` picks it. A Service therefore moves only if another one wants the same
//! address: an explicit address always wins, else the older Service, else the first by name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::key::{Family, ObjectKey};

/// What a Service wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// These addresses and no others.
    Given(Vec<IpAddr>),
    /// One address for each family that this names.
    Allocate(Families),
    /// None: headless, ExternalName, or given ones that were all unusable.
    Nothing,
}

/// `ipFamilies` and `ipFamilyPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    /// `ipFamilies`, in order.
    pub(super) listed: Vec<Family>,
    /// How many.
    pub(super) policy: FamilyPolicy,
}

/// `ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FamilyPolicy {
    #[default]
    Single,
    PreferDual,
    RequireDual,
}

/// The claim of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Creation time; the older Service wins.
    pub(super) created: Option<i64>,
    pub(super) wish: Wish,
}

/// The outcome of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) addresses: Vec<IpAddr>,
    /// What the Service did not get, and why.
    pub(super) complaints: Vec<String>,
}

/// Decides all claims at once. The networks are tried in order; `reserved` addresses are never handed out, but a
/// Service may name one explicitly (as the cluster DNS service does).
pub(super) fn assign(
    claims: &BTreeMap<ObjectKey, Claim>,
    networks: &[IpNet],
    reserved: &[IpAddr],
) -> HashMap<ObjectKey, Assigned> {
    let mut ranked: Vec<(&ObjectKey, &Claim)> = claims.iter().collect();
    // Stable: equal ages stay in order of namespace and name. No creation time counts as the youngest.
    ranked.sort_by_key(|(_, claim)| claim.created.unwrap_or(i64::MAX));

    let mut owners: HashMap<IpAddr, &ObjectKey> = HashMap::new();
    let mut assigned: HashMap<ObjectKey, Assigned> = HashMap::with_capacity(claims.len());
    for (key, claim) in &ranked {
        if let Wish::Given(addresses) = &claim.wish {
            assigned.insert((*key).clone(), keep(key, addresses, &mut owners));
        }
    }
    let mut taken: HashSet<IpAddr> = owners.keys().copied().chain(reserved.iter().copied()).collect();
    for (key, claim) in &ranked {
        if let Wish::Allocate(families) = &claim.wish {
            assigned.insert((*key).clone(), allocate(key, families, networks, &mut taken));
        }
    }
    assigned
}

/// The families that a Service without addresses gets, in order, or why it gets none.
fn wanted(families: &Families, networks: &[IpNet]) -> (Vec<Family>, Option<String>) {
    let configured: Vec<Family> = networks.iter().map(family).collect();
    let mut wanted = families.listed.clone();
    match families.policy {
        FamilyPolicy::Single => {
            if wanted.is_empty() {
                wanted.extend(configured.first());
            }
        }
        FamilyPolicy::PreferDual | FamilyPolicy::RequireDual => {
            wanted.extend(configured.iter().filter(|family| !families.listed.contains(family)));
        }
    }
    if configured.is_empty() {
        let why = "it has no clusterIP and none can be assigned; give one, or set --service-cidr";
        return (Vec::new(), Some(why.to_owned()));
    }
    let missing: Vec<Family> = match families.policy {
        FamilyPolicy::RequireDual => Family::BOTH.to_vec(),
        FamilyPolicy::Single | FamilyPolicy::PreferDual => families.listed.clone(),
    };
    let missing = missing.into_iter().find(|family| !configured.contains(family));
    wanted.retain(|family| configured.contains(family));
    (
        wanted,
        missing.map(|family| format!("it gets no {family} cluster IP, since --service-cidr names no {family} range")),
    )
}

fn keep<'a>(key: &'a ObjectKey, given: &[IpAddr], owners: &mut HashMap<IpAddr, &'a ObjectKey>) -> Assigned {
    let mut result = Assigned::default();
    for address in given {
        match owners.get(address) {
            Some(owner) => result.complaints.push(format!(
                "cluster IP {address} already belongs to Service {owner}, so this Service goes without it"
            )),
            None => {
                owners.insert(*address, key);
                result.addresses.push(*address);
            }
        }
    }
    result
}

fn allocate(key: &ObjectKey, families: &Families, networks: &[IpNet], taken: &mut HashSet<IpAddr>) -> Assigned {
    let (wanted, complaint) = wanted(families, networks);
    let mut result = Assigned { addresses: Vec::new(), complaints: complaint.into_iter().collect() };
    for wanted in wanted {
        let Some(network) = networks.iter().find(|network| family(network) == wanted) else { continue };
        match candidates(key, network).find(|address| !taken.contains(address)) {
            Some(address) => {
                taken.insert(address);
                result.addresses.push(address);
            }
            None => result
                .complaints
                .push(format!("every {wanted} address of {network} is taken, so it gets none; widen --service-cidr")),
        }
    }
    result
}

fn family(network: &IpNet) -> Family {
    Family::of(&network.addr())
}

/// Every address of the network that may be handed out, beginning with the one that the key's hash picks.
///
/// The network's own address, the first one (of the API server) and the IPv4 broadcast are left out, as Kubernetes
/// does.
fn candidates(key: &ObjectKey, network: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    const FIRST: u64 = 2;
    let bits = u32::from(network.max_prefix_len() - network.prefix_len());
    // Wide IPv6 ranges are used in part only, which keeps the numbers small: 2^32 Services are enough.
    let size = 1u64 << bits.min(32);
    let last_unusable = match network {
        IpNet::V4(_) => 1,
        IpNet::V6(_) => 0,
    };
    let usable = size.saturating_sub(FIRST + last_unusable);
    let start = if usable == 0 { 0 } else { hash(key) % usable };
    let base = network.network();
    (0..usable).map(move |step| {
        let offset = FIRST + (start + step) % usable;
        match base {
            IpAddr::V4(base) => {
                // Within the network, so it fits.
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX))))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(u128::from(offset)))),
        }
    })
}

/// FNV-1a with a finishing mix. Written out because every version on every node must agree on it for ever: changing
/// it moves every allocated address.
fn hash(key: &ObjectKey) -> u64 {
    let text = key.namespace.bytes().chain(*b"/").chain(key.name.bytes());
    let mut hash =
        text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // FNV's low bits alone are weak, and the remainder above is taken of them.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests;
