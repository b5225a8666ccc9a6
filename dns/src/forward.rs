//! Asks the upstreams: the domain's own or the general ones, over UDP, TCP or TLS, with a cache in front.
//!
//! hickory's resolver is not used for this: it interprets what it gets (localhost, SRV and CNAME chasing, error codes),
//! while a forwarder must hand on what the upstream said.

mod bailiwick;
mod connections;
mod exchange;
mod group;
mod health;
mod peer;
mod probes;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::Name;
use shunt_serving::admission::Admission;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cache::{Cache, CacheConfig, Kept, Key, is_failure};
use crate::names;
use crate::request::{Request, Transport};
use crate::stats::{Counters, Peers};
use crate::upstream::{ResolvConf, Upstream, UpstreamError, Upstreams, names_no_server};
use crate::wire::Received;
use exchange::Exchange;
pub(crate) use exchange::UDP_PAYLOAD;
use group::Group;
pub(crate) use group::Policy;
use peer::Peer;
pub use tls::TlsError;

/// How long the client waits in all; its own resolver gives up after 5 s.
const OVERALL: Duration = Duration::from_secs(5);

/// How long an upstream may take before another is asked too, unless a Corefile says otherwise (DNS-15.2).
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the client waits for a new answer where an old one can stand in (RFC 8767 section 5).
const BEFORE_STALE: Duration = Duration::from_millis(1800);

/// The upstreams for names outside of the cluster, and how they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The first that a name lies in counts; a name in none of them is refused.
    pub routes: Vec<Route>,
    /// How answers are cached, if they are.
    pub cache: Option<CacheConfig>,
}

/// The upstreams for the names of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domain; the root for all names.
    pub(crate) from: Name,
    /// Domains in it that are left to other routes.
    pub(crate) except: Vec<Name>,
    /// The upstreams; without any, the names are refused. Servers that lead back here (an address the server listens
    /// on, or one of the DNS service's own) are left out.
    pub(crate) upstreams: Upstreams,
    /// Which of several upstreams is asked first.
    pub(crate) policy: Policy,
    /// They are asked over TCP only.
    pub force_tcp: bool,
    /// How long one may take before another one is asked too. A late answer still counts.
    pub read_timeout: Duration,
    /// PEM file with the authorities of upstreams that are asked over TLS; without one, the system's.
    pub(crate) authorities: Option<PathBuf>,
    /// Queries that wait for upstreams at once; more are refused (the stock Corefile's `max_concurrent`, DNS-13.1).
    /// One client gets at most half of them, and less while others wait too.
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
            read_timeout: READ_TIMEOUT,
            authorities: None,
            max_concurrent: 1000,
        }
    }

    /// Whether TLS must be set up: an upstream uses it, or a file of authorities is given, which is read also to report
    /// a bad one. A resolv.conf cannot name upstreams over TLS.
    fn needs_tls(&self) -> bool {
        let over_tls = match &self.upstreams {
            Upstreams::Servers(servers) => servers.iter().any(|upstream| upstream.tls.is_some()),
            Upstreams::File(_) | Upstreams::Usual(_) => false,
        };
        over_tls || self.authorities.is_some()
    }

    /// Whether no name is left for `later`: its domain lies in ours, and each of our exceptions there is one of its
    /// own.
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
    /// The upstreams for its names.
    pub(crate) upstreams: Vec<Upstream>,
}

impl FromStr for StubDomain {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let wrong = || UpstreamError::StubDomain(text.to_owned());
        // A name may have any characters in it, a list of servers has no `=`.
        let (domain, servers) = text.rsplit_once('=').ok_or_else(wrong)?;
        if domain.split_once('/').is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok()) {
            return Err(UpstreamError::StubRange(domain.to_owned()));
        }
        let Ok(domain) = names::absolute(domain) else { return Err(wrong()) };
        match servers.parse()? {
            Upstreams::Servers(upstreams) if !upstreams.is_empty() && !domain.is_root() => {
                Ok(Self { domain, upstreams })
            }
            Upstreams::Servers(_) | Upstreams::File(_) | Upstreams::Usual(_) => Err(wrong()),
        }
    }
}

