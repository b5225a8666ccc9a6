//! The lab itself: pods reach each other across nodes, nothing gets out, and nothing is left behind.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, its helpers included")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use lab::peer::{CallError, Mode};
use lab::{Lab, Place, Pod};

#[track_caller]
fn check(from: &Place, to: SocketAddr, mode: Mode, server: &str) {
    let attempts = from.connect(to, mode, 2).unwrap();
    assert_eq!(attempts.len(), 2, "{} to {to} {mode:?}", from.name());
    for attempt in attempts {
        assert_eq!(
            (attempt.server.as_deref(), attempt.error),
            (Some(server), None),
            "{} to {to} {mode:?}",
            from.name()
        );
        assert_eq!(attempt.peername, Some(to), "{} to {to} {mode:?}", from.name());
    }
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.ipv4.into(), pod.ipv6.into()]
}

#[test]
fn pods_nodes_and_the_outside_reach_each_other_on_both_families() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("reach").unwrap();
    let (one, two) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let (near, far, client) = (one.pod("near").unwrap(), two.pod("far").unwrap(), one.pod("client").unwrap());
    let ports = ["--tcp", "7000", "--http", "8080", "--udp", "7000"];
    let _servers = [near.serve("near", &ports).unwrap(), far.serve("far", &ports).unwrap()];
    for (pod, name) in [(&near, "near"), (&far, "far")] {
        for address in addresses(pod) {
            let at = |port| SocketAddr::new(address, port);
            for from in [&*client, one.host(), two.host(), &lab.router, &lab.outside] {
                check(from, at(7000), Mode::Tcp, name);
                check(from, at(8080), Mode::Http, name);
                check(from, at(7000), Mode::Udp, name);
                check(from, at(7000), Mode::UdpUnconnected, name);
            }
        }
    }
}

#[test]
fn nothing_has_a_route_out_of_the_lab() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("closed").unwrap();
    let node = lab.node("n1").unwrap();
    let pod = node.pod("pod").unwrap();
    // A documentation address: even a broken lab would reach no host with it.
    let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    for from in [&*pod, node.host(), &lab.router, &lab.outside] {
        let attempts = from.connect(elsewhere, Mode::Tcp, 1).unwrap();
        let error = &attempts[0].error;
        assert!(matches!(error, Some(CallError::NoNetwork | CallError::NoHost)), "{}: {error:?}", from.name());
    }
}

#[test]
fn unknown_addresses_lead_the_outside_to_the_chosen_node_and_all_others_nowhere() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("balance").unwrap();
    let nodes = ["n1", "n2"].map(|name| lab.node(name).unwrap());
    let pod = nodes[0].pod("pod").unwrap();
    // Each node has the addresses that a load balancer would lead to it.
    let vips: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8:203::1".parse().unwrap()];
    let servers = nodes.each_ref().map(|node| {
        for vip in vips {
            let command = ["ip", "addr", "add", &vip.to_string(), "dev", "lo"];
            assert!(node.spawn(&command).unwrap().finish(Duration::from_secs(10)).unwrap().status.success());
        }
        node.serve(node.name(), &["--tcp", "7000"]).unwrap()
    });
    for node in &nodes {
        lab.balance_to(node).unwrap();
        for vip in vips {
            check(&lab.outside, SocketAddr::new(vip, 7000), Mode::Tcp, node.name());
        }
    }
    drop(servers);
    let other = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 2), 7000));
    let error = pod.connect(other, Mode::Tcp, 1).unwrap().remove(0).error;
    assert!(matches!(error, Some(CallError::NoNetwork | CallError::NoHost)), "{error:?}");
}

#[test]
fn dropping_a_lab_removes_everything_it_made() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("gone").unwrap();
    let pod = lab.node("n1").unwrap().pod("pod").unwrap();
    let server = pod.serve("pod", &["--tcp", "7000"]).unwrap();
    let (prefix, pid) = (lab.prefix().to_owned(), server.pid());
    let cgroup = pod.cgroup().ancestors().find(|path| path.ends_with(&prefix)).unwrap().to_owned();
    let directory = lab.directory().to_owned();
    let made = || {
        let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let ours = namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count();
        (ours, cgroup.exists(), directory.exists(), Path::new("/sys/fs/bpf").join(&prefix).exists())
    };
    assert_eq!(made(), (4, true, true, true));
    std::mem::forget(server);
    drop((pod, lab));
    assert_eq!(made(), (0, false, false, false));
    assert!(!std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()));
}

#[test]
fn the_upstream_of_the_lab_answers_what_it_knows() {
    if support::skipped() {
        return;
    }
    let lab = Lab::new("upstream").unwrap();
    let pod = lab.node("n1").unwrap().pod("pod").unwrap();
    let router = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 1));
    let _upstream = lab.router.dns_upstream(router, &["example.org=192.0.2.7"]).unwrap();
    let known = pod.resolve("example.org", "A", router).unwrap();
    assert_eq!((known.rcode.as_str(), known.data()), ("NoError", vec!["192.0.2.7"]));
    let unknown = pod.resolve("example.com", "A", router).unwrap();
    assert_eq!((unknown.rcode.as_str(), unknown.data()), ("NXDomain", vec![]));
}
