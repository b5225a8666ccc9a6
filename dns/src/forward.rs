//! Asks the upstreams: the domain's own or the general ones, over UDP, TCP or TLS, with a cache in front.
//!
//! hickory's resolver is not used for this: it interprets what it gets (localhost, SRV and CNAME chasing, error codes),
//! while a forwarder must hand on what the upstream said.

mod bailiwick;
mod exchange;
mod group;
mod peer;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::Name;
use shunt_serving::admission::Admission;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cache::{Cache, CacheConfig, Key, is_failure};
use crate::records;
use crate::stats::{Counters, Peers};
use crate::upstream::{Upstream, UpstreamError, Upstreams};
pub(crate) use exchange::UDP_PAYLOAD;
use group::Group;
pub(crate) use group::Policy;
use peer::Peer;
pub use tls::TlsError;

/// How long the client waits in all; its own resolver gives up after 5 s.
const OVERALL: Duration = Duration::from_secs(5);

/// How long the client waits for a new answer where an old one can stand in (RFC 8767 section 5).
const BEFORE_STALE: Duration = Duration::from_millis(1800);

/// Who is asked for names that are not the cluster's, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The first that a name lies in counts; a name in none of them is refused.
    pub routes: Vec<Route>,
    /// What is kept of the answers, if anything.
    pub cache: Option<CacheConfig>,
}

/// Who is asked for the names of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domain; the root for all names.
    pub(crate) from: Name,
    /// Domains in it that are left to other routes.
    pub(crate) except: Vec<Name>,
    /// Who is asked; without any, the names are refused. Servers that lead back here (an address the server listens on,
    /// or one of the DNS service's own) are left out.
    pub(crate) upstreams: Upstreams,
    /// Whom of several.
    pub(crate) policy: Policy,
    /// They are asked over TCP only.
    pub force_tcp: bool,
    /// PEM file with the authorities of upstreams that are asked over TLS; without one, the system's.
    pub(crate) authorities: Option<PathBuf>,
    /// Queries that wait for upstreams at once; more are refused (the stock Corefile's `max_concurrent`, rule 13.1). One
    /// client gets at most half of them, and less while others wait too.
    pub max_concurrent: usize,
}

impl Route {
    /// The usual, with these upstreams.
    #[must_use]
    pub fn new(from: Name, upstreams: Upstreams) -> Self {
        Self {
            from,
            except: Vec::new(),
            upstreams,
            policy: Policy::default(),
            force_tcp: false,
            authorities: None,
            max_concurrent: 1000,
        }
    }

    /// Somebody is asked over TLS, or a file of authorities is to be read, be it to find it wrong. A file of upstreams
    /// names none.
    fn needs_tls(&self) -> bool {
        let over_tls = match &self.upstreams {
            Upstreams::Servers(servers) => servers.iter().any(|upstream| upstream.tls.is_some()),
            Upstreams::File(_) => false,
        };
        over_tls || self.authorities.is_some()
    }

    /// Whatever a later route could take, this one takes: it lies in the domain, and what this one leaves out of that the
    /// later one leaves out too.
    pub(crate) fn leaves_nothing_to(&self, later: &Self) -> bool {
        let touches = |left: &&Name| left.zone_of(&later.from) || later.from.zone_of(left);
        let left_by_later = |left: &Name| later.except.iter().any(|domain| domain.zone_of(left));
        self.from.zone_of(&later.from) && self.except.iter().filter(touches).all(left_by_later)
    }

    fn takes(&self, name: &Name) -> bool {
        self.from.zone_of(name) && !self.except.iter().any(|domain| domain.zone_of(name))
    }
}

impl ForwardConfig {
    /// The usual, with these upstreams.
    #[must_use]
    pub fn to(upstreams: Upstreams) -> Self {
        Self { routes: vec![Route::new(Name::root(), upstreams)], cache: Some(CacheConfig::default()) }
    }

    /// The same with domains that have upstreams of their own; the longest that a name lies in counts.
    #[must_use]
    pub fn with_stub_domains(mut self, stubs: impl IntoIterator<Item = StubDomain>) -> Self {
        let route = |stub: StubDomain| Route::new(stub.domain, Upstreams::Servers(stub.upstreams));
        self.routes.extend(stubs.into_iter().map(route));
        self.routes.sort_by_key(|route| std::cmp::Reverse(route.from.num_labels()));
        self
    }

    /// The same with authorities of its own for TLS.
    #[must_use]
    pub fn with_authorities(mut self, authorities: Option<&Path>) -> Self {
        for route in &mut self.routes {
            route.authorities = authorities.map(Path::to_owned);
        }
        self
    }
}

