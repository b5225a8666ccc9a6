//! What is selected, for devices in rows.

use super::*;

/// One device: `3 eth0 plain`, with further words: `layer=ip|other|lo`, `in=INDEX` of the bridge or bond, `away` if its
/// other end is in another namespace, `ip=ADDRESS/LENGTH`, `default4`, `default6`, `divided`. The first three are its
/// index, its name and its kind.
fn found(rows: &[&str]) -> Found {
    let mut found = Found::default();
    for row in rows {
        let mut words = row.split_whitespace();
        let index = words.next().unwrap().parse().unwrap();
        let mut link = Link {
            index,
            name: words.next().unwrap().to_owned(),
            layer: Layer::Ethernet,
            kind: match words.next().unwrap() {
                "veth" => Kind::Veth,
                "bridge" => Kind::Bridge,
                "bond" => Kind::Bundle,
                "vrf" => Kind::Vrf,
                "tunnel" => Kind::Tunnel,
                "macvlan" => Kind::Shared("macvlan"),
                "dummy" => Kind::Idle,
                "plain" => Kind::Plain,
                other => panic!("{other}"),
            },
            controller: None,
            elsewhere: None,
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("layer", "ip") => link.layer = Layer::Ip,
                ("layer", "lo") => link.layer = Layer::Loopback,
                ("layer", "other") => link.layer = Layer::Other,
                ("in", above) => link.controller = Some(above.parse().unwrap()),
                ("away", "") => link.elsewhere = Some(4),
                ("default4", "") => found.defaults[0].extend([index]),
                ("default6", "") => found.defaults[1].extend([index]),
                ("divided", "") => found.divided.extend([index]),
                (of_address, text) => {
                    let (address, prefix) = text.split_once('/').unwrap();
                    found.addresses.push(InterfaceAddress {
                        address: address.parse().unwrap(),
                        interface: index,
                        secondary: of_address == "second",
                        tentative: of_address == "tentative",
                        prefix: prefix.parse().unwrap(),
                        deprecated: of_address == "deprecated",
                    });
                }
            }
        }
        found.links.push(link);
    }
    found
}

/// `eth0: 10.0.0.1 -`, with `pods` and `bare` if it is so.
fn shown(Wanted { name, ethernet, device }: &Wanted) -> String {
    let pods = if device.flags & Device::PODS != 0 { " pods" } else { "" };
    let bare = if *ethernet { "" } else { " bare" };
    let ip4 = IpAddr::from(device.address4.to_ne_bytes());
    let octets: [u8; 16] = zerocopy::transmute!(device.address6);
    let (ip4, ip6) = (ip4.to_string(), IpAddr::from(octets).to_string());
    let or_none = |text: &str, none: &str| if text == none { "-".to_owned() } else { text.to_owned() };
    format!("{name}: {} {}{pods}{bare}", or_none(&ip4, "0.0.0.0"), or_none(&ip6, "::"))
}

#[track_caller]
fn check(rows: &[&str], wanted: &[&str]) {
    check_with(&PacketOptions::default(), rows, wanted, &[]);
}

#[track_caller]
fn check_with(options: &PacketOptions, rows: &[&str], wanted: &[&str], unserved: &[&str]) {
    let Selection { wanted: selected, unserved: told } = select(&found(rows), options);
    assert_eq!(selected.values().map(shown).collect::<Vec<_>>(), wanted);
    assert_eq!(told.iter().map(String::as_str).collect::<Vec<_>>(), unserved);
}

const LO: &str = "1 lo plain layer=lo ip=127.0.0.1/8 ip=::1/128";
const ETH0: &str = "2 eth0 plain ip=192.0.2.5/24 ip=2001:db8::5/64 ip=fe80::5/64 default4 default6";

#[test]
fn uplinks_have_a_default_route_or_an_address_that_others_reach() {
    check(&[LO, ETH0], &["eth0: 192.0.2.5 2001:db8::5"]);
    check(
        &[LO, ETH0, "3 eth1 plain ip=10.9.0.1/24", "4 eth2 plain", "5 eth3 plain ip=fe80::9/64 ip=169.254.3.4/16"],
        &["eth0: 192.0.2.5 2001:db8::5", "eth1: 10.9.0.1 2001:db8::5"],
    );
    // Unnumbered: the node's address is on lo.
    check(
        &[
            "1 lo plain layer=lo ip=127.0.0.1/8 ip=192.0.2.9/32",
            "2 up1 plain ip=fe80::1/64 default4",
            "3 up2 plain default4",
        ],
        &["up1: 192.0.2.9 -", "up2: 192.0.2.9 -"],
    );
    check(&["2 dummy0 dummy ip=10.96.0.1/32", "3 red vrf ip=10.1.1.1/32"], &[]);
}

#[test]
fn the_preferred_address_stands_for_clients() {
    check(
        &["2 eth0 plain second=192.0.2.6/24 ip=192.0.2.5/24 deprecated=2001:db8::1/64 tentative=2001:db8::2/64 \
             ip=2001:db8::3/64"],
        &["eth0: 192.0.2.5 2001:db8::3"],
    );
    check(&["2 eth0 plain deprecated=192.0.2.5/24 default4"], &["eth0: 192.0.2.5 -"]);
}

