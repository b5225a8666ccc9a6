//! `shunt explain`: what becomes of a new flow from one place to another, step by step, each with the rule that decided it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use shunt_model::{Family, ObjectKey, Pod, Protocol, Snapshot};

use crate::plan::{Decision, FrontendKind, List, Met, Packet, Plan, PortPlan, Source, Verdict};

/// Every flow that the destination may mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// One for each service port that was meant.
    pub flows: Vec<FlowExplanation>,
}

/// What becomes of one flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowExplanation {
    /// Address, port and protocol: `10.96.0.1:80/tcp`.
    pub destination: String,
    /// What was decided, in order.
    pub steps: Vec<Step>,
    /// `forward`, `reject`, `drop` or `pass`.
    pub verdict: String,
    /// Whom the flow may reach; each is as likely for a new client.
    pub endpoints: Vec<SocketAddr>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What was decided.
    pub decided: String,
    /// By which rule of the specification.
    pub rule: String,
}

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The source is nothing known.
    #[error("source {0:?} is no address, no pod of this cluster (NAMESPACE/NAME), and neither node nor outside")]
    Source(String),
    /// The destination is not understood.
    #[error(
        "destination {0:?} is no IP:PORT[/PROTOCOL], no IP, and no Service (NAMESPACE/NAME[:PORT][/PROTOCOL] or NAME.NAMESPACE)"
    )]
    Destination(String),
    /// There is no such Service, or it has no such port.
    #[error("no service port is called {0}: see `shunt services`, or `shunt plan` without a daemon")]
    NoService(String),
    /// Nothing of ours has that address.
    #[error("{0} is no address of a Service; name a port to learn what becomes of a flow to it all the same")]
    NoPorts(IpAddr),
}

/// What becomes of flows from `source` to `destination` on `node`.
pub fn explain(
    snapshot: &Snapshot,
    plan: &Plan,
    node: &str,
    source: &str,
    destination: &str,
) -> Result<Explanation, ExplainError> {
    let from = origin(snapshot, plan, node, source)?;
    let targets = targets(plan, destination)?;
    let flows = targets.into_iter().map(|(to, protocol)| explain_one(plan, &from, to, protocol));
    Ok(Explanation { flows: flows.collect() })
}

/// Who sends.
struct Origin {
    source: Source,
    address: Option<IpAddr>,
    /// All its addresses, of which the one of the destination's family counts.
    addresses: Vec<IpAddr>,
    step: Step,
}

fn step(decided: impl Into<String>, rule: &str) -> Step {
    Step { decided: decided.into(), rule: rule.to_owned() }
}

fn origin(snapshot: &Snapshot, plan: &Plan, node: &str, text: &str) -> Result<Origin, ExplainError> {
    let known = |source, addresses: Vec<IpAddr>, decided: String, rule| {
        Ok(Origin { source, address: addresses.first().copied(), addresses, step: step(decided, rule) })
    };
    match text {
        "node" => return known(Source::Node, Vec::new(), "the source is this node itself".into(), "3.3"),
        "outside" => return known(Source::Outside, Vec::new(), "the source is outside of the cluster".into(), "3.3"),
        _ => {}
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        if address.is_loopback() || plan.node_addresses.contains(&address) {
            return known(Source::Node, vec![address], format!("{address} is an address of this node"), "3.3");
        }
        return match snapshot.pods.values().find(|pod| pod.addresses.contains(&address)) {
            Some(pod) => of_pod(pod, node, vec![address]),
            None => known(Source::Outside, vec![address], format!("{address} is no pod of this node: outside"), "3.3"),
        };
    }
    let pod = text.split_once('/').and_then(|(namespace, name)| snapshot.pods.get(&ObjectKey::new(namespace, name)));
    pod.map_or_else(|| Err(ExplainError::Source(text.to_owned())), |pod| of_pod(pod, node, pod.addresses.clone()))
}

