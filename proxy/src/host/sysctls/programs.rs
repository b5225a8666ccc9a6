//! What packet programs need of the kernel's settings: that it forwards, and that ports are theirs alone.
//!
//! They need nothing of the reverse path filter. Where it looks, a packet has its client's or its endpoint's address as
//! its source, as without programs: strict is right for them wherever it is right without them. They need no redirects
//! either.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use proxy_abi::connection::SOURCE_PORTS;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use shunt_model::Family;

use super::{FORWARDING, Told, has_ipv6, write};
use crate::host::local_ports::LocalPorts;
use crate::host::netlink::links::{self, Kind as LinkKind};
use crate::host::netlink::{Netlink, routes};

/// Those that stand for clients' ports, and node ports where an API server has its default.
const OURS: RangeInclusive<u16> = SOURCE_PORTS.0..=32_767;
/// So many others must be left to sockets of this node.
const LEFT: usize = 8192;

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

/// Sets what differs. Gives what there is to log.
#[must_use]
pub fn prepare_for_programs() -> Vec<Told> {
    prepare_below(Path::new("/"))
}

fn prepare_below(root: &Path) -> Vec<Told> {
    unmet(root).into_iter().map(|unmet| unmet.meet(root)).collect()
}

/// What `shunt run` would set for packet programs, and what only an operator can; changes nothing.
#[must_use]
pub fn faults_of_programs() -> Vec<String> {
    let root = Path::new("/");
    let mut faults: Vec<String> = unmet(root).iter().map(|unmet| unmet.fault(root)).collect();
    faults.extend(strict_devices(root));
    faults
}

/// A setting that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unmet {
    /// It can be set.
    Differs { name: &'static str, found: String, wanted: String },
    /// It cannot be set without harm, or is not enough.
    Stays(String),
}

impl Unmet {
    fn meet(&self, root: &Path) -> Told {
        match self {
            Self::Stays(why) => Told::Left(why.clone()),
            Self::Differs { name, found, wanted } => {
                match write(&path(root, name), &path(&root.join("host"), name), wanted) {
                    Ok(()) => Told::Done(format!("{name} is {wanted} now; it was {found:?}")),
                    Err(error) => Told::Left(format!(
                        "{name} should be {wanted} and cannot be set: {}: {error}; set it on the host with sysctl -w \
                     {name}={wanted}",
                        path(root, name).display()
                    )),
                }
            }
        }
    }

    fn fault(&self, root: &Path) -> String {
        match self {
            Self::Stays(why) => why.clone(),
            Self::Differs { name, found, wanted } => {
                let writable = [root.to_owned(), root.join("host")]
                    .iter()
                    .any(|root| access(&path(root, name), AccessFlags::W_OK).is_ok());
                match writable {
                    true => format!("{name} is {found:?}: shunt run sets it to {wanted}"),
                    false => format!(
                        "{name} is {found:?} and read-only here: set it on the host with sysctl -w {name}={wanted}"
                    ),
                }
            }
        }
    }
}

fn path(root: &Path, name: &str) -> PathBuf {
    root.join("proc/sys").join(name.replace('.', "/"))
}

fn read(root: &Path, name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(root, name))?.trim().to_owned())
}

fn unmet(root: &Path) -> Vec<Unmet> {
    let [v4, v6] = FORWARDING;
    let v6 = if has_ipv6(root) { forwarding(root, v6, advertised(root)) } else { None };
    [forwarding(root, v4, None), v6, reserved(root)].into_iter().flatten().collect()
}

/// `by`: a device whose default route would be lost.
fn forwarding(root: &Path, name: &'static str, by: Option<String>) -> Option<Unmet> {
    let found = read(root, name).ok().filter(|found| found == "0")?;
    Some(match by {
        None => Unmet::Differs { name, found, wanted: "1".to_owned() },
        Some(device) => Unmet::Stays(format!(
            "{name} is 0, and to set it would remove the default route that a router advertises at {device}: set \
             net.ipv6.conf.{device}.accept_ra=2 and then {name}=1, or packets to endpoints are dropped"
        )),
    })
}

