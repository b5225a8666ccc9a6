//! A server block: how the queries for a domain are answered, handler by handler in CoreDNS's order (DNS-13.4).

use std::net::IpAddr;
use std::sync::{Arc, Once, PoisonError, RwLock};

use futures::future::BoxFuture;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::answer::{Answer, Records};
use crate::autopath;
use crate::cache::Kept;
use crate::errors::{Errors, ErrorsConfig};
use crate::failure::{Failure, NoName};
use crate::forward::{ForwardConfig, ForwardError, Forwarder, Outgoing, TlsError, Told, UDP_PAYLOAD};
use crate::hosts::{Hosts, HostsConfig};
use crate::log::LogConfig;
use crate::plugin::{Author, Plugin};
use crate::records;
use crate::reply::{Origin, Reply};
use crate::request::Request;
use crate::rewrite::{Rewrite, Rewritten};
use crate::stats::{Counters, Peers};
use crate::template::Template;
use crate::wire::{Extent, Received};
use crate::zone::{LONGEST_ALIAS_CHAIN, View};

/// How the queries for a domain are answered.
#[derive(Clone, Debug)]
pub struct BlockConfig {
    /// The domain; the root for names that no other block takes.
    pub(crate) domain: Name,
    /// Where the cluster's names are answered, if they are.
    pub(crate) kubernetes: Option<Kubernetes>,
    /// The upstreams for other names.
    pub forward: ForwardConfig,
    /// Fixed names, which come before the cluster's.
    pub(crate) hosts: Option<HostsConfig>,
    /// Names that are asked for under another name.
    pub(crate) rewrites: Vec<Rewrite>,
    /// Templates, which answer before everything else.
    pub(crate) templates: Vec<Template>,
    /// Which queries are logged.
    pub(crate) log: Option<LogConfig>,
    /// How failed queries are logged, if they are.
    pub(crate) errors: Option<ErrorsConfig>,
    /// The search path of pods is completed here, for names in this domain.
    pub(crate) autopath: Option<autopath::AutopathConfig>,
    /// Which clients may transfer which zones.
    pub transfer: Option<Transfer>,
    /// The longest reply over UDP, in octets, if it is not the usual one.
    pub(crate) bufsize: Option<u16>,
}

/// Zones that clients may transfer as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// These zones and all below them.
    pub zones: Vec<Name>,
    /// To these clients.
    pub to: Vec<IpNet>,
}

/// Where the cluster's names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kubernetes {
    /// The cluster domain and the reverse zones.
    pub(crate) zones: Vec<Name>,
    /// In these, what does not exist is looked for elsewhere (DNS-3.11).
    pub(crate) fallthrough: Vec<Name>,
}

impl Kubernetes {
    /// The cluster domain and all addresses; those that are not the cluster's are looked for elsewhere (the stock
    /// setting, DNS-5.5).
    #[must_use]
    pub(crate) fn usual(domain: Name) -> Self {
        let reverse = reverse_trees();
        Self { zones: std::iter::once(domain).chain(reverse.clone()).collect(), fallthrough: reverse.into() }
    }

    /// The name lies in one of the zones.
    pub(crate) fn takes(&self, name: &Name) -> bool {
        self.zone_of(name).is_some()
    }

    /// The smallest of the zones that a name lies in.
    fn zone_of(&self, name: &Name) -> Option<&Name> {
        self.zones.iter().filter(|zone| zone.zone_of(name)).max_by_key(|zone| zone.num_labels())
    }
}

/// The domains of reverse names: `in-addr.arpa.` and `ip6.arpa.`.
pub(crate) fn reverse_trees() -> [Name; 2] {
    ["in-addr", "ip6"].map(|tree| Name::from_labels([tree.as_bytes(), b"arpa"]).unwrap_or_default())
}

impl BlockConfig {
    /// A block of a domain that does nothing yet.
    #[must_use]
    pub fn new(domain: Name) -> Self {
        Self {
            domain,
            kubernetes: None,
            forward: ForwardConfig { routes: Vec::new(), cache: None },
            hosts: None,
            rewrites: Vec::new(),
            templates: Vec::new(),
            log: None,
            errors: None,
            autopath: None,
            transfer: None,
            bufsize: None,
        }
    }

