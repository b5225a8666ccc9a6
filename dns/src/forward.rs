//! Asks the upstreams: the domain's own or the general ones, over UDP, TCP or TLS, with a cache in front.
//!
//! hickory's resolver is not used for this: it interprets what it gets (localhost, SRV and CNAME chasing, error codes),
//! while a forwarder must hand on what the upstream said.

mod exchange;
mod group;
mod peer;
mod tls;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::Name;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cache::{Cache, CacheConfig, Key, is_failure};
use crate::stats::Counters;
use crate::upstream::{Upstream, UpstreamError, Upstreams};
pub(crate) use exchange::UDP_PAYLOAD;
use group::Group;
pub use group::Policy;
pub use tls::TlsError;

/// How long the client waits in all; its own resolver gives up after 5 s.
const OVERALL: Duration = Duration::from_secs(5);

/// Who is asked for names that are not the cluster's, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Who is asked for names of no stub domain; without any, these are refused. Servers that lead back here (an address
    /// the server listens on, or one of the DNS service's own) are left out.
    pub upstreams: Upstreams,
    /// Domains with upstreams of their own. The longest that a name lies in counts.
    pub stub_domains: Vec<StubDomain>,
    /// Whom of several.
    pub policy: Policy,
    /// PEM file with the authorities of upstreams that are asked over TLS; without one, the system's.
    pub authorities: Option<PathBuf>,
    /// Queries that wait for upstreams at once; more are refused (the stock Corefile's `max_concurrent`, rule 13.1).
    pub max_concurrent: usize,
    /// What is kept of the answers.
    pub cache: CacheConfig,
}

impl ForwardConfig {
    /// The usual, with these upstreams.
    #[must_use]
    pub fn to(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            stub_domains: Vec::new(),
            policy: Policy::default(),
            authorities: None,
            max_concurrent: 1000,
            cache: CacheConfig::default(),
        }
    }
}

/// A domain with upstreams of its own, written `DOMAIN=ADDR,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubDomain {
    /// The domain, absolute.
    pub domain: Name,
    /// Who is asked for its names.
    pub upstreams: Vec<Upstream>,
}

impl FromStr for StubDomain {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let wrong = || UpstreamError::StubDomain(text.to_owned());
        let (domain, servers) = text.split_once('=').ok_or_else(wrong)?;
        let Ok(mut domain) = Name::from_ascii(domain) else { return Err(wrong()) };
        domain.set_fqdn(true);
        match servers.parse()? {
            Upstreams::Servers(upstreams) if !upstreams.is_empty() && !domain.is_root() => {
                Ok(Self { domain, upstreams })
            }
            Upstreams::Servers(_) | Upstreams::File(_) => Err(wrong()),
        }
    }
}

/// A client's query as far as it concerns an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) authentic_data: bool,
    /// The DO bit, if the client speaks EDNS.
    pub(crate) dnssec_ok: Option<bool>,
}

/// Why there is no answer to hand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstreams are configured")]
    NoUpstreams,
    #[error("too many queries are waiting for upstreams already")]
    Busy,
    #[error("no upstream answered")]
    NoAnswer,
}

pub(crate) struct Forwarder {
    general: RwLock<Arc<Group>>,
    /// The longest domains first.
    stubs: Vec<(Name, Arc<Group>)>,
    policy: Policy,
    tls: TlsConnector,
    slots: Semaphore,
    cache: Cache,
    counters: Arc<Counters>,
}

impl Forwarder {
    /// `general` are the servers of `config.upstreams`.
    pub(crate) fn new(config: ForwardConfig, general: &[Upstream], counters: Arc<Counters>) -> Result<Self, TlsError> {
        let tls = tls::connector(config.authorities.as_deref())?;
        let group = |upstreams: &[Upstream]| Arc::new(Group::new(upstreams, config.policy, &tls, None));
        let mut stubs: Vec<(Name, Arc<Group>)> =
            config.stub_domains.iter().map(|stub| (stub.domain.clone(), group(&stub.upstreams))).collect();
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        Ok(Self {
            general: RwLock::new(group(general)),
            stubs,
            policy: config.policy,
            slots: Semaphore::new(config.max_concurrent),
            cache: Cache::new(config.cache),
            counters,
            tls,
        })
    }

