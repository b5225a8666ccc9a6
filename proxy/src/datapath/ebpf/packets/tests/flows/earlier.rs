//! Flows and ports that pass between the kernel's own translation and the programs.

use super::super::super::super::orders::OrderWriter;
use super::super::super::flows::{EarlierDatagrams, EarlierFlows};
use super::super::super::leaving;
use super::*;
use crate::datapath::HostOptions;

/// Runs `work` in a network namespace of its own, if there is the command `conntrack`.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn with_conntrack(test: &str, work: impl FnOnce() + Send) {
    if std::process::Command::new("conntrack").arg("--version").output().is_err() {
        eprintln!("SKIPPED {test}: no command conntrack");
        return;
    }
    if !is_root(test) {
        return;
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
        worker.join().unwrap();
    });
}

fn conntrack(arguments: &str) -> String {
    let done = std::process::Command::new("conntrack").args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "conntrack {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The kernel translates a flow: the client dialled `to`, `server` answers to `source`.
fn kernel_translates(protocol: &str, client: &str, to: &str, server: &str, source: &str) {
    let [client, to, server, source] = [client, to, server, source].map(address);
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    conntrack(&format!(
        "-I -p {protocol} -t 100 {state} -s {} --sport {} -d {} --dport {} --reply-src {} --reply-port-src {} --reply-dst \
         {} --reply-port-dst {}",
        client.ip(),
        client.port(),
        to.ip(),
        to.port(),
        server.ip(),
        server.port(),
        source.ip(),
        source.port()
    ));
}

fn take_over(tables: &Remembered, layout: &Layout) -> usize {
    EarlierDatagrams::write(&tables.0, layout).unwrap().end().unwrap()
}

#[test]
fn flows_of_datagrams_are_taken_over_from_the_kernel() {
    with_conntrack("flows_of_datagrams_are_taken_over_from_the_kernel", || {
        let plan = with_endpoints(FIVE);
        let Some(mut node) = Node::with("flows-taken", &plan) else { return };
        let (dns, own) = (node_port(30_053), NODE_ADDRESSES[0]);
        let (outside, pod) = ("203.0.113.9:40000", "10.9.0.7:40000");
        let stood_for = format!("{own}:1503");
        for (server, number) in [("10.1.0.3:5353", 40_000), ("10.1.0.4:5353", 40_001)] {
            let client = format!("203.0.113.9:{number}");
            kernel_translates("udp", &client, &dns, server, &format!("{own}:{}", number - 38_497));
        }
        kernel_translates("udp", pod, "10.96.0.1:53", "10.1.0.2:5353", pod);
        // An endpoint that does not serve, something else, and a connection of TCP.
        kernel_translates("udp", "203.0.113.10:40000", &dns, "10.1.0.9:5353", &format!("{own}:1600"));
        kernel_translates("udp", outside, "192.0.2.50:53", "10.1.0.3:5353", outside);
        kernel_translates("tcp", outside, &node_port(30_080), "10.1.0.3:8080", &stood_for);
        let tables = Tables::open(&node.pins.maps).unwrap();
        let layout = Layout::restored(tables.capacity(), &tables.dump().unwrap());
        let flows = Remembered::of(&node);
        assert_eq!(take_over(&flows, &layout), 3);
        // One of these is the port that the kernel keeps.
        assert_eq!((flows.flows().len(), flows.leading_back()), (3, [0, 6]));
        let left = conntrack("-L -p udp");
        assert!(left.lines().count() == 2 && left.contains("10.1.0.9") && left.contains("192.0.2.50"), "{left}");
        assert_eq!(conntrack("-L -p tcp").lines().count(), 1);
        assert_eq!(take_over(&flows, &layout), 0);
        for (client, server, source) in
            [(outside, "10.1.0.3:5353", stood_for), ("203.0.113.9:40001", "10.1.0.4:5353", format!("{own}:1504"))]
        {
            let wanted = [(address(client), address(server)), (address(&source), address(server))];
            assert_eq!(node.through(&udp(client, &dns)), wanted);
            assert_eq!(node.through(&udp(server, &source))[1], (address(&dns), address(client)));
        }
        node.set_device(Device::PODS);
        let wanted = (address(pod), address("10.1.0.2:5353"));
        assert_eq!(node.through(&udp(pod, "10.96.0.1:53")), [wanted, wanted]);
    });
}

#[test]
fn neither_path_takes_a_port_with_which_the_other_stands_for_a_client() {
    with_conntrack("neither_path_takes_a_port_with_which_the_other_stands_for_a_client", || {
        let Some(mut node) = Node::with("flows-ports", &with_endpoints("e1:R")) else { return };
        let (http, server, own) = (node_port(30_080), "10.1.0.1:8080", NODE_ADDRESSES[0]);
        let (kernels, ours) = (format!("{own}:1503"), format!("{own}:1504"));
        kernel_translates("tcp", "203.0.113.9:40000", &http, server, &kernels);
        let layout = Layout::new(Capacity::default());
        take_over(&Remembered::of(&node), &layout);
        // Each would keep its port.
        let source = node.through(&syn("203.0.113.10:1503", &http))[1].0;
        assert_ne!(source, address(&kernels));
        assert_eq!(node.through(&syn("203.0.113.10:1504", &http))[1].0, address(&ours));
        for frame in [ack(server, &kernels), ack(&kernels, server)] {
            assert_eq!(node.run("shunt_ingress", &frame), (NEXT, frame.clone()));
            assert_eq!(node.run("shunt_egress", &frame), (NEXT, frame));
        }
        let host = HostOptions { cgroup_root: None, bpf_root: node.root.clone() };
        assert_eq!(leaving::retire(&host, &FlowTimeouts::default()).unwrap(), 2);
        let known = conntrack("-L -p tcp");
        for port in [1504, source.port()] {
            let ends = format!("src={own} dst=10.1.0.1 sport={port} dport=8080");
            assert!(known.contains(&ends), "{ends} is not in\n{known}");
        }
    });
}

#[test]
fn all_flows_are_the_programs_once_the_kernel_translates_no_connection() {
    with_conntrack("all_flows_are_the_programs_once_the_kernel_translates_no_connection", || {
        let Some(node) = Node::with("flows-own", &with_endpoints(FIVE)) else { return };
        let config = Array::open(&node.pins.maps, &maps::CONFIG).unwrap();
        let owns = || config.load(0, Config::FLAGS).unwrap() & Config::OWN_FLOWS != 0;
        let (mut orders, client) = (OrderWriter::default(), "203.0.113.9:40000");
        let flows = Remembered::of(&node);
        let look = |orders: &OrderWriter| {
            EarlierFlows::open(&node.pins.maps, orders.subscribe()).unwrap().look(&flows.0);
        };
        let http = node_port(30_080);
        look(&orders);
        assert!(!owns(), "before the first sync");
        orders.synced(&std::sync::Arc::default(), 0, 0);
        let translated = || kernel_translates("tcp", client, &http, "10.1.0.3:8080", "192.0.2.77:1503");
        // Source NAT of others has chosen the number of a node port.
        let masqueraded = || kernel_translates("tcp", "10.9.0.7:40000", "203.0.113.77:443", "203.0.113.77:443", &http);
        for earlier in [&translated as &dyn Fn(), &masqueraded] {
            earlier();
            look(&orders);
            assert!(!owns());
            conntrack("-F");
        }
        kernel_translates("tcp", client, "192.0.2.50:80", "10.1.0.3:8080", client);
        look(&orders);
        assert!(owns(), "no frontend of ours");
    });
}
