//! kube-proxy's rules in iptables mode, as input for `iptables-restore --noflush`, and the kubelet's beside them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::names::{chain, endpoint_chain, readable};
use super::{Cluster, Endpoint, Family, MARK, Policy, ServicePort};

/// What the kubelet makes beside kube-proxy: it owns it, and no proxy may remove it.
#[must_use]
pub fn of_kubelet() -> String {
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
     *nat\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-MARK-DROP - [0:0]\n\
     -A KUBE-MARK-DROP -j MARK --or-mark 0x8000\nCOMMIT\n\
     *filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
     -I INPUT -j KUBE-FIREWALL\n-I OUTPUT -j KUBE-FIREWALL\n\
     -A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" \
     -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"
        .to_owned()
}

/// All rules of a family: where they are hooked in, then the chains.
#[must_use]
pub fn of_kube_proxy(cluster: &Cluster, family: Family) -> String {
    let mut script =
        Script { cluster, family, nat: Table::default(), filter: Table::default(), endpoints: HashSet::new() };
    script.fixed_chains();
    for port in cluster.ports(family) {
        script.service(port);
        script.unserved(port);
    }
    script.last_rules();
    format!("*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n*filter\n{}*nat\n{}", script.filter.text(), script.nat.text())
}

#[derive(Debug, Default)]
struct Table {
    chains: String,
    rules: String,
}

impl Table {
    fn chain(&mut self, name: &str) {
        writeln!(self.chains, ":{name} - [0:0]").unwrap_or_default();
    }

    fn rule(&mut self, rule: &str) {
        writeln!(self.rules, "{rule}").unwrap_or_default();
    }

    fn text(&self) -> String {
        format!("{}{}COMMIT\n", self.chains, self.rules)
    }
}

struct Script<'a> {
    cluster: &'a Cluster,
    family: Family,
    nat: Table,
    filter: Table,
    /// Chains of endpoints that are written.
    endpoints: HashSet<String>,
}

