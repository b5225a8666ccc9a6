//! `shunt monitor` and the metrics of packet programs, on nodes whose packets they serve.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod support;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Process;
use lab::peer::Mode;
use serde_json::{Value, json};
use world::{OFF, PATIENCE, SERVER, WEB, World};

/// Waits until a process has written this to stderr.
fn wait_said(process: &Process, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(process.log()).unwrap().contains(words) {
        assert!(Instant::now() < deadline, "{}: no {words:?} in {}", process.name(), process.log_tail(20));
        sleep(Duration::from_millis(2));
    }
}

/// The next decision that `shunt monitor` prints about this destination.
fn decision(monitor: &Process, to: SocketAddr) -> Value {
    let is_of = |line: &str| line.contains(&format!("\"destination\":\"{to}\""));
    serde_json::from_str(&monitor.wait_for_line(PATIENCE, is_of).unwrap()).unwrap()
}

#[test]
fn decisions_are_told_to_who_listens_and_counted() {
    let Some(mut world) = World::start("packetlook", OFF, |lab, name| lab.node(name).unwrap()) else { return };
    let [node_port, _] = WEB.node_ports(&world.nodes[0]);
    world.wait_for(&world.lab.outside, node_port, Mode::Tcp, &["web-0", "web-1"]);
    let mut monitor = world.daemons[0].start_command(&["monitor", "-o", "json"]).unwrap();
    let of_pod = world.client.ipv4.to_string();
    let filtered = world.daemons[0].start_command(&["monitor", "--client", &of_pod, "--service", "shop/web"]).unwrap();
    for process in [&monitor, &filtered] {
        wait_said(process, "listening to the eBPF programs for packets");
    }
    let served = world.lab.outside.connect(node_port, Mode::Tcp, 1).unwrap().remove(0);
    assert_eq!(served.error, None);
    let told = decision(&monitor, node_port);
    let client: SocketAddr = told["client"].as_str().unwrap().parse().unwrap();
    assert!(client.ip() != IpAddr::from(world.nodes[0].ipv4), "as it came in: {told}");
    assert_eq!(
        (&told["verdict"], &told["reason"], &told["protocol"]),
        (&json!("forward"), &json!("new"), &json!("tcp"))
    );
    assert_eq!((&told["service"], &told["port"]), (&json!("shop/web"), &json!("tcp")));
    let endpoint: SocketAddr = told["endpoint"].as_str().unwrap().parse().unwrap();
    assert_eq!(endpoint.port(), SERVER, "{told}");
    // A port that the Service does not define.
    let undefined = SocketAddr::new(WEB.cluster_ips[0].parse().unwrap(), 85);
    let refused = world.client.connect_with(undefined, Mode::Tcp, &["--count", "1"]).unwrap().remove(0);
    assert!(refused.error.is_some(), "{refused:?}");
    let told = decision(&monitor, undefined);
    assert_eq!((&told["verdict"], &told["reason"]), (&json!("reject"), &json!("undefined_port")));
    assert_eq!((&told["service"], &told["endpoint"]), (&Value::Null, &Value::Null));
    // Of all these decisions, the other one is told of this alone.
    let cluster_ip = SocketAddr::new(WEB.cluster_ips[0].parse().unwrap(), 80);
    world.wait_for(&world.client, cluster_ip, Mode::Tcp, &["web-0", "web-1"]);
    let line = filtered.next_line(PATIENCE).unwrap().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "forward", "new", "tcp", client, ">", to, "shop/web:tcp", ">", _, _] = words[..] else { panic!("{line}") };
    assert!(client.starts_with(&of_pod) && to == cluster_ip.to_string(), "{line}");

    let page = world.daemons[0].metrics("/metrics").unwrap().body;
    let of_service =
        "service_namespace=\"shop\",service_name=\"web\",port_name=\"tcp\",protocol=\"tcp\",ip_family=\"IPv4\"";
    for metric in [
        "shunt_packet_flows_total{how=\"new\"}",
        "shunt_packet_flows_established_total",
        "shunt_packet_source_nat_flows_total",
        "shunt_packet_rejects_total{reason=\"undefined_port\"}",
        "shunt_packet_reject_messages_total{result=\"sent\"}",
        &format!("shunt_service_packet_flows_total{{{of_service}}}"),
    ] {
        let line = page.lines().find(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(' ')));
        let value: u64 =
            line.unwrap_or_else(|| panic!("no {metric}:\n{page}")).rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0, "{metric}");
    }
    assert!(page.contains("shunt_packet_drops_total{reason=\"no_source_port\"} 0"), "{page}");

    assert!(monitor.stop(PATIENCE).unwrap().success(), "SIGTERM is no failure");
    assert!(world.daemons[0].stop().unwrap().success());
    wait_said(&filtered, "has ended");
    assert!(!filtered.finish(PATIENCE).unwrap().status.success());
    let failed = world.daemons[0].command(&["monitor"]).unwrap_err().to_string();
    assert!(failed.contains("no daemon listens"), "{failed}");
}
