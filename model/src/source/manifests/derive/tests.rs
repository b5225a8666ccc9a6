//! Endpoints of Pods.

use super::super::object::{Object, declare};
use super::super::parse::{Format, parse};
use super::*;

fn objects(text: &str) -> Vec<Object> {
    let mut cx = Conversion::default();
    let mut objects = Vec::new();
    parse(text, Format::Yaml, |parsed| objects.extend(declare(parsed, &mut cx).object)).unwrap();
    objects
}

/// Slices of a Service with this spec over Pods given as `name: rest of the manifest`.
fn derived(spec: &str, pods: &[&str]) -> Vec<EndpointSlice> {
    let service =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, {spec}}}\n");
    let Some(Object::Service(draft)) = objects(&service).into_iter().next() else { panic!("no service: {service}") };
    let pods: Vec<Arc<Candidate>> = pods
        .iter()
        .flat_map(|pod| objects(&format!("apiVersion: v1\nkind: Pod\n{}\n", pod.replace("; ", "\n"))))
        .filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            Object::Namespace(_) | Object::Service(_) | Object::Slice(_) | Object::Node(_) => None,
        })
        .collect();
    let zone = |node: &str| (node == "n1").then(|| Arc::from("z1"));
    slices(draft.selection.as_ref().unwrap(), pods.iter().map(|pod| &**pod), zone)
}

fn describe(slice: &EndpointSlice) -> String {
    let ports: Vec<String> = slice.ports.iter().map(|port| format!("{}={}", port.name, port.port)).collect();
    let endpoints: Vec<String> = slice.endpoints.iter().map(describe_endpoint).collect();
    format!("{} [{}] {}", slice.key.slice, ports.join(" "), endpoints.join(" "))
}

fn describe_endpoint(endpoint: &Endpoint) -> String {
    let mut text = endpoint.addresses[0].to_string();
    for (flag, letter) in [(endpoint.ready, 'r'), (endpoint.serving, 's'), (endpoint.terminating, 't')] {
        if flag {
            text.push(letter);
        }
    }
    if let Some(hostname) = &endpoint.hostname {
        text.push_str(&format!(":{hostname}"));
    }
    let hints: Vec<&str> = endpoint.zone_hints.iter().chain(&endpoint.node_hints).map(|hint| &**hint).collect();
    if !hints.is_empty() {
        text.push_str(&format!("@{}", hints.join("+")));
    }
    text
}

#[track_caller]
fn check(spec: &str, pods: &[&str], expected: &[&str]) {
    let found: Vec<String> = derived(spec, pods).iter().map(describe).collect();
    assert_eq!(found, expected);
}

const PORT: &str = "ports: [{port: 80}]";
const META: &str = "metadata: {name: p, labels: {app: web, x: y}}";

fn pod(meta: &str, status: &str) -> String {
    format!("metadata: {{name: p, labels: {{app: web}}{meta}}}; status: {{podIP: 10.1.0.1{status}}}")
}

#[test]
fn matching_pods_with_an_address_are_endpoints() {
    let status = "status: {podIP: 10.1.0.1}";
    check(PORT, &[&format!("{META}; {status}")], &["web-derived-ipv4 [=80] 10.1.0.1rs"]);
    check(PORT, &[&format!("metadata: {{name: p, labels: {{app: other}}}}; {status}")], &[]);
    check(PORT, &[&format!("metadata: {{name: p, namespace: other, labels: {{app: web}}}}; {status}")], &[]);
    check(PORT, &[META], &[]);
    check(PORT, &[&pod("", ", phase: Succeeded"), &pod("", ", phase: Failed")], &[]);
    check(PORT, &[&pod("", ", phase: Running")], &["web-derived-ipv4 [=80] 10.1.0.1rs"]);
}

#[test]
fn conditions_are_those_of_the_slice_controller() {
    // IN-42
    let unready = ", conditions: [{type: Ready, status: 'False'}]";
    let ready = ", conditions: [{type: Ready, status: 'True'}]";
    let starting = ", conditions: [{type: PodScheduled, status: 'True'}]";
    let leaving = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let publish = "ports: [{port: 80}], publishNotReadyAddresses: true";
    for (spec, meta, status, expected) in [
        (PORT, "", ready, "10.1.0.1rs"),
        (PORT, "", unready, "10.1.0.1"),
        (PORT, "", starting, "10.1.0.1"),
        (PORT, leaving, ready, "10.1.0.1st"),
        (PORT, leaving, unready, "10.1.0.1t"),
        (publish, "", unready, "10.1.0.1r"),
        (publish, leaving, unready, "10.1.0.1rt"),
    ] {
        check(spec, &[&pod(meta, status)], &[&format!("web-derived-ipv4 [=80] {expected}")]);
    }
}

