//! Contradictory and broken objects, from manifest to plan: each costs itself only.

use std::fmt::Write as _;

use shunt_model::source::manifests::{self, ManifestsOptions};

use super::fixture::options;
use super::{Plan, plan, render_table};

/// A Service that must be served whatever else is in the folder.
const BYSTANDER: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: bystander}\n\
    spec: {clusterIP: 10.96.1.1, ports: [{port: 80}]}\n";

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n")
}

fn slice(name: &str, rest: &str) -> String {
    let labels = "{kubernetes.io/service-name: web}";
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {labels}}}\n{rest}\n"
    )
}

fn ipv4(endpoints: &str) -> String {
    slice("web-1", &format!("addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{endpoints}]"))
}

/// The plan for these documents, and the reasons for what it leaves out.
fn planned(documents: &[String]) -> (Plan, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), [&[BYSTANDER.to_owned()], documents].concat().join("---\n"))
        .unwrap();
    let source = ManifestsOptions {
        dir: folder.path().to_path_buf(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..ManifestsOptions::default()
    };
    let (snapshot, problems) = manifests::read(&source).unwrap();
    let (plan, conflicts) = plan(&snapshot, &options());
    let reasons = problems.into_iter().map(|problem| problem.reason);
    (plan, reasons.chain(conflicts.iter().map(ToString::to_string)).collect())
}

/// The lines of the plan's table that are about others than the bystander; each of `complaints` is within a reason.
#[track_caller]
fn check(documents: &[String], wanted: &[&str], complaints: &[&str]) {
    let (plan, reasons) = planned(documents);
    let mut lines: Vec<String> = Vec::new();
    for line in render_table(&plan).lines().skip(1) {
        lines.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let is_bystander = |line: &String| line.starts_with("default/bystander");
    assert!(lines.iter().any(is_bystander), "{lines:?}");
    lines.retain(|line| !is_bystander(line));
    assert_eq!(lines, wanted);
    assert_eq!(reasons.len(), complaints.len(), "{reasons:?}");
    for complaint in complaints {
        assert!(reasons.iter().any(|reason| reason.contains(complaint)), "{complaint:?} is not in {reasons:?}");
    }
}

const ENDPOINT: &str = "{addresses: [10.1.0.1]}";

#[test]
fn policies_without_anything_to_apply_to_mean_nothing() {
    let local = service("web", "clusterIP: 10.96.0.1, externalTrafficPolicy: Local");
    check(&[local, ipv4(ENDPOINT)], &["default/web - 10.96.0.1:80/tcp 10.1.0.1:80"], &[]); // IN-19
    let affinity = service("web", "clusterIP: 10.96.0.1, sessionAffinity: ClientIP");
    let (plan, _) = planned(&[affinity]);
    let timeouts: Vec<_> = plan.ports.values().map(|port| port.affinity.map(std::num::NonZero::get)).collect();
    assert_eq!(timeouts, [None, Some(10_800)]); // IN-22
}

#[test]
fn hints_for_unknown_zones_and_nodes_are_ignored() {
    let hinted = "{addresses: [10.1.0.1], hints: {forZones: [{name: nowhere}]}}, \
        {addresses: [10.1.0.2], hints: {forZones: [{name: nowhere}], forNodes: [{name: nobody}]}}";
    let documents = [service("web", "clusterIP: 10.96.0.1"), ipv4(hinted)];
    check(&documents, &["default/web - 10.96.0.1:80/tcp 10.1.0.1:80,10.1.0.2:80"], &[]); // EP-12: no zone either
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: {topology.kubernetes.io/zone: here}}\n";
    let documents = [&documents[..], &[node.to_owned()]].concat();
    check(&documents, &["default/web - 10.96.0.1:80/tcp 10.1.0.1:80,10.1.0.2:80"], &[]); // EP-11
}