    /// The usual block for all names: the cluster's here, others elsewhere.
    #[must_use]
    pub fn usual(cluster_domain: Name, forward: ForwardConfig) -> Self {
        let kubernetes = Some(Kubernetes::usual(cluster_domain));
        Self { kubernetes, forward, ..Self::new(Name::root()) }
    }

    /// The longest reply over UDP, in octets.
    pub(crate) fn udp_payload(&self) -> u16 {
        self.bufsize.unwrap_or(UDP_PAYLOAD)
    }

    /// Whether queries pass through this part.
    pub(crate) fn has(&self, plugin: Plugin) -> bool {
        match plugin {
            Plugin::Prometheus | Plugin::Loadbalance => true,
            // Settings of the server.
            Plugin::Reload | Plugin::Bind | Plugin::Debug | Plugin::Ready | Plugin::Health => false,
            Plugin::Bufsize => self.bufsize.is_some(),
            Plugin::Errors => self.errors.is_some(),
            Plugin::Log => self.log.is_some(),
            Plugin::Cache => self.forward.cache.is_some(),
            Plugin::Rewrite => !self.rewrites.is_empty(),
            Plugin::Autopath => self.autopath.is_some(),
            Plugin::Template => !self.templates.is_empty(),
            Plugin::Transfer => self.transfer.is_some(),
            Plugin::Hosts => self.hosts.is_some(),
            Plugin::Kubernetes => self.kubernetes.is_some(),
            Plugin::Loop | Plugin::Forward => !self.forward.routes.is_empty(),
        }
    }
}

/// All blocks of a server, which a reload changes at once.
#[derive(Default)]
pub(crate) struct Blocks(RwLock<Arc<Vec<Arc<Block>>>>);

impl Blocks {
    /// Others for all queries from now on.
    pub(crate) fn set(&self, mut blocks: Vec<Arc<Block>>) {
        blocks.sort_by_key(|block| std::cmp::Reverse(block.config.domain.num_labels()));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(blocks);
    }

    /// Those in force, the longest domains first.
    pub(crate) fn now(&self) -> Arc<Vec<Arc<Block>>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The block that a name belongs to.
pub(crate) fn block_of<'a>(blocks: &'a [Arc<Block>], name: &Name) -> Option<&'a Arc<Block>> {
    blocks.iter().find(|block| block.config.domain.zone_of(name))
}

/// A block in use.
pub(crate) struct Block {
    pub(crate) config: BlockConfig,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) hosts: Option<Hosts>,
    pub(crate) errors: Option<Errors>,
    /// Without `errors` it is logged once that the configuration does not fit a name.
    pub(crate) misfit: Once,
    pub(crate) counters: Arc<Counters>,
}

impl Block {
    pub(crate) fn new(config: BlockConfig, counters: Arc<Counters>, peers: Arc<Peers>) -> Result<Self, TlsError> {
        let forwarder = Forwarder::new(config.forward.clone(), &config.domain, Arc::clone(&counters), peers)?;
        let forwarder = Arc::new(forwarder);
        let hosts = config.hosts.clone().map(Hosts::new);
        let errors = config.errors.clone().map(Errors::new);
        Ok(Self { config, forwarder, hosts, errors, misfit: Once::new(), counters })
    }

    /// The reply to a question for this block. `blocks` are all blocks of the server: an alias may lead to another one.
    pub(crate) async fn answer(&self, blocks: &[Arc<Self>], request: &Request, view: &View) -> Reply {
        let query = &request.query;
        if query.query_type == RecordType::HINFO && self.forwarder.meet(&query.name) {
            return Reply::error(ResponseCode::ServFail);
        }
        let (rewritten, query) = match self.rewritten(query) {
            Ok(rewritten) => rewritten,
            Err(no_name) => return Reply { why: Some(no_name.into()), ..Reply::error(ResponseCode::ServFail) },
        };
        let paths = self.config.autopath.as_ref().and_then(|autopath| autopath.paths(&query.name, request, view));
        let unchanged = rewritten.is_none() && paths.is_none();
        let asker = Asker { blocks, block: self, request, view, hops: 0, unchanged, dry: false };
        let mut reply = match paths {
            None => asker.ask(&query).await,
            Some(paths) => Box::pin(asker.complete(&query, paths)).await,
        };
        if let Some(rewritten) = &rewritten {
            rewritten.restore(&mut reply);
        }
        reply
    }