fn of_pod(pod: &Pod, node: &str, addresses: Vec<IpAddr>) -> Result<Origin, ExplainError> {
    let here = pod.node.as_deref() == Some(node);
    let key = &pod.key;
    let (source, decided, rule) = match (here, pod.host_network) {
        (true, false) => (Source::Pod, format!("the source is pod {key} of this node"), "3.3"),
        (true, true) => {
            (Source::Node, format!("pod {key} is in this node's own network: the source is the node"), "SA-2")
        }
        (false, _) => (Source::Outside, format!("pod {key} is not on this node: to it the source is outside"), "TP-26"),
    };
    Ok(Origin { source, address: addresses.first().copied(), addresses, step: step(decided, rule) })
}

fn protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.name().eq_ignore_ascii_case(text))
}

/// The addresses, ports and protocols that a destination may mean.
fn targets(plan: &Plan, text: &str) -> Result<Vec<(SocketAddr, Protocol)>, ExplainError> {
    let wrong = || ExplainError::Destination(text.to_owned());
    let (rest, named) = match text.rsplit_once('/') {
        Some((rest, last)) if protocol(last).is_some() => (rest, protocol(last)),
        _ => (text, None),
    };
    if let Ok(to) = rest.parse::<SocketAddr>() {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        return Ok(vec![(to, named.unwrap_or(Protocol::Tcp))]);
    }
    if let Ok(ip) = rest.parse::<IpAddr>() {
        return at_address(plan, ip.to_canonical(), named);
    }
    let (namespace, rest) = match rest.split_once('/') {
        Some(parts) => parts,
        None => rest.split_once('.').map(|(name, namespace)| (namespace, name)).ok_or_else(wrong)?,
    };
    let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
    let service = ObjectKey::new(namespace, name);
    let ports = plan.ports.values().filter(|planned| planned.key.service == service);
    let meant =
        ports.filter(|planned| named.is_none_or(|protocol| planned.key.protocol == protocol)).filter(|planned| {
            let number = |port: &str| planned.frontends.iter().any(|frontend| frontend.port.to_string() == *port);
            port.is_none_or(|port| *planned.key.port == *port || number(port))
        });
    let found: Vec<_> = meant.filter_map(|planned| Some((first_address(planned)?, planned.key.protocol))).collect();
    if found.is_empty() { Err(ExplainError::NoService(text.to_owned())) } else { Ok(found) }
}

/// Where a service port is usually dialled.
fn first_address(port: &PortPlan) -> Option<SocketAddr> {
    let mut frontends: Vec<_> = port.frontends.iter().filter(|frontend| frontend.address.is_some()).collect();
    frontends.sort_by_key(|frontend| frontend.kind != FrontendKind::ClusterIp);
    frontends.first().and_then(|frontend| Some(SocketAddr::new(frontend.address?, frontend.port.get())))
}

fn at_address(plan: &Plan, ip: IpAddr, named: Option<Protocol>) -> Result<Vec<(SocketAddr, Protocol)>, ExplainError> {
    let ports = plan.ports.values().filter(|port| named.is_none_or(|protocol| port.key.protocol == protocol));
    let node = plan.node_addresses.contains(&ip);
    let found: Vec<_> = ports
        .filter(|port| port.key.family == Family::of(&ip))
        .flat_map(|port| port.frontends.iter().map(move |frontend| (port.key.protocol, frontend)))
        .filter(|(_, frontend)| frontend.address.map_or(node, |address| address == ip))
        .map(|(protocol, frontend)| (SocketAddr::new(ip, frontend.port.get()), protocol))
        .collect();
    if found.is_empty() { Err(ExplainError::NoPorts(ip)) } else { Ok(found) }
}

