//! What a cluster's controllers add to the objects that people write: cluster IPs, API defaults, EndpointSlices.
//!
//! A second reading of the rules, on JSON and apart from shunt's own, so that each checks the other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::Resource;
use super::store::Name;

type Objects = BTreeMap<(Resource, Name), Value>;

/// Never handed out: the cluster DNS has them (10.96.0.10 and its twin).
const RESERVED: u32 = 10;
/// The slice controller's own limit.
const SLICE: usize = 100;

/// What the controllers remember.
#[derive(Debug, Default)]
pub(super) struct Controllers {
    /// Numbers of cluster IPs that were handed out.
    numbers: BTreeMap<Name, u32>,
    /// Slices as they were last written, without the time at which that was.
    slices: BTreeMap<Name, (Value, String)>,
}

impl Controllers {
    /// Completes the objects.
    pub(super) fn run(&mut self, objects: &mut Objects) {
        self.allocate(objects);
        let services: Vec<(Name, Value)> = of(objects, Resource::Service);
        let owned: Vec<Name> = of(objects, Resource::EndpointSlice)
            .into_iter()
            .filter_map(|((namespace, _), slice)| {
                let owner = slice.pointer("/metadata/labels/kubernetes.io~1service-name")?.as_str()?;
                Some((namespace, owner.to_owned()))
            })
            .collect();
        let pods = of(objects, Resource::Pod);
        let mut written = BTreeMap::new();
        for (name, service) in services {
            let selector = service.pointer("/spec/selector").and_then(Value::as_object).filter(|all| !all.is_empty());
            let external = service.pointer("/spec/type").and_then(Value::as_str) == Some("ExternalName");
            let Some(selector) = selector.filter(|_| !external && !owned.contains(&name)) else { continue };
            let selected = pods.iter().filter(|((namespace, _), pod)| {
                let labels = pod.pointer("/metadata/labels");
                *namespace == name.0
                    && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
            });
            let selected: Vec<&Value> = selected.map(|(_, pod)| pod).collect();
            for slice in slices(&name, &service, &selected, objects) {
                let Some(slice_name) = slice.pointer("/metadata/name").and_then(Value::as_str) else { continue };
                let slice_name = (name.0.clone(), slice_name.to_owned());
                let stamp = self.stamp(&slice_name, &slice);
                written.insert(slice_name.clone(), (slice.clone(), stamp.clone()));
                let mut slice = slice;
                if let Some(metadata) = slice.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert(
                        "annotations".into(),
                        json!({"endpoints.kubernetes.io/last-change-trigger-time": stamp}),
                    );
                }
                objects.insert((Resource::EndpointSlice, slice_name), slice);
            }
        }
        self.slices = written;
    }

    /// When this version of the slice came about.
    fn stamp(&self, name: &Name, slice: &Value) -> String {
        match self.slices.get(name) {
            Some((before, stamp)) if before == slice => stamp.clone(),
            Some(_) | None => jiff::Timestamp::now().to_string(),
        }
    }

    fn allocate(&mut self, objects: &mut Objects) {
        let taken: Vec<String> = objects
            .iter()
            .filter(|((resource, _), _)| *resource == Resource::Service)
            .filter_map(|(_, service)| service.pointer("/spec/clusterIP")?.as_str().map(str::to_owned))
            .collect();
        let mut next = 100;
        for ((_, name), service) in objects.iter_mut().filter(|((resource, _), _)| *resource == Resource::Service) {
            let families = families(service);
            let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { continue };
            let given = spec.get("clusterIP").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty());
            if given || spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
                continue;
            }
            let number = match self.numbers.get(name) {
                Some(number) => *number,
                None => {
                    while next == RESERVED
                        || self.numbers.values().any(|number| *number == next)
                        || taken.contains(&address(next, "IPv4").to_string())
                    {
                        next += 1;
                    }
                    self.numbers.insert(name.clone(), next);
                    next
                }
            };
            let addresses: Vec<String> = families.iter().map(|family| address(number, family).to_string()).collect();
            spec.insert("clusterIP".into(), json!(addresses.first()));
            spec.insert("clusterIPs".into(), json!(addresses));
            spec.insert("ipFamilies".into(), json!(families));
        }
    }
}

fn of(objects: &Objects, resource: Resource) -> Vec<(Name, Value)> {
    let wanted = objects.iter().filter(|((of, _), _)| *of == resource);
    wanted.map(|((_, name), object)| (name.clone(), object.clone())).collect()
}

fn address(number: u32, family: &str) -> IpAddr {
    if family == "IPv6" {
        let low = u16::try_from(number).unwrap_or(u16::MAX);
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, low).into()
    } else {
        Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number).into()
    }
}