    /// The reply to a question that only the cluster or the cache has to be asked for, if it has to wait for nothing.
    pub(crate) fn at_once(&self, request: &Request, view: &View) -> Option<Reply> {
        let (config, query) = (&self.config, &request.query);
        let may_answer_first = |handler: &Author| match handler {
            Author::Server | Author::Cache | Author::Kubernetes | Author::Forward => false,
            Author::Template => !config.templates.is_empty(),
            Author::Hosts => self.hosts.is_some(),
        };
        let special = query.query_type == RecordType::HINFO; // how loops are found
        let changed = !config.rewrites.is_empty() || config.autopath.is_some();
        if special || changed || Author::ALL.iter().any(may_answer_first) {
            return None;
        }
        let asker = Asker { blocks: &[], block: self, request, view, hops: 0, unchanged: true, dry: false };
        match asker.of_cluster(query) {
            OfCluster::Reply(reply) => Some(reply).filter(|reply| !reply.is_ignorant()),
            OfCluster::Alias(..) => None,
            OfCluster::Elsewhere => Some(from_cache(self.forwarder.kept(query, request)?, request)),
        }
    }

    /// The replies to a question that an upstream answers with these octets: now, and from the cache after that.
    pub(crate) fn passed_on(&self, request: &Request, view: &View, wire: &[u8]) -> [Reply; 2] {
        let Ok((rewritten, query)) = self.rewritten(&request.query) else {
            return [(); 2].map(|()| Reply::error(ResponseCode::ServFail));
        };
        let unchanged = rewritten.is_none();
        let asker = Asker { blocks: &[], block: self, request, view, hops: 0, unchanged, dry: false };
        self.forwarder.accept(&asker.outgoing(query.clone()), wire).map(|told| {
            let no_answer = || failure(ForwardError::NoAnswer(None));
            let mut reply = told.map_or_else(no_answer, |told| asker.pass_on(told, &query));
            if let Some(rewritten) = &rewritten {
                rewritten.restore(&mut reply);
            }
            reply
        })
    }

    /// The question after the rewrite rules.
    pub(crate) fn rewritten(&self, query: &Query) -> Result<(Option<Rewritten<'_>>, Query), NoName> {
        let rewritten = Rewritten::new(&self.config.rewrites, &query.name)?;
        let name = rewritten.as_ref().map_or(&query.name, |rewritten| &rewritten.name);
        let query = Query::query(name.clone(), query.query_type);
        Ok((rewritten, query))
    }

    /// Whether the client may transfer the zone that it asks for.
    pub(crate) fn transfers_to(&self, client: IpAddr, zone: &Name) -> bool {
        let allowed = self.config.transfer.as_ref().is_some_and(|Transfer { zones, to }| {
            zones.iter().any(|allowed| allowed.zone_of(zone))
                && to.iter().any(|net| net.contains(&client.to_canonical()))
        });
        allowed && self.config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.zones.first() == Some(zone))
    }
}

/// What the cluster says to a question.
enum OfCluster {
    Reply(Reply),
    /// An alias, and the target that has to be asked for elsewhere.
    Alias(Reply, Name),
    /// Nothing: the next handler must be asked.
    Elsewhere,
}

/// One query to a block, with the view of the cluster at that moment.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) blocks: &'a [Arc<Block>],
    pub(crate) block: &'a Block,
    pub(crate) request: &'a Request,
    pub(crate) view: &'a View,
    /// Aliases that have been followed.
    pub(crate) hops: usize,
    /// The reply is for the question as the client asked it, and nothing is added to it or changed in it.
    pub(crate) unchanged: bool,
    /// For explanations: no upstream is asked, and nothing is counted.
    pub(crate) dry: bool,
}

