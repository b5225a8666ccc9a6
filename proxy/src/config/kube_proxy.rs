//! kube-proxy's own configuration, `kubeproxy.config.k8s.io/v1alpha1`: reads and checks it, and names the fields
//! without effect.
//!
//! Field names, defaults and checks are those of kube-proxy (CF-10). Fields without a use in the socket path are
//! accepted and named once.

pub mod flags;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shunt_model::GoDuration;

use super::values::Address;

/// `apiVersion` of the document.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the document.
pub const KIND: &str = "KubeProxyConfiguration";

/// Declares a struct of the document with its defaults: every field by name, type and default value.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty = $default:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[expect(missing_docs, reason = "fields are kube-proxy's, by the names that its documentation explains")]
        pub struct $name { $($(#[$attribute])* pub $field: $kind),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}

section! {
    /// The whole document.
    KubeProxyConfiguration {
        api_version: String = API_VERSION.to_owned(),
        kind: String = KIND.to_owned(),
        feature_gates: BTreeMap<String, bool> = BTreeMap::new(),
        client_connection: ClientConnection = ClientConnection::default(),
        logging: Logging = Logging::default(),
        hostname_override: String = String::new(),
        bind_address: String = "0.0.0.0".to_owned(),
        healthz_bind_address: String = String::new(),
        metrics_bind_address: String = String::new(),
        bind_address_hard_fail: bool = false,
        enable_profiling: bool = false,
        show_hidden_metrics_for_version: String = String::new(),
        mode: String = String::new(),
        iptables: Iptables = Iptables::default(),
        ipvs: Ipvs = Ipvs::default(),
        nftables: Nftables = Nftables::default(),
        winkernel: BTreeMap<String, Value> = BTreeMap::new(),
        windows_run_as_service: bool = false,
        detect_local_mode: String = String::new(),
        detect_local: DetectLocal = DetectLocal::default(),
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String = String::new(),
        node_port_addresses: Vec<String> = Vec::new(),
        oom_score_adj: i32 = -999,
        conntrack: Conntrack = Conntrack::default(),
        config_sync_period: GoDuration = GoDuration::seconds(900),
        port_range: String = String::new(),
    }
}

section! {
    /// `clientConnection`.
    ClientConnection {
        kubeconfig: String = String::new(),
        accept_content_types: String = String::new(),
        content_type: String = "application/vnd.kubernetes.protobuf".to_owned(),
        qps: f32 = 5.0,
        burst: i32 = 10,
    }
}

section! {
    /// `logging`.
    Logging {
        format: String = "text".to_owned(),
        flush_frequency: Value = Value::from(5_000_000_000_u64),
        verbosity: u32 = 0,
        vmodule: Vec<Value> = Vec::new(),
        options: BTreeMap<String, Value> = BTreeMap::new(),
    }
}

section! {
    /// `iptables`.
    Iptables {
        masquerade_bit: i32 = 14,
        masquerade_all: bool = false,
        localhost_node_ports: bool = true,
        sync_period: GoDuration = GoDuration::seconds(30),
        min_sync_period: GoDuration = GoDuration::seconds(1),
    }
}

section! {
    /// `ipvs`.
    Ipvs {
        sync_period: GoDuration = GoDuration::seconds(30),
        min_sync_period: GoDuration = GoDuration::seconds(0),
        scheduler: String = String::new(),
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Vec<String> = Vec::new(),
        #[serde(rename = "strictARP")]
        strict_arp: bool = false,
        tcp_timeout: GoDuration = GoDuration::seconds(0),
        tcp_fin_timeout: GoDuration = GoDuration::seconds(0),
        udp_timeout: GoDuration = GoDuration::seconds(0),
    }
}

section! {
    /// `nftables`.
    Nftables {
        masquerade_bit: i32 = 14,
        masquerade_all: bool = false,
        sync_period: GoDuration = GoDuration::seconds(30),
        min_sync_period: GoDuration = GoDuration::seconds(1),
    }
}

section! {
    /// `detectLocal`.
    DetectLocal {
        bridge_interface: String = String::new(),
        interface_name_prefix: String = String::new(),
    }
}

section! {
    /// `conntrack`.
    Conntrack {
        max_per_core: i32 = 32_768,
        min: i32 = 131_072,
        tcp_established_timeout: GoDuration = GoDuration::seconds(86_400),
        tcp_close_wait_timeout: GoDuration = GoDuration::seconds(3_600),
        tcp_be_liberal: bool = false,
        udp_timeout: GoDuration = GoDuration::seconds(0),
        udp_stream_timeout: GoDuration = GoDuration::seconds(0),
    }
}

/// The fields that have an effect in this version; other fields that differ from their default are named once at the
/// start.
const OBEYED: [&str; 32] = [
    "apiVersion",
    "kind",
    "clientConnection.kubeconfig",
    "logging.format",
    "logging.verbosity",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "nodePortAddresses",
    "oomScoreAdj",
    "iptables.syncPeriod",
    "nftables.syncPeriod",
    "ipvs.syncPeriod",
    "mode",
    "iptables.masqueradeBit",
    "iptables.masqueradeAll",
    "iptables.localhostNodePorts",
    "nftables.masqueradeBit",
    "nftables.masqueradeAll",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "clusterCIDR",
    "conntrack.tcpBeLiberal",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.udpTimeout",
    "conntrack.udpStreamTimeout",
];

/// A document, and warnings about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The document.
    pub document: KubeProxyConfiguration,
    /// What a strict reading refuses (CF-2).
    pub warnings: Vec<String>,
}

/// Reads a document. Fields that v1alpha1 does not have are warnings, as kube-proxy has it; values that do not fit are
/// errors.
pub fn decode(mut value: Value) -> Result<Decoded, String> {
    // Generators write null for what is left to its default.
    drop_nulls(&mut value);
    let mut unknown = Vec::new();
    let known = serde_json::to_value(KubeProxyConfiguration::default()).map_err(|error| error.to_string())?;
    unknown_fields(&value, &known, "", &mut unknown);
    let mut document = match serde_json::from_value::<KubeProxyConfiguration>(value.clone()) {
        Ok(document) => document,
        Err(error) => return Err(misfit(&value, &[]).unwrap_or_else(|| error.to_string())),
    };
    // In a file a period of 0 means the default (CF-11).
    for (period, default) in [
        (&mut document.iptables.sync_period, 30),
        (&mut document.iptables.min_sync_period, 1),
        (&mut document.nftables.sync_period, 30),
        (&mut document.nftables.min_sync_period, 1),
        (&mut document.ipvs.sync_period, 30),
        (&mut document.config_sync_period, 900),
    ] {
        if *period == GoDuration::default() {
            *period = GoDuration::seconds(default);
        }
    }
    let warn = |field: &String| format!("{KIND} has no field {field}, so it is ignored; check its spelling");
    Ok(Decoded { document, warnings: unknown.iter().map(warn).collect() })
}

impl KubeProxyConfiguration {
    /// Refuses values that make no sense (CF-3). The message names the field and says what it takes.
    pub fn check(&self) -> Result<(), String> {
        let within = |field: &str, value: i32, low: i32, high: i32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("{field}: {value} is not within {low} to {high}"))
        };
        within("iptables.masqueradeBit", self.iptables.masquerade_bit, 0, 31)?;
        within("nftables.masqueradeBit", self.nftables.masquerade_bit, 0, 31)?;
        within("oomScoreAdj", self.oom_score_adj, -1000, 1000)?;
        within("conntrack.maxPerCore", self.conntrack.max_per_core, 0, i32::MAX)?;
        within("conntrack.min", self.conntrack.min, 0, i32::MAX)?;
        one_of("mode", &self.mode, &["", "iptables", "ipvs", "nftables"])?;
        let modes = ["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
        one_of("detectLocalMode", &self.detect_local_mode, &modes)?;
        self.check_interfaces()?;
        for (block, period, shortest) in [
            ("iptables", self.iptables.sync_period, self.iptables.min_sync_period),
            ("nftables", self.nftables.sync_period, self.nftables.min_sync_period),
            ("ipvs", self.ipvs.sync_period, self.ipvs.min_sync_period),
        ] {
            if shortest > period {
                return Err(format!("{block}.minSyncPeriod: {shortest} is longer than syncPeriod, {period}"));
            }
        }
        self.primary()?;
        self.healthz()?;
        self.metrics()?;
        self.check_cluster_cidrs()
    }

    fn check_interfaces(&self) -> Result<(), String> {
        let (bridge, prefix) = (&self.detect_local.bridge_interface, &self.detect_local.interface_name_prefix);
        match self.detect_local_mode.as_str() {
            "BridgeInterface" if bridge.is_empty() => {
                Err("detectLocal.bridgeInterface: must be set with detectLocalMode BridgeInterface".to_owned())
            }
            "InterfaceNamePrefix" if prefix.is_empty() => {
                Err("detectLocal.interfaceNamePrefix: must be set with detectLocalMode InterfaceNamePrefix".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// `clusterCIDR`: at most one network of each family, in a document that was checked.
    #[must_use]
    pub fn cluster_cidrs(&self) -> Vec<IpNet> {
        self.cluster_cidr_texts().filter_map(|text| text.parse().ok()).collect()
    }

    fn cluster_cidr_texts(&self) -> impl Iterator<Item = &str> {
        self.cluster_cidr.split(',').map(str::trim).filter(|text| !text.is_empty())
    }

    fn check_cluster_cidrs(&self) -> Result<(), String> {
        let mut families = Vec::new();
        for text in self.cluster_cidr_texts() {
            let network: IpNet = text.parse().map_err(|_not_one| format!("clusterCIDR: {text:?} is not a CIDR"))?;
            let is_v4 = matches!(network, IpNet::V4(_));
            if families.contains(&is_v4) || families.len() == 2 {
                return Err(format!("clusterCIDR: {:?} must be one CIDR, or one of each family", self.cluster_cidr));
            }
            families.push(is_v4);
        }
        Ok(())
    }

    /// `bindAddress`, unless it stands for every address.
    pub fn primary(&self) -> Result<Option<IpAddr>, String> {
        let text = &self.bind_address;
        let ip: IpAddr = text.parse().map_err(|_not_one| format!("bindAddress: {text:?} is not an IP address"))?;
        Ok((!ip.is_unspecified()).then_some(ip))
    }

    /// `healthzBindAddress`, with the default port where there is none; none if it is left to its default.
    pub fn healthz(&self) -> Result<Option<SocketAddr>, String> {
        bind_address("healthzBindAddress", &self.healthz_bind_address, 10256)
    }

    /// `metricsBindAddress`, as [`healthz`](Self::healthz).
    pub fn metrics(&self) -> Result<Option<SocketAddr>, String> {
        bind_address("metricsBindAddress", &self.metrics_bind_address, 10249)
    }

    /// The sync period of the selected mode (CF-1).
    #[must_use]
    pub fn sync_period(&self) -> GoDuration {
        match self.mode.as_str() {
            "nftables" => self.nftables.sync_period,
            "ipvs" => self.ipvs.sync_period,
            _ => self.iptables.sync_period,
        }
    }

    /// Fields that differ from their defaults and have no effect in this version, by path.
    #[must_use]
    pub fn without_effect(&self) -> Vec<String> {
        let (Ok(given), Ok(default)) = (serde_json::to_value(self), serde_json::to_value(Self::default())) else {
            return Vec::new();
        };
        let mut differing = Vec::new();
        differences(&given, &default, "", &mut differing);
        differing.retain(|path| !OBEYED.contains(&path.as_str()));
        differing
    }
}

fn one_of(field: &str, value: &str, allowed: &[&str]) -> Result<(), String> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let listed: Vec<&str> = allowed.iter().copied().filter(|one| !one.is_empty()).collect();
    Err(format!("{field}: {value:?} is none of {}", listed.join(", ")))
}

fn bind_address(field: &str, text: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: Address = text.parse().map_err(|reason| format!("{field}: {reason}"))?;
    if address.port == Some(0) {
        return Err(format!("{field}: port 0 is not within 1 to 65535"));
    }
    Ok(Some(address.or_port(port)))
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(drop_nulls);
    }
}

/// The first field whose value does not fit, by its path, and why: the one with which alone in the document it cannot
/// be read either. serde's own message does not say where it is.
fn misfit(value: &Value, path: &[&str]) -> Option<String> {
    if let Some(fields) = value.as_object().filter(|fields| !fields.is_empty()) {
        return fields.iter().find_map(|(name, field)| misfit(field, &[path, &[name.as_str()]].concat()));
    }
    let alone = path.iter().rev().fold(value.clone(), |inner, name| json!({ *name: inner }));
    let error = serde_json::from_value::<KubeProxyConfiguration>(alone).err()?;
    Some(format!("{}: {}", path.join("."), in_words(&error.to_string())))
}

/// serde's message with the words of the file and not those of Rust.
fn in_words(message: &str) -> String {
    let words = [
        ("i32", "a whole number"),
        ("u32", "a whole number of 0 or more"),
        ("f32", "a number"),
        ("a boolean", "true or false"),
        ("a sequence", "a list"),
        ("a map", "a block of fields"),
    ];
    let Some((found, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let named = words.iter().find(|(rust, _)| *rust == expected).map(|(_, word)| *word);
    let other = if expected.starts_with("struct ") { "a block of fields" } else { expected };
    let expected = named.unwrap_or(other);
    format!("{}, but it takes {expected}", found.replace("invalid type: ", "is ").replace("invalid value: ", "is "))
}

/// Paths in `value` that `known`, a complete document, does not have. Empty objects there take any field.
fn unknown_fields(value: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    let (Some(fields), Some(known)) = (value.as_object(), known.as_object().filter(|known| !known.is_empty())) else {
        return;
    };
    for (name, field) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.get(name) {
            Some(known) => unknown_fields(field, known, &path, unknown),
            None => unknown.push(path),
        }
    }
}

fn differences(given: &Value, default: &Value, path: &str, found: &mut Vec<String>) {
    match (given.as_object(), default.as_object().filter(|default| !default.is_empty())) {
        (Some(fields), Some(defaults)) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                differences(field, defaults.get(name).unwrap_or(&Value::Null), &path, found);
            }
        }
        _ if given != default => found.push(path.to_owned()),
        _ => {}
    }
}