#[test]
fn ends_of_pods_are_known_by_their_other_end() {
    let pods = ["7 cali1 veth away ip=169.254.1.1/32 ip=fe80::1/64", "8 cali2 veth away"];
    let of_node =
        ["eth0: 192.0.2.5 2001:db8::5", "cali1: 192.0.2.5 2001:db8::5 pods", "cali2: 192.0.2.5 2001:db8::5 pods"];
    check(&[LO, ETH0, pods[0], pods[1]], &of_node);
    // The plug-in ptp has its gateway on each.
    check(
        &[ETH0, "7 veth1 veth away ip=10.244.1.1/32"],
        &["eth0: 192.0.2.5 2001:db8::5", "veth1: 10.244.1.1 2001:db8::5 pods"],
    );
    // A node that is a container itself.
    check(&["2 eth0 veth away ip=172.18.0.11/24 default4"], &["eth0: 172.18.0.11 -"]);
    check(&["2 eth0 veth away default6"], &["eth0: - -"]);
    // Both ends are here.
    check(&[ETH0, "5 a veth", "6 b veth ip=10.8.0.1/24"], &["eth0: 192.0.2.5 2001:db8::5", "b: 10.8.0.1 2001:db8::5"]);
}

#[test]
fn ports_of_a_bridge_of_pods_have_programs_and_the_bridge_has_none() {
    check(
        &[ETH0, "5 cni0 bridge ip=10.244.1.1/24", "6 veth1 veth away in=5", "7 veth2 veth away in=5"],
        &["eth0: 192.0.2.5 2001:db8::5", "veth1: 10.244.1.1 2001:db8::5 pods", "veth2: 10.244.1.1 2001:db8::5 pods"],
    );
    // A bridge to the outside, without and with pods.
    let [bridge, port] = ["5 br0 bridge ip=192.0.2.5/24 default4", "2 eth0 plain in=5"];
    check(&[bridge, port], &["br0: 192.0.2.5 -"]);
    check(&[bridge, port, "6 veth1 veth away in=5"], &["eth0: 192.0.2.5 -", "veth1: 192.0.2.5 - pods"]);
}

#[test]
fn a_bond_has_programs_and_what_it_is_made_of_has_none() {
    check(
        &[
            "2 eth0 plain in=4",
            "3 eth1 plain in=4",
            "4 bond0 bond ip=192.0.2.5/24 default4",
            "5 vlan7 plain ip=10.7.0.1/24",
        ],
        &["bond0: 192.0.2.5 -", "vlan7: 10.7.0.1 -"],
    );
}

#[test]
fn tunnels_stand_for_clients_with_their_own_address() {
    check(
        &[
            ETH0,
            "5 flannel.1 tunnel ip=10.244.1.0/32",
            "6 tunl0 tunnel layer=ip",
            "7 wg0 tunnel layer=ip ip=10.5.0.1/24",
        ],
        &[
            "eth0: 192.0.2.5 2001:db8::5",
            "flannel.1: 10.244.1.0 2001:db8::5",
            "tunl0: 192.0.2.5 2001:db8::5 bare",
            "wg0: 10.5.0.1 2001:db8::5 bare",
        ],
    );
}

#[test]
fn what_cannot_be_served_is_told() {
    check_with(
        &PacketOptions::default(),
        &[
            "2 eth0 plain ip=192.0.2.5/24 divided",
            "3 shim macvlan ip=192.0.2.6/24",
            "4 ib0 plain layer=other ip=10.6.0.1/24",
        ],
        &["eth0: 192.0.2.5 -"],
        &[
            "eth0 has virtual functions (SR-IOV): pods that have one send past this node",
            "ib0 has neither an Ethernet header nor bare IP packets",
            "shim is of kind macvlan: what pods send by it is not seen here",
        ],
    );
}

#[test]
fn the_operator_may_know_pods_by_an_interface() {
    let bridged = [ETH0, "5 cni0 bridge ip=10.244.1.1/24", "6 veth1 veth away in=5", "7 veth2 veth away"];
    let by = |interface| PacketOptions { interface: Some(interface), ..PacketOptions::default() };
    let named = |name: &str| by(PodInterface::Named(name.into()));
    let [eth0, of_bridge, other] =
        ["eth0: 192.0.2.5 2001:db8::5", "veth1: 10.244.1.1 2001:db8::5", "veth2: 192.0.2.5 2001:db8::5"];
    check_with(&named("cni0"), &bridged, &[eth0, &format!("{of_bridge} pods"), other], &[]);
    check_with(&named("veth2"), &bridged, &[eth0, of_bridge, &format!("{other} pods")], &[]);
    let prefixed = by(PodInterface::Prefixed("veth".into()));
    check_with(&prefixed, &bridged, &[eth0, &format!("{of_bridge} pods"), &format!("{other} pods")], &[]);
}

#[test]
fn the_operator_may_name_the_devices_that_lead_out() {
    let only = |devices: &str| PacketOptions { devices: devices.parse().unwrap(), ..PacketOptions::default() };
    let rows = [ETH0, "3 eth1 plain ip=10.9.0.1/24", "4 mgmt plain", "7 veth2 veth away"];
    let [eth1, mgmt, pod] =
        ["eth1: 10.9.0.1 2001:db8::5", "mgmt: 192.0.2.5 2001:db8::5", "veth2: 192.0.2.5 2001:db8::5 pods"];
    check_with(&only("eth1,mgmt"), &rows, &[eth1, mgmt, pod], &[]);
    // What is named leads out, whatever it looks like.
    let all = &["eth0: 192.0.2.5 2001:db8::5", eth1, "veth2: 192.0.2.5 2001:db8::5"];
    check_with(&only("eth+,veth2"), &rows, all, &[]);
}