fn explain_one(plan: &Plan, from: &Origin, to: SocketAddr, protocol: Protocol) -> FlowExplanation {
    let same_family = from.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).copied();
    let source_address = same_family.or_else(|| from.address.filter(|_| from.addresses.len() == 1));
    let packet = Packet { source: from.source, source_address, destination: to.ip(), port: to.port(), protocol };
    let mut steps = vec![from.step.clone()];
    let opted_out = from.source == Source::Pod && from.addresses.iter().any(|ip| plan.opted_out.contains(ip));
    if opted_out {
        steps.push(step("the pod has opted out: its sockets are left alone", "docs/parity.md"));
        return FlowExplanation {
            destination: shown(to, protocol),
            steps,
            verdict: "pass".into(),
            endpoints: Vec::new(),
        };
    }
    let Decision { verdict, reason } = plan.decide(&packet);
    match reason.map(|reason| (reason.met, reason.spec)) {
        None => steps.push(step("no service port is dialled there", "NE-14")),
        Some((None, "NE-11")) => {
            steps.push(step(format!("{} is a cluster IP, and no service port has this port", to.ip()), "NE-11"));
        }
        Some((None, spec)) => {
            steps.push(step(format!("{} is in a range of Services, and no Service has it", to.ip()), spec));
        }
        Some((Some(met), spec)) => steps.extend(steps_of(&met, spec, from.source)),
    }
    let (word, endpoints) = match verdict {
        Verdict::NotOurs => ("pass", Vec::new()),
        Verdict::Reject => ("reject", Vec::new()),
        Verdict::Drop => ("drop", Vec::new()),
        Verdict::Forward { endpoints, .. } => ("forward", endpoints.iter().map(|end| end.address).collect()),
    };
    FlowExplanation { destination: shown(to, protocol), steps, verdict: word.into(), endpoints }
}

fn shown(to: SocketAddr, protocol: Protocol) -> String {
    format!("{to}/{protocol}")
}

fn steps_of(met: &Met<'_>, spec: &str, source: Source) -> Vec<Step> {
    let Met { port, frontend, rule, admitted } = met;
    let (kind, kind_rule) = match frontend.kind {
        FrontendKind::ClusterIp => ("cluster IP", "TP-1"),
        FrontendKind::External => ("external IP", "TP-2"),
        FrontendKind::LoadBalancer => ("load balancer address", "TP-2"),
        FrontendKind::NodePort => ("node port", "TP-3"),
    };
    let mut steps = vec![step(format!("that is the {kind} of {}", port.key), kind_rule)];
    match admitted {
        Some(true) => steps.push(step("the source is inside loadBalancerSourceRanges", "TP-30")),
        Some(false) => steps.push(step("the source is outside of loadBalancerSourceRanges", "TP-31")),
        None => {}
    }
    if *admitted != Some(false) {
        steps.push(match (rule.list, frontend.from_outside.list, source) {
            (List::Cluster, List::Local, Source::Pod | Source::Node) => {
                step("policy Local, but who is inside the cluster may use every endpoint", spec_or(spec, source))
            }
            (List::Cluster, ..) => step("policy Cluster: every usable endpoint may serve", "2.4"),
            (List::Local, ..) => step("policy Local: only endpoints of this node may serve", "2.4"),
        });
    }
    let endpoints = port.list(rule.list);
    if !endpoints.is_empty() && *admitted != Some(false) {
        steps.push(step(format!("{} of them", endpoints.len()), spec));
        if let Some(seconds) = port.affinity {
            steps.push(step(
                format!("a client stays with its endpoint until {seconds} s after its last new flow"),
                "SA-3",
            ));
        }
    } else if *admitted == Some(false) {
        steps.push(step("who is outside gets no answer", spec));
    } else {
        let elsewhere = "none here, but elsewhere: silence, refused at once at a socket of this node";
        steps.push(step(if spec == "NE-1" { "nobody may serve: refused at once" } else { elsewhere }, spec));
    }
    steps
}

fn spec_or(spec: &str, source: Source) -> &str {
    match (spec, source) {
        ("TP-21" | "TP-22", _) => spec,
        (_, Source::Pod) => "TP-21",
        (_, Source::Node | Source::Outside) => "TP-22",
    }
}

