//! Fields of Kubernetes objects as they end up in the model.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::*;
use crate::key::{Family, Protocol};
use crate::service::{ClusterIps, Service, ServiceKind, TrafficPolicy};

fn of<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap()
}

/// The Service and the notes made of it.
fn converted(spec: &str) -> (Service, Vec<String>) {
    let mut cx = Conversion::default();
    let object: core::Service = of(&format!("metadata: {{name: a}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"));
    (service(&object, &mut cx).unwrap(), cx.take_notes())
}

#[track_caller]
fn check<T: PartialEq + std::fmt::Debug>(spec: &str, field: impl Fn(&Service) -> T, expected: T, notes: usize) {
    let (service, found) = converted(spec);
    assert_eq!((field(&service), found.len()), (expected, notes), "{spec}: {found:?}");
}

#[test]
fn defaults_are_those_of_the_api_server() {
    // IN-25
    let (service, notes) = converted("");
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(service.key, ObjectKey::new("default", "a"));
    assert_eq!((&service.kind, &service.cluster_ips), (&ServiceKind::ClusterIp, &ClusterIps::Unassigned));
    assert_eq!((service.external_policy, service.internal_policy), (TrafficPolicy::Cluster, TrafficPolicy::Cluster));
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("", Protocol::Tcp));
    assert_eq!((service.affinity, service.created, service.other_proxy), (None, None, false));
}

#[test]
fn cluster_ips_are_canonical_and_one_of_each_family() {
    let ips = |service: &Service| service.cluster_ips.addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
    let list = |ips: &[&str]| ips.iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>();
    check("clusterIP: 10.0.0.010", ips, list(&["10.0.0.10"]), 0);
    check("clusterIP: 10.0.0.1, clusterIPs: ['fd00::1', 10.0.0.1]", ips, list(&["fd00::1", "10.0.0.1"]), 0);
    check("clusterIPs: [10.0.0.1, 10.0.0.2]", ips, list(&["10.0.0.1"]), 1);
    check("clusterIP: 0.0.0.0", ips, list(&[]), 1);
    check("clusterIP: None", |service| service.cluster_ips.clone(), ClusterIps::Headless, 0);
    let external = "type: ExternalName, externalName: example.org., clusterIP: 10.0.0.1";
    check(external, |service| service.kind.clone(), ServiceKind::ExternalName("example.org".into()), 0);
    check(external, ips, list(&[]), 0);
}

#[test]
fn what_an_api_server_has_admitted_holds() {
    // IN-16: an older one may have taken them, and kube-proxy serves them.
    let ips = |service: &Service| service.external_ips.len();
    check("externalIPs: [127.0.0.1, 169.254.1.1, 192.0.2.1]", ips, 3, 0);
    check("externalIPs: [0.0.0.0, 192.0.2.1]", ips, 1, 1);
}

#[test]
fn affinity_has_a_default_and_limits() {
    // IN-22
    let seconds = |service: &Service| service.affinity.map(std::num::NonZeroU32::get);
    let with = |timeout: &str| {
        format!("sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout}}}}}")
    };
    check("sessionAffinity: None", seconds, None, 0);
    check("sessionAffinity: ClientIP", seconds, Some(10_800), 0);
    check(&with("5"), seconds, Some(5), 0);
    check(&with("0"), seconds, Some(10_800), 1);
    check(&with("86401"), seconds, Some(10_800), 1);
}

#[test]
fn other_addresses_policies_and_ranges() {
    let external = |service: &Service| service.external_ips.len();
    check("externalIPs: [1.2.3.4, 1.2.3.4, 'fd00::1', bad]", external, 2, 1);
    let ranges = |service: &Service| service.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    check("loadBalancerSourceRanges: [' 10.1.2.3/8 ', nonsense]", ranges, vec!["10.0.0.0/8".to_owned()], 1);
    check("externalTrafficPolicy: Local", |service| service.external_policy, TrafficPolicy::Local, 0);
    check("internalTrafficPolicy: Nearby", |service| service.internal_policy, TrafficPolicy::Cluster, 1);
    check("healthCheckNodePort: 30000", |service| service.health_check_node_port.map(|p| p.get()), Some(30_000), 0);
}

