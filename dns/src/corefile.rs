//! An existing Corefile as configuration (DNS-13.1…13.6). A directive that this server does not support is refused
//! by name and line, so that no setting is silently without effect.

mod braces;
mod glob;
mod plugins;
mod reload;
mod text;
mod values;
mod whole;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_proto::rr::Name;

use crate::block::BlockConfig;
use crate::names;
use crate::server::{STARTUP_TIMEOUT, ServerConfig};
use crate::sockets::any_address;
use crate::zone::{PodMode, ZoneConfig};
use plugins::Shared;
pub use reload::{Follower, follow};
use text::{Line, Source, Text};

/// The port of blocks that name none.
pub const PORT: u16 = 53;

/// Why a Corefile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CorefileError {
    /// It cannot be read.
    #[error("reading the Corefile {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is not supported or is wrong.
    #[error("{}:{line}: {reason}", .file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What a Corefile asks for.
#[derive(Clone, Debug, Default)]
pub struct Corefile {
    /// A block for each domain.
    pub blocks: Vec<BlockConfig>,
    /// The cluster's names, if it has any.
    pub kubernetes: Option<KubernetesSettings>,
    /// Port of all blocks.
    pub port: u16,
    /// Where to listen; none means every address.
    pub bind: Vec<IpAddr>,
    /// Where `/health` is served.
    pub health: Option<SocketAddr>,
    /// How long queries are still answered after the signal to stop.
    pub(crate) lameduck: Duration,
    /// Where `/ready` is served.
    pub ready: Option<SocketAddr>,
    /// Where `/metrics` is served.
    pub prometheus: Option<SocketAddr>,
    /// How often the file is looked at for changes.
    pub reload: Option<Duration>,
    /// All files that were read for it, with their texts.
    sources: Vec<Source>,
    default_port: u16,
}

/// The settings of the directive `kubernetes` that are those of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// The cluster domain.
    pub domain: Name,
    /// TTL in seconds.
    pub ttl: u32,
    /// Names of pods.
    pub pods: PodMode,
    /// Endpoints are named after their pods.
    pub(crate) endpoint_pod_names: bool,
    /// Only these namespaces; none means all.
    pub(crate) namespaces: BTreeSet<String>,
    /// Services without a ready endpoint do not exist.
    pub(crate) ignore_empty_service: bool,
    /// Credentials of the API.
    pub kubeconfig: Option<PathBuf>,
    /// How long questions wait for the first view of the cluster.
    pub(crate) startup_timeout: Duration,
}

impl Corefile {
    /// Reads and understands a file.
    pub fn read(path: &Path) -> Result<Self, CorefileError> {
        Self::read_for_port(path, PORT)
    }

    /// The same, with another port for blocks that name none.
    pub fn read_for_port(path: &Path, default_port: u16) -> Result<Self, CorefileError> {
        Self::understand(path, Text::read(path), default_port)
    }

    fn understand(path: &Path, Text { lines, sources }: Text, default_port: u16) -> Result<Self, CorefileError> {
        let mut file = Self { sources, default_port, ..Self::default() };
        let mut shared = Shared::default();
        let servers = lines?;
        for server in &servers {
            file.server(server, &mut shared)?;
        }
        if file.blocks.is_empty() {
            return Err(CorefileError::Refused {
                file: path.to_owned(),
                line: 1,
                reason: "there is no server block: write .:53 { ... }".to_owned(),
            });
        }
        shared.give_to(&mut file);
        whole::check(&servers, &file)?;
        Ok(file)
    }

    /// The server that it asks for; `zone` is [`Self::zone`]'s.
    #[must_use]
    pub fn server_config(&self, listen: Vec<SocketAddr>, zone: ZoneConfig) -> ServerConfig {
        let startup_timeout = self.kubernetes.as_ref().map_or(STARTUP_TIMEOUT, |settings| settings.startup_timeout);
        ServerConfig { listen, zone, blocks: self.blocks.clone(), startup_timeout }
    }

    /// The zone that it asks for.
    #[must_use]
    pub fn zone(&self, dns_addresses: Vec<IpAddr>) -> ZoneConfig {
        let Some(settings) = &self.kubernetes else { return ZoneConfig::usual(Name::root()) };
        let settings = settings.clone();
        ZoneConfig {
            cluster_domain: settings.domain,
            ttl: settings.ttl,
            pods: settings.pods,
            dns_addresses,
            endpoint_pod_names: settings.endpoint_pod_names,
            namespaces: settings.namespaces,
            ignore_empty_service: settings.ignore_empty_service,
        }
    }

    /// What a running server cannot change.
    fn frame(&self) -> impl PartialEq + use<> {
        let source = self
            .kubernetes
            .as_ref()
            .map(|settings| (settings.domain.clone(), settings.pods == PodMode::Verified, settings.kubeconfig.clone()));
        (self.port, self.bind.clone(), self.health, self.ready, self.prometheus, source)
    }

    /// Where to listen.
    #[must_use]
    pub fn listen(&self) -> Vec<SocketAddr> {
        if self.bind.is_empty() {
            return vec![SocketAddr::new(any_address(), self.port)];
        }
        self.bind.iter().map(|ip| SocketAddr::new(*ip, self.port)).collect()
    }

    fn server(&mut self, server: &Line, shared: &mut Shared) -> Result<(), CorefileError> {
        let Some(directives) = &server.block else {
            return Err(server.error("a server block needs braces, or directives below it: write DOMAIN:53 { ... }"));
        };
        let mut domains = Vec::new();
        for (number, word) in server.words.iter().enumerate() {
            let at = server.at_word(number);
            for key in values::server_keys(word) {
                let (zones, port) = values::server_key(key).map_err(|reason| at.error(reason))?;
                shared.port(port.unwrap_or(self.default_port)).map_err(|reason| at.error(reason))?;
                for domain in zones {
                    if self.blocks.iter().any(|block| block.domain == domain) || domains.contains(&domain) {
                        return Err(at.error(format!("{} has a server block already", names::text(&domain))));
                    }
                    domains.push(domain);
                }
            }
        }
        // Directives may name the block's domains, so each is understood once for all of them.
        whole::once(directives)?;
        let mut block = BlockConfig::new(Name::root());
        for directive in directives {
            plugins::understand(directive, &domains, &mut block, shared)?;
        }
        self.blocks.extend(domains.into_iter().map(|domain| BlockConfig { domain, ..block.clone() }));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod corpus;

#[cfg(test)]
mod directives;
#[cfg(test)]
mod faults;
