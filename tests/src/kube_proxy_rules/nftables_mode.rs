//! kube-proxy's rules in nftables mode, as input for `nft -f` (10.3 of the specification of services).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::names::base;
use super::{Cluster, Endpoint, Family, MARK, Policy, ServicePort};

/// The chains that no Service changes. `{family}` is `ip` or `ip6`.
const BASE: &str = "
    chain filter-prerouting-pre-dnat {
        type filter hook prerouting priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-output-pre-dnat {
        type filter hook output priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-input {
        type filter hook input priority 0; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }
    chain filter-forward {
        type filter hook forward priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain filter-output {
        type filter hook output priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain nat-prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100; policy accept;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump masquerading
    }
    chain firewall-check {
        {family} daddr . meta l4proto . th dport vmap @firewall-ips
    }
    chain service-endpoints-check {
        {family} daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain nodeport-endpoints-check {
        fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports
    }
    chain mark-for-masquerade {
        mark set mark or {mark}
    }
    chain masquerading {
        mark and {mark} != 0 jump masquerade-marked
        ct status dnat {family} saddr . {family} daddr . meta l4proto . th dport @hairpin-connections jump hairpin
    }
    chain hairpin {
        masquerade fully-random
    }
    chain masquerade-marked {
        mark set mark xor {mark}
        masquerade fully-random
    }
    chain reject-chain {
        reject
    }
";

/// The table of a family.
#[must_use]
pub fn of_kube_proxy(cluster: &Cluster, family: Family) -> String {
    let (name, loopback, address) = match family {
        Family::V4 => ("ip", "127.0.0.0/8", "ipv4_addr"),
        Family::V6 => ("ip6", "::1", "ipv6_addr"),
    };
    let mut table = Table { cluster, family, name, ..Table::new(cluster, family) };
    cluster.ports(family).for_each(|port| table.service(port));
    let Table { chains, elements, .. } = table;
    let mut text = format!("table {name} kube-proxy {{\n");
    let key = format!("{address} . inet_proto . inet_service");
    let mut object = |kind: &str, name: &str, kind_of: &str, elements: &BTreeSet<String>| {
        let listed = elements.iter().map(String::as_str).collect::<Vec<_>>().join(",\n            ");
        let listed = if listed.is_empty() {
            String::new()
        } else {
            format!("        elements = {{\n            {listed}\n        }}\n")
        };
        write!(text, "    {kind} {name} {{\n        type {kind_of}\n{listed}    }}\n").unwrap_or_default();
    };
    object("set", "cluster-ips", address, &elements.cluster_ips);
    object(
        "set",
        "hairpin-connections",
        &format!("{address} . {address} . inet_proto . inet_service"),
        &elements.hairpin,
    );
    // Chains stand before the maps that name them.
    let maps = [
        ("service-ips", format!("{key} : verdict"), &elements.service_ips),
        ("service-nodeports", "inet_proto . inet_service : verdict".to_owned(), &elements.node_ports),
        ("firewall-ips", format!("{key} : verdict"), &elements.firewall),
        ("no-endpoint-services", format!("{key} : verdict"), &elements.unserved),
        ("no-endpoint-nodeports", "inet_proto . inet_service : verdict".to_owned(), &elements.unserved_node_ports),
    ];
    for (name, kind, elements) in &maps {
        object("map", name, kind, elements);
    }
    text.push_str(&BASE.replace("{family}", name).replace("{mark}", MARK));
    let from_others = cluster
        .pod_range(family)
        .map(|range| format!("        {name} daddr @cluster-ips {name} saddr != {range} jump mark-for-masquerade\n"));
    let unused = cluster.service_range(family).map(|range| format!("        {name} daddr {range} drop\n"));
    write!(
        text,
        "    chain services {{\n{}        {name} daddr . meta l4proto . th dport vmap @service-ips\n        \
         {name} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @service-nodeports\n    }}\n    \
         chain cluster-ips-check {{\n        {name} daddr @cluster-ips reject\n{}    }}\n{chains}}}\n",
        from_others.unwrap_or_default(),
        unused.unwrap_or_default(),
    )
    .unwrap_or_default();
    text
}

#[derive(Debug, Default)]
struct Elements {
    cluster_ips: BTreeSet<String>,
    service_ips: BTreeSet<String>,
    node_ports: BTreeSet<String>,
    firewall: BTreeSet<String>,
    unserved: BTreeSet<String>,
    unserved_node_ports: BTreeSet<String>,
    hairpin: BTreeSet<String>,
}

struct Table<'a> {
    cluster: &'a Cluster,
    family: Family,
    name: &'static str,
    chains: String,
    elements: Elements,
}

impl<'a> Table<'a> {
    fn new(cluster: &'a Cluster, family: Family) -> Self {
        Self { cluster, family, name: "", chains: String::new(), elements: Elements::default() }
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        writeln!(self.chains, "    chain {name} {{").unwrap_or_default();
        for rule in rules {
            writeln!(self.chains, "        {rule}").unwrap_or_default();
        }
        writeln!(self.chains, "    }}").unwrap_or_default();
    }

    fn service(&mut self, port: &ServicePort) {
        self.elements.cluster_ips.insert(port.cluster_ip.to_string());
        let base = base(port, None);
        let [cluster, local, external] = ["service", "local", "external"].map(|kind| format!("{kind}-{base}"));
        let local_endpoints = port.local_endpoints();
        if !port.endpoints.is_empty() {
            self.picks(port, &cluster, &port.endpoints);
        }
        if !local_endpoints.is_empty() {
            self.picks(port, &local, &local_endpoints);
        }
        for endpoint in &local_endpoints {
            let (ip, number) = (endpoint.address.ip(), endpoint.address.port());
            self.elements.hairpin.insert(format!("{ip} . {ip} . {} . {number}", port.protocol));
        }
        let verdict = |policy: Policy, chain: &String| match (port.endpoints.is_empty(), policy) {
            (true, _) => Err("goto reject-chain"),
            (false, Policy::Local) if local_endpoints.is_empty() => Err("drop"),
            (false, _) => Ok(format!("goto {chain}")),
        };
        let inside = match port.internal_policy {
            Policy::Cluster => &cluster,
            Policy::Local => &local,
        };
        match verdict(port.internal_policy, inside) {
            Ok(served) => self.served(port, port.cluster_ip, &served),
            Err(unserved) => self.unserved(port, port.cluster_ip, unserved),
        }
        if !port.is_external() {
            return;
        }
        if !port.endpoints.is_empty() {
            self.external(port, &external, &cluster, (!local_endpoints.is_empty()).then_some(&local));
        }
        let node_port = port.node_port.map(|number| format!("{} . {number}", port.protocol));
        for address in port.external_addresses().filter(|_| !port.endpoints.is_empty()) {
            self.served(port, address, &format!("goto {external}"));
        }
        if let Some(key) = node_port.as_ref().filter(|_| !port.endpoints.is_empty()) {
            self.elements.node_ports.insert(format!("{key} : goto {external}"));
        }
        if let Err(unserved) = verdict(port.external_policy, &external) {
            port.external_addresses().for_each(|address| self.unserved(port, address, unserved));
            self.elements.unserved_node_ports.extend(node_port.map(|key| format!("{key} : {unserved}")));
        }
        self.firewall(port, &base);
    }

    fn served(&mut self, port: &ServicePort, address: IpAddr, verdict: &str) {
        self.elements.service_ips.insert(format!("{address} . {} . {} : {verdict}", port.protocol, port.port));
    }

    fn unserved(&mut self, port: &ServicePort, address: IpAddr, verdict: &str) {
        self.elements.unserved.insert(format!("{address} . {} . {} : {verdict}", port.protocol, port.port));
    }

    /// One rule picks by a random number; with affinity each endpoint has a chain and a set of its clients (LY-20).
    fn picks(&mut self, port: &ServicePort, name: &str, endpoints: &[Endpoint]) {
        let count = endpoints.len();
        let choices = |choice: &dyn Fn(SocketAddr) -> String| {
            let numbered = endpoints.iter().enumerate();
            numbered
                .map(|(number, endpoint)| format!("{number} : {}", choice(endpoint.address)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let Some(seconds) = port.affinity else {
            let picked = choices(&|to| format!("{} . {}", to.ip(), to.port()));
            let rule = format!(
                "meta l4proto {} dnat {} to numgen random mod {count} map {{ {picked} }}",
                port.protocol, self.name
            );
            return self.chain(name, &[rule]);
        };
        let mut rules = Vec::new();
        for endpoint in endpoints {
            let base = base(port, Some(endpoint.address));
            self.endpoint(port, &base, endpoint.address, seconds);
            rules.push(format!("{} saddr @affinity-{base} goto endpoint-{base}", self.name));
        }
        let picked = choices(&|to| format!("goto endpoint-{}", base(port, Some(to))));
        rules.push(format!("numgen random mod {count} vmap {{ {picked} }}"));
        self.chain(name, &rules);
    }

    /// Both lists of a service port may have it.
    fn endpoint(&mut self, port: &ServicePort, base: &str, to: SocketAddr, seconds: u32) {
        let declared = format!("    chain endpoint-{base} {{\n");
        if self.chains.contains(&declared) {
            return;
        }
        let address = match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        let set = format!(
            "    set affinity-{base} {{\n        type {address}\n        flags dynamic,timeout\n        \
             timeout {seconds}s\n    }}\n"
        );
        self.chains.push_str(&set);
        let record = format!("update @affinity-{base} {{ {} saddr }}", self.name);
        let translate = format!("meta l4proto {} dnat to {to}", port.protocol);
        self.chain(&format!("endpoint-{base}"), &[record, translate]);
    }

    fn external(&mut self, port: &ServicePort, name: &str, cluster: &str, local: Option<&String>) {
        let mut rules = Vec::new();
        match port.external_policy {
            Policy::Cluster => {
                rules.push("jump mark-for-masquerade".to_owned());
                rules.push(format!("goto {cluster}"));
            }
            Policy::Local => {
                let pods = self.cluster.pod_range(self.family);
                rules.extend(pods.map(|range| format!("{} saddr {range} goto {cluster}", self.name)));
                rules.push("fib saddr type local jump mark-for-masquerade".to_owned());
                rules.push(format!("fib saddr type local goto {cluster}"));
                rules.extend(local.map(|local| format!("goto {local}")));
            }
        }
        self.chain(name, &rules);
    }

    fn firewall(&mut self, port: &ServicePort, base: &str) {
        let family = self.family;
        let ranges = port.source_ranges.iter().filter(|range| range.contains(':') == (family == Family::V6));
        let ranges: Vec<&str> = ranges.map(String::as_str).collect();
        if ranges.is_empty() {
            return;
        }
        self.chain(&format!("firewall-{base}"), &[format!("{} saddr != {{ {} }} drop", self.name, ranges.join(", "))]);
        for address in &port.load_balancer_ips {
            let key = format!("{address} . {} . {}", port.protocol, port.port);
            self.elements.firewall.insert(format!("{key} : goto firewall-{base}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_affinity_one_rule_picks_an_endpoint() {
        // LY-20
        let endpoints = ["10.244.1.2:8080", "10.244.2.2:8080"]
            .map(|address| Endpoint { address: address.parse().unwrap(), local: false });
        let mut port = ServicePort::tcp("web", "10.96.0.1".parse().unwrap(), 80, endpoints.to_vec());
        let table = |port: &ServicePort| {
            of_kube_proxy(&Cluster { ports: vec![port.clone()], ..Cluster::default() }, Family::V4)
        };
        let rule = "dnat ip to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8080 }";
        assert!(table(&port).contains(rule), "{}", table(&port));
        port.affinity = Some(10);
        let table = table(&port);
        assert!(!table.contains("numgen random mod 2 map"), "{table}");
        assert_eq!(table.matches("    set affinity-").count(), 2, "{table}");
    }
}