#[test]
fn load_balancer_addresses_of_mode_proxy_are_skipped() {
    // IN-15
    let object: core::Service = of(
        "metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: ''}, creationTimestamp: '1970-01-01T00:01:00Z'}\nspec: {ports: [{port: 1}], type: LoadBalancer}\nstatus: {loadBalancer: {ingress: [{ip: 1.1.1.1}, {ip: 1.1.1.2, ipMode: Proxy}, {ip: 1.1.1.3, ipMode: VIP}, {hostname: h}]}}\n",
    );
    let service = service(&object, &mut Conversion::default()).unwrap();
    assert_eq!(service.load_balancer_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.1.1.1", "1.1.1.3"]);
    assert!(service.other_proxy);
    assert_eq!(service.created, Some(60));
}

#[test]
fn slices_resolve_absent_conditions_and_ports() {
    // IN-32, IN-35
    let object: discovery::EndpointSlice = of(
        "metadata: {name: s, labels: {kubernetes.io/service-name: a, service.kubernetes.io/headless: ''}}\naddressType: IPv4\nports: [{port: 80}, {name: x}, {name: y, port: 0}]\nendpoints:\n- {addresses: [10.0.0.1], conditions: {ready: false}}\n- {addresses: [10.0.0.2], nodeName: n, zone: z, hostname: h, targetRef: {name: p}, hints: {forZones: [{name: z}], forNodes: [{name: n}]}}\n- {addresses: []}\n",
    );
    let mut cx = Conversion::default();
    let slice = slice(&object, &mut cx).unwrap().unwrap();
    assert_eq!(cx.take_notes().len(), 2, "port 0 and the endpoint without address");
    assert!(slice.headless && slice.ports.len() == 1 && slice.endpoints.len() == 2);
    let [first, second] = &slice.endpoints[..] else { panic!("two endpoints") };
    assert_eq!((first.ready, first.serving, first.terminating), (false, true, false));
    assert_eq!((second.ready, second.serving, second.terminating), (true, true, false));
    assert_eq!((second.node.as_deref(), second.zone.as_deref()), (Some("n"), Some("z")));
    assert_eq!((&*second.zone_hints[0], &*second.node_hints[0]), ("z", "n"));
    assert_eq!((second.hostname.as_deref(), second.target.as_deref()), (Some("h"), Some("p")));
}

#[test]
fn what_is_no_label_in_a_slice_is_left_out_alone() {
    let long = "y".repeat(70);
    for bad in ["a.b", "a b", "A", "-a", "a_b", "a\\.b", &long] {
        let object = of(&format!(
            "metadata: {{name: s, labels: {{kubernetes.io/service-name: a}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}, {{name: '{bad}', port: 81}}]\nendpoints:\n- {{addresses: [10.0.0.1], hostname: '{bad}', nodeName: n}}\n- {{addresses: [10.0.0.2], hostname: h}}\n"
        ));
        let mut cx = Conversion::default();
        let slice = slice(&object, &mut cx).unwrap().unwrap();
        let notes = cx.take_notes();
        let [port, hostname] = &notes[..] else { panic!("{bad}: {notes:?}") };
        assert!(
            port.starts_with(&format!("port name {bad:?} ")) && port.ends_with("so that port is left out"),
            "{port}"
        );
        assert!(
            hostname.starts_with(&format!("hostname {bad:?} ")) && hostname.ends_with("so it is left out"),
            "{hostname}"
        );
        assert_eq!(slice.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["http"], "{bad}");
        let found: Vec<_> = slice.endpoints.iter().map(|e| (e.hostname.as_deref(), e.node.as_deref())).collect();
        assert_eq!(found, [(None, Some("n")), (Some("h"), None)], "{bad}");
    }
}

#[test]
fn a_port_name_that_is_no_label_costs_that_port() {
    let names = |service: &Service| service.ports.iter().map(|port| port.name.to_string()).collect::<Vec<_>>();
    for bad in ["a.b", "a b", "HTTP", &"y".repeat(64)] {
        let object: core::Service = of(&format!(
            "metadata: {{name: a}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}, {{name: '{bad}', port: 81}}, {{name: last, port: 82}}]}}\n"
        ));
        let mut cx = Conversion::default();
        let service = service(&object, &mut cx).unwrap();
        let notes = cx.take_notes();
        assert_eq!((names(&service), notes.len()), (vec!["http".to_owned(), "last".to_owned()], 1), "{notes:?}");
        assert!(notes[0].starts_with(&format!("port name {bad:?} ")), "{notes:?}");
    }
}

#[test]
fn an_external_name_can_be_read_in_one_way_only() {
    // DNS-2.6
    let target = |name: &str| {
        let object: core::Service =
            of(&format!("metadata: {{name: a}}\nspec: {{type: ExternalName, externalName: '{name}'}}\n"));
        service(&object, &mut Conversion::default()).map(|service| service.kind)
    };
    for (good, wanted) in [("WEB.Shop.example.", "WEB.Shop.example"), ("_x.a-1", "_x.a-1"), ("192.0.2.7", "192.0.2.7")]
    {
        assert_eq!(target(good), Ok(ServiceKind::ExternalName(wanted.into())));
    }
    for bad in [r"a\.b.com", r"a\046b.com", "a..b", "a b.com", " a.com", "a.com..", ".", "bücher.de", &"y".repeat(64)]
    {
        let Rejection(reason) = target(bad).unwrap_err();
        assert!(reason.starts_with(&format!("externalName {bad:?} is not a DNS name")), "{reason}");
    }
    assert!(target("").unwrap_err().0.contains("without spec.externalName"));
}

#[test]
fn fqdn_slices_are_left_out_silently() {
    // IN-31
    let object = of("metadata: {name: s, labels: {kubernetes.io/service-name: a}}\naddressType: FQDN\n");
    let mut cx = Conversion::default();
    assert_eq!(slice(&object, &mut cx), Ok(None));
    assert_eq!(cx.take_notes(), Vec::<String>::new());
}

#[test]
fn nodes_and_pods_keep_what_is_read_of_them() {
    let mut cx = Conversion::default();
    let object = of(
        "metadata: {name: n1, labels: {topology.kubernetes.io/zone: ''}}\nspec: {podCIDR: 10.1.0.0/24}\nstatus: {addresses: [{type: ExternalIP, address: 1.1.1.1}, {type: InternalIP, address: 10.0.0.1}, {type: Hostname, address: n1}]}\n",
    );
    let node = node(&object, &mut cx).unwrap();
    assert_eq!(node.zone, None);
    assert_eq!(node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "1.1.1.1"]);
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    let object = of(
        "metadata: {name: p.q, namespace: x}\nspec: {containers: [], hostNetwork: true, nodeName: n1}\nstatus: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}\n",
    );
    let pod = pod(&object, &mut cx).unwrap().unwrap();
    assert_eq!((pod.addresses.len(), pod.host_network, pod.node.as_deref()), (2, true, Some("n1")));
}

