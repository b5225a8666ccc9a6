//! What the packet programs find in the tables for the first packet of a flow, step by step.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use proxy_abi::directory::at;
use proxy_abi::lookup::{self, Meaning, Tables as _, V4, V6, Words as _};
use proxy_abi::{Port, Terms};
use shunt_model::{Family, Protocol};

use super::super::layout::FrontendKey;
use super::super::layout::write::address;
use super::memory::{Call, Memory, Readable};
use crate::datapath::caller::Caller;
use crate::datapath::reading::{Clients, EndpointChoice, KnownAddress, PacketFindings};

impl Memory {
    /// What is found for a packet from a pod of this node or, if `outside`, from elsewhere.
    pub(crate) fn findings(&self, outside: bool, from: IpAddr, to: SocketAddr, protocol: Protocol) -> PacketFindings {
        let value = lookup::address_value(self, &address(to.ip()));
        let known = match (value.is_known(), value.takes_node_ports()) {
            (false, _) => KnownAddress::No,
            (true, false) => KnownAddress::OfService,
            (true, true) => KnownAddress::TakesNodePorts,
        };
        let call = Call { outside, at_socket: false, ..Call::by(Caller::Pod(from)) };
        let endpoint = match to.ip() {
            _ if known == KnownAddress::No => None,
            IpAddr::V4(four) => {
                let [_, _, _, four] = address(four.into());
                self.choice::<V4>(call, four, to.port().to_be(), protocol)
            }
            IpAddr::V6(six) => self.choice::<V6>(call, address(six.into()), to.port().to_be(), protocol),
        };
        PacketFindings { address: known, clients: self.clients(known, outside, to, protocol), endpoint }
    }

    /// The clients of the frontend that serves this one.
    fn clients(&self, known: KnownAddress, outside: bool, to: SocketAddr, protocol: Protocol) -> Option<Clients> {
        let number = NonZeroU16::new(to.port())?;
        let own = FrontendKey::new(to.ip(), number, protocol);
        let of_node = || FrontendKey::node_port(Family::of(&to.ip()), number, protocol);
        let of_node = (known == KnownAddress::TakesNodePorts).then(of_node);
        let key = [Some(own), of_node].into_iter().flatten().find(|key| self.frontends.contains_key(key))?;
        let special = outside && self.frontends.contains_key(&key.outside());
        Some(if special { Clients::Outside } else { Clients::All })
    }

    fn choice<F: Readable>(
        &self,
        call: Call,
        address: F::Address,
        port: Port,
        protocol: Protocol,
    ) -> Option<EndpointChoice> {
        let Meaning::Frontend(lead) = lookup::meaning::<F, _, _>(self, &call, address, port, protocol.number()) else {
            return None;
        };
        lookup::endpoint::<F, _, _>(self, &call, lead).ok()?;
        let terms = Terms(self.directory(lead.service)?.word(at::TERMS));
        Some(EndpointChoice { sticky: terms.timeout() != 0, source_nat: lead.source_nat.is_for(call.outside) })
    }
}
