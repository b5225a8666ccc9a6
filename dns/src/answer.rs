//! What the zone says about a question, and why.

use std::fmt;

use hickory_proto::rr::{Name, Record};

/// The zone's verdict on one name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There are records.
    Records(Records),
    /// The name is an alias of one outside the zone, which the server resolves by forwarding.
    Alias {
        /// The CNAMEs from the asked name to `target`, in order.
        chain: Vec<Record>,
        /// Where the chain leaves the zone.
        target: Name,
    },
    /// The name exists, the type does not.
    NoData {
        /// For the authority section.
        soa: Record,
    },
    /// The name does not exist.
    NxDomain {
        /// What is missing.
        why: Absence,
        /// For the authority section.
        soa: Record,
    },
    /// A reverse name that nothing in the cluster has: to be forwarded, or NXDOMAIN if that is impossible (DNS-5.5).
    UnknownAddress {
        /// For the authority section if it is not forwarded.
        soa: Record,
    },
    /// Not a name of the cluster: to be forwarded.
    NotOurs,
}

/// The sections of a positive answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The answer section; CNAMEs come before what they lead to.
    pub answers: Vec<Record>,
    /// The SOA if a chain of CNAMEs ends inside the zone without a record (DNS-2.6.4).
    pub authority: Option<Record>,
    /// Addresses of the targets named in the answers.
    pub additionals: Vec<Record>,
}

/// Why a name does not exist (DNS-3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Absence {
    /// No name of the cluster domain looks like this.
    Shape,
    /// There is no such Namespace.
    Namespace,
    /// The Namespace has no such Service.
    Service,
    /// The Service has no cluster IP yet.
    Unassigned,
    /// A headless Service without a ready endpoint.
    NoReadyEndpoint,
    /// No ready endpoint of the Service has this name.
    Endpoint,
    /// The Service has no such port, or not with this protocol.
    Port,
    /// Nothing lives below an ExternalName Service.
    BelowExternalName,
    /// The ExternalName target is an IP address or no DNS name.
    ExternalTarget,
    /// Pod names are disabled.
    PodsDisabled,
    /// The label is not an address with dashes.
    PodAddress,
    /// The Namespace has no Pod with this address.
    Pod,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "no name of the cluster domain looks like this (DNS-1.2)",
            Self::Namespace => "there is no such namespace (DNS-3.1)",
            Self::Service => "the namespace has no such service (DNS-3.1)",
            Self::Unassigned => "the service has no cluster IP yet (DNS-3.1)",
            Self::NoReadyEndpoint => "the headless service has no ready endpoint (DNS-2.3.3)",
            Self::Endpoint => "no ready endpoint of the service has this name (DNS-2.4)",
            Self::Port => "the service has no such named port with this protocol (DNS-2.5.8)",
            Self::BelowExternalName => "nothing lives below an ExternalName service (DNS-2.6.7)",
            Self::ExternalTarget => "the ExternalName target is not a DNS name (DNS-2.6.8)",
            Self::PodsDisabled => "pod names are disabled (DNS-6.1)",
            Self::PodAddress => "the label is not an address with dashes (DNS-6.2)",
            Self::Pod => "the namespace has no pod with this address (DNS-6.3)",
        })
    }
}

impl Answer {
    /// Why it is so, for people.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Records(_) => "from the cluster's objects".to_owned(),
            Self::Alias { target, .. } => {
                format!("an alias of {}, which is not of the cluster", crate::names::text(target))
            }
            Self::NoData { soa: _ } => "the name exists, but has no record of this type (DNS-3.2)".to_owned(),
            Self::NxDomain { why, soa: _ } => why.to_string(),
            Self::UnknownAddress { soa: _ } => "nothing in the cluster has this address (DNS-5.5)".to_owned(),
            Self::NotOurs => "not a name of the cluster".to_owned(),
        }
    }
}
