//! Bad objects cost themselves only, and a view kept up to date equals a fresh one.

use proptest::prelude::*;

use super::super::object::declare;
use super::super::parse::{Format, parse};
use super::*;
use crate::source::convert::{Conversion, Origin};

fn assembly() -> Assembly {
    Assembly::new(&ManifestsOptions {
        dir: PathBuf::from("/m"),
        service_cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        reserved: Vec::new(),
        pod_annotations: Vec::new(),
    })
}

fn load(assembly: &mut Assembly, name: &str, text: &str) {
    let mut cx = Conversion::default().of(Origin::Folder);
    let mut declared = Vec::new();
    match parse(text, Format::Yaml, |parsed| declared.push(declare(parsed, &mut cx))) {
        Ok(()) => assembly.replace(&Arc::from(name), declared),
        Err(error) => assembly.fail(&Arc::from(name), error),
    }
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

fn slice(name: &str, service: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\n{rest}\n---\n"
    )
}

/// A good Service beside `text` stays whatever `text` is; the only problem reads as expected.
#[track_caller]
fn check(text: &str, services: usize, problem: &str) -> Snapshot {
    let mut assembly = assembly();
    load(&mut assembly, "a.yaml", &format!("{}{text}", service("good", "ports: [{port: 80}]")));
    let snapshot = assembly.settle();
    let problems: Vec<String> = assembly.problems().iter().map(ToString::to_string).collect();
    assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:#?}");
    assert!(snapshot.services.contains_key(&ObjectKey::new("default", "good")));
    assert_eq!(snapshot.services.len(), 1 + services);
    snapshot
}

#[test]
fn bad_objects_are_skipped_and_named() {
    check(&service("bad", ""), 0, "/m/a.yaml:6: Service default/bad: it has no ports, so the Service is ignored");
    check(
        &service("bad", "ports: [{port: 0}], clusterIP: None"),
        1,
        "/m/a.yaml:6: Service default/bad: port \"\" has number 0",
    );
    check(
        &service("bad", "ports: [{name: a, port: 1}, {name: a, port: 2}]"),
        1,
        "/m/a.yaml:6: Service default/bad: port name \"a\" is used twice (again for 2/tcp)",
    );
    check(&service("bad", "ports: [{port: 1}, {port: 2}]"), 1, "/m/a.yaml:6: Service default/bad: port 2 has no name");
    let long = "x".repeat(70);
    check(
        &service(&long, "ports: [{port: 1}]"),
        0,
        &format!("/m/a.yaml:6: Service default/{long}: the name \"{long}\" has 70 characters"),
    );
    check(
        &service("No_Name", "ports: [{port: 1}]"),
        0,
        "/m/a.yaml:6: Service default/No_Name: the name \"No_Name\" is not a DNS name",
    );
    check(
        &service("bad", "ports: [{port: 1}], clusterIP: 10.96.0.300"),
        1,
        "/m/a.yaml:6: Service default/bad: cluster IP \"10.96.0.300\" is not an IP address",
    );
    check("metadata: {name: x}\n", 0, "/m/a.yaml:6: it has no kind");
    let nowhere = "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]";
    let orphan = check(
        &slice("s", "unknown", nowhere),
        0,
        "/m/a.yaml:6: EndpointSlice default/s: there is no Service default/unknown",
    );
    assert_eq!(orphan.slices.len(), 1);
    check(&slice("s", "\"\"", nowhere), 0, "/m/a.yaml:6: EndpointSlice default/s: no label kubernetes.io/service-name");
}

#[test]
fn an_object_with_a_field_of_a_wrong_type_costs_itself_only() {
    for ports in ["ports: oops", "ports: [{port: 99999999999}]"] {
        let text = format!("{}{}", service("bad", ports), service("fine", "ports: [{port: 1}]"));
        let snapshot = check(&text, 1, "/m/a.yaml:9: Service default/bad: it cannot be read (");
        assert!(snapshot.services.contains_key(&ObjectKey::new("default", "fine")));
    }
}