/// The families a Service has, the first one first.
fn families(service: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let listed: Vec<String> =
        service.pointer("/spec/ipFamilies").and_then(Value::as_array).into_iter().flatten().filter_map(text).collect();
    let dual = matches!(
        service.pointer("/spec/ipFamilyPolicy").and_then(Value::as_str),
        Some("PreferDualStack" | "RequireDualStack")
    );
    let all = service.pointer("/spec/clusterIPs").and_then(Value::as_array).filter(|all| !all.is_empty());
    let given = all.into_iter().flatten().chain(service.pointer("/spec/clusterIP").filter(|_| all.is_none()));
    let given: Vec<String> = given
        .filter_map(Value::as_str)
        .filter(|ip| *ip != "None")
        .map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned())
        .collect();
    let mut families = if listed.is_empty() { given } else { listed };
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    if dual && families.len() == 1 {
        families.push(if families.contains(&"IPv4".to_owned()) { "IPv6" } else { "IPv4" }.to_owned());
    }
    families
}

/// The slices of one Service, a hundred endpoints each.
fn slices(name: &Name, service: &Value, pods: &[&Value], objects: &Objects) -> Vec<Value> {
    let headless = service.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None");
    let families = families(service);
    let families = if headless && service.pointer("/spec/ipFamilies").is_none() {
        vec!["IPv4".to_owned(), "IPv6".to_owned()]
    } else {
        families
    };
    let mut slices = Vec::new();
    for family in families {
        // Pods that give a named port different numbers cannot share a slice.
        let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
        for pod in pods {
            let phase = pod.pointer("/status/phase").and_then(Value::as_str);
            if matches!(phase, Some("Succeeded" | "Failed")) {
                continue;
            }
            let Some(endpoint) = endpoint(name, service, pod, &family, objects) else { continue };
            let ports = ports(service, pod);
            groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        }
        for (number, (ports, endpoints)) in groups.into_values().enumerate() {
            for (part, endpoints) in endpoints.chunks(SLICE).enumerate() {
                let mut labels = json!({
                    "kubernetes.io/service-name": name.1,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                });
                if headless && let Some(labels) = labels.as_object_mut() {
                    labels.insert("service.kubernetes.io/headless".into(), json!(""));
                }
                slices.push(json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {
                        "name": format!("{}-{}-{number}-{part}", name.1, family.to_lowercase()),
                        "namespace": name.0, "labels": labels,
                    },
                    "ports": ports, "endpoints": endpoints,
                }));
            }
        }
    }
    slices
}

fn endpoint(name: &Name, service: &Value, pod: &Value, family: &str, objects: &Objects) -> Option<Value> {
    let listed = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|entry| entry.get("ip")?.as_str());
    let single = pod.pointer("/status/podIP").and_then(Value::as_str);
    let address = single.into_iter().chain(listed).find(|ip| ip.contains(':') == (family == "IPv6"))?;
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let serving = conditions.is_none_or(|conditions| {
        conditions.is_empty()
            || conditions
                .iter()
                .any(|c| c.get("type") == Some(&json!("Ready")) && c.get("status") == Some(&json!("True")))
    });
    let terminating = pod.pointer("/metadata/deletionTimestamp").is_some();
    let always = service.pointer("/spec/publishNotReadyAddresses") == Some(&json!(true));
    let ready = always || (serving && !terminating);
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str);
    let zone = node.and_then(|node| {
        let node = objects.get(&(Resource::Node, (String::new(), node.to_owned())))?;
        node.pointer("/metadata/labels/topology.kubernetes.io~1zone")
    });
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod", "namespace": name.0, "name": pod.pointer("/metadata/name"), "uid": "0",
        },
    });
    let fields = endpoint.as_object_mut()?;
    if let Some(node) = node {
        fields.insert("nodeName".into(), json!(node));
    }
    if let Some(zone) = zone {
        fields.insert("zone".into(), zone.clone());
        let distribution = service.pointer("/spec/trafficDistribution").and_then(Value::as_str);
        let mut hints = json!({"forZones": [{"name": zone}]});
        if distribution == Some("PreferSameNode")
            && let Some(hints) = hints.as_object_mut()
        {
            hints.insert("forNodes".into(), json!([{"name": node}]));
        }
        if ready && distribution.is_some() {
            fields.insert("hints".into(), hints);
        }
    }
    if pod.pointer("/spec/subdomain").and_then(Value::as_str) == Some(name.1.as_str())
        && let Some(hostname) = pod.pointer("/spec/hostname")
    {
        fields.insert("hostname".into(), hostname.clone());
    }
    Some(endpoint)
}

/// The ports of a slice for this Pod: named target ports are looked up in its containers.
fn ports(service: &Value, pod: &Value) -> Value {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let declared: Vec<&Value> =
        containers.filter_map(|container| container.get("ports")?.as_array()).flatten().collect();
    let given = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let ports = given.filter_map(|port| {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        let number = match port.get("targetPort") {
            None | Some(Value::Null) => port.get("port")?.clone(),
            Some(Value::String(name)) => {
                let of_name = declared.iter().find(|one| {
                    one.get("name").and_then(Value::as_str) == Some(name)
                        && one.get("protocol").and_then(Value::as_str).unwrap_or("TCP") == protocol
                });
                of_name?.get("containerPort")?.clone()
            }
            Some(number) => number.clone(),
        };
        let name = port.get("name").and_then(Value::as_str).unwrap_or_default();
        Some(json!({"name": name, "protocol": protocol, "port": number}))
    });
    ports.collect()
}