#[test]
fn repeated_names_are_one_allocation() {
    let mut cx = Conversion::default();
    let (a, b) = (cx.intern("node-1"), cx.intern("node-1"));
    assert!(Arc::ptr_eq(&a, &b));
}

#[test]
fn annotations_of_pods_are_kept_only_if_asked_for() {
    let object = of(
        "metadata: {name: p, annotations: {mesh: 'on', vm: '1', long: text}}\nspec: {containers: []}\nstatus: {podIP: 10.1.0.1}\n",
    );
    let kept = |keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let pod = pod(&object, &mut Conversion::keeping(&keys)).unwrap().unwrap();
        pod.annotations.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(kept(&["vm", "mesh", "absent", "vm"]), ["mesh=on", "vm=1"]);
    assert_eq!(kept(&[]), Vec::<String>::new());
}

#[test]
fn what_the_proxy_does_not_read_changes_nothing() {
    // IN-18, IN-23
    let (plain, _) = converted("clusterIP: 10.0.0.1");
    for unread in [
        "selector: {app: web}",
        "publishNotReadyAddresses: true",
        "trafficDistribution: PreferClose",
        "loadBalancerClass: example.org/lb",
        "loadBalancerIP: 192.0.2.1",
        "allocateLoadBalancerNodePorts: false",
    ] {
        let (service, notes) = converted(&format!("clusterIP: 10.0.0.1, {unread}"));
        assert_eq!((&service, notes.len()), (&plain, 0), "{unread}");
    }
    let annotated: core::Service = of(
        "metadata: {name: a, annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: 10.0.0.0/8}, resourceVersion: '7'}\nspec: {ports: [{port: 80}], clusterIP: 10.0.0.1}\n",
    );
    assert_eq!(service(&annotated, &mut Conversion::default()).unwrap(), plain); // IN-13, IN-18
}

