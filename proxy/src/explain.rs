//! `shunt explain`: where a new flow goes, step by step, each step with the rule that decided it.

mod missing;
mod serving;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use shunt_model::{Family, ObjectKey, Pod, Protocol, Snapshot};

pub use self::serving::Serving;
use crate::datapath::Chosen;
use crate::datapath::reading::{Caller, Outcome, Reading, ReadingError};
use crate::plan::{
    Decision, Empty, FrontendKind, List, Meeting, Met, Packet, Plan, PortPlan, Reason, Rule, RuleId, Source, Verdict,
};

/// Every flow that the destination names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// One for each service port that the destination names.
    pub flows: Vec<FlowExplanation>,
    /// What makes the plan another one than the operator may expect: a node that the cluster does not know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Where one flow goes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowExplanation {
    /// Address, port and protocol: `10.96.0.1:80/tcp`.
    pub destination: String,
    /// What was decided, in order.
    pub steps: Vec<ExplainedStep>,
    /// What packets get: `forward`, `reject`, `drop` or `pass`.
    pub verdict: String,
    /// What a socket of this node gets: `forward`, `refuse`, `deny` or `pass`; `None` if the source has none.
    #[serde(default)]
    pub at_socket: Option<String>,
    /// The endpoints that the flow may reach; each is as likely for a new client.
    pub endpoints: Vec<SocketAddr>,
    /// What serves it; `None` if it was not asked of a daemon.
    #[serde(default)]
    pub served_by: Option<Serving>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedStep {
    /// What was decided.
    pub decided: String,
    /// By which rule of docs/rules.md.
    pub rule: String,
}

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The source is unknown.
    #[error("source {0:?} is no address, no pod of this cluster (NAMESPACE/NAME), and neither node nor outside")]
    Source(String),
    /// The destination cannot be read.
    #[error(
        "destination {0:?} is no IP:PORT[/PROTOCOL], no IP, and no Service (NAMESPACE/NAME or NAME.NAMESPACE[.svc…], then [:PORT][/PROTOCOL])"
    )]
    Destination(String),
    /// There is no such Service, or it has no such port.
    #[error("no service port is called {0}: see `shunt services`, or `shunt plan` without a daemon")]
    NoService(String),
    /// The cluster has it, but it is not in the plan.
    #[error("{destination}: {service} {why}")]
    NotPlanned {
        /// As it was given.
        destination: String,
        /// The Service.
        service: ObjectKey,
        /// What it lacks.
        why: String,
    },
    /// No service port has that address.
    #[error("{0} is no address of a Service; name a port to see what a flow to it gets")]
    NoPorts(IpAddr),
    /// The tables cannot be read.
    #[error(transparent)]
    Reading(#[from] ReadingError),
}

/// Explains the flows from `source` to `destination` on `node`.
pub fn explain(
    snapshot: &Snapshot,
    plan: &Plan,
    node: &str,
    source: &str,
    destination: &str,
) -> Result<Explanation, ExplainError> {
    explain_served(snapshot, plan, node, (source, destination), None)
}

/// Explains the flows from a source to a destination on `node`, and what serves them, if that is known.
pub fn explain_served(
    snapshot: &Snapshot,
    plan: &Plan,
    node: &str,
    (source, destination): (&str, &str),
    serves: Option<&Chosen>,
) -> Result<Explanation, ExplainError> {
    let from = origin(snapshot, plan, node, source)?;
    let targets = targets(snapshot, plan, destination)?;
    let flows = targets.into_iter().map(|(to, protocol)| explain_one(plan, &from, (to, protocol), serves));
    Ok(Explanation { flows: flows.collect::<Result<_, _>>()?, warnings: Vec::new() })
}

/// The source of a flow.
struct FlowOrigin {
    source: Source,
    address: Option<IpAddr>,
    /// All its addresses; the one of the destination's family counts.
    addresses: Vec<IpAddr>,
    step: ExplainedStep,
}

fn step(decided: impl Into<String>, rule: RuleId) -> ExplainedStep {
    ExplainedStep { decided: decided.into(), rule: rule.to_string() }
}