#[test]
fn target_ports_are_numbers_or_names_of_each_pod() {
    let with = |name: &str, ip: &str, spec: &str| {
        format!("metadata: {{name: {name}, labels: {{app: web}}}}; spec: {{{spec}}}; status: {{podIP: {ip}}}")
    };
    let container = |port: &str| format!("containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]");
    let named =
        "ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 9090}, {name: c, port: 82}]";
    let a = with("a", "10.1.0.1", &container("8080"));
    let b = with("b", "10.1.0.2", &container("8081"));
    let none = with("c", "10.1.0.3", "containers: [{name: c}]");
    let sidecar = format!("{}, initC{}", "containers: [{name: x}]", container("8082").trim_start_matches('c'))
        .replace("name: c,", "name: c, restartPolicy: Always,");
    let sidecar = with("d", "10.1.0.4", &sidecar);
    let plain_init = sidecar.replace("restartPolicy: Always,", "");
    let udp = with("e", "10.1.0.5", &container("8080, protocol: UDP"));
    check(
        named,
        &[&a, &b, &none, &sidecar, &udp],
        &[
            "web-derived-ipv4-none [b=9090 c=82] 10.1.0.3rs 10.1.0.5rs",
            "web-derived-ipv4-8080 [a=8080 b=9090 c=82] 10.1.0.1rs",
            "web-derived-ipv4-8081 [a=8081 b=9090 c=82] 10.1.0.2rs",
            "web-derived-ipv4-8082 [a=8082 b=9090 c=82] 10.1.0.4rs",
        ],
    );
    check(named, &[&plain_init], &["web-derived-ipv4-none [b=9090 c=82] 10.1.0.4rs"]);
}

/// The notes about a Service whose port has this targetPort, and the slices over a Pod with this container port name.
#[track_caller]
fn check_target(target: &str, container: &str, notes: &[&str], slices: &[&str]) {
    let spec = format!("ports: [{{port: 80, targetPort: {target}}}]");
    let service =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, {spec}}}\n");
    let (mut cx, mut found) = (Conversion::default(), Vec::new());
    parse(&service, Format::Yaml, |parsed| found.extend(declare(parsed, &mut cx).notes)).unwrap();
    assert_eq!(found, notes);
    let ports = format!("containers: [{{name: c, ports: [{{name: {container}, containerPort: 8080}}]}}]");
    let pod = format!("metadata: {{name: p, labels: {{app: web}}}}; spec: {{{ports}}}; status: {{podIP: 10.1.0.1}}");
    check(&spec, &[&pod], slices);
}

#[test]
fn a_target_port_that_no_port_can_have_is_told_once() {
    check_target("http", "http", &[], &["web-derived-ipv4-8080 [=8080] 10.1.0.1rs"]);
    check_target(
        "'8080'",
        "http",
        &["port \"\" has targetPort \"8080\" in quotes, which is a name and not a number, and Kubernetes refuses it; \
           write targetPort: 8080. The port has no endpoints"],
        &["web-derived-ipv4 [] 10.1.0.1rs"],
    );
    check_target(
        "HTTP",
        "HTTP",
        &[
            "port \"\" has targetPort \"HTTP\", which is not the name of a port (at most 15 lower-case letters, digits and \
           single '-' between them, one letter at least); Kubernetes would refuse it",
        ],
        &["web-derived-ipv4-8080 [=8080] 10.1.0.1rs"],
    );
}

#[test]
fn each_family_has_its_slice() {
    let dual =
        "metadata: {name: p, labels: {app: web}}; status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}";
    let (v4, v6) = ("web-derived-ipv4 [=80] 10.1.0.1rs", "web-derived-ipv6 [=80] fd00::1rs");
    check(PORT, &[dual], &[v4, v6]);
    check("ports: [{port: 80}], ipFamilies: [IPv6]", &[dual], &[v6]);
    check("ports: [{port: 80}], clusterIP: 10.0.0.1", &[dual], &[v4]);
    check("ports: [{port: 80}], ipFamilies: [IPv6], ipFamilyPolicy: PreferDualStack", &[dual], &[v4, v6]);
}

#[test]
fn headless_services_may_have_no_ports_and_give_hostnames() {
    let spec = |subdomain: &str| {
        format!("{META}; spec: {{containers: [], hostname: h, subdomain: {subdomain}}}; status: {{podIP: 10.1.0.1}}")
    };
    let headless = "clusterIP: None";
    check(headless, &[&spec("web")], &["web-derived-ipv4 [] 10.1.0.1rs:h"]);
    check(headless, &[&spec("other")], &["web-derived-ipv4 [] 10.1.0.1rs"]);
    for bad in ["'a.b'", "'a b'", "H"] {
        let spec = spec("web").replace("hostname: h", &format!("hostname: {bad}"));
        check(headless, &[&spec], &["web-derived-ipv4 [] 10.1.0.1rs"]);
    }
    assert!(derived(headless, &[&spec("web")])[0].headless);
    assert!(!derived(PORT, &[&spec("web")])[0].headless);
}

#[test]
fn hints_are_those_of_the_slice_controller() {
    // IN-44
    let on = |node: &str, status: &str| {
        format!("{META}; spec: {{containers: [], nodeName: {node}}}; status: {{podIP: 10.1.0.1{status}}}")
    };
    let unready = ", conditions: [{type: Ready, status: 'False'}]";
    for (distribution, node, status, expected) in [
        ("PreferClose", "n1", "", "10.1.0.1rs@z1"),
        ("PreferSameZone", "n1", "", "10.1.0.1rs@z1"),
        ("PreferSameNode", "n1", "", "10.1.0.1rs@z1+n1"),
        ("PreferSameNode", "n2", "", "10.1.0.1rs@n2"),
        ("PreferClose", "n2", "", "10.1.0.1rs"),
        ("PreferClose", "n1", unready, "10.1.0.1"),
    ] {
        let spec = format!("{PORT}, trafficDistribution: {distribution}");
        check(&spec, &[&on(node, status)], &[&format!("web-derived-ipv4 [=80] {expected}")]);
    }
    assert_eq!(derived(PORT, &[&on("n1", "")])[0].endpoints[0].zone.as_deref(), Some("z1"));
}