impl Asker<'_> {
    /// The reply, and where the alias of a template leads to: templates write the first link only.
    pub(crate) async fn ask(&self, query: &Query) -> Reply {
        let reply = self.ask_once(query).await;
        match dangling(&reply, query).filter(|_| reply.author == Author::Template) {
            Some(target) => self.follow(reply, query, target).await,
            None => reply,
        }
    }

    /// The first reply that is not NXDOMAIN, as the answer for the first name (DNS-17.8, DNS-17.9); if there is none,
    /// the first reply (DNS-17.10).
    async fn complete(&self, query: &Query, paths: Vec<Name>) -> Reply {
        let mut first = None;
        for path in paths {
            let found = Query::query(path, query.query_type);
            let mut reply = self.ask(&found).await;
            if reply.rcode == ResponseCode::NXDomain {
                first.get_or_insert(reply);
                continue;
            }
            // After a failure it is unknown what the rest of the path would have given.
            if reply.rcode != ResponseCode::NoError {
                return first.filter(|_| reply.rcode == ResponseCode::Refused).unwrap_or(reply);
            }
            // The first record may be that of another name, such as a DNAME.
            if let Some(first) = reply.answers.first().filter(|_| found.name != query.name) {
                let alias = records::cname(query.name.clone(), first.ttl, found.name);
                reply.answers.insert(0, alias);
                reply.clear_authentic();
            }
            self.block.counters.autopath_successes.add_one();
            return reply;
        }
        first.unwrap_or_default()
    }

    /// The alias together with the answer for its target, from the block that is for the target (DNS-2.6.2, DNS-2.6.5).
    /// The alias is part of the reply even if its target fails. If that block fails, its failure is the reply, so that
    /// the client retries.
    fn follow<'a>(&'a self, mut alias: Reply, query: &'a Query, target: Name) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            let next = block_of(self.blocks, &target).filter(|_| self.hops < LONGEST_ALIAS_CHAIN);
            let Some(block) = next else { return alias };
            let next = Asker { block, hops: self.hops + 1, unchanged: false, ..*self };
            let mut beyond = next.ask(&Query::query(target, query.query_type)).await;
            if beyond.rcode == ResponseCode::ServFail
                || matches!(beyond.why, Some(Failure::Forward(ForwardError::Busy)))
            {
                return beyond;
            }
            if !beyond.answers.is_empty() {
                alias.authorities.clear(); // the SOA of a chain that ends in nothing
            }
            alias.answers.append(&mut beyond.answers);
            alias.truncated |= beyond.truncated; // DNS-2.6.6
            alias.asks = beyond.asks;
            alias
        })
    }

    /// Asks one handler after the other.
    async fn ask_once(&self, query: &Query) -> Reply {
        for handler in Author::ALL {
            if let Some(reply) = self.ask_handler(*handler, query).await {
                return reply;
            }
        }
        failure(ForwardError::NoUpstreams)
    }

    /// `None` if the handler has no answer and the next must be asked.
    async fn ask_handler(&self, handler: Author, query: &Query) -> Option<Reply> {
        match handler {
            Author::Template => self.templated(query),
            Author::Hosts => self.block.hosts.as_ref()?.answer(query),
            Author::Kubernetes => match self.of_cluster(query) {
                OfCluster::Reply(reply) => Some(reply),
                OfCluster::Alias(alias, target) => Some(self.follow(alias, query, target).await),
                OfCluster::Elsewhere => None,
            },
            Author::Forward => Some(self.forwarded(query).await),
            // The forwarder asks its cache itself.
            Author::Cache | Author::Server => None,
        }
    }

    fn templated(&self, query: &Query) -> Option<Reply> {
        let block = self.block;
        for template in &block.config.templates {
            if let Some(reply) = template.answer(query, self.request) {
                if !self.dry {
                    block.counters.template_matched(template.type_for(query));
                }
                return Some(reply);
            }
        }
        None
    }

    /// What the cluster says.
    fn of_cluster(&self, query: &Query) -> OfCluster {
        let Some(kubernetes) = &self.block.config.kubernetes else { return OfCluster::Elsewhere };
        let Some(zone) = kubernetes.zone_of(&query.name) else { return OfCluster::Elsewhere };
        let cluster = Reply::cluster(Author::Kubernetes);
        // A reverse zone may be a part of the tree that the address lies in (DNS-5.4).
        let soa_here = |soa: Record| {
            if soa.name.num_labels() == zone.num_labels() { soa } else { self.view.zone.soa_of(&query.name, zone) }
        };
        // Upstreams may know (DNS-3.11, DNS-5.5), even while we do not (DNS-11.4).
        let falls_through =
            |name: &Name| kubernetes.fallthrough.iter().any(|zone| zone.zone_of(name)) && self.can_forward(name);
        OfCluster::Reply(match self.view.zone.answer(&query.name, query.query_type) {
            Answer::Records(Records { answers, authority, additionals }) => {
                let reply = Reply { answers, authorities: authority.into_iter().collect(), additionals, ..cluster };
                // So they may know the target of an alias (DNS-2.6.10).
                let is_absent =
                    |target: &Name| matches!(self.view.zone.answer(target, query.query_type), Answer::NxDomain { .. });
                match dangling(&reply, query).filter(|target| falls_through(target) && is_absent(target)) {
                    Some(target) => return OfCluster::Alias(reply, target),
                    None => reply,
                }
            }
            Answer::NoData { soa } => Reply { authorities: vec![soa_here(soa)], ..cluster },
            Answer::UnknownAddress { soa } if query.name == *zone => {
                let soa = vec![soa_here(soa)];
                let asked = query.query_type == RecordType::SOA;
                if asked { Reply { answers: soa, ..cluster } } else { Reply { authorities: soa, ..cluster } }
            }
            Answer::NxDomain { .. } | Answer::UnknownAddress { .. } if falls_through(&query.name) => {
                return OfCluster::Elsewhere;
            }
            Answer::NxDomain { soa, why: _ } | Answer::UnknownAddress { soa } => {
                Reply { rcode: self.absence(), authorities: vec![soa_here(soa)], ..cluster }
            }
            Answer::Alias { chain, target } => return OfCluster::Alias(Reply { answers: chain, ..cluster }, target),
            Answer::NotOurs => return OfCluster::Elsewhere,
        })
    }

    /// Absence is only a fact once the cluster is known (DNS-11.3).
    fn absence(&self) -> ResponseCode {
        if self.view.snapshot.is_some() { ResponseCode::NXDomain } else { ResponseCode::ServFail }
    }

    fn can_forward(&self, name: &Name) -> bool {
        let forwarder = &self.block.forwarder;
        if self.dry { forwarder.would_ask(name).is_some() } else { forwarder.has_upstreams(name) }
    }

    async fn forwarded(&self, query: &Query) -> Reply {
        if self.dry {
            return match self.block.forwarder.would_ask(&query.name) {
                Some(who) => Reply { author: Author::Forward, asks: Some(who), ..Reply::default() },
                None => failure(ForwardError::NoUpstreams),
            };
        }
        match self.block.forwarder.resolve(&self.outgoing(query.clone())).await {
            Ok(told) => self.pass_on(told, query),
            Err(error) => failure(error),
        }
    }

    fn outgoing(&self, query: Query) -> Outgoing {
        Outgoing::new(query, self.request)
    }

    /// The upstream's reply as ours. AA stays clear, so that it is the same from the cache.
    fn pass_on(&self, told: Told, query: &Query) -> Reply {
        match told {
            Told::Now(Received { rcode, authentic, extent, sections }) => {
                let truncated = extent == Extent::Truncated;
                let origin = of_upstream(self.request, authentic);
                Reply { origin, author: Author::Forward, truncated, ..Reply::error(rcode) }.with(sections)
            }
            Told::Before(kept) => {
                if self.unchanged && kept.packed().may_be_copied() {
                    return from_cache(kept, self.request);
                }
                let sections = kept.sections(query);
                from_cache(kept, self.request).with(sections)
            }
        }
    }
}