    /// Other servers for names of no stub domain.
    pub(crate) fn set_general(&self, upstreams: &[Upstream]) {
        let mut general = self.general.write().unwrap_or_else(PoisonError::into_inner);
        *general = Arc::new(Group::new(upstreams, self.policy, &self.tls, Some(&general)));
    }

    /// A client asks for the HINFO of `name`: perhaps an upstream that leads back here (rule 16.1).
    pub(crate) fn meet(&self, name: &Name) {
        self.general.read().unwrap_or_else(PoisonError::into_inner).meet(name);
        for (_, group) in &self.stubs {
            group.meet(name);
        }
    }

    /// Somebody could be asked for `name`.
    pub(crate) fn has_upstreams(&self, name: &Name) -> bool {
        !self.group(name).is_empty()
    }

    /// How many answers with records and how many denials are kept.
    pub(crate) fn cached(&self) -> [u64; 2] {
        self.cache.entries()
    }

    /// What an upstream says, or said recently, or if none answers, said once.
    pub(crate) async fn resolve(self: &Arc<Self>, outgoing: &Outgoing) -> Result<Message, ForwardError> {
        let group = self.group(&outgoing.query.name);
        if group.is_empty() {
            return Err(ForwardError::NoUpstreams);
        }
        self.counters.forwarded.add_one();
        // Without RD an upstream says what it has, which is not the answer for everybody.
        if !outgoing.recursion_desired {
            return self.ask(&group, outgoing).await;
        }
        let key = key(outgoing);
        if let Some(hit) = self.cache.get(&key, Instant::now()) {
            self.counters.cache_hits.add_one();
            if hit.refresh {
                self.refresh(group, outgoing.clone());
            }
            return Ok(hit.message);
        }
        let answer = self.ask_and_keep(&group, outgoing).await;
        if answer.as_ref().is_ok_and(|message| !is_failure(message.metadata.response_code)) {
            return answer;
        }
        match self.cache.get_stale(&key, Instant::now()) {
            Some(message) => {
                self.counters.cache_stale.add_one();
                Ok(message)
            }
            None => answer,
        }
    }

    /// Asks for what is about to run out, while it is still there for others.
    fn refresh(self: &Arc<Self>, group: Arc<Group>, outgoing: Outgoing) {
        self.counters.cache_prefetches.add_one();
        let this = Arc::clone(self);
        // Ends by itself in OVERALL; who fails is known by its counters.
        tokio::spawn(async move { this.ask_and_keep(&group, &outgoing).await });
    }

    async fn ask_and_keep(&self, group: &Group, outgoing: &Outgoing) -> Result<Message, ForwardError> {
        let message = self.ask(group, outgoing).await?;
        self.cache.put(key(outgoing), &message, Instant::now());
        Ok(message)
    }

    async fn ask(&self, group: &Group, outgoing: &Outgoing) -> Result<Message, ForwardError> {
        let Ok(_slot) = self.slots.try_acquire() else {
            self.counters.forward_rejects.add_one();
            return Err(ForwardError::Busy);
        };
        // Cancelling mid-way is safe: a connection in use is closed with its try.
        match timeout(OVERALL, group.ask(outgoing)).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) | Err(_) => {
                self.counters.forward_failures.add_one();
                Err(ForwardError::NoAnswer)
            }
        }
    }

    fn group(&self, name: &Name) -> Arc<Group> {
        match self.stubs.iter().find(|(domain, _)| domain.zone_of(name)) {
            Some((_, group)) => Arc::clone(group),
            None => Arc::clone(&self.general.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

fn key(outgoing: &Outgoing) -> Key {
    Key {
        name: outgoing.query.name.clone(),
        rtype: outgoing.query.query_type,
        dnssec_ok: outgoing.dnssec_ok.unwrap_or_default(),
        checking_disabled: outgoing.checking_disabled,
    }
}