#[test]
fn an_object_that_cannot_be_read_any_more_keeps_its_last_good_version() {
    let mut assembly = assembly();
    let ports = |assembly: &mut Assembly| {
        let services = assembly.settle().services;
        services.iter().map(|(key, service)| format!("{}:{}", key.name, service.ports[0].port)).collect::<Vec<_>>()
    };
    let file = |a: &str, b: &str| {
        let ports = |port: &str| format!("ports: [{{port: {port}}}]");
        format!("{}{}", service("a", &ports(a)), service("b", &ports(b)))
    };
    load(&mut assembly, "a.yaml", &file("1", "1"));
    assert_eq!(ports(&mut assembly), ["a:1", "b:1"]);
    for other in ["2", "3"] {
        load(&mut assembly, "a.yaml", &file("eighty", other));
        assert_eq!(ports(&mut assembly), ["a:1".to_owned(), format!("b:{other}")]);
        let [problem] = &assembly.problems()[..] else { panic!("one problem") };
        assert_eq!(problem.kind, "service");
        assert!(problem.reason.ends_with("so its last good version stays in force"), "{problem}");
    }
    load(&mut assembly, "a.yaml", &file("2", "2"));
    assert_eq!((ports(&mut assembly), assembly.problems().len()), (vec!["a:2".into(), "b:2".into()], 0));
    // Written twice, one of them readable: that one counts, and there is nothing to keep.
    load(&mut assembly, "a.yaml", &format!("{}{}", file("eighty", "2"), file("4", "2")));
    assert_eq!(ports(&mut assembly), ["a:4", "b:2"]);
    load(&mut assembly, "a.yaml", &service("b", "ports: [{port: 2}]"));
    assert_eq!(ports(&mut assembly), ["b:2"]);
}

#[test]
fn a_bad_endpoint_costs_itself_only() {
    let text = "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: ['fd00::1', 10.0.0.2]}]";
    let snapshot = check(
        &slice("s", "good", text),
        0,
        "/m/a.yaml:6: EndpointSlice default/s: endpoint address fd00::1 is not IPv4",
    );
    let slice = snapshot.slices.values().next().unwrap();
    assert_eq!(
        slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].to_string()).collect::<Vec<_>>(),
        ["10.0.0.1", "10.0.0.2"]
    );
}