/// A domain with upstreams of its own, written `DOMAIN=ADDR,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubDomain {
    /// The domain, absolute.
    pub(crate) domain: Name,
    /// Who is asked for its names.
    pub(crate) upstreams: Vec<Upstream>,
}

impl FromStr for StubDomain {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let wrong = || UpstreamError::StubDomain(text.to_owned());
        let (domain, servers) = text.split_once('=').ok_or_else(wrong)?;
        let Ok(domain) = records::absolute(domain) else { return Err(wrong()) };
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
    /// Who wants to know, and shares the places with others.
    pub(crate) client: IpAddr,
}

/// Why there is no answer to hand on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstreams are configured")]
    NoUpstreams,
    #[error("too many queries are waiting for upstreams already")]
    Busy,
    /// With the last that was asked, and what became of it.
    #[error("no upstream answered{}{}", .0.as_ref().map_or("", |_| "; the last was "), .0.as_deref().unwrap_or_default())]
    NoAnswer(Option<Arc<str>>),
}

/// What an upstream said, and how we know.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) message: Message,
    pub(crate) cached: bool,
}

pub(crate) struct Forwarder {
    ways: Vec<Way>,
    cache: Option<Cache>,
    counters: Arc<Counters>,
    peers: Arc<Peers>,
}

/// A route in use.
struct Way {
    route: Route,
    /// What is asked of the upstreams below this, and comes back, comes back to this route.
    domain: Name,
    /// If any of the upstreams is asked over TLS.
    tls: Option<TlsConnector>,
    group: RwLock<Arc<Group>>,
    /// Whom a server would ask, if this is none.
    planned: OnceLock<Vec<Upstream>>,
    places: Arc<Admission>,
}