fn origin(snapshot: &Snapshot, plan: &Plan, node: &str, text: &str) -> Result<FlowOrigin, ExplainError> {
    let known = |source, addresses: Vec<IpAddr>, decided: String, rule| {
        Ok(FlowOrigin { source, address: addresses.first().copied(), addresses, step: step(decided, rule) })
    };
    match text {
        "node" => return known(Source::Node, Vec::new(), "the source is this node itself".into(), RuleId::Ld1),
        "outside" => {
            return known(Source::Outside, Vec::new(), "the source is outside of the cluster".into(), RuleId::Ld1);
        }
        _ => {}
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        if address.is_loopback() || accepts_node_ports(plan, address) {
            return known(Source::Node, vec![address], format!("{address} is an address of this node"), RuleId::Ld1);
        }
        return match snapshot.pods.values().find(|pod| pod.addresses.contains(&address)) {
            Some(pod) => of_pod(pod, node, vec![address]),
            None => {
                known(Source::Outside, vec![address], format!("{address} is no pod of this node: outside"), RuleId::Ld1)
            }
        };
    }
    let pod = text.split_once('/').and_then(|(namespace, name)| snapshot.pods.get(&ObjectKey::new(namespace, name)));
    pod.map_or_else(|| Err(ExplainError::Source(text.to_owned())), |pod| of_pod(pod, node, pod.addresses.clone()))
}

fn of_pod(pod: &Pod, node: &str, addresses: Vec<IpAddr>) -> Result<FlowOrigin, ExplainError> {
    let here = pod.node.as_deref() == Some(node);
    let key = &pod.key;
    let (source, decided, rule) = match (here, pod.host_network) {
        (true, false) => (Source::Pod, format!("the source is pod {key} of this node"), RuleId::Ld1),
        (true, true) => {
            (Source::Node, format!("pod {key} is in this node's own network: the source is the node"), RuleId::Sa2)
        }
        (false, _) => {
            (Source::Outside, format!("pod {key} is not on this node: to it the source is outside"), RuleId::Tp26)
        }
    };
    Ok(FlowOrigin { source, address: addresses.first().copied(), addresses, step: step(decided, rule) })
}

fn protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.name().eq_ignore_ascii_case(text))
}

/// The addresses, ports and protocols that a destination names.
fn targets(snapshot: &Snapshot, plan: &Plan, text: &str) -> Result<Vec<(SocketAddr, Protocol)>, ExplainError> {
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
    let (rest, port) = rest.split_once(':').map_or((rest, None), |(rest, port)| (rest, Some(port)));
    let (namespace, name) = match rest.split_once('/') {
        Some(parts) => parts,
        None => {
            let (name, namespace) = rest.split_once('.').ok_or_else(wrong)?;
            // As in DNS: what follows `.svc` says nothing of the Service.
            let is_dns = |rest: &str| rest.split('.').next() == Some("svc");
            let namespace =
                namespace.split_once('.').filter(|(_, rest)| is_dns(rest)).map_or(namespace, |(first, _)| first);
            (namespace, name)
        }
    };
    let service = ObjectKey::new(namespace, name);
    let ports = plan.ports.values().filter(|planned| planned.key.service == service);
    let meant =
        ports.filter(|planned| named.is_none_or(|protocol| planned.key.protocol == protocol)).filter(|planned| {
            let number = |port: &str| planned.frontends.iter().any(|frontend| frontend.port.to_string() == *port);
            port.is_none_or(|port| *planned.key.port == *port || number(port))
        });
    let found: Vec<_> = meant.filter_map(|planned| Some((first_address(planned)?, planned.key.protocol))).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let destination = text.to_owned();
    Err(match missing::why_missing(snapshot, plan, &service, port) {
        Some(why) => ExplainError::NotPlanned { destination, service, why },
        None => ExplainError::NoService(destination),
    })
}

/// The frontend that clients of a service port usually dial.
fn first_address(port: &PortPlan) -> Option<SocketAddr> {
    let mut frontends: Vec<_> = port.frontends.iter().filter(|frontend| frontend.address.is_some()).collect();
    frontends.sort_by_key(|frontend| frontend.kind != FrontendKind::ClusterIp);
    frontends.first().and_then(|frontend| Some(SocketAddr::new(frontend.address?, frontend.port.get())))
}

fn accepts_node_ports(plan: &Plan, address: IpAddr) -> bool {
    plan.meaning(address).is_some_and(|meaning| meaning.node_ports.is_some())
}