/// A device with a default route from a router's advertisement, which the kernel removes when it begins to forward.
fn advertised(root: &Path) -> Option<String> {
    /// `RTF_ADDRCONF`.
    const ADVERTISED: u32 = 0x0004_0000;
    let routes = fs::read_to_string(root.join("proc/self/net/ipv6_route")).ok()?;
    let device = |line: &str| {
        // Destination, its length, source, its length, next hop, metric, references, uses, flags, device.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [to, length, .., flags, device] = fields.as_slice() else { return None };
        let is_default = *length == "00" && to.bytes().all(|digit| digit == b'0');
        let is_advertised = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & ADVERTISED != 0);
        let stays = fs::read_to_string(root.join("proc/sys/net/ipv6/conf").join(device).join("accept_ra"));
        let is_lost = stays.map_or(true, |accept| accept.trim() != "2");
        (is_default && is_advertised && is_lost).then(|| (*device).to_owned())
    };
    routes.lines().find_map(device)
}

/// The kernel must not give our ports to sockets: an answer to such a socket would be one to a client's packet.
fn reserved(root: &Path) -> Option<Unmet> {
    let (range, found) = (read(root, RANGE).ok()?, read(root, RESERVED).ok()?);
    if !LocalPorts::parse(&range, &found)?.may_give_some_of(OURS) {
        return None;
    }
    let ours = format!("{}-{}", OURS.start(), OURS.end());
    let wanted = if found.is_empty() { ours.clone() } else { format!("{found},{ours}") };
    Some(match LocalPorts::parse(&range, &wanted)?.count() {
        left if left >= LEFT => Unmet::Differs { name: RESERVED, found, wanted },
        left => Unmet::Stays(format!(
            "{RANGE} is {range:?}: {left} of these ports are not among {ours}, which packet programs and node ports use; \
             give sockets others, such as 32768 60999"
        )),
    })
}

/// Devices by which clients come in, unless the kernel drops what it would not send back by the same device.
fn strict_devices(root: &Path) -> Vec<String> {
    let listed = Netlink::open(NETLINK_ROUTE).and_then(|mut netlink| {
        let links = links::list(&mut netlink)?;
        Ok((links, routes::default_interfaces(&mut netlink, Family::V4)?))
    });
    let Ok((links, default)) = listed else { return Vec::new() };
    let uplinks = links.iter().filter(|link| link.kind == LinkKind::Plain && link.controller.is_none());
    let others = uplinks.filter(|link| !default.contains(&link.index)).map(|link| link.name.clone());
    let names = links.iter().filter(|link| default.contains(&link.index)).map(|link| link.name.clone());
    strict(root, &others.collect(), &names.collect())
}

