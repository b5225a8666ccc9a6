//! The answer to a question and the reason for it, without asking an upstream and without counting the question.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::sync::watch;

use crate::block::{Asker, Block, Blocks, block_of};
use crate::names;
use crate::reply::Reply;
use crate::request::{Request, Transport};
use crate::search::{Candidate, candidates, likely};
use crate::stats::rcode_name;
use crate::zone::View;

/// A reply with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Its registered name, such as `NXDOMAIN`; absent if an upstream would decide.
    pub rcode: Option<String>,
    /// What is known without asking an upstream.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The additional section.
    pub additionals: Vec<Record>,
    /// Who answers, from what, or what is missing.
    pub reason: String,
}

/// A name that pods ask for a relative one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedByPods {
    /// The only namespace whose pods ask it; `None` for pods of all namespaces.
    pub namespace: Option<String>,
    /// The name, completed by the search list of a pod.
    pub name: Name,
    /// It exists, so a pod asks no further.
    pub exists: bool,
    /// It was meant for the cluster: it exists, or at least its namespace does.
    pub meant: bool,
    /// The reply.
    pub explanation: Explanation,
}

/// Explains what a running server does. Does not keep the server alive.
#[derive(Clone)]
pub struct Explainer {
    pub(crate) blocks: Weak<Blocks>,
    pub(crate) views: watch::Receiver<View>,
}

impl Explainer {
    /// The reply that a client outside of the cluster would get over TCP. `None` before the first view of the cluster,
    /// and after the server has stopped.
    pub async fn explain(&self, name: Name, rtype: RecordType) -> Option<Explanation> {
        let blocks = self.blocks.upgrade()?.now();
        let view = self.views.borrow().clone();
        view.snapshot.as_ref()?;
        Some(explain(&blocks, &question(name, rtype), &view).await)
    }

    /// What pods ask for a relative name before they ask it as it is (DNS-17.2): the names that exist. If none does,
    /// the one that was most likely meant.
    pub async fn by_pods(&self, name: &Name, rtype: RecordType) -> Vec<AskedByPods> {
        let Some(blocks) = self.blocks.upgrade().map(|blocks| blocks.now()) else { return Vec::new() };
        let view = self.views.borrow().clone();
        let mut found = Vec::new();
        for candidate in candidates(name, &view) {
            // The first that exists for every pod is the last that pods ask.
            if found.last().is_some_and(|last: &AskedByPods| last.namespace.is_none()) {
                break;
            }
            found.extend(Some(asked(candidate, rtype, &blocks, &view).await).filter(|asked| asked.exists));
        }
        if let (true, Some((guess, meant))) = (found.is_empty(), likely(name, &view)) {
            found.push(AskedByPods { meant, ..asked(guess, rtype, &blocks, &view).await });
        }
        found
    }
}

async fn asked(candidate: Candidate, rtype: RecordType, blocks: &[Arc<Block>], view: &View) -> AskedByPods {
    let Candidate { namespace, name } = candidate;
    let explanation = explain(blocks, &question(name.clone(), rtype), view).await;
    let exists = match explanation.rcode.as_deref() {
        Some(rcode) => rcode == rcode_name(ResponseCode::NoError),
        // An alias of a name that upstreams know. Without a record the name itself is asked of them.
        None => !explanation.answers.is_empty(),
    };
    AskedByPods { namespace, name, exists, meant: exists, explanation }
}

/// As a client outside of the cluster asks over TCP.
fn question(name: Name, rtype: RecordType) -> Request {
    Request {
        metadata: Message::query().metadata,
        query: Query::query(name, rtype),
        edns: None,
        serial: None,
        client: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        transport: Transport::Tcp,
        length: 0,
        received: std::time::Instant::now(),
    }
}

async fn explain(blocks: &[Arc<Block>], request: &Request, view: &View) -> Explanation {
    match block_of(blocks, &request.query.name) {
        Some(block) => explain_block(block, blocks, request, view).await,
        None => {
            let reason = "no server block of the Corefile is for this name".to_owned();
            explanation(Reply::error(ResponseCode::Refused), reason)
        }
    }
}

async fn explain_block(block: &Block, blocks: &[Arc<Block>], request: &Request, view: &View) -> Explanation {
    let (rewritten, query) = match block.rewritten(&request.query) {
        Ok(rewritten) => rewritten,
        Err(no_name) => return explanation(Reply::error(ResponseCode::ServFail), no_name.to_string()),
    };
    let mut reply = Asker { blocks, block, request, view, hops: 0, unchanged: false, dry: true }.ask(&query).await;
    let reason = reason(block, &reply, &query, view);
    let asks = reply.asks.take();
    if let Some(rewritten) = &rewritten {
        rewritten.restore(&mut reply);
    }
    let asked_as = rewritten.map(|rewritten| format!("asked as {} (rewrite): ", names::text(&rewritten.name)));
    let asked_as = asked_as.unwrap_or_default();
    match asks {
        None => explanation(reply, asked_as + &reason),
        Some(who) => Explanation { rcode: None, ..explanation(reply, format!("{asked_as}{reason}: asked of {who}")) },
    }
}

fn explanation(reply: Reply, reason: String) -> Explanation {
    let Reply { rcode, answers, authorities, additionals, .. } = reply;
    Explanation { rcode: Some(rcode_name(rcode)), answers, authorities, additionals, reason }
}

fn reason(block: &Block, reply: &Reply, query: &Query, view: &View) -> String {
    let here = block.config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.takes(&query.name));
    let verdict = || match here {
        true => view.zone.answer(&query.name, query.query_type).reason(),
        false => "not a name of the cluster".to_owned(),
    };
    match (reply.author.reason(reply.rcode), &reply.why) {
        (Some(reason), None) => reason.to_owned(),
        (Some(_), Some(why)) => why.to_string(),
        (None, Some(why)) => format!("{}, and {why}", verdict()),
        (None, None) => verdict(),
    }
}