fn at_address(plan: &Plan, ip: IpAddr, named: Option<Protocol>) -> Result<Vec<(SocketAddr, Protocol)>, ExplainError> {
    let ports = plan.ports.values().filter(|port| named.is_none_or(|protocol| port.key.protocol == protocol));
    let node = accepts_node_ports(plan, ip);
    let found: Vec<_> = ports
        .filter(|port| port.key.family == Family::of(&ip))
        .flat_map(|port| port.frontends.iter().map(move |frontend| (port.key.protocol, frontend)))
        .filter(|(_, frontend)| frontend.address.map_or(node, |address| address == ip))
        .map(|(protocol, frontend)| (SocketAddr::new(ip, frontend.port.get()), protocol))
        .collect();
    if found.is_empty() { Err(ExplainError::NoPorts(ip)) } else { Ok(found) }
}

fn explain_one(
    plan: &Plan,
    from: &FlowOrigin,
    (to, protocol): (SocketAddr, Protocol),
    serves: Option<&Chosen>,
) -> Result<FlowExplanation, ExplainError> {
    let same_family = from.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).copied();
    let source_address = same_family.or_else(|| from.address.filter(|_| from.addresses.len() == 1));
    let packet = Packet { source: from.source, source_address, destination: to.ip(), port: to.port(), protocol };
    let left_alone = from.source == Source::Pod && from.addresses.iter().any(|ip| plan.opted_out.contains(ip));
    let served_by = serves.map(|serves| serving::serving(plan, &packet, left_alone, serves)).transpose()?;
    let mut steps = vec![from.step.clone()];
    if left_alone {
        steps.push(step("the pod has opted out: its sockets are left alone", RuleId::Dp16));
        let at_socket = Some(socket_word(&Outcome::Foreign).to_owned());
        let flow = explained(to, protocol, steps, ("pass", Vec::new()), at_socket);
        return Ok(FlowExplanation { served_by, ..flow });
    }
    let Decision { verdict, reason } = plan.decide(&packet);
    steps.extend(steps_of(reason.as_ref(), to.ip(), from.source));
    let at_socket = at_socket(plan, &packet)?;
    steps.extend(at_socket.as_ref().zip(reason).and_then(|(outcome, reason)| step_at_socket(outcome, &reason)));
    let verdict = match verdict {
        Verdict::NotOurs => ("pass", Vec::new()),
        Verdict::Reject => ("reject", Vec::new()),
        Verdict::Drop => ("drop", Vec::new()),
        Verdict::Forward { endpoints, .. } => ("forward", endpoints.iter().map(|end| end.address).collect()),
    };
    let at_socket = at_socket.map(|outcome| socket_word(&outcome).to_owned());
    Ok(FlowExplanation { served_by, ..explained(to, protocol, steps, verdict, at_socket) })
}

/// What a socket of this node gets, by the lookup that the programs run; `None` if the source is outside.
fn at_socket(plan: &Plan, packet: &Packet) -> Result<Option<Outcome>, ReadingError> {
    let unknown = if packet.destination.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
    let caller = match packet.source {
        Source::Pod => Caller::Pod(packet.source_address.unwrap_or(unknown)),
        Source::Node => Caller::Node,
        Source::Outside => return Ok(None),
    };
    let to = SocketAddr::new(packet.destination, packet.port);
    Ok(Some(Reading::of(&plan.around(packet.destination))?.outcome(caller, to, packet.protocol)))
}

fn explained(
    to: SocketAddr,
    protocol: Protocol,
    steps: Vec<ExplainedStep>,
    (verdict, endpoints): (&str, Vec<SocketAddr>),
    at_socket: Option<String>,
) -> FlowExplanation {
    let (destination, verdict) = (format!("{to}/{protocol}"), verdict.into());
    FlowExplanation { destination, steps, verdict, at_socket, endpoints, served_by: None }
}

fn socket_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Endpoints { .. } => "forward",
        Outcome::Refused => "refuse",
        Outcome::Denied => "deny",
        Outcome::KeepsDestination | Outcome::Foreign => "pass",
    }
}

/// What a socket gets where packets get an answer of another kind.
fn step_at_socket(outcome: &Outcome, reason: &Reason<'_>) -> Option<ExplainedStep> {
    let rule = match (outcome, reason.meeting) {
        (Outcome::Foreign, Meeting::UndefinedPort) => RuleId::Dp11,
        (_, Meeting::Frontend(_) | Meeting::UndefinedPort | Meeting::UnusedAddress) => reason.rule,
    };
    let words = match outcome {
        Outcome::Endpoints { .. } => return None,
        Outcome::Refused => "refused at once (ECONNREFUSED)",
        Outcome::Denied => "refused at once (EPERM)",
        Outcome::KeepsDestination | Outcome::Foreign => "left alone, its packets keep this destination",
    };
    Some(step(format!("at a socket of this node: {words}"), rule))
}

