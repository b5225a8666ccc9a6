//! An EndpointSlice, reduced to what load balancing and DNS read (IN-30…38, DNS-8.6).

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use crate::key::{Family, Protocol, SliceKey};

/// One EndpointSlice of addressType IPv4 or IPv6 (FQDN slices never reach the model, IN-31).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Owning Service and slice name.
    pub key: SliceKey,
    /// `addressType`.
    pub family: Family,
    /// Ports of every endpoint of the slice.
    pub ports: Vec<EndpointPort>,
    /// The endpoints; each has at least one address of `family`.
    pub endpoints: Vec<Endpoint>,
    /// Carries the label `service.kubernetes.io/headless`: in DNS, but not balanced (IN-2).
    pub headless: bool,
    /// The time of the change that led to this version of the slice, if its writer gives it (SY-20).
    pub triggered: Option<SystemTime>,
}

/// One `ports` entry of a slice (IN-32).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Matches [`crate::ServicePort::name`].
    pub name: Arc<str>,
    /// Matches [`crate::ServicePort::protocol`].
    pub protocol: Protocol,
    /// Where the endpoint listens.
    pub port: NonZeroU16,
}

/// One endpoint. Absent conditions are already resolved (IN-35).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// At least one; the proxy uses the first only (IN-34), DNS all.
    pub addresses: Box<[IpAddr]>,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means true.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `nodeName`; equal to our own node name means local (IN-36).
    pub node: Option<Arc<str>>,
    /// `zone`, read by DNS only.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Box<[Arc<str>]>,
    /// `hints.forNodes[].name`.
    pub node_hints: Box<[Arc<str>]>,
    /// `hostname`, a DNS label.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name`, normally the pod.
    pub target: Option<Arc<str>>,
}