#[test]
fn addresses_that_an_api_server_refuses_are_refused_by_name() {
    let refused = |spec: &str, problem: &str| {
        let text = service("bad", &format!("ports: [{{port: 80}}], {spec}"));
        let snapshot = check(&text, 1, &format!("/m/a.yaml:6: Service default/bad: {problem}"));
        Arc::clone(&snapshot.services[&ObjectKey::new("default", "bad")])
    };
    let rows = [
        (
            "127.0.0.1",
            "a loopback address, which an API server refuses as an external IP or endpoint, so it is left out",
        ),
        ("::1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("0.0.0.0", "not an address of one machine"),
        ("ff02::1", "not an address of one machine"),
    ];
    for (address, why) in rows {
        let spec = format!("externalIPs: ['{address}', 192.0.2.1]");
        let kept = refused(&spec, &format!("external IP \"{address}\" is {why}"));
        assert_eq!(kept.external_ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    }
    for (address, why) in &rows[4..] {
        let kept = refused(&format!("clusterIP: '{address}'"), &format!("cluster IP \"{address}\" is {why}"));
        assert_eq!(kept.cluster_ips, ClusterIps::Unassigned);
    }
    // A cluster IP is what the range of Services has, and a written one is no worse than an allocated one.
    for address in ["169.254.20.10", "fe80::1", "127.0.0.1"] {
        let text = service("bad", &format!("ports: [{{port: 80}}], clusterIP: '{address}', externalIPs: [x]"));
        let kept = check(&text, 1, "/m/a.yaml:6: Service default/bad: external IP \"x\" is not an IP address");
        let assigned = ClusterIps::Assigned(vec![address.parse().unwrap()]);
        assert_eq!(kept.services[&ObjectKey::new("default", "bad")].cluster_ips, assigned);
    }
    let text = "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [127.0.0.1, 10.0.0.2]}]";
    let wanted = "/m/a.yaml:6: EndpointSlice default/s: endpoint address \"127.0.0.1\" is a loopback address";
    let snapshot = check(&slice("s", "good", text), 0, wanted);
    assert_eq!(snapshot.slices.values().next().unwrap().endpoints[0].addresses.len(), 1);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\nstatus: {podIP: 169.254.1.1}\n";
    check(pod, 0, "/m/a.yaml:6: Pod default/p: pod IP \"169.254.1.1\" is a link-local address");
    // An API server takes any address of a load balancer.
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: lb}\nspec: {ports: [{port: 80}]}\n\
                status: {loadBalancer: {ingress: [{ip: 127.0.0.1}, {ip: nonsense}]}}\n---\n";
    let wanted = "/m/a.yaml:6: Service default/lb: load balancer address \"nonsense\" is not an IP address";
    assert_eq!(check(text, 1, wanted).services[&ObjectKey::new("default", "lb")].load_balancer_ips.len(), 1);
}

#[test]
fn overlapping_cluster_ips_and_repeated_objects_are_settled_by_rank() {
    let snapshot = check(
        &format!(
            "{}{}",
            service("a", "ports: [{port: 1}], clusterIP: 10.96.0.9"),
            service("b", "ports: [{port: 1}], clusterIP: 10.96.0.9")
        ),
        2,
        "/m/a.yaml:11: Service default/b: cluster IP 10.96.0.9 already belongs to Service default/a",
    );
    assert_eq!(snapshot.services[&ObjectKey::new("default", "b")].cluster_ips, ClusterIps::Unassigned);

    let mut assembly = assembly();
    load(&mut assembly, "b.yaml", &service("x", "ports: [{port: 2}]"));
    load(&mut assembly, "a.yaml", &service("x", "ports: [{port: 1}]"));
    let port = |snapshot: &Snapshot| snapshot.services[&ObjectKey::new("default", "x")].ports[0].port.get();
    assert_eq!(port(&assembly.settle()), 1);
    let problem = assembly.problems()[0].to_string();
    assert_eq!(problem, "/m/b.yaml:1: Service default/x: already declared in a.yaml:1, so this one is ignored");
    assembly.remove(&Arc::from("a.yaml"));
    assert_eq!(port(&assembly.settle()), 2);
    assert_eq!(assembly.problems(), []);
}

#[test]
fn without_a_range_a_service_stays_unassigned() {
    let mut assembly = Assembly::new(&ManifestsOptions::default());
    load(&mut assembly, "a.yaml", &service("a", "ports: [{port: 1}]"));
    assert_eq!(assembly.settle().services.values().next().unwrap().cluster_ips, ClusterIps::Unassigned);
    assert!(assembly.problems()[0].reason.contains("set --service-cidr"));
}

#[test]
fn a_pod_that_is_being_deleted_keeps_what_it_has_and_gets_nothing() {
    // DNS-6.3
    let pod = |metadata: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: x}}{metadata}}}\nstatus: {{podIP: {ip}}}\n---\n{}",
            service("web", "selector: {app: x}, ports: [{port: 1}]")
        )
    };
    let leaving = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let seen = |assembly: &mut Assembly| {
        let snapshot = assembly.settle();
        let pods = snapshot.pods.values().flat_map(|pod| pod.addresses.clone()).map(|ip| ip.to_string());
        let endpoints = snapshot.slices.values().flat_map(|slice| &slice.endpoints).map(|endpoint| {
            format!("{}{}", endpoint.addresses[0], if endpoint.terminating { " terminating" } else { "" })
        });
        (pods.collect::<Vec<_>>().join(" "), endpoints.collect::<Vec<_>>().join(" "))
    };
    let owned = |pods: &str, endpoints: &str| (pods.to_owned(), endpoints.to_owned());
    let mut kept = assembly();
    load(&mut kept, "a.yaml", &pod(leaving, "10.1.0.1"));
    assert_eq!(seen(&mut kept), owned("", "10.1.0.1 terminating"), "its endpoint serves if no other does");
    load(&mut kept, "a.yaml", &pod("", "10.1.0.1"));
    assert_eq!(seen(&mut kept), owned("10.1.0.1", "10.1.0.1"));
    load(&mut kept, "a.yaml", &pod(leaving, "10.1.0.1"));
    assert_eq!(seen(&mut kept), owned("10.1.0.1", "10.1.0.1 terminating"));
    load(&mut kept, "a.yaml", &service("web", "selector: {app: x}, ports: [{port: 1}]"));
    assert_eq!(seen(&mut kept), owned("", ""));
    // An annotation that is kept says what to do with the Pod for as long as it runs.
    let text = pod(&format!("{leaving}, annotations: {{mesh: 'on'}}"), "10.1.0.1");
    let mut declared = Vec::new();
    let mut cx = Conversion::keeping(&["mesh".to_owned()]);
    parse(&text, Format::Yaml, |parsed| declared.push(declare(parsed, &mut cx))).unwrap();
    kept.replace(&Arc::from("a.yaml"), declared);
    assert_eq!(seen(&mut kept), owned("10.1.0.1", "10.1.0.1 terminating"));
}