/// The explanation for people: numbered steps and a last line with the verdict.
#[must_use]
pub fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    for FlowExplanation { destination, steps, verdict, endpoints } in &explanation.flows {
        // Writing to a String cannot fail.
        writeln!(text, "{destination}").unwrap_or_default();
        for (number, Step { decided, rule }) in (1..).zip(steps) {
            writeln!(text, "  {number}. {decided} ({rule})").unwrap_or_default();
        }
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        writeln!(text, "  => {verdict} {}", endpoints.join(" ")).unwrap_or_default();
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{NODE, cluster, options, service, slice};
    use crate::plan::plan;

    /// The rules of all steps and the verdict.
    #[track_caller]
    fn check(words: &str, endpoints: &str, source: &str, destination: &str, rules: &[&str], verdict: &str) {
        let snapshot = cluster([service("web", words)], [slice("web", "a", "http:80/tcp", endpoints)]);
        let (plan, _) = plan(&snapshot, &options());
        let explanation = explain(&snapshot, &plan, NODE, source, destination).unwrap();
        let [flow] = &explanation.flows[..] else { panic!("{explanation:?}") };
        assert_eq!(flow.steps.iter().map(|step| step.rule.as_str()).collect::<Vec<_>>(), rules, "{flow:?}");
        assert_eq!(flow.verdict, verdict);
        assert!(render(&explanation).ends_with(verdict) || !flow.endpoints.is_empty());
    }

    #[test]
    fn every_step_names_its_rule() {
        let words = "ip=10.96.0.1 np=30080 vip=192.0.2.1";
        check(words, "e1:R", "node", "10.96.0.1:80", &["3.3", "TP-1", "2.4", "EP-20"], "forward");
        check(words, "e1:R", "node", "10.96.0.1:80/tcp", &["3.3", "TP-1", "2.4", "EP-20"], "forward");
        check(words, "e1:R", "outside", "default/web", &["3.3", "TP-1", "2.4", "EP-20"], "forward");
        check(words, "e1:R", "outside", "web.default", &["3.3", "TP-1", "2.4", "EP-20"], "forward");
        check(words, "e1:R", "node", "default/web:http/tcp", &["3.3", "TP-1", "2.4", "EP-20"], "forward");
        check(words, "", "outside", "192.0.2.1:80", &["3.3", "TP-2", "2.4", "NE-1"], "reject");
        check(words, "e1:R", "203.0.113.7", "10.96.0.1:81", &["3.3", "NE-11"], "reject");
        check(words, "e1:R", "203.0.113.7", "198.51.100.1:81", &["3.3", "NE-14"], "pass");
        check("ip=10.96.0.1 iTP", "e1:R", "node", "10.96.0.1", &["3.3", "TP-1", "2.4", "NE-2"], "drop");
        check("ip=10.96.0.1 aff=60", "e1:R", "node", "10.96.0.1", &["3.3", "TP-1", "2.4", "EP-20", "SA-3"], "forward");
        let local = "ip=10.96.0.1 vip=192.0.2.1 eTP type=lb";
        check(local, "e1:R", "node", "192.0.2.1", &["3.3", "TP-2", "TP-22", "TP-22"], "forward");
        check(local, "e1:R", "outside", "192.0.2.1", &["3.3", "TP-2", "2.4", "NE-3"], "drop");
    }

    #[test]
    fn what_names_nothing_is_told() {
        let snapshot = cluster([service("web", "ip=10.96.0.1")], []);
        let (plan, _) = plan(&snapshot, &options());
        let error = |source: &str, to: &str| explain(&snapshot, &plan, NODE, source, to).unwrap_err().to_string();
        assert!(error("nobody", "10.96.0.1").contains("\"nobody\""));
        assert!(error("node", "nonsense").contains("\"nonsense\""));
        assert!(error("node", "default/api").contains("default/api"));
        assert!(error("node", "default/web:https").contains("default/web:https"));
        assert!(error("node", "192.0.2.9").contains("192.0.2.9"));
    }
}
