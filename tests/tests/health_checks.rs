//! The servers on health-check node ports, as a load balancer asks them.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use cluster::Cluster;
use lab::http_get;
use lab::manifests::{self, Port, SliceEndpoint};
use serde_json::{Value, json};

const PORT: u16 = 31500;
const OTHER: u16 = 31501;
const PORTS: [Port<'static>; 1] = [Port { name: "tcp", protocol: "TCP", port: 80, target: 7000 }];

/// A load balancer's Service that keeps to the node; one endpoint on each of `nodes`.
fn objects(port: u16, nodes: &[&str]) -> Vec<Value> {
    let mut service = manifests::service("test", "lb", None, &["10.96.1.9".parse().unwrap()], &PORTS);
    let spec = service["spec"].as_object_mut().unwrap();
    spec.insert("type".to_owned(), json!("LoadBalancer"));
    spec.insert("externalTrafficPolicy".to_owned(), json!("Local"));
    spec.insert("healthCheckNodePort".to_owned(), json!(port));
    let endpoint = |(number, node): (usize, &&str)| SliceEndpoint {
        address: IpAddr::V4([10, 250, 0, u8::try_from(number).unwrap() + 1].into()),
        node: (*node).to_owned(),
        ready: true,
    };
    let endpoints: Vec<SliceEndpoint> = nodes.iter().enumerate().map(endpoint).collect();
    vec![service, manifests::slice("test", "lb", "lb-a", &endpoints, &PORTS)]
}

/// The code and the body; code 0 where no server listens.
fn ask(cluster: &Cluster, port: u16) -> (u16, String) {
    let address = SocketAddr::new(IpAddr::V4(cluster.node.ipv4), port);
    let answer = cluster.node.in_netns(|| http_get(address, "/any/path", Duration::from_secs(2)));
    answer.map(|answer| (answer.status, answer.body)).unwrap_or_default()
}

#[test]
fn a_load_balancer_learns_which_nodes_have_an_endpoint() {
    let Some(cluster) = Cluster::alone("hcnp") else { return };
    let wait_for = |what: &str, port: u16, code: u16, endpoints: Option<u64>| {
        cluster.wait_for(what, || {
            let (found, body) = ask(&cluster, port);
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            found == code && body["localEndpoints"].as_u64() == endpoints
        });
    };
    cluster.manifests.put("lb", &objects(PORT, &["n1", "n1", "elsewhere"])).unwrap();
    wait_for("two endpoints here", PORT, 200, Some(2));
    let (_, body) = ask(&cluster, PORT);
    let body: Value = serde_json::from_str(&body).unwrap();
    let wanted =
        json!({"service": {"namespace": "test", "name": "lb"}, "localEndpoints": 2, "serviceProxyHealthy": true});
    assert_eq!(body, wanted);
    cluster.manifests.put("lb", &objects(PORT, &["elsewhere"])).unwrap();
    wait_for("none here", PORT, 503, Some(0));

    // Another program has the next port: the daemon reports this, and takes the port as soon as it is free.
    let taken = cluster.node.in_netns(|| Ok(TcpListener::bind(("0.0.0.0", OTHER))?)).unwrap();
    cluster.manifests.put("lb", &objects(OTHER, &["n1"])).unwrap();
    let log = cluster.daemon().process().log().to_owned();
    let told = || fs::read_to_string(&log).unwrap().matches("FailedToStartServiceHealthcheck").count();
    cluster.wait_for("the event", || told() == 1);
    wait_for("the old port is closed", PORT, 0, None);
    drop(taken);
    wait_for("the new port", OTHER, 200, Some(1));
    assert_eq!(told(), 1);

    cluster.manifests.remove("lb").unwrap();
    wait_for("closed", OTHER, 0, None);
}

#[test]
fn a_health_check_gives_way_to_a_node_port_of_another_service_also_after_a_restart() {
    let Some(cluster) = Cluster::alone("hcgives") else { return };
    let answers = || ask(&cluster, PORT).0;
    let log = || fs::read_to_string(cluster.daemon().process().log()).unwrap();
    cluster.manifests.put("lb", &objects(PORT, &["n1"])).unwrap();
    cluster.wait_for("the health check", || answers() == 200);

    let mut web = manifests::service("test", "web", None, &["10.96.1.10".parse().unwrap()], &PORTS);
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(PORT);
    cluster.manifests.put("web", &[web]).unwrap();
    let client = cluster.node.pod("client").unwrap();
    let check_gone = |when: &str| {
        cluster.wait_until_applied(&client);
        cluster.wait_for("the server to be gone", || answers() == 0);
        let said = log();
        let told = said.lines().filter(|line| line.contains("two services claim one frontend"));
        let told: Vec<&str> = told.collect();
        assert!(told.len() == 1 && told[0].contains("healthCheckNodePort") && told[0].contains("test/web"), "{told:?}");
        assert!(!said.contains("FailedToStartServiceHealthcheck"), "{when}: {said}");
    };
    check_gone("at once");
    assert!(cluster.daemon().stop().unwrap().success());
    cluster.daemon().restart().unwrap();
    check_gone("after a restart");
    cluster.manifests.remove("web").unwrap();
    cluster.wait_for("the health check again", || answers() == 200);
}