impl Way {
    fn group(&self) -> Arc<Group> {
        Arc::clone(&self.group.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Forwarder {
    /// Without upstreams yet: [`Self::set_upstreams`] gives them.
    ///
    /// `domain` is that of the server block.
    pub(crate) fn new(
        config: ForwardConfig,
        domain: &Name,
        counters: Arc<Counters>,
        peers: Arc<Peers>,
    ) -> Result<Self, TlsError> {
        let way = |route: Route| {
            Ok(Way {
                domain: if domain.zone_of(&route.from) { route.from.clone() } else { domain.clone() },
                tls: route.needs_tls().then(|| tls::connector(route.authorities.as_deref())).transpose()?,
                group: RwLock::default(),
                planned: OnceLock::new(),
                places: Admission::new(route.max_concurrent),
                route,
            })
        };
        let ways = config.routes.into_iter().map(way).collect::<Result<_, TlsError>>()?;
        let cache = config.cache.map(|config| Cache::new(config, Arc::clone(&counters)));
        Ok(Self { ways, cache, counters, peers })
    }

    /// Where the upstreams of each route come from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Upstreams> {
        self.ways.iter().map(|way| &way.route.upstreams)
    }

    /// Other upstreams for a route; those that stay keep their connections and what is known of them.
    pub(crate) fn set_upstreams(&self, route: usize, upstreams: &[Upstream]) {
        let Some(way) = self.ways.get(route) else { return };
        let new = |upstream: &Upstream| {
            let metrics = self.peers.of(upstream.address);
            Peer::start(upstream.clone(), way.tls.clone(), way.route.force_tcp, &way.domain, metrics)
        };
        let mut group = way.group.write().unwrap_or_else(PoisonError::into_inner);
        *group = Arc::new(group.with(upstreams, way.route.policy, new));
    }

    /// A client asks for the HINFO of `name`: perhaps an upstream that leads back here (rule 16.1). Says whether it is one:
    /// then the question must not go round once more.
    pub(crate) fn meet(&self, name: &Name) -> bool {
        self.ways.iter().any(|way| way.group().meet(name))
    }

    /// Somebody could be asked for `name`.
    pub(crate) fn has_upstreams(&self, name: &Name) -> bool {
        self.way(name).is_some_and(|way| !way.group().is_empty())
    }

    /// Reads whom a server would ask; nobody is asked by this.
    pub(crate) fn plan(&self) -> Result<(), UpstreamError> {
        for way in &self.ways {
            let upstreams = way.route.upstreams.read()?.upstreams;
            way.planned.get_or_init(|| upstreams);
        }
        Ok(())
    }

    /// Who would be asked for `name`, for people: those in use with how they are, or those that are planned.
    pub(crate) fn would_ask(&self, name: &Name) -> Option<String> {
        let way = self.way(name)?;
        let group = way.group();
        let in_use = group.peers().iter().map(|peer| format!("{}{}", peer.upstream(), peer.standing()));
        let planned = way.planned.get().into_iter().flatten().map(ToString::to_string);
        let names: Vec<String> = in_use.chain(planned).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// How many answers with records and how many denials are kept.
    pub(crate) fn cached(&self) -> [u64; 2] {
        self.cache.as_ref().map(Cache::entries).unwrap_or_default()
    }

    /// What an upstream says, or said recently, or if none answers, said once.
    pub(crate) async fn resolve(self: &Arc<Self>, outgoing: &Outgoing) -> Result<Told, ForwardError> {
        let way = self.way(&outgoing.query.name).ok_or(ForwardError::NoUpstreams)?;
        let group = way.group();
        if group.is_empty() {
            return Err(ForwardError::NoUpstreams);
        }
        self.counters.forwarded.add_one();
        // Without RD an upstream says what it has, which is not the answer for everybody.
        let Some(cache) = self.cache.as_ref().filter(|_| outgoing.recursion_desired) else {
            return self.ask(&group, &way.places, outgoing).await.map(fresh);
        };
        let key = key(outgoing);
        if let Some(hit) = cache.get(&key, Instant::now()) {
            if hit.refresh {
                self.refresh(group, Arc::clone(&way.places), outgoing.clone());
            }
            return Ok(Told { message: hit.message, cached: true });
        }
        let answer = if cache.has_stale(&key, Instant::now()) {
            self.ask_for_a_moment(group, Arc::clone(&way.places), outgoing.clone()).await
        } else {
            self.ask_and_keep(&group, &way.places, outgoing).await
        };
        if answer.as_ref().is_ok_and(|message| !is_failure(message.metadata.response_code)) {
            return answer.map(fresh);
        }
        match cache.get_stale(&key, Instant::now()) {
            Some(message) => Ok(Told { message, cached: true }),
            None => answer.map(fresh),
        }
    }

    /// Asks for what is about to run out, while it is still there for others.
    fn refresh(self: &Arc<Self>, group: Arc<Group>, places: Arc<Admission>, outgoing: Outgoing) {
        let this = Arc::clone(self);
        // Ends by itself in OVERALL; who fails is known by its counters.
        tokio::spawn(async move { this.ask_and_keep(&group, &places, &outgoing).await });
    }

    /// Asks where an old answer can stand in: the client waits a moment only, the question goes on without it.
    async fn ask_for_a_moment(
        self: &Arc<Self>,
        group: Arc<Group>,
        places: Arc<Admission>,
        outgoing: Outgoing,
    ) -> Result<Message, ForwardError> {
        if group.is_down() {
            return Err(ForwardError::NoAnswer(None)); // probes will tell when one is back
        }
        let this = Arc::clone(self);
        let asking = tokio::spawn(async move { this.ask_and_keep(&group, &places, &outgoing).await });
        match timeout(BEFORE_STALE, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(ForwardError::NoAnswer(None)),
        }
    }

    async fn ask_and_keep(
        &self,
        group: &Group,
        places: &Arc<Admission>,
        outgoing: &Outgoing,
    ) -> Result<Message, ForwardError> {
        let mut message = self.ask(group, places, outgoing).await?;
        if let Some(cache) = &self.cache {
            cache.put(key(outgoing), &mut message, Instant::now());
        }
        Ok(message)
    }

    async fn ask(&self, group: &Group, places: &Arc<Admission>, outgoing: &Outgoing) -> Result<Message, ForwardError> {
        let Some(_place) = places.enter(outgoing.client) else {
            self.counters.forward_rejects.add_one();
            return Err(ForwardError::Busy);
        };
        let mut last = None;
        // Cancelling mid-way is safe: a connection in use is closed with its try.
        match timeout(OVERALL, group.ask(outgoing, &self.counters, &mut last)).await {
            Ok(Some(mut message)) => {
                bailiwick::keep_what_was_asked(&mut message, &outgoing.query.name);
                Ok(message)
            }
            Ok(None) | Err(_) => {
                self.counters.forward_failures.add_one();
                Err(ForwardError::NoAnswer(last.map(Arc::from)))
            }
        }
    }

    fn way(&self, name: &Name) -> Option<&Way> {
        self.ways.iter().find(|way| way.route.takes(name))
    }
}

fn fresh(message: Message) -> Told {
    Told { message, cached: false }
}

fn key(outgoing: &Outgoing) -> Key {
    Key {
        name: outgoing.query.name.clone(),
        rtype: outgoing.query.query_type,
        dnssec_ok: outgoing.dnssec_ok.unwrap_or_default(),
        checking_disabled: outgoing.checking_disabled,
    }
}