/// A client's query as far as it concerns an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    /// The DO bit, if the client speaks EDNS.
    pub(crate) dnssec_ok: Option<bool>,
    /// The client, which shares the places with other clients.
    pub(crate) client: IpAddr,
    /// How the client asked.
    pub(crate) transport: Transport,
}

impl Outgoing {
    /// The question that the request becomes.
    pub(crate) fn new(query: Query, request: &Request) -> Self {
        Self {
            query,
            recursion_desired: request.metadata.recursion_desired,
            checking_disabled: request.metadata.checking_disabled,
            dnssec_ok: request.edns.map(|edns| edns.dnssec_ok),
            client: request.client.ip(),
            transport: request.transport,
        }
    }
}

/// Why there is no answer to pass on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstreams are configured")]
    NoUpstreams,
    #[error("too many queries are waiting for upstreams already")]
    Busy,
    /// With the upstream that was asked last, and its error.
    #[error("no upstream answered{}{}", .0.as_ref().map_or("", |_| "; the last was "), .0.as_deref().unwrap_or_default())]
    NoAnswer(Option<Arc<str>>),
}

/// An upstream's answer, and where it comes from.
#[derive(Debug)]
pub(crate) enum Told {
    /// The upstream, just now.
    Now(Received),
    /// The cache.
    Before(Kept),
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
    /// The domain of the names that detect loops: a question below it that comes back to us belongs to this route.
    domain: Name,
    /// Present if TLS is needed.
    tls: Option<TlsConnector>,
    group: RwLock<Arc<Group>>,
    /// The upstreams that a server would ask; set only for explanations without a server.
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

    /// Replaces the upstreams of a route. Those that stay keep their connections and their health.
    pub(crate) fn set_upstreams(&self, route: usize, upstreams: &[Upstream]) {
        let Some(way) = self.ways.get(route) else { return };
        let new = |upstream: &Upstream| {
            let metrics = self.peers.of(upstream.address);
            let Route { force_tcp, read_timeout, .. } = way.route;
            Peer::start(upstream.clone(), way.tls.clone(), force_tcp, read_timeout, &way.domain, metrics)
        };
        let mut group = way.group.write().unwrap_or_else(PoisonError::into_inner);
        *group = Arc::new(group.with(upstreams, way.route.policy, new));
    }

    /// A client asks for the HINFO of `name`. Returns whether the question is our own, sent back by an upstream that
    /// forwards to this server (DNS-16.1): then it must not be forwarded again.
    pub(crate) fn meet(&self, name: &Name) -> bool {
        self.ways.iter().any(|way| way.group().meet(name))
    }

    /// Whether there is an upstream for `name`.
    pub(crate) fn has_upstreams(&self, name: &Name) -> bool {
        self.way(name).is_some_and(|way| !way.group().is_empty())
    }

