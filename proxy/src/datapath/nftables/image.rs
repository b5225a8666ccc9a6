//! What the tables hold for one service port, for an address, and for the node: a pure function of the plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use shunt_model::Family;

use super::Rendering;
use super::affinity::{self, OwnChains};
use super::chain::{self, SharedChain};
use super::collection::{At, Collection, Dialled, network};
use crate::datapath::packets::{self, Shape, Treatment};
use crate::plan::{AddressMeaning, Frontend, List, NodePorts, Plan, PortPlan};

/// The place of an element: a key of a map or set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) family: Family,
    pub(super) collection: Collection,
    /// As nft reads it.
    pub(super) key: String,
}

/// What one service port needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortImage {
    /// Elements, with what they lead to; a set's element leads to nothing.
    pub(super) elements: Vec<(Place, String)>,
    /// The chains that it shares with others, each once.
    pub(super) shared: BTreeSet<SharedChain>,
    /// What it has for itself, with affinity.
    pub(super) own: OwnChains,
    /// Addresses whose flows to themselves need source NAT.
    pub(super) hairpins: BTreeSet<IpAddr>,
}

/// What a service port needs, or why it cannot be had.
pub(super) fn port_image(port: &PortPlan, rendering: &Rendering) -> Result<PortImage, String> {
    let mut image = PortImage { hairpins: packets::hairpins(port), ..PortImage::default() };
    if let Some(timeout) = port.affinity {
        let shapes: BTreeSet<Shape> = port.frontends.iter().map(|frontend| Shape::of(port, frontend)).collect();
        let shapes: Vec<Shape> = shapes.into_iter().collect();
        image.own = affinity::own_chains(port, timeout, &shapes, rendering)?;
    }
    for frontend in &port.frontends {
        image.add(port, frontend);
    }
    Ok(image)
}

impl PortImage {
    fn add(&mut self, port: &PortPlan, frontend: &Frontend) {
        let shape = Shape::of(port, frontend);
        let dialled = Dialled { address: frontend.address, protocol: port.key.protocol, port: frontend.port.get() };
        let (at, frontends, unserved) = match frontend.address {
            Some(_) => (At::Address, Collection::Frontends, Collection::Unserved),
            None => (At::NodePort, Collection::NodePorts, Collection::UnservedNodePorts),
        };
        let own = self.own.leads.iter().find(|(known, _)| *known == shape).map(|(_, lead)| lead.clone());
        let lead = own.unwrap_or_else(|| {
            let (lead, chains) = chain::serving(at, port.key.protocol, shape);
            self.shared.extend(chains);
            self.add_endpoints(port, at, dialled, shape);
            lead
        });
        self.put(port, frontends, dialled.key(), lead);
        if let Some((refusal, chain)) = chain::refusal(shape) {
            self.shared.extend(chain);
            self.put(port, unserved, dialled.key(), refusal);
        }
        if frontend.filtered {
            self.add_filter(port, dialled);
        }
    }

    /// The endpoints of the lists that this shape picks from.
    fn add_endpoints(&mut self, port: &PortPlan, at: At, dialled: Dialled, shape: Shape) {
        let picks = |wanted| {
            shape.treatments().into_iter().any(|treatment| match treatment {
                Treatment::Pick { list, .. } => list == wanted,
                Treatment::None(_) => false,
            })
        };
        for list in [List::Cluster, List::Local].into_iter().filter(|list| picks(*list)) {
            for (index, endpoint) in port.list(list).iter().enumerate() {
                let address = endpoint.address;
                let leads_to = format!("{} . {}", address.ip(), address.port());
                let collection = Collection::Endpoints(at, list, port.key.protocol);
                self.put(port, collection, dialled.endpoint_key(index), leads_to);
            }
        }
    }

    /// TP-30…36. No two ranges may overlap in a set.
    fn add_filter(&mut self, port: &PortPlan, dialled: Dialled) {
        let Some(ranges) = &port.source_ranges else { return };
        let key = dialled.key();
        for range in IpNet::aggregate(&ranges.ranges) {
            self.put(port, Collection::Allowed, format!("{key} . {}", network(&range)), String::new());
        }
        self.put(port, Collection::Filtered, key, String::new());
    }

    fn put(&mut self, port: &PortPlan, collection: Collection, key: String, leads_to: String) {
        self.elements.push((Place { family: port.key.family, collection, key }, leads_to));
    }
}

/// The sets that hold an address for what it means.
pub(super) fn of_address(address: IpAddr, meaning: AddressMeaning) -> impl Iterator<Item = Place> {
    let AddressMeaning { node_ports, refuses_other_ports } = meaning;
    let accepts = match node_ports {
        Some(NodePorts::FromAnywhere) => Some(Collection::NodeAddresses),
        // Rules of their own, since they stand for a range.
        Some(NodePorts::FromNodeOnly) | None => None,
    };
    let refuses = if refuses_other_ports { Collection::ClusterIps } else { Collection::OtherAddresses };
    let place = move |collection| Place { family: Family::of(&address), collection, key: address.to_string() };
    accepts.into_iter().chain([refuses]).map(place)
}

/// The networks of pods and the ranges of Services.
pub(super) fn networks(plan: &Plan) -> BTreeSet<Place> {
    let place =
        |collection| move |found: &IpNet| Place { family: Family::of(&found.addr()), collection, key: network(found) };
    // Ranges may lie in one another; elements must not.
    let cidrs = IpNet::aggregate(&plan.service_cidrs.iter().map(IpNet::trunc).collect());
    let cidrs: Vec<Place> = cidrs.iter().map(place(Collection::ServiceCidrs)).collect();
    plan.pods.networks.iter().map(place(Collection::PodNetworks)).chain(cidrs).collect()
}

/// The element of an address that may dial itself.
pub(super) fn hairpin(address: IpAddr) -> Place {
    let key = format!("{address} . {address}");
    Place { family: Family::of(&address), collection: Collection::Hairpins, key }
}