/// Objects that interfere with each other in every way there is.
fn document() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let label = prop::sample::select(vec!["x", "y"]);
    let spec = prop::sample::select(vec![
        "ports: [{port: 80}]",
        "ports: [{port: 80}], clusterIP: 10.96.0.9",
        "ports: [{port: 80, targetPort: http}], clusterIP: None",
        "ports: [{port: 80}], type: ExternalName, externalName: e",
        "",
    ]);
    let service = (name.clone(), label.clone(), spec).prop_map(|(name, label, spec)| {
        let spec = if spec.is_empty() { String::new() } else { format!("selector: {{app: {label}}}, {spec}") };
        service(name, &spec)
    });
    let pod = (name.clone(), label, name.clone(), 1..5u8, any::<bool>()).prop_map(|(name, label, node, ip, ready)| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {label}}}}}\nspec: {{nodeName: {node}, containers: [{{name: c, ports: [{{name: http, containerPort: {ip}}}]}}]}}\nstatus: {{podIP: 10.1.0.{ip}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n---\n").replace("'true'", "'True'")
    });
    let node = (name.clone(), 0..3u8).prop_map(|(name, zone)| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: z{zone}}}}}\n---\n")
    });
    let slices = (name.clone(), name.clone(), 1..5u8).prop_map(|(name, of, ip)| {
        slice(name, of, &format!("addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [10.2.0.{ip}]}}]"))
    });
    let namespace = name.prop_map(|name| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n"));
    prop_oneof![3 => service, 4 => pod, 1 => node, 2 => slices, 1 => namespace]
}

fn edit() -> impl Strategy<Value = (&'static str, Option<String>)> {
    let file = prop::sample::select(vec!["1.yaml", "2.yaml", "3.yaml"]);
    let text = prop::collection::vec(document(), 0..5).prop_map(|documents| documents.concat());
    (file, prop::option::weighted(0.85, text))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_view_kept_up_to_date_equals_a_fresh_one(edits in prop::collection::vec((edit(), any::<bool>()), 1..12)) {
        let mut kept = assembly();
        let mut texts = BTreeMap::new();
        for ((file, text), settle) in edits {
            match text {
                Some(text) => {
                    load(&mut kept, file, &text);
                    texts.insert(file, text);
                }
                None => {
                    kept.remove(&Arc::from(file));
                    texts.remove(file);
                }
            }
            if settle {
                kept.settle();
            }
        }
        let mut fresh = assembly();
        for (file, text) in texts.iter().rev() {
            load(&mut fresh, file, text);
        }
        prop_assert_eq!(kept.settle(), fresh.settle());
        prop_assert_eq!(kept.problems(), fresh.problems());
    }
}
