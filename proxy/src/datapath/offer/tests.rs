//! What is chosen, for offers in rows.

use super::*;

const SOCKETS: &str = "eBPF programs at sockets";
const PROGRAMS: &str = "eBPF programs for packets";
const NFT: &str = "nftables rules for packets";
const IPT: &str = "iptables rules for packets";

/// Offers of sockets, nftables and iptables: for each the check that is missing, "" if none is. Programs for packets
/// can work.
fn offers(missing: [&'static str; 3]) -> Vec<Offer> {
    let parts = [Part::Sockets, Part::Nftables, Part::Iptables].into_iter().zip(missing);
    parts.chain([(Part::Programs, "")]).map(offer).collect()
}

fn offer((part, name): (Part, &'static str)) -> Offer {
    let state = if name.is_empty() { CheckState::Ok } else { CheckState::Missing };
    Offer { part, checks: vec![Check { name, state, detail: "as seen".to_owned() }] }
}

/// Flags as `auto off`: mode, then sockets.
fn requested(flags: &str) -> Requested {
    let (mode, sockets) = flags.split_once(' ').unwrap();
    let mode = [Mode::Ebpf, Mode::Nftables, Mode::Iptables].into_iter().find(|known| known.as_str() == mode);
    let sockets = match sockets {
        "on" => Wanted::On,
        "off" => Wanted::Off,
        _ => Wanted::Auto,
    };
    Requested { mode, sockets }
}

#[track_caller]
fn check(flags: &str, missing: [&'static str; 3], mode: Mode, parts: &[&str], without: &[&str]) {
    let chosen = choose(requested(flags), &offers(missing)).unwrap();
    assert_eq!((chosen.mode, chosen.to_string()), (mode, parts.join(" and ")));
    assert_eq!(chosen.without, without);
}

#[track_caller]
fn refused(flags: &str, missing: [&'static str; 3], reason: &str) {
    let error = choose(requested(flags), &offers(missing)).unwrap_err().to_string();
    assert_eq!(error.strip_suffix("; shunt check lists what this host offers").unwrap_or(&error), reason);
}

#[test]
fn auto_takes_sockets_over_the_first_path_for_packets() {
    check("auto auto", ["", "", ""], Mode::Ebpf, &[SOCKETS, NFT], &[]);
    check("auto on", ["", "nft", ""], Mode::Ebpf, &[SOCKETS, IPT], &["nftables (nft: as seen)"]);
    let neither = ["nftables (nft: as seen)", "iptables (lock: as seen)"];
    check("auto auto", ["", "nft", "lock"], Mode::Ebpf, &[SOCKETS], &neither);
    check("auto auto", ["btf", "", ""], Mode::Nftables, &[NFT], &["sockets (btf: as seen)"]);
    check("auto off", ["", "", ""], Mode::Nftables, &[NFT], &[]);
    check("auto off", ["btf", "nft", ""], Mode::Iptables, &[IPT], &["nftables (nft: as seen)"]);
    let none = "no data path can work here: nftables (nft: as seen), iptables (lock: as seen), sockets (btf: as seen)";
    refused("auto auto", ["btf", "nft", "lock"], none);
}

#[test]
fn a_path_asked_for_by_name_serves_or_is_an_error() {
    check("ebpf auto", ["", "nft", "lock"], Mode::Ebpf, &[SOCKETS, PROGRAMS], &[]);
    check("ebpf off", ["btf", "", ""], Mode::Ebpf, &[PROGRAMS], &[]);
    check("nftables auto", ["", "", ""], Mode::Nftables, &[SOCKETS, NFT], &[]);
    check("iptables auto", ["btf", "", ""], Mode::Iptables, &[IPT], &["sockets (btf: as seen)"]);
    check("iptables off", ["", "", ""], Mode::Iptables, &[IPT], &[]);
    let refusal = |asked, what| format!("{asked} was asked for and cannot work here: {what}");
    refused("ebpf auto", ["btf", "", ""], &refusal("--proxy-mode ebpf", "sockets (btf: as seen)"));
    refused("nftables off", ["", "nft", ""], &refusal("--proxy-mode nftables", "nftables (nft: as seen)"));
    refused("iptables auto", ["", "", "lock"], &refusal("--proxy-mode iptables", "iptables (lock: as seen)"));
    refused("nftables on", ["btf", "", ""], &refusal("--socket-lb on", "sockets (btf: as seen)"));
    let mut lacking = offers(["", "", ""]);
    lacking.pop();
    lacking.push(offer((Part::Programs, "tc")));
    let error = choose(requested("ebpf auto"), &lacking).unwrap_err();
    assert_eq!(error, not_possible("--proxy-mode ebpf", "programs (tc: as seen)"));
}