impl Script<'_> {
    /// Hooks are inserted at the head of the chains that the kernel has (10.1 of the specification of services).
    fn fixed_chains(&mut self) {
        for name in ["SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ", "PROXY-CANARY"] {
            self.nat.chain(&format!("KUBE-{name}"));
        }
        for name in ["SERVICES", "EXTERNAL-SERVICES", "NODEPORTS", "FORWARD", "PROXY-FIREWALL", "PROXY-CANARY"] {
            self.filter.chain(&format!("KUBE-{name}"));
        }
        let new = "-m conntrack --ctstate NEW -m comment --comment";
        for hook in [
            format!("INPUT {new} \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"),
            format!("FORWARD {new} \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"),
            "INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS".to_owned(),
            format!("FORWARD {new} \"kubernetes service portals\" -j KUBE-SERVICES"),
            format!("OUTPUT {new} \"kubernetes service portals\" -j KUBE-SERVICES"),
            "FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD".to_owned(),
            format!("INPUT {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"),
            format!("OUTPUT {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"),
            format!("FORWARD {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"),
        ] {
            self.filter.rule(&format!("-I {hook}"));
        }
        for hook in ["PREROUTING", "OUTPUT"] {
            self.nat.rule(&format!("-I {hook} -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"));
        }
        self.nat.rule("-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING");
        self.nat.rule(&format!("-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}"));
        self.nat.rule(&format!("-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN"));
        self.nat.rule(&format!("-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}"));
        self.nat.rule(
            "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
             --random-fully",
        );
        self.filter.rule("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
        self.filter.rule(&format!(
            "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} \
             -j ACCEPT"
        ));
        self.filter.rule(
            "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
             --ctstate RELATED,ESTABLISHED -j ACCEPT",
        );
    }

    /// Node ports come after all addresses (TP-4).
    fn last_rules(&mut self) {
        let loopback = match self.family {
            Family::V4 => "",
            Family::V6 => " ! -d ::1/128",
        };
        self.nat.rule(&format!(
            "-A KUBE-SERVICES{loopback} -m comment --comment \"kubernetes service nodeports; NOTE: this must be the \
             last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
        ));
    }

    fn service(&mut self, port: &ServicePort) {
        if port.endpoints.is_empty() {
            return;
        }
        let (cluster, local, external) = (chain("SVC", port), chain("SVL", port), chain("EXT", port));
        self.picks(port, &cluster, &port.endpoints);
        let local_endpoints = port.local_endpoints();
        let uses_local = port.internal_policy == Policy::Local || port.external_policy == Policy::Local;
        if uses_local && !local_endpoints.is_empty() {
            self.picks(port, &local, &local_endpoints);
        }
        let served_inside = match port.internal_policy {
            Policy::Cluster => Some(&cluster),
            Policy::Local => Some(&local).filter(|_| !local_endpoints.is_empty()),
        };
        if let Some(chain) = served_inside {
            self.frontend(port, port.cluster_ip, "cluster IP", chain);
        }
        if !port.is_external() {
            return;
        }
        self.external(port, &external, &cluster, (!local_endpoints.is_empty()).then_some(&local));
        for address in &port.external_ips {
            self.frontend(port, *address, "external IP", &external);
        }
        let entry = if port.source_ranges.is_empty() { external.clone() } else { self.firewall(port, &external) };
        for address in &port.load_balancer_ips {
            self.frontend(port, *address, "loadbalancer IP", &entry);
        }
        if let Some(node_port) = port.node_port {
            let (name, protocol) = (readable(port), port.protocol);
            self.nat.rule(&format!(
                "-A KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port} \
                 -j {external}"
            ));
        }
    }

    fn frontend(&mut self, port: &ServicePort, address: IpAddr, kind: &str, chain: &str) {
        let matches = self.dialled(port, address, kind);
        self.nat.rule(&format!("-A KUBE-SERVICES {matches} -j {chain}"));
    }

    fn dialled(&self, port: &ServicePort, address: IpAddr, what: &str) -> String {
        let (name, protocol, host) = (readable(port), port.protocol, self.family.host(address));
        let number = port.port;
        format!("-m comment --comment \"{name} {what}\" -m {protocol} -p {protocol} -d {host} --dport {number}")
    }

    /// The chain of a list: who is to be translated back, whom affinity sends where, then by chance (LY-4).
    fn picks(&mut self, port: &ServicePort, name: &str, endpoints: &[Endpoint]) {
        self.nat.chain(name);
        if let Some(range) = self.cluster.pod_range(self.family) {
            let dialled = self.dialled(port, port.cluster_ip, "cluster IP");
            self.nat.rule(&format!("-A {name} {dialled} ! -s {range} -j KUBE-MARK-MASQ"));
        }
        let comment =
            |endpoint: &Endpoint| format!("-m comment --comment \"{} -> {}\"", readable(port), endpoint.address);
        if let Some(seconds) = port.affinity {
            for endpoint in endpoints {
                let target = endpoint_chain(port, endpoint.address);
                let comment = comment(endpoint);
                self.nat.rule(&format!(
                    "-A {name} {comment} -m recent --name {target} --rcheck --seconds {seconds} --reap -j {target}"
                ));
            }
        }
        let mut left = endpoints.len();
        for endpoint in endpoints {
            let target = endpoint_chain(port, endpoint.address);
            let chance = if left > 1 {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / count(left))
            } else {
                String::new()
            };
            left = left.saturating_sub(1);
            self.nat.rule(&format!("-A {name} {}{chance} -j {target}", comment(endpoint)));
            self.endpoint(port, &target, endpoint);
        }
    }

    /// Both lists of a service port may have it.
    fn endpoint(&mut self, port: &ServicePort, name: &str, endpoint: &Endpoint) {
        if !self.endpoints.insert(name.to_owned()) {
            return;
        }
        self.nat.chain(name);
        let (service, protocol, to) = (readable(port), port.protocol, endpoint.address);
        let source = self.family.host(to.ip());
        self.nat.rule(&format!("-A {name} -m comment --comment {service} -s {source} -j KUBE-MARK-MASQ"));
        let affinity = port.affinity.map(|_| format!("-m recent --name {name} --set ")).unwrap_or_default();
        self.nat.rule(&format!(
            "-A {name} -m comment --comment {service} {affinity}-m {protocol} -p {protocol} -j DNAT \
             --to-destination {to}"
        ));
    }

    fn external(&mut self, port: &ServicePort, name: &str, cluster: &str, local: Option<&String>) {
        self.nat.chain(name);
        match port.external_policy {
            Policy::Cluster => {
                self.nat.rule(&format!("-A {name} -m comment --comment \"masquerade traffic\" -j KUBE-MARK-MASQ"));
                self.nat.rule(&format!("-A {name} -j {cluster}"));
            }
            Policy::Local => {
                if let Some(range) = self.cluster.pod_range(self.family) {
                    self.nat.rule(&format!("-A {name} -m comment --comment \"pod traffic\" -s {range} -j {cluster}"));
                }
                let own = "-m addrtype --src-type LOCAL";
                self.nat.rule(&format!("-A {name} {own} -j KUBE-MARK-MASQ"));
                self.nat.rule(&format!("-A {name} {own} -j {cluster}"));
                if let Some(local) = local {
                    self.nat.rule(&format!("-A {name} -j {local}"));
                }
            }
        }
    }

    /// Sources of the ranges go on, the rest falls off the end and is dropped by its untranslated destination.
    fn firewall(&mut self, port: &ServicePort, external: &str) -> String {
        let name = chain("FW", port);
        self.nat.chain(&name);
        for range in port.source_ranges.iter().filter(|range| range.contains(':') == (self.family == Family::V6)) {
            self.nat.rule(&format!("-A {name} -s {range} -j {external}"));
        }
        for address in &port.load_balancer_ips {
            let dialled = self.dialled(port, *address, "traffic not accepted by");
            self.filter.rule(&format!("-A KUBE-PROXY-FIREWALL {dialled} -j DROP"));
        }
        name
    }

    /// Refusal without endpoints, silence without local ones (NE-1, NE-3).
    fn unserved(&mut self, port: &ServicePort) {
        let reason = |policy| match (port.endpoints.is_empty(), policy, port.local_endpoints().is_empty()) {
            (true, _, _) => Some(("has no endpoints", "REJECT")),
            (false, Policy::Local, true) => Some(("has no local endpoints", "DROP")),
            (false, _, _) => None,
        };
        if let Some((reason, verdict)) = reason(port.internal_policy) {
            let dialled = self.dialled(port, port.cluster_ip, reason);
            self.filter.rule(&format!("-A KUBE-SERVICES {dialled} -j {verdict}"));
        }
        let Some((reason, verdict)) = reason(port.external_policy) else { return };
        for address in port.external_addresses() {
            let dialled = self.dialled(port, address, reason);
            self.filter.rule(&format!("-A KUBE-EXTERNAL-SERVICES {dialled} -j {verdict}"));
        }
        if let Some(node_port) = port.node_port {
            let (name, protocol) = (readable(port), port.protocol);
            self.filter.rule(&format!(
                "-A KUBE-EXTERNAL-SERVICES -m comment --comment \"{name} {reason}\" -m addrtype --dst-type LOCAL \
                 -m {protocol} -p {protocol} --dport {node_port} -j {verdict}"
            ));
        }
    }
}

