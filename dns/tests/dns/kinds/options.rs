//! Every option of EDNS in IANA's registry, from clients and from upstreams: none of them costs an answer, and what is
//! no list of options is told to the client.

use std::net::SocketAddr;

use super::belongs;
use super::cases::TTL;
use super::raw::{self, DO, Message, Question};
use super::types;
use super::upstream::{Asked, Upstream};
use crate::{client, corefile};

const NOERROR: u16 = 0;
const FORMERR: u16 = 1;
const A: u16 = 1;
const IN: u16 = 1;
const ADDRESS: [u8; 4] = [192, 0, 2, 9];

/// Code, name, and values in the words of [`types::compose`]: the first is what its RFC allows.
const OPTIONS: &[(u16, &str, &[&str])] = &[
    (0, "reserved", &["", "00"]),
    (1, "LLQ", &["0001 0001 0000 0000000000000001 00000e10", "00"]),
    (2, "update lease", &["00000e10", "00000e10 00000e10", "00"]),
    (3, "NSID", &["", "5a*8"]),
    (4, "owner", &["00 00 00005e00532a", "ff"]),
    (5, "DAU", &["08 0d 0f", ""]),
    (6, "DHU", &["01 02", ""]),
    (7, "N3U", &["01", ""]),
    (
        8,
        "client subnet",
        &[
            "0001 18 00 c00002",
            "0000 00 00", // of no family (RFC 7871 section 6)
            "0000 00 00 c00002",
            "0001 20 00",
            "0001 00 00",
            "0001 18 18 c00002ff",
            "0002 ff 00 20010db8",
            "0007 18 00 c00002",
            "0001",
            "00",
        ],
    ),
    (9, "expire", &["", "00000e10", "00"]),
    (10, "cookie", &["5a*8", "5a*16", "5a*40", "5a*7", "5a*9", "5a*41", "00"]),
    (11, "TCP keepalive", &["", "0064", "00"]),
    (12, "padding", &["", "00*400", "5a*3"]),
    (13, "chain", &["Trust.Elsewhere.test.", "40", "c00c"]),
    (14, "key tag", &["3039", "30"]),
    (15, "extended error", &["0003", "0016 66696e65", "0000 fffe", "00"]),
    (16, "client tag", &["0001", "00"]),
    (17, "server tag", &["0001", "00"]),
    (18, "report channel", &["Agent.Elsewhere.test.", "40", "c00c"]),
    (19, "zone version", &["", "02 00 00000009", "ff"]),
    (20, "MQTYPE-query", &["001c", "1c"]),
    (21, "MQTYPE-response", &["001c", "1c"]),
    (20292, "umbrella", &["4f444e53 01 5a*8", "00"]),
    (26946, "DeviceID", &["5a*8", ""]),
    (65001, "local", &["5a", ""]),
    (65535, "the last", &["", "ff"]),
];

/// RDATA of an OPT that are no options (RFC 6891 section 6.1.2).
const NO_OPTIONS: &[(&str, &str)] = &[
    ("one octet", "00"),
    ("a code alone", "000a"),
    ("half a length", "000a 00"),
    ("an option that is longer than the OPT", "000a 0009 5a*8"),
    ("one of 65,535 octets that are not there", "0008 ffff"),
    ("one after a whole one", "0003 0000 000a 0008 5a*7"),
];

fn option(code: u16, value: &str) -> Vec<u8> {
    let value = types::compose(value, 0, &[0]).0;
    [&code.to_be_bytes(), u16::try_from(value.len()).unwrap().to_be_bytes().as_slice(), &value].concat()
}

fn octets(words: &str) -> Vec<u8> {
    types::compose(words, 0, &[0]).0
}

/// An address, and an OPT with what the first label of the name says.
fn upstream_says(asked: &Asked, rdata: &[Vec<u8>]) -> Vec<u8> {
    let number = asked.label().strip_prefix('o').and_then(|number| number.parse::<usize>().ok());
    let options = number.and_then(|number| rdata.get(number)).filter(|_| asked.edns);
    let mut wire = asked.head(NOERROR, [1, 0, u16::from(options.is_some())]);
    raw::put_record(&mut wire, &[0xc0, 12], A, IN, TTL, &ADDRESS);
    if let Some(options) = options {
        raw::put_record(&mut wire, &[0], raw::OPT, 1232, DO, options);
    }
    wire
}

fn question(text: &str) -> Question {
    Question { name: raw::labels(text), rtype: A, class: IN }
}

async fn ask(at: SocketAddr, wire: &[u8]) -> [Vec<u8>; 2] {
    [client::udp_bytes(at, wire).await, client::tcp_bytes(at, wire).await]
}