    /// Why names are refused that a file of upstreams is for.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let without = self.ways.iter().filter(|way| way.group().is_empty());
        without.filter_map(|way| way.route.upstreams.file().map(names_no_server))
    }

    /// Reads which upstreams a server would ask, without asking them.
    pub(crate) fn plan(&self) -> Result<(), UpstreamError> {
        for way in &self.ways {
            let source = &way.route.upstreams;
            let conf = match source.read() {
                Err(_) if source.may_be_missing() => ResolvConf::default(),
                read => read?,
            };
            let upstreams = conf.upstreams;
            way.planned.get_or_init(|| upstreams);
        }
        Ok(())
    }

    /// The upstreams that would be asked for `name`, as text: those in use with their health, or those that are
    /// planned.
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

    /// The answer from the cache, if a reply may be a copy of it. `None` leaves no trace: [`Self::resolve`] is called
    /// then.
    pub(crate) fn kept(&self, query: &Query, request: &Request) -> Option<Kept> {
        let cache = self.cache.as_ref().filter(|_| request.metadata.recursion_desired)?;
        if !self.has_upstreams(&query.name) {
            return None;
        }
        let key = Key {
            name: query.name.clone(),
            rtype: query.query_type,
            dnssec_ok: request.dnssec_ok(),
            checking_disabled: request.metadata.checking_disabled,
        };
        let kept = cache.get_if_not_due(&key, request.received)?;
        self.counters.forwarded.add_one();
        Some(kept)
    }

    /// The answer from the cache or from an upstream; if no upstream answers, an expired one from the cache.
    pub(crate) async fn resolve(self: &Arc<Self>, outgoing: &Outgoing) -> Result<Told, ForwardError> {
        let way = self.way(&outgoing.query.name).ok_or(ForwardError::NoUpstreams)?;
        let group = way.group();
        if group.is_empty() {
            return Err(ForwardError::NoUpstreams);
        }
        self.counters.forwarded.add_one();
        // Without RD an upstream answers from its own data only, which is not the answer for other clients.
        let Some(cache) = self.cache.as_ref().filter(|_| outgoing.recursion_desired) else {
            return Box::pin(self.ask(&group, &way.places, outgoing)).await.map(Told::Now);
        };
        let key = key(outgoing);
        if let Some(hit) = cache.get(&key, Instant::now()) {
            if hit.refresh {
                self.refresh(group, Arc::clone(&way.places), outgoing.clone());
            }
            return Ok(Told::Before(hit.kept));
        }
        // Boxed, since every query would carry the room that asking takes.
        let answer = if cache.has_stale(&key, Instant::now()) {
            Box::pin(self.ask_for_a_moment(group, Arc::clone(&way.places), outgoing.clone())).await
        } else {
            Box::pin(self.ask_and_keep(&group, &way.places, outgoing)).await
        };
        if answer.as_ref().is_ok_and(|received| !is_failure(received.rcode)) {
            return answer.map(Told::Now);
        }
        match cache.get_stale(&key, Instant::now()) {
            Some(kept) => Ok(Told::Before(kept)),
            None => answer.map(Told::Now),
        }
    }

    /// Refreshes an answer before it expires, while other clients still get the old one.
    fn refresh(self: &Arc<Self>, group: Arc<Group>, places: Arc<Admission>, outgoing: Outgoing) {
        let this = Arc::clone(self);
        // Ends by itself after OVERALL; failures are counted.
        tokio::spawn(async move { this.ask_and_keep(&group, &places, &outgoing).await });
    }

    /// Asks when an expired answer is available: the client waits for BEFORE_STALE only, the question to the upstream
    /// goes on.
    async fn ask_for_a_moment(
        self: &Arc<Self>,
        group: Arc<Group>,
        places: Arc<Admission>,
        outgoing: Outgoing,
    ) -> Result<Received, ForwardError> {
        if group.is_down() {
            return Err(ForwardError::NoAnswer(None)); // probes notice when one answers again
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
    ) -> Result<Received, ForwardError> {
        let mut received = self.ask(group, places, outgoing).await?;
        if let Some(cache) = &self.cache {
            cache.put(key(outgoing), &mut received, Instant::now());
        }
        Ok(received)
    }

    async fn ask(&self, group: &Group, places: &Arc<Admission>, outgoing: &Outgoing) -> Result<Received, ForwardError> {
        let Some(_place) = places.enter(outgoing.client) else {
            self.counters.forward_rejects.add_one();
            return Err(ForwardError::Busy);
        };
        let mut last = None;
        // Cancelling mid-way is safe: a connection in use is closed with its try.
        match group.ask(outgoing, &self.counters, &mut last).await {
            Some(mut received) => {
                bailiwick::keep_what_was_asked(&mut received, &outgoing.query.name);
                Ok(received)
            }
            None => {
                self.counters.forward_failures.add_one();
                Err(ForwardError::NoAnswer(last.map(Arc::from)))
            }
        }
    }

    /// What becomes of an upstream's octets, whatever their id: what the client is told, and what the cache has after
    /// that. No upstream is asked.
    pub(crate) fn accept(&self, outgoing: &Outgoing, wire: &[u8]) -> [Option<Told>; 2] {
        let key = key(outgoing);
        let received = Exchange::new(outgoing).ok().and_then(|exchange| exchange.read(wire)).map(|mut received| {
            bailiwick::keep_what_was_asked(&mut received, &outgoing.query.name);
            if let Some(cache) = &self.cache {
                cache.put(key.clone(), &mut received, Instant::now());
            }
            Told::Now(received)
        });
        let kept = self.cache.as_ref().and_then(|cache| cache.get(&key, Instant::now()));
        [received, kept.map(|hit| Told::Before(hit.kept))]
    }

    fn way(&self, name: &Name) -> Option<&Way> {
        self.ways.iter().find(|way| way.route.takes(name))
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