/// AD is for those who asked for it (RFC 6840 section 5.8).
fn of_upstream(request: &Request, authentic: bool) -> Origin {
    let wants_ad = request.metadata.authentic_data || request.dnssec_ok();
    Origin::Upstream { authentic: authentic && wants_ad }
}

/// A reply that is a copy of what was kept.
fn from_cache(kept: Kept, request: &Request) -> Reply {
    let (origin, reply) = (of_upstream(request, kept.authentic()), Reply::error(kept.rcode()));
    Reply { origin, author: Author::Cache, kept: Some(kept), ..reply }
}

/// Where an alias at the end of the answers leads to, if that is asked for and nothing there says more.
fn dangling(reply: &Reply, query: &Query) -> Option<Name> {
    if [RecordType::CNAME, RecordType::ANY].contains(&query.query_type) {
        return None;
    }
    let RData::CNAME(CNAME(target)) = &reply.answers.last()?.data else { return None };
    let mut target = target.clone();
    target.set_fqdn(true);
    (!reply.answers.iter().any(|record| record.name == target)).then_some(target)
}

/// DNS-3.8 and DNS-3.9.
fn failure(error: ForwardError) -> Reply {
    let rcode = match &error {
        ForwardError::NoUpstreams | ForwardError::Busy => ResponseCode::Refused,
        ForwardError::NoAnswer(_) => ResponseCode::ServFail,
    };
    Reply { why: Some(error.into()), ..Reply::error(rcode) }
}