fn steps_of(reason: Option<&Reason<'_>>, to: IpAddr, source: Source) -> Vec<ExplainedStep> {
    match reason {
        None => vec![match Plan::why_not_served(to) {
            Some(why) => step(format!("no Service is served at {to}: {why}"), RuleId::Tp9),
            None => step("no service port is dialled there", RuleId::Ne14),
        }],
        Some(Reason { meeting: Meeting::Frontend(met), rule }) => steps_at_frontend(met, *rule, source),
        Some(Reason { meeting: Meeting::UndefinedPort, rule }) => {
            vec![step(format!("{to} is a cluster IP, and no service port has this port"), *rule)]
        }
        Some(Reason { meeting: Meeting::UnusedAddress, rule }) => {
            vec![step(format!("{to} is in a range of Services, and no Service has it"), *rule)]
        }
    }
}

fn steps_at_frontend(met: &Met<'_>, rule: RuleId, source: Source) -> Vec<ExplainedStep> {
    let Met { port, frontend, rule: Rule { list, empty, .. }, admitted } = met;
    let (kind, kind_rule) = match frontend.kind {
        FrontendKind::ClusterIp => ("cluster IP", RuleId::Tp1),
        FrontendKind::External => ("external IP", RuleId::Tp2),
        FrontendKind::LoadBalancer => ("load balancer address", RuleId::Tp2),
        FrontendKind::NodePort => ("node port", RuleId::Tp3),
    };
    let mut steps = vec![step(format!("that is the {kind} of {}", port.key), kind_rule)];
    match admitted {
        Some(true) => steps.push(step("the source is inside loadBalancerSourceRanges", RuleId::Tp30)),
        Some(false) => {
            steps.push(step("the source is outside of loadBalancerSourceRanges", RuleId::Tp31));
            steps.push(step("packets of such a source get no answer", rule));
            return steps;
        }
        None => {}
    }
    if frontend.falls_back {
        steps.push(step(own_dns_first(port), RuleId::Dp22));
        return steps;
    }
    let short_cut = "policy Local, but pods and the node may use every endpoint";
    steps.push(match (list, frontend.from_outside.list, source) {
        (List::Cluster, List::Local, Source::Pod) => step(short_cut, RuleId::Tp21),
        (List::Cluster, List::Local, Source::Node) => step(short_cut, RuleId::Tp22),
        (List::Cluster, ..) => step("policy Cluster: every usable endpoint may serve", RuleId::Dt2),
        (List::Local, ..) => step("policy Local: only endpoints of this node may serve", RuleId::Dt3),
    });
    match (port.list(*list).len(), empty) {
        (0, Empty::Reject) => steps.push(step("no endpoint may serve: refused at once", rule)),
        (0, Empty::Drop) => steps.push(step("none here, but elsewhere: packets get no answer", rule)),
        (count, _) => {
            steps.push(step(format!("{count} of them"), rule));
            if let Some(seconds) = port.affinity {
                let kept = format!("a client stays with its endpoint until {seconds} s after its last new flow");
                steps.push(step(kept, RuleId::Sa3));
            }
        }
    }
    steps
}

/// Who serves at the cluster DNS address while this node serves it itself.
fn own_dns_first(port: &PortPlan) -> String {
    let meanwhile = match port.cluster.iter().filter(|endpoint| !endpoint.local).count() {
        0 => "nothing does: no Service with endpoints has the address".to_owned(),
        1 => "sockets get the Service's endpoint".to_owned(),
        count => format!("sockets get the Service's {count} endpoints"),
    };
    format!("this node's own DNS serves; while it is closed, {meanwhile}")
}

