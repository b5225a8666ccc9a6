//! What is chosen, for offers in rows.

use super::*;

const SOCKETS: &str = "eBPF programs at sockets";
const PROGRAMS: &str = "eBPF programs for packets";
const NFT: &str = "nftables rules for packets";
const IPT: &str = "iptables rules for packets";

/// Offers of sockets, programs, nftables and iptables: for each the check that is missing, "" if none is. A check in
/// brackets is what the part leaves unserved.
fn offers(missing: [&'static str; 4]) -> Vec<Offer> {
    Part::ALL.into_iter().zip(missing).map(offer).collect()
}

fn offer((part, check): (Part, &'static str)) -> Offer {
    let name = check.trim_matches(['(', ')']);
    let state = match (name, check) {
        ("", _) => CheckState::Ok,
        (name, check) if name == check => CheckState::Missing,
        _ => CheckState::Partial,
    };
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
fn check(flags: &str, missing: [&'static str; 4], mode: Mode, parts: &[&str], without: &[&str]) {
    let chosen = choose(requested(flags), &offers(missing)).unwrap();
    assert_eq!((chosen.mode, chosen.to_string()), (mode, parts.join(" and ")));
    assert_eq!(chosen.without, without);
}

#[track_caller]
fn refused(flags: &str, missing: [&'static str; 4], reason: &str) {
    let error = choose(requested(flags), &offers(missing)).unwrap_err().to_string();
    assert_eq!(error.strip_suffix("; shunt check lists what this host offers").unwrap_or(&error), reason);
}

#[test]
fn auto_takes_sockets_over_the_first_path_for_packets_that_leaves_nothing_unserved() {
    check("auto auto", ["", "", "", ""], Mode::Ebpf, &[SOCKETS, PROGRAMS], &[]);
    let unseen = "programs (devices: as seen)";
    check("auto auto", ["", "(devices)", "", ""], Mode::Ebpf, &[SOCKETS, NFT], &[unseen]);
    check(
        "auto on",
        ["", "verifier", "nft", ""],
        Mode::Ebpf,
        &[SOCKETS, IPT],
        &["programs (verifier: as seen)", "nftables (nft: as seen)"],
    );
    let neither = ["programs (verifier: as seen)", "nftables (nft: as seen)", "iptables (lock: as seen)"];
    check("auto auto", ["", "verifier", "nft", "lock"], Mode::Ebpf, &[SOCKETS], &neither);
    // Better than nothing.
    let partial = [unseen, "nftables (nft: as seen)", "iptables (lock: as seen)"];
    check("auto auto", ["", "(devices)", "nft", "lock"], Mode::Ebpf, &[SOCKETS, PROGRAMS], &partial);
    // Programs for packets serve nothing that the node itself sends.
    check("auto auto", ["btf", "", "", ""], Mode::Nftables, &[NFT], &["sockets (btf: as seen)"]);
    check("auto off", ["", "", "", ""], Mode::Nftables, &[NFT], &[]);
    check("auto off", ["btf", "", "nft", ""], Mode::Iptables, &[IPT], &["nftables (nft: as seen)"]);
    let none = "no data path can work here: nftables (nft: as seen), iptables (lock: as seen), sockets (btf: as seen)";
    refused("auto auto", ["btf", "", "nft", "lock"], none);
}

#[test]
fn a_path_asked_for_by_name_serves_or_is_an_error() {
    check("ebpf auto", ["", "", "nft", "lock"], Mode::Ebpf, &[SOCKETS, PROGRAMS], &[]);
    check("ebpf auto", ["", "(devices)", "", ""], Mode::Ebpf, &[SOCKETS, PROGRAMS], &[]);
    check("ebpf off", ["btf", "", "", ""], Mode::Ebpf, &[PROGRAMS], &[]);
    check("nftables auto", ["", "", "", ""], Mode::Nftables, &[SOCKETS, NFT], &[]);
    check("iptables auto", ["btf", "", "", ""], Mode::Iptables, &[IPT], &["sockets (btf: as seen)"]);
    check("iptables off", ["", "", "", ""], Mode::Iptables, &[IPT], &[]);
    let refusal = |asked, what| format!("{asked} was asked for and cannot work here: {what}");
    refused("ebpf auto", ["btf", "", "", ""], &refusal("--proxy-mode ebpf", "sockets (btf: as seen)"));
    refused("ebpf auto", ["", "tc", "", ""], &refusal("--proxy-mode ebpf", "programs (tc: as seen)"));
    refused("nftables off", ["", "", "nft", ""], &refusal("--proxy-mode nftables", "nftables (nft: as seen)"));
    refused("iptables auto", ["", "", "", "lock"], &refusal("--proxy-mode iptables", "iptables (lock: as seen)"));
    refused("nftables on", ["btf", "", "", ""], &refusal("--socket-lb on", "sockets (btf: as seen)"));
}

/// To probe is to load programs and to run commands: only for what may serve.
#[test]
fn only_what_may_serve_is_probed() {
    let concerned = |flags| {
        let requested = requested(flags);
        Part::ALL.into_iter().filter(|part| requested.concerns(*part)).map(Part::as_str).collect::<Vec<_>>().join(" ")
    };
    for (flags, parts) in [
        ("auto auto", "sockets programs nftables iptables"),
        ("auto off", "nftables iptables"),
        ("ebpf auto", "sockets programs"),
        ("ebpf off", "programs"),
        ("nftables on", "sockets nftables"),
        ("iptables off", "iptables"),
    ] {
        assert_eq!(concerned(flags), parts, "{flags}");
    }
}
