//! What upstreams said recently. Only forwarded names are ever in here; cluster names change without notice.

use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record};
use hickory_resolver::config::ResolverOpts;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::{ResponseCache, TtlConfig};

/// Entries, as CoreDNS's cache holds of each kind.
const CAPACITY: u64 = 9984;
/// No entry lives longer, as with the `cache 30` of the stock Corefile (rule 13.1).
const LONGEST: Duration = Duration::from_secs(30);

/// Answers without DNSSEC data, by question. Expiry and ageing of TTLs are hickory's.
pub(crate) struct Cache {
    answers: ResponseCache,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let mut bounds = ResolverOpts::default();
        bounds.positive_max_ttl = Some(LONGEST);
        bounds.negative_max_ttl = Some(LONGEST);
        Self { answers: ResponseCache::new(CAPACITY, TtlConfig::from_opts(&bounds)) }
    }

    /// The answer, aged, its owner names spelled as in `query` (rule 9.3).
    pub(crate) fn get(&self, query: &Query, now: Instant) -> Option<Message> {
        let mut message = match self.answers.get(query, now)? {
            Ok(message) => message,
            Err(NetError::Dns(DnsError::NoRecordsFound(absence))) => {
                let mut message = Message::response(0, hickory_proto::op::OpCode::Query);
                message.metadata.response_code = absence.response_code;
                message.authorities = absence.authorities.map(|records| records.to_vec()).unwrap_or_default();
                message
            }
            Err(_) => return None, // nothing else is put in
        };
        for record in message.answers.iter_mut().filter(|record| record.name == query.name) {
            record.name = query.name.clone();
        }
        Some(message)
    }

    /// Keeps `message` if it is plainly positive, or negative with a SOA that says for how long (RFC 2308).
    pub(crate) fn put(&self, query: &Query, message: &Message, now: Instant) {
        if message.metadata.truncation {
            return;
        }
        let positive = message.metadata.response_code == ResponseCode::NoError
            && message.answers.iter().any(|record| record.record_type() == query.query_type);
        if positive {
            self.answers.insert(query.clone(), Ok(message.clone()), now);
            return;
        }
        let negative = message.answers.is_empty()
            && [ResponseCode::NoError, ResponseCode::NXDomain].contains(&message.metadata.response_code);
        if let Some(ttl) = negative_ttl(message).filter(|_| negative) {
            let mut absence = NoRecords::new(query.clone(), message.metadata.response_code);
            absence.negative_ttl = Some(ttl);
            absence.authorities = Some(message.authorities.clone().into());
            self.answers.insert(query.clone(), Err(absence.into()), now);
        }
    }
}

fn negative_ttl(message: &Message) -> Option<u32> {
    message.authorities.iter().find_map(|record: &Record| {
        let RData::SOA(soa) = &record.data else { return None };
        Some(record.ttl.min(soa.minimum))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::{Name, RecordType};

    use super::*;
    use crate::records;

    fn query(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn response(rcode: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = rcode;
        message.add_query(query("www.example."));
        message.answers = answers;
        message.authorities = authorities;
        message
    }

    fn address(ttl: u32) -> Record {
        records::address(Name::from_ascii("www.example.").unwrap(), ttl, Ipv4Addr::new(192, 0, 2, 1).into())
    }

    fn soa(ttl: u32) -> Record {
        records::soa(Name::from_ascii("example.").unwrap(), ttl, 1)
    }

    /// The TTLs seen `after` seconds, `None` if the cache does not answer.
    #[track_caller]
    fn check(message: &Message, after: u64, wanted: Option<u32>) {
        let (cache, start) = (Cache::new(), Instant::now());
        cache.put(&query("www.example."), message, start);
        let found = cache.get(&query("WWW.example."), start + Duration::from_secs(after));
        let found = found.map(|message| {
            assert_eq!(message.answers.iter().filter(|r| r.name.to_ascii() != "WWW.example.").count(), 0);
            message.answers.iter().chain(&message.authorities).map(|record| record.ttl).min().unwrap()
        });
        assert_eq!(found, wanted, "{message}");
    }

    #[test]
    fn answers_age_and_expire() {
        let positive = response(ResponseCode::NoError, vec![address(20)], vec![]);
        check(&positive, 0, Some(20));
        check(&positive, 15, Some(5));
        check(&positive, 21, None);
        check(&response(ResponseCode::NoError, vec![address(3600)], vec![]), 0, Some(30));
        check(&response(ResponseCode::NoError, vec![address(3600)], vec![]), 31, None);
    }

    #[test]
    fn absence_is_kept_as_long_as_its_soa_says() {
        check(&response(ResponseCode::NXDomain, vec![], vec![soa(10)]), 4, Some(6));
        check(&response(ResponseCode::NoError, vec![], vec![soa(10)]), 11, None);
        check(&response(ResponseCode::NXDomain, vec![], vec![]), 0, None);
        check(&response(ResponseCode::ServFail, vec![], vec![soa(10)]), 0, None);
    }

    #[test]
    fn truncated_answers_are_not_kept() {
        let mut message = response(ResponseCode::NoError, vec![address(20)], vec![]);
        message.metadata.truncation = true;
        check(&message, 0, None);
    }
}