/// The explanation for people: numbered steps and a last line with the verdict.
#[must_use]
pub fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    // What a socket gets is in the steps already.
    for FlowExplanation { destination, steps, verdict, at_socket: _, endpoints, served_by } in &explanation.flows {
        // Writing to a String cannot fail.
        writeln!(text, "{destination}").unwrap_or_default();
        for (number, ExplainedStep { decided, rule }) in (1..).zip(steps) {
            writeln!(text, "  {number}. {decided} ({rule})").unwrap_or_default();
        }
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        writeln!(text, "  => {verdict} {}", endpoints.join(" ")).unwrap_or_default();
        if let Some(Serving { by, steps, part: _ }) = served_by {
            writeln!(text, "  served by {by}").unwrap_or_default();
            for step in steps {
                writeln!(text, "  - {step}").unwrap_or_default();
            }
        }
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{NODE, cluster, options, pod, service, slice};
    use crate::plan::{EmptyLocal, PlanOptions, plan};

    #[track_caller]
    fn flow(options: &PlanOptions, words: &str, endpoints: &str, source: &str, destination: &str) -> FlowExplanation {
        let mut snapshot = cluster([service("web", words)], [slice("web", "a", "http:80/tcp http:53/udp", endpoints)]);
        let pods = [
            pod("here", "10.1.0.1 fd00::1", NODE, ""),
            pod("meshed", "10.1.0.2", NODE, "mesh=on"),
            pod("away", "10.1.0.3", "elsewhere", ""),
        ];
        snapshot.pods.extend(pods.into_iter().map(|pod| (pod.key.clone(), std::sync::Arc::new(pod))));
        let (plan, _) = plan(&snapshot, options);
        let explanation = explain(&snapshot, &plan, NODE, source, destination).unwrap();
        let [flow] = &explanation.flows[..] else { panic!("{explanation:?}") };
        assert!(render(&explanation).ends_with(&flow.verdict) || !flow.endpoints.is_empty());
        flow.clone()
    }

    /// The rules of all steps and the verdict.
    #[track_caller]
    fn check(words: &str, endpoints: &str, source: &str, destination: &str, rules: &str, verdict: &str) {
        let flow = flow(&options(), words, endpoints, source, destination);
        let shown: Vec<_> = flow.steps.iter().map(|step| step.rule.as_str()).collect();
        assert_eq!(shown.join(" "), rules, "{flow:?}");
        assert_eq!(flow.verdict, verdict);
    }

    #[test]
    fn every_step_names_its_rule() {
        let words = "ip=10.96.0.1 np=30080 vip=192.0.2.1";
        check(words, "e1:R", "node", "10.96.0.1:80", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "node", "10.96.0.1:80/tcp", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "outside", "default/web", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "outside", "web.default", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "node", "default/web:http/tcp", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "node", "web.default:80/tcp", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "node", "web.default.svc.cluster.local:http", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "e1:R", "node", "web.default.svc", "LD-1 TP-1 DT-2 EP-20", "forward");
        check(words, "", "outside", "192.0.2.1:80", "LD-1 TP-2 DT-2 NE-1", "reject");
        check(words, "", "node", "192.0.2.1:80", "LD-1 TP-2 DT-2 NE-1 NE-1", "reject");
        check(words, "e1:R", "203.0.113.7", "10.96.0.1:81", "LD-1 NE-11", "reject");
        check(words, "e1:R", "10.1.0.1", "10.96.0.1:81", "LD-1 NE-11 NE-11", "reject");
        check(words, "e1:R", "10.1.0.1", "10.96.0.1:65535/udp", "LD-1 NE-11 DP-11", "reject");
        check(words, "e1:R", "default/away", "10.96.0.1:81", "TP-26 NE-11", "reject");
        check(words, "e1:R", "203.0.113.7", "198.51.100.1:81", "LD-1 NE-14", "pass");
        check(words, "e1:R", "node", "0.0.0.0:30080", "LD-1 TP-3 DT-2 TP-20", "forward");
        for own in ["127.0.0.1:30080", "0.0.0.0:30080", "[::]:30080", "[::ffff:0.0.0.0]:30080", "224.0.0.1:30080"] {
            check(words, "e1:R", "default/here", own, "LD-1 TP-9", "pass");
        }
        check("ip=10.96.0.1 iTP", "e1:R", "node", "10.96.0.1", "LD-1 TP-1 DT-3 NE-2 NE-2", "drop");
        check("ip=10.96.0.1 iTP", "e1:Rl", "node", "10.96.0.1", "LD-1 TP-1 DT-3 EP-21", "forward");
        check("ip=10.96.0.1 aff=60", "e1:R", "node", "10.96.0.1", "LD-1 TP-1 DT-2 EP-20 SA-3", "forward");
        let local = "ip=10.96.0.1 vip=192.0.2.1 eTP type=lb";
        check(local, "e1:R", "node", "192.0.2.1", "LD-1 TP-2 TP-22 TP-22", "forward");
        check(local, "e1:R", "default/here", "192.0.2.1", "LD-1 TP-2 TP-21 TP-21", "forward");
        check(local, "e1:R", "outside", "192.0.2.1", "LD-1 TP-2 DT-3 NE-3", "drop");
    }

    /// What packets get, what a socket gets, and the end of the last step.
    #[track_caller]
    fn check_socket(words: &str, source: &str, to: &str, verdict: &str, at_socket: Option<&str>, last: &str) {
        for (empty_local, pass) in [(EmptyLocal::Refuse, false), (EmptyLocal::Pass, true)] {
            let service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
            let opt_out = vec![("mesh".into(), None)];
            let options = PlanOptions { empty_local, service_cidrs, opt_out, ..options() };
            let flow = flow(&options, words, "e1:R", source, to);
            let words = match at_socket {
                Some("refuse or pass") => Some(if pass { "pass" } else { "refuse" }),
                fixed => fixed,
            };
            assert_eq!((flow.verdict.as_str(), flow.at_socket.as_deref()), (verdict, words), "{empty_local:?}");
            let told = match (last, pass) {
                ("", false) => "at a socket of this node: refused at once (ECONNREFUSED)",
                ("", true) => "at a socket of this node: left alone, its packets keep this destination",
                (last, _) => last,
            };
            let last = &flow.steps.last().unwrap().decided;
            assert!(last.ends_with(told), "{last:?} does not end with {told:?}");
        }
    }

    #[test]
    fn a_step_says_what_a_socket_gets_where_packets_get_something_else() {
        let (words, either) = ("ip=10.96.0.1 iTP vip=192.0.2.1 from=10.2.0.0/16", Some("refuse or pass"));
        check_socket(words, "node", "10.96.0.1:80", "drop", either, "");
        check_socket(words, "default/here", "10.96.0.1:80", "drop", either, "");
        check_socket(words, "outside", "10.96.0.1:80", "drop", None, "packets get no answer");
        check_socket(words, "node", "10.96.0.1:81", "reject", Some("refuse"), "refused at once (ECONNREFUSED)");
        check_socket(words, "default/here", "192.0.2.1:80", "drop", Some("deny"), "refused at once (EPERM)");
        check_socket(words, "outside", "192.0.2.1:80", "drop", None, "packets of such a source get no answer");
        let kept = "left alone, its packets keep this destination";
        check_socket(words, "node", "10.96.0.9:80", "drop", Some("pass"), kept); // NE-12
        check_socket(words, "node", "192.0.2.9:80", "pass", Some("pass"), "no service port is dialled there");
        check_socket(words, "default/meshed", "10.96.0.1:80", "pass", Some("pass"), "its sockets are left alone");
        check_socket("ip=10.96.0.1", "node", "10.96.0.1:80", "forward", Some("forward"), "1 of them");
    }

    #[test]
    fn at_the_cluster_dns_address_the_nodes_own_dns_comes_first() {
        let dns_backends = vec!["169.254.20.10:53".parse().unwrap()];
        let options = PlanOptions { cluster_dns: vec!["10.96.0.10".parse().unwrap()], dns_backends, ..options() };
        let own = "this node's own DNS serves";
        for (endpoints, step) in [
            ("", format!("{own}; while it is closed, nothing does: no Service with endpoints has the address")),
            ("e1:R", format!("{own}; while it is closed, sockets get the Service's endpoint")),
            ("e1:R; e2:R", format!("{own}; while it is closed, sockets get the Service's 2 endpoints")),
        ] {
            let flow = flow(&options, "ip=10.96.0.10 port=http:53/udp", endpoints, "node", "10.96.0.10:53/udp");
            let steps: Vec<_> = flow.steps.iter().map(|step| (step.decided.as_str(), step.rule.as_str())).collect();
            let wanted = [
                ("the source is this node itself", "LD-1"),
                ("that is the cluster IP of shunt/cluster-dns:dns/udp", "TP-1"),
                (&step, "DP-22"),
            ];
            assert_eq!(steps, wanted);
            assert_eq!(flow.endpoints, ["169.254.20.10:53".parse().unwrap()]);
        }
    }

    #[test]
    fn a_name_of_nothing_is_an_error() {
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
