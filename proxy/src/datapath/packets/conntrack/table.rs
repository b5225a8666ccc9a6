//! The kernel's table of flows (`ctnetlink`) in the present network namespace, the end of one of them, and ports that
//! the kernel must not choose.
//!
//! Written by hand as the list of sockets is: of a flow only its addresses are needed, and its tuple goes back to the
//! kernel as it came.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use shunt_model::{Family, Protocol};

use crate::host::netlink::{Dump, Netlink, attribute, push_attribute};

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW`, `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const NEW: u16 = 0x0100;
const LIST: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;

/// Of linux/netfilter/nfnetlink_conntrack.h.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// Kernel: 5.8. An older one ignores it and lists flows of all protocols.
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The filter looks at the protocol.
const FILTER_PROTOCOL: u32 = 1 << 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `CTA_IP_V4_SRC` and `CTA_IP_V6_SRC`.
const SOURCE: [u16; 2] = [1, 3];
/// `CTA_IP_V4_DST` and `CTA_IP_V6_DST`.
const DESTINATION: [u16; 2] = [2, 4];
const NESTED: u16 = 1 << 15;
/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_ASSURED`: it does not make room for others.
const ASSURED: u32 = 1 << 2;
/// `IPS_CONFIRMED`: the kernel wants to be told so of each entry that is made.
const CONFIRMED: u32 = 1 << 3;

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::datapath) struct Flow {
    /// Its protocol.
    pub(in crate::datapath) protocol: Protocol,
    /// Who sent its first packet.
    pub(in crate::datapath) client: SocketAddr,
    /// Where its first packet was sent to.
    pub(in crate::datapath) dialled: SocketAddr,
    /// Where its answers come from: the endpoint, or the same address if it was never translated.
    pub(in crate::datapath) answered_by: SocketAddr,
    /// Where its answers are sent to: the client, or what stands for it.
    pub(in crate::datapath) answered_to: SocketAddr,
    /// There was an answer.
    pub(in crate::datapath) answered: bool,
    /// What the kernel knows it by, as it wrote it.
    tuple: Vec<u8>,
    /// Tells it from a later flow with the same addresses.
    id: Option<[u8; 4]>,
}

impl Flow {
    /// Whether its destination was translated.
    pub(in crate::datapath) fn is_translated(&self) -> bool {
        self.dialled != self.answered_by
    }

    #[cfg(test)]
    pub(in crate::datapath) fn between(dialled: SocketAddr, answered_by: SocketAddr) -> Self {
        let client: SocketAddr = ([192, 0, 2, 9], 40_000).into();
        let (protocol, answered_to, tuple) = (Protocol::Udp, client, Vec::new());
        Self { protocol, client, dialled, answered_by, answered_to, answered: true, tuple, id: None }
    }
}

/// The table of the network namespace in which it was opened.
#[derive(Debug)]
pub(in crate::datapath) struct Table(Netlink);

impl Table {
    pub(in crate::datapath) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_NETFILTER).map(Self)
    }

    /// The flows of a family and protocol that `wanted` asks for.
    pub(in crate::datapath) fn flows(
        &mut self,
        family: Family,
        protocol: Protocol,
        wanted: impl Fn(&Flow) -> bool,
    ) -> io::Result<Dump<Flow>> {
        self.0.dump_once(LIST, &question(family, protocol), |entry| Ok(read(entry, protocol).filter(&wanted)))
    }

    /// Makes an entry of a connection of TCP between these ends for so many seconds, which no packet has to meet:
    /// source NAT chooses no port that leads to the same answers. One that is there stays as it is.
    pub(in crate::datapath) fn occupy(&mut self, from: SocketAddr, to: SocketAddr, seconds: u32) -> io::Result<()> {
        match self.0.create(NEW, &entry_between(from, to, seconds)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    /// Ends a flow. False if it is gone already, or another flow has taken its place.
    pub(in crate::datapath) fn end(&mut self, flow: &Flow) -> io::Result<bool> {
        match self.0.order(DELETE, &order(flow)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn header(family: Family) -> Vec<u8> {
    let family = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    vec![family, 0, 0, 0]
}

fn question(family: Family, wanted: Protocol) -> Vec<u8> {
    let (mut protocol, mut tuple, mut filter) = (Vec::new(), Vec::new(), Vec::new());
    push_attribute(&mut protocol, CTA_PROTO_NUM, &[wanted.number()]);
    push_attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &protocol);
    push_attribute(&mut filter, CTA_FILTER_ORIG_FLAGS, &FILTER_PROTOCOL.to_ne_bytes());
    push_attribute(&mut filter, CTA_FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
    let mut question = header(family);
    push_attribute(&mut question, CTA_TUPLE_ORIG | NESTED, &tuple);
    push_attribute(&mut question, CTA_FILTER | NESTED, &filter);
    question
}

fn order(flow: &Flow) -> Vec<u8> {
    let Flow { dialled, tuple, id, .. } = flow;
    let mut order = header(Family::of(&dialled.ip()));
    push_attribute(&mut order, CTA_TUPLE_ORIG | NESTED, tuple);
    if let Some(id) = id {
        push_attribute(&mut order, CTA_ID, id);
    }
    order
}

fn entry_between(from: SocketAddr, to: SocketAddr, seconds: u32) -> Vec<u8> {
    let mut entry = header(Family::of(&from.ip()));
    push_attribute(&mut entry, CTA_TUPLE_ORIG | NESTED, &tuple(from, to));
    push_attribute(&mut entry, CTA_TUPLE_REPLY | NESTED, &tuple(to, from));
    push_attribute(&mut entry, CTA_STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes());
    push_attribute(&mut entry, CTA_TIMEOUT, &seconds.to_be_bytes());
    entry
}

fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (mut addresses, mut protocol, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
    for (end, kinds) in [(from, SOURCE), (to, DESTINATION)] {
        match (end.ip(), kinds) {
            (IpAddr::V4(ip), [kind, _]) => push_attribute(&mut addresses, kind, &ip.octets()),
            (IpAddr::V6(ip), [_, kind]) => push_attribute(&mut addresses, kind, &ip.octets()),
        }
    }
    push_attribute(&mut protocol, CTA_PROTO_NUM, &[Protocol::Tcp.number()]);
    push_attribute(&mut protocol, CTA_PROTO_SRC_PORT, &from.port().to_be_bytes());
    push_attribute(&mut protocol, CTA_PROTO_DST_PORT, &to.port().to_be_bytes());
    push_attribute(&mut tuple, CTA_TUPLE_IP | NESTED, &addresses);
    push_attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &protocol);
    tuple
}

/// What an entry of the list says, if it is a flow of this protocol. Those in a zone belong to whoever made the zone.
fn read(entry: &[u8], protocol: Protocol) -> Option<Flow> {
    let attributes = entry.get(HEADER..)?;
    if attribute(attributes, CTA_ZONE).is_some_and(|zone| zone != [0, 0]) {
        return None;
    }
    let tuple = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let status = attribute(attributes, CTA_STATUS).and_then(|status| status.try_into().ok());
    Some(Flow {
        protocol,
        client: source(tuple, protocol)?,
        dialled: destination(tuple, protocol)?,
        answered_by: source(reply, protocol)?,
        answered_to: destination(reply, protocol)?,
        answered: status.is_some_and(|status| u32::from_be_bytes(status) & SEEN_REPLY != 0),
        tuple: tuple.to_vec(),
        id: attribute(attributes, CTA_ID).and_then(|id| id.try_into().ok()),
    })
}

fn source(tuple: &[u8], protocol: Protocol) -> Option<SocketAddr> {
    end_of(tuple, protocol, SOURCE, CTA_PROTO_SRC_PORT)
}

fn destination(tuple: &[u8], protocol: Protocol) -> Option<SocketAddr> {
    end_of(tuple, protocol, DESTINATION, CTA_PROTO_DST_PORT)
}

fn end_of(tuple: &[u8], wanted: Protocol, [v4, v6]: [u16; 2], port: u16) -> Option<SocketAddr> {
    let (addresses, protocol) = (attribute(tuple, CTA_TUPLE_IP)?, attribute(tuple, CTA_TUPLE_PROTO)?);
    if attribute(protocol, CTA_PROTO_NUM)? != [wanted.number()] {
        return None;
    }
    let ip = match attribute(addresses, v4) {
        Some(bytes) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        None => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(attribute(protocol, port)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.18 lists for a flow from 10.1.0.1 to 10.96.0.1:53 that was translated to 10.1.0.1:5353.
    const ENTRY: &str = "020000003400018014000180080001000a010001080002000a6000011c00028005000100110000000600020\
         08c8a000006000300003500003400028014000180080001000a010001080002000a0100011c0002800500010011000000060002\
         0014e90000060003008c8a000008000300000001a8080008000000000008000c0069579b8608000b0000000001080007000000\
         001d";

    fn entry() -> Vec<u8> {
        (0..ENTRY.len()).step_by(2).map(|at| u8::from_str_radix(&ENTRY[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_flow_is_known_by_what_was_dialled_and_by_who_answers() {
        let flow = read(&entry(), Protocol::Udp).unwrap();
        let ends = [flow.client, flow.dialled, flow.answered_by, flow.answered_to].map(|end| end.to_string());
        assert_eq!(ends, ["10.1.0.1:35978", "10.96.0.1:53", "10.1.0.1:5353", "10.1.0.1:35978"]);
        assert!(!flow.answered);
        assert!(flow.is_translated());
        assert_eq!(flow.id, Some([0x69, 0x57, 0x9b, 0x86]));
        for length in 0..entry().len() {
            let cut = read(&entry()[..length], Protocol::Udp);
            assert!(
                cut.is_none_or(|cut| (cut.dialled, cut.answered_by) == (flow.dialled, flow.answered_by)),
                "{length}"
            );
        }
    }

    #[test]
    fn flows_of_other_protocols_and_zones_are_left_out() {
        let protocol = entry().windows(5).position(|bytes| bytes == [5, 0, 1, 0, 17]).unwrap() + 4;
        let mut tcp = entry();
        tcp[protocol] = 6;
        assert_eq!(read(&tcp, Protocol::Udp), None);
        for (zone, expected) in [([0, 0], true), ([0, 7], false)] {
            let mut zoned = entry();
            push_attribute(&mut zoned, CTA_ZONE, &zone);
            assert_eq!(read(&zoned, Protocol::Udp).is_some(), expected);
        }
    }

    #[test]
    fn an_entry_that_is_made_is_listed_with_its_ends() {
        for [from, to] in [["192.0.2.5:1500", "10.1.0.1:80"], ["[2001:db8::5]:1500", "[fd00::1]:80"]] {
            let [from, to]: [SocketAddr; 2] = [from, to].map(|end| end.parse().unwrap());
            let flow = read(&entry_between(from, to, 60), Protocol::Tcp).unwrap();
            assert_eq!([flow.client, flow.dialled, flow.answered_by, flow.answered_to], [from, to, to, from]);
        }
    }

    #[test]
    fn the_end_of_a_flow_names_its_tuple_and_its_id() {
        let order = order(&read(&entry(), Protocol::Udp).unwrap());
        // The family, then the first attribute of the entry as it was, then its id.
        assert_eq!(order[..56], entry()[..56]);
        assert_eq!(order[56..], [8, 0, 12, 0, 0x69, 0x57, 0x9b, 0x86]);
    }
}