fn strict(root: &Path, others: &BTreeSet<String>, default: &BTreeSet<String>) -> Vec<String> {
    let filter = |device: &str| read(root, &format!("net.ipv4.conf.{device}.rp_filter")).ok()?.parse::<u8>().ok();
    let all = filter("all").unwrap_or_default();
    // The greater of both counts.
    let is_strict = |device: &&String| filter(device).unwrap_or_default().max(all) == 1;
    let default = default.iter().cloned().collect::<Vec<_>>().join(", ");
    if default.is_empty() {
        return Vec::new();
    }
    let fault = |device: &String| {
        format!(
            "the reverse path filter at {device} is strict, and the default route leads by {default}: the kernel drops \
             packets of clients beyond its network that come in by {device}; if there are such clients, set \
             net.ipv4.conf.{device}.rp_filter=2"
        )
    };
    others.iter().filter(is_strict).map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    const FORWARD: &str = "proc/sys/net/ipv4/ip_forward";
    const FORWARD6: &str = "proc/sys/net/ipv6/conf/all/forwarding";
    const LOCAL: &str = "proc/sys/net/ipv4/ip_local_port_range";
    const RESERVED_PATH: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";
    /// An address of this node that others reach.
    const GLOBAL: (&str, &str) = ("proc/self/net/if_inet6", "20010db8000000000000000000000001 02 40 00 80 eth0");

    fn now(root: &Path, path: &str) -> String {
        fs::read_to_string(root.join(path)).unwrap().trim().to_owned()
    }

    #[test]
    fn a_host_that_is_ready_is_left_alone() {
        let root = host(&[(FORWARD, "1"), (FORWARD6, "1"), (LOCAL, "32768\t60999"), (RESERVED_PATH, ""), GLOBAL]);
        assert_eq!(unmet(root.path()), []);
        // Without addresses that others reach, nothing is forwarded.
        let root = host(&[(FORWARD, "1"), (FORWARD6, "0"), (LOCAL, "32768\t60999"), (RESERVED_PATH, "")]);
        assert_eq!(unmet(root.path()), []);
    }

    #[test]
    fn forwarding_and_ports_are_set_and_told() {
        let root = host(&[(FORWARD, "0"), (FORWARD6, "0"), (LOCAL, "1024\t65535"), (RESERVED_PATH, "40000"), GLOBAL]);
        let told = prepare_below(root.path());
        let wanted = [
            "net.ipv4.ip_forward is 1 now; it was \"0\"",
            "net.ipv6.conf.all.forwarding is 1 now; it was \"0\"",
            "net.ipv4.ip_local_reserved_ports is 40000,1024-32767 now; it was \"40000\"",
        ];
        assert_eq!(told, wanted.map(|line| Told::Done(line.to_owned())));
        assert_eq!(
            [FORWARD, FORWARD6, RESERVED_PATH].map(|path| now(root.path(), path)),
            ["1", "1", "40000,1024-32767"]
        );
        assert_eq!(prepare_below(root.path()), []);
    }

    #[test]
    fn what_would_harm_is_told_and_not_set() {
        let default = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                       fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0";
        let accept = "proc/sys/net/ipv6/conf/eth0/accept_ra";
        for (accepted, harmed) in [("1", true), ("2", false)] {
            let route = ("proc/self/net/ipv6_route", default);
            let root = host(&[(FORWARD, "1"), (FORWARD6, "0"), GLOBAL, route, (accept, accepted)]);
            match &prepare_below(root.path())[..] {
                [Told::Left(line)] if harmed => assert!(line.contains("net.ipv6.conf.eth0.accept_ra=2"), "{line}"),
                [Told::Done(_)] if !harmed => {}
                other => panic!("{accepted}: {other:?}"),
            }
            assert_eq!(now(root.path(), FORWARD6), if harmed { "0" } else { "1" });
        }
        // No port would be left to sockets.
        let root = host(&[(FORWARD, "1"), (LOCAL, "10000\t32000"), (RESERVED_PATH, "")]);
        let told = prepare_below(root.path());
        let [Told::Left(line)] = &told[..] else { panic!("{told:?}") };
        assert!(line.contains("net.ipv4.ip_local_port_range") && line.contains("32768 60999"), "{line}");
        assert_eq!(now(root.path(), RESERVED_PATH), "");
    }

    #[test]
    fn a_check_says_what_would_be_set() {
        let root = host(&[(FORWARD, "0")]);
        let faults: Vec<String> = unmet(root.path()).iter().map(|unmet| unmet.fault(root.path())).collect();
        assert_eq!(faults, ["net.ipv4.ip_forward is \"0\": shunt run sets it to 1"]);
        let gone = Unmet::Differs { name: "net.other.none", found: "0".into(), wanted: "1".into() };
        let wanted = "net.other.none is \"0\" and read-only here: set it on the host with sysctl -w net.other.none=1";
        assert_eq!(gone.fault(root.path()), wanted);
        let Told::Left(line) = gone.meet(root.path()) else { panic!("it was set") };
        assert!(line.contains("sysctl -w net.other.none=1"), "{line}");
    }

    #[test]
    fn a_strict_filter_matters_beside_the_default_route() {
        let name = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let device = |device: &str| format!("proc/sys/net/ipv4/conf/{device}/rp_filter");
        let (all, one) = (device("all"), device("eth1"));
        for (of_all, of_one, faults) in [("0", "1", 1), ("1", "0", 1), ("2", "1", 0), ("0", "2", 0), ("0", "0", 0)] {
            let root = host(&[(all.as_str(), of_all), (one.as_str(), of_one)]);
            let found = strict(root.path(), &name(&["eth1"]), &name(&["eth0"]));
            assert_eq!(found.len(), faults, "{of_all} {of_one}: {found:?}");
            assert_eq!(strict(root.path(), &name(&[]), &name(&["eth0", "eth1"])), [""; 0]);
        }
    }
}