/// The answer with an OPT that has no options: nothing is done here of what they ask for.
#[track_caller]
fn check(what: &str, question: &Question, reply: &[u8]) {
    let got = Message::read(reply).unwrap_or_else(|error| panic!("{what}: {error}"));
    belongs::to_the_question(&got, 7, question, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    let answers: Vec<&[u8]> = got.sections[0].iter().map(|record| record.rdata.as_slice()).collect();
    assert_eq!((got.rcode(), answers), (NOERROR, vec![ADDRESS.as_slice()]), "{what}");
    assert_eq!(got.opt.map(|opt| opt.rdata), Some(vec![]), "{what}");
}

/// All options alone, then all together.
fn all() -> Vec<(String, Vec<u8>)> {
    let alone = OPTIONS.iter().flat_map(|(code, name, values)| {
        values.iter().map(move |value| (format!("option {code} ({name}) with [{value}]"), option(*code, value)))
    });
    let mut rows: Vec<(String, Vec<u8>)> = alone.collect();
    let together = rows.iter().flat_map(|(_, option)| option.clone()).collect();
    rows.push(("all options".to_owned(), together));
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn no_option_of_a_client_costs_the_answer() {
    let upstream = Upstream::start(|asked| upstream_says(asked, &[])).await;
    let place = tempfile::tempdir().unwrap();
    let (server, _) =
        corefile::start(&format!(".:53 {{\n forward . {}\n}}\n", upstream.address), place.path(), None).await;
    for (what, options) in all() {
        let question = question("Www.option.test");
        for reply in ask(server.local_addresses()[0], &raw::query(7, &question, Some((1232, DO, &options)))).await {
            check(&what, &question, &reply);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_option_of_an_upstream_costs_the_answer() {
    let mut rows = all();
    rows.extend(NO_OPTIONS.iter().map(|(what, words)| (format!("an OPT with {what}"), octets(words))));
    let says: Vec<Vec<u8>> = rows.iter().map(|(_, options)| options.clone()).collect();
    let upstream = Upstream::start(move |asked| upstream_says(asked, &says)).await;
    let place = tempfile::tempdir().unwrap();
    let text = format!(".:53 {{\n cache\n forward . {}\n}}\n", upstream.address);
    let (server, _) = corefile::start(&text, place.path(), None).await;
    for (number, (what, _)) in rows.iter().enumerate() {
        let question = question(&format!("o{number}.option.test"));
        // The second is from the cache.
        for reply in ask(server.local_addresses()[0], &raw::query(7, &question, Some((1232, DO, &[])))).await {
            check(&format!("the upstream's {what}"), &question, &reply);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_list_of_options_is_refused() {
    let upstream = Upstream::start(|asked| upstream_says(asked, &[])).await;
    let place = tempfile::tempdir().unwrap();
    let (server, _) =
        corefile::start(&format!(".:53 {{\n forward . {}\n}}\n", upstream.address), place.path(), None).await;
    let mut rows: Vec<(String, Vec<u8>)> = NO_OPTIONS
        .iter()
        .map(|(what, words)| {
            ((*what).to_owned(), raw::query(7, &question("www.option.test"), Some((1232, DO, &octets(words)))))
        })
        .collect();
    // One at most (RFC 6891 section 6.1.1).
    let mut two = raw::query(7, &question("www.option.test"), Some((1232, DO, &[])));
    raw::put_record(&mut two, &[0], raw::OPT, 1232, DO, &[]);
    two[11] = 2;
    rows.push(("two OPTs".to_owned(), two));
    for (what, query) in rows {
        for reply in ask(server.local_addresses()[0], &query).await {
            let flags = u16::from_be_bytes([reply[2], reply[3]]);
            assert_eq!((&reply[..2], flags & 0x800f), (&query[..2], raw::QR | FORMERR), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opt_stands_in_the_additional_section_only() {
    let upstream = Upstream::start(|asked| upstream_says(asked, &[])).await;
    let place = tempfile::tempdir().unwrap();
    let (server, _) =
        corefile::start(&format!(".:53 {{\n forward . {}\n}}\n", upstream.address), place.path(), None).await;
    for section in [7, 9] {
        let mut query = raw::query(7, &question("www.option.test"), Some((1232, DO, &[])));
        (query[11], query[section]) = (0, 1);
        for reply in ask(server.local_addresses()[0], &query).await {
            let got = Message::read(&reply).unwrap();
            assert_eq!((got.rcode(), got.sections[0].len(), got.opt), (0, 1, None), "{section}");
        }
    }
}
