//! The chains and sets of a service port with session affinity: only these are per service and per endpoint.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use super::Rendering;
use super::chain::{UNTRANSLATED, by_source, list_name};
use super::collection::word;
use crate::datapath::packets::{Shape, Treatment};
use crate::plan::{List, PortKey, PortPlan};

/// How the names of sets begin that remember clients.
pub(super) const CLIENTS: &str = "clients/";
/// The kernel takes 255 bytes.
const LONGEST: usize = 240;

/// What a service port with affinity needs for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnChains {
    /// Chains with their rules. A chain stands after those that it leads to.
    pub(super) chains: Vec<(String, Vec<String>)>,
    /// The sets of clients, one for each endpoint.
    pub(super) clients: Vec<String>,
    /// How long they remember a client, in seconds.
    pub(super) timeout: u32,
    /// Where each of the shapes leads.
    pub(super) leads: Vec<(Shape, String)>,
}

/// Builds [`OwnChains`].
struct Builder<'a> {
    port: &'a PortPlan,
    rendering: &'a Rendering,
    base: String,
    own: OwnChains,
}

/// The chains for frontends of these shapes, or why they cannot be made.
pub(super) fn own_chains(
    port: &PortPlan,
    timeout: NonZeroU32,
    shapes: &[Shape],
    rendering: &Rendering,
) -> Result<OwnChains, String> {
    let own = OwnChains { timeout: timeout.get(), ..OwnChains::default() };
    let mut builder = Builder { port, rendering, base: base(&port.key), own };
    let uses = |list| shapes.iter().any(|shape| shape.treatments().into_iter().any(|used| picks(used) == Some(list)));
    let lists = [List::Cluster, List::Local].into_iter().filter(|list| uses(*list));
    let mut endpoints: Vec<SocketAddr> =
        lists.clone().flat_map(|list| port.list(list)).map(|endpoint| endpoint.address).collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    for endpoint in endpoints {
        builder.endpoint(endpoint);
    }
    for list in lists {
        builder.list(list);
    }
    for shape in shapes {
        let lead = builder.shape(*shape);
        builder.own.leads.push((*shape, lead));
    }
    let names = builder.own.chains.iter().map(|(name, _)| name).chain(&builder.own.clients);
    match names.max_by_key(|name| name.len()).filter(|name| name.len() > LONGEST) {
        Some(name) => Err(format!("the name of its chain would have {} bytes, more than {LONGEST}", name.len())),
        None => Ok(builder.own),
    }
}

fn picks(treatment: Treatment) -> Option<List> {
    match treatment {
        Treatment::Pick { list, .. } => Some(list),
        Treatment::None(_) => None,
    }
}

impl Builder<'_> {
    /// Remembers the client, and sends its flow. A set that is full must not keep the flow from its endpoint, so these
    /// are two rules.
    fn endpoint(&mut self, endpoint: SocketAddr) {
        let clients = self.at_endpoint("clients", endpoint);
        let ip = word(self.port.key.family);
        let rules = vec![
            format!("update @{clients} {{ {ip} saddr timeout {}s }}", self.own.timeout),
            format!("meta l4proto {} dnat to {endpoint}", self.port.key.protocol),
        ];
        self.own.chains.push((self.at_endpoint("endpoint", endpoint), rules));
        self.own.clients.push(clients);
    }

    /// The first endpoint that remembers the client (SA-4), else any.
    fn list(&mut self, list: List) {
        let ip = word(self.port.key.family);
        let addresses = || self.port.list(list).iter().map(|endpoint| endpoint.address);
        let mut rules: Vec<String> = addresses()
            .map(|endpoint| {
                let (clients, chain) = (self.at_endpoint("clients", endpoint), self.at_endpoint("endpoint", endpoint));
                format!("{ip} saddr @{clients} goto {chain}")
            })
            .collect();
        let mut choice = format!("numgen random mod {} vmap {{ ", addresses().count());
        for (index, endpoint) in addresses().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let chain = self.at_endpoint("endpoint", endpoint);
            // Writing to a string does not fail.
            write!(choice, "{separator}{index} : goto {chain}").unwrap_or_default();
        }
        choice.push_str(" }");
        rules.push(choice);
        let name = self.of_list(list, false);
        let masquerade = vec![self.rendering.mark(), format!("goto {name}")];
        self.own.chains.push((name, rules));
        self.own.chains.push((self.of_list(list, true), masquerade));
    }

    /// Where a frontend of this shape leads.
    fn shape(&mut self, shape: Shape) -> String {
        let [pods, node, outside] = shape.treatments();
        let lead = |treatment| match treatment {
            Treatment::Pick { list, masquerade, .. } => format!("goto {}", self.of_list(list, masquerade)),
            Treatment::None(_) => UNTRANSLATED.to_owned(),
        };
        let [node_leads, pods_lead, outside_leads] = [node, pods, outside].map(lead);
        if node_leads == outside_leads && pods_lead == outside_leads {
            return outside_leads;
        }
        let [node, pods, outside] = [node, pods, outside].map(code);
        let name = format!("sources-{node}-{pods}-{outside}/{}", self.base);
        let family = self.port.key.family;
        let rules = by_source(family, self.rendering, &node_leads, &pods_lead, &outside_leads);
        let goto = format!("goto {name}");
        // Shapes that differ only in what they refuse lead to one chain.
        if !self.own.chains.iter().any(|(known, _)| *known == name) {
            self.own.chains.push((name, rules));
        }
        goto
    }

    fn of_list(&self, list: List, masquerade: bool) -> String {
        let masquerade = if masquerade { "-masquerade" } else { "" };
        format!("{}{masquerade}/{}", list_name(list), self.base)
    }

    /// A colon cannot stand in a name; an address without colons has no run of dots of the same meaning.
    fn at_endpoint(&self, kind: &str, endpoint: SocketAddr) -> String {
        let address = endpoint.ip().to_string().replace(':', ".");
        format!("{kind}/{}/{address}/{}", self.base, endpoint.port())
    }
}

const fn code(treatment: Treatment) -> &'static str {
    match treatment {
        Treatment::Pick { list: List::Cluster, masquerade: false, .. } => "c",
        Treatment::Pick { list: List::Cluster, masquerade: true, .. } => "cm",
        Treatment::Pick { list: List::Local, masquerade: false, .. } => "l",
        Treatment::Pick { list: List::Local, masquerade: true, .. } => "lm",
        Treatment::None(_) => "none",
    }
}

/// `namespace/name/protocol/port`: no two service ports of a table share it, whatever they are called.
fn base(key: &PortKey) -> String {
    let PortKey { service, port, protocol, family: _ } = key;
    format!("{}/{}/{protocol}/{}", plain(&service.namespace), plain(&service.name), plain(port))
}

/// What nft takes in a name. Kubernetes allows no other letters in these names, but a folder of manifests may hold any.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => plain.push(char::from(byte)),
            // Writing to a string does not fail.
            other => write!(plain, "_{other:02x}").unwrap_or_default(),
        }
    }
    plain
}