fn count(endpoints: usize) -> f64 {
    u32::try_from(endpoints).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(addresses: &[&str]) -> Vec<Endpoint> {
        addresses.iter().map(|address| Endpoint { address: address.parse().unwrap(), local: false }).collect()
    }

    #[test]
    fn an_endpoint_is_chosen_as_likely_as_the_others() {
        // LY-4
        let three = endpoints(&["10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080"]);
        let port = ServicePort::tcp("web", "10.96.0.1".parse().unwrap(), 80, three);
        let rules = of_kube_proxy(&Cluster { ports: vec![port], ..Cluster::default() }, Family::V4);
        let chances: Vec<&str> =
            rules.lines().filter_map(|line| line.split_once("--probability ")?.1.split_whitespace().next()).collect();
        assert_eq!(chances, ["0.3333333333", "0.5000000000"]);
        assert!(!rules.contains("-s 10.244.0.0/16"));
    }

    #[test]
    fn a_family_has_its_own_service_ports() {
        let port = ServicePort::tcp("web", "fd00:96::1".parse().unwrap(), 80, endpoints(&["[fd00::2]:8080"]));
        let cluster = Cluster { ports: vec![port], ..Cluster::default() };
        let [v4, v6] = Family::BOTH.map(|family| of_kube_proxy(&cluster, family));
        assert!(!v4.contains("KUBE-SVC-"), "{v4}");
        assert!(v6.contains("-d fd00:96::1/128 --dport 80 -j KUBE-SVC-"), "{v6}");
        assert!(v6.contains("-j DNAT --to-destination [fd00::2]:8080"), "{v6}");
    }
}