#[test]
fn one_external_ip_goes_to_the_older_service_and_is_reported() {
    let dated = |name: &str, ip: &str, year: u16| {
        let text = service(name, &format!("clusterIP: {ip}, externalIPs: [192.0.2.1]"));
        text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{year}-01-01T00:00:00Z', "))
    };
    check(
        &[dated("a-new", "10.96.0.2", 2025), dated("old", "10.96.0.1", 2020)],
        &["default/a-new - 10.96.0.2:80/tcp <none>", "default/old - 10.96.0.1:80/tcp,192.0.2.1:80/tcp <none>"],
        &["192.0.2.1:80/tcp is claimed by default/old/tcp and default/a-new/tcp"],
    ); // IN-27
}

#[test]
fn addresses_count_in_canonical_form() {
    let documents = [
        service("web", "clusterIP: 010.096.0.001, externalIPs: ['::ffff:192.0.2.1', 192.0.2.01]"),
        ipv4("{addresses: ['010.1.0.01']}, {addresses: ['::ffff:10.1.0.1']}"),
    ];
    check(&documents, &["default/web - 10.96.0.1:80/tcp,192.0.2.1:80/tcp 10.1.0.1:80"], &[]); // IN-24
}

#[test]
fn slices_of_names_and_of_the_wrong_family_have_no_endpoints() {
    let names = slice("web-1", "addressType: FQDN\nports: [{port: 80}]\nendpoints: [{addresses: [example.org]}]");
    check(&[service("web", "clusterIP: 10.96.0.1"), names], &["default/web - 10.96.0.1:80/tcp <none>"], &[]); // IN-31
    let mixed = ipv4(&format!("{ENDPOINT}, {{addresses: ['fd00::1']}}, {{addresses: []}}"));
    check(
        &[service("web", "clusterIP: 10.96.0.1"), mixed],
        &["default/web - 10.96.0.1:80/tcp 10.1.0.1:80"],
        &["fd00::1 is not IPv4", "endpoints[1] has no usable", "endpoints[2] has no usable"],
    ); // IN-34
}

#[test]
fn a_slice_may_have_a_thousand_endpoints_and_a_hundred_ports() {
    let (mut ports, mut wanted) = (String::new(), String::new());
    for number in 0..100 {
        write!(ports, "{{name: p{number}, port: {}}}, ", 1000 + number).unwrap();
        write!(wanted, "{{name: p{number}, port: {number}}}, ", number = number + 1).unwrap();
    }
    let endpoints: Vec<String> =
        (0..1000).map(|number| format!("{{addresses: [10.1.{}.{}]}}", number / 250, number % 250 + 1)).collect();
    let spec = format!("clusterIP: 10.96.0.1, ports: [{}]", wanted.trim_end_matches(", "));
    let web = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n");
    let large = slice(
        "web-1",
        &format!("addressType: IPv4\nports: [{}]\nendpoints: [{}]", ports.trim_end_matches(", "), endpoints.join(", ")),
    );
    let (plan, reasons) = planned(&[web, large]);
    assert_eq!(reasons, Vec::<String>::new());
    let of_web: Vec<_> = plan.ports.values().filter(|port| &*port.key.service.name == "web").collect();
    let full = of_web.iter().filter(|port| port.cluster.len() == 1000).count();
    assert_eq!((of_web.len(), full), (100, 99), "p100 has no entry in the slice"); // IN-33, IN-41
}

#[test]
fn source_ranges_that_are_none_are_left_out_and_reported() {
    let spec = "clusterIP: 10.96.0.1, type: LoadBalancer, loadBalancerSourceRanges: [' 10.0.0.0/8 ', nonsense]";
    let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: Proxy}]}}\n";
    let documents = [format!("{}{status}", service("web", spec))];
    check(&documents, &["default/web - 10.96.0.1:80/tcp,192.0.2.1:80/tcp <none>"], &["nonsense"]); // IN-15, IN-17
    let (plan, _) = planned(&documents);
    let ranges: Vec<_> = plan.ports.values().filter_map(|port| port.source_ranges.as_ref()).collect();
    assert_eq!(ranges.len(), 1);
    assert_eq!(ranges[0].ranges, ["10.0.0.0/8".parse().unwrap()]);
}
