//! Any octets as an upstream's reply, and what clients see of it: without sockets, for the fuzzer too.

use std::net::SocketAddr;

use shunt_dns::{Answerer, Corefile, Transport};

use super::belongs;
use super::raw::{self, DO, Message, Question};

/// Clients ask for names in the first domain, whose names are the upstream's, and in the second, which is rewritten to
/// that.
const COREFILE: &str = "\
kind.test:53 {
    cache 3600
}
office.test:53 {
    rewrite name suffix .office.test .kind.test answer auto
    cache 3600
}
";
const IN: u16 = 1;
/// What the upstream is asked for, as it is spelled on the wire.
pub(super) const ASKED: &str = "Www.kind.test";
/// Who asks: the name, the transport, and whether with EDNS.
const CLIENTS: [(&str, Transport, bool); 3] =
    [(ASKED, Transport::Udp, true), (ASKED, Transport::Tcp, false), ("Www.office.test", Transport::Udp, false)];
const ID: u16 = 7;

/// A server that clients ask.
pub(super) struct Setting(Answerer);

impl Setting {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("kinds-{}", std::process::id()));
        std::fs::write(&path, COREFILE).unwrap();
        let file = Corefile::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let zone = file.zone(vec![]);
        Self(Answerer::new(zone.clone(), None, file.server_config(vec![], zone).blocks).unwrap())
    }

    /// Checks what each client gets, now and from the cache, which may have what an earlier reply left there; the type
    /// that they ask for is that of the reply's question.
    pub(super) fn check(&self, upstream: &[u8]) -> Result<(), String> {
        let rtype = asked_type(upstream);
        for (name, transport, edns) in CLIENTS {
            let question = Question { name: raw::labels(name), rtype, class: IN };
            let query = raw::query(ID, &question, edns.then_some((1232, DO, &[])));
            let replies = self.0.passed_on(&query, upstream, SocketAddr::from(([192, 0, 2, 1], 5353)), transport);
            if replies.len() != 2 {
                return Err(format!("{} replies", replies.len()));
            }
            for (reply, when) in replies.iter().zip(["now", "from the cache"]) {
                let limit = if edns { 1232 } else { 512 };
                if transport == Transport::Udp && reply.len() > limit {
                    return Err(format!("{} octets", reply.len()));
                }
                let right = Message::read(reply).and_then(|got| {
                    belongs::to_the_question(&got, ID, &question, edns)?;
                    belongs::own_records_only(&got, &question)
                });
                right.map_err(|why| format!("{name} type {rtype} {when}: {why}"))?;
            }
        }
        Ok(())
    }
}

/// Of the reply's question, if it has one that is not answered here.
fn asked_type(upstream: &[u8]) -> u16 {
    const TRANSFERS: [u16; 2] = [251, 252];
    let mut at = usize::from(raw::QUESTION);
    let _name = raw::name(upstream, &mut at);
    let rtype = upstream.get(at..at + 2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]));
    rtype.filter(|rtype| !TRANSFERS.contains(rtype)).unwrap_or(IN)
}