#[test]
fn addresses_of_a_family_are_those_of_its_shape() {
    // IN-11
    let ip = |family| move |service: &Service| service.cluster_ip(family).map(|ip| ip.to_string());
    let spec = "clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6]";
    check(spec, ip(Family::V4), Some("10.0.0.1".to_owned()), 0);
    check(spec, ip(Family::V6), Some("fd00::1".to_owned()), 0);
    check("clusterIP: 'fd00::1'", ip(Family::V4), None, 0);
    check("clusterIP: '::ffff:10.0.0.1'", ip(Family::V4), Some("10.0.0.1".to_owned()), 0); // IN-24
}

#[test]
fn a_slice_without_owner_is_refused() {
    // IN-30
    for label in ["", "labels: {kubernetes.io/service-name: ''}"] {
        let object = of(&format!("metadata: {{name: s, {label}}}\naddressType: IPv4\n"));
        assert!(slice(&object, &mut Conversion::default()).unwrap_err().0.contains("kubernetes.io/service-name"));
    }
}

#[test]
fn empty_hints_are_none_and_metadata_is_not_read_of_slices() {
    let converted = |metadata: &str, hints: &str| {
        let object = of(&format!(
            "metadata: {{name: s, labels: {{kubernetes.io/service-name: a}}, {metadata}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [10.0.0.1], {hints}}}]\n"
        ));
        slice(&object, &mut Conversion::default()).unwrap().unwrap()
    };
    let plain = converted("", "");
    assert_eq!(converted("", "hints: {forZones: [], forNodes: []}"), plain); // IN-37
    assert_eq!(converted("resourceVersion: '7', annotations: {a: b}", ""), plain); // IN-40
    assert!(plain.endpoints[0].zone_hints.is_empty());
}

#[test]
fn the_time_of_the_trigger_is_kept_if_it_is_one() {
    // SY-20
    let triggered = |annotations: &str| {
        let object = of(&format!(
            "metadata: {{name: s, labels: {{kubernetes.io/service-name: a}}, annotations: {{{annotations}}}}}\naddressType: IPv4\nports: []\nendpoints: []\n"
        ));
        slice(&object, &mut Conversion::default()).unwrap().unwrap().triggered
    };
    let key = "endpoints.kubernetes.io/last-change-trigger-time";
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5);
    assert_eq!(triggered(&format!("{key}: '2023-11-14T22:13:20.000000005Z'")), Some(time));
    assert_eq!(triggered(&format!("{key}: yesterday")), None);
    assert_eq!(triggered(""), None);
}

#[test]
fn a_node_that_is_about_to_go_is_not_eligible() {
    // HM-15
    let eligible = |metadata: &str, taints: &str| {
        let object = of(&format!("metadata: {{name: n, {metadata}}}\nspec: {{taints: [{taints}]}}\n"));
        node(&object, &mut Conversion::default()).unwrap().eligible
    };
    assert!(eligible("", ""));
    assert!(eligible("", "{key: node.kubernetes.io/not-ready, effect: NoSchedule}"));
    assert!(!eligible("", "{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}"));
    assert!(!eligible("deletionTimestamp: '2023-11-14T22:13:20Z'", ""));
}
