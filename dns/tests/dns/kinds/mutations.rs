//! Replies of an upstream with octets changed by chance: what clients see stays a reply to their own question.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::cases::cases;
use super::passed_on::{ASKED, Setting};
use super::raw::{self, Question};
use super::types;

const TRIES: usize = 20_000;
const IN: u16 = 1;
/// Lengths, pointers and numbers on which readers stumble.
const EDGES: [u8; 12] = [0, 1, 4, 12, 16, 41, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff];

/// A reply that leads on: through two aliases to a mail server and its address, with authorities and an OPT.
fn long_reply() -> Vec<u8> {
    let question = Question { name: raw::labels(ASKED), rtype: 15, class: IN };
    let records: [(u16, &str, &str); 8] = [
        (5, "^", "^real"),
        (5, "real.Www.kind.test.", "Mail.Elsewhere.test."),
        (15, "Mail.Elsewhere.test.", "000a Mx.Elsewhere.test."),
        (2, "Elsewhere.test.", "Ns.Elsewhere.test."),
        (6, "kind.test.", "Ns.kind.test. Admin.kind.test. 00000009 0000000a 0000000b 0000000c 0000012c"),
        (1, "Mx.Elsewhere.test.", "c0000207"),
        (28, "Ns.Elsewhere.test.", "20010db8 00*11 07"),
        (65, "Mx.Elsewhere.test.", "0001 . 0001 0003 026832"),
    ];
    let counts = [7, raw::QR | raw::RD | raw::RA, 1, 3, 2, 4];
    let mut wire: Vec<u8> = counts.iter().flat_map(|word| word.to_be_bytes()).collect();
    raw::put_question(&mut wire, &question);
    for (rtype, owner, words) in records {
        let owner = if owner == "^" { vec![0xc0, 12] } else { raw::labels(owner) };
        let (sent, _) = types::compose(words, wire.len() + owner.len() + 10, &question.name);
        raw::put_record(&mut wire, &owner, rtype, IN, 300, &sent);
    }
    raw::put_record(&mut wire, &[0], raw::OPT, 1232, 0, &[0, 15, 0, 2, 0, 3]);
    wire
}

fn replies() -> Vec<Vec<u8>> {
    let question = |rtype| Question { name: raw::labels(ASKED), rtype, class: IN };
    let cases = cases().into_iter().filter(|case| case.words.len() < 1000);
    let mut replies: Vec<Vec<u8>> =
        cases.map(|case| case.reply(7, &question(case.asked_type()), true, 65535).0).collect();
    replies.retain(|reply| reply.len() < 2000);
    // As many as all others together.
    replies.extend(vec![long_reply(); replies.len()]);
    replies
}

fn mutate(random: &mut StdRng, reply: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.random_range(1..=4) {
        let length = reply.len();
        if length == 0 {
            return;
        }
        // The question mostly stays: without it a reply is dropped.
        let first = if random.random_ratio(1, 10) { 0 } else { 31.min(length - 1) };
        let at = random.random_range(first..length);
        let until = random.random_range(at..length.min(at + 20)) + 1;
        let edge = EDGES[random.random_range(0..EDGES.len())];
        match random.random_range(0..8) {
            0 => reply[at] ^= 1 << random.random_range(0..8),
            1 | 2 => reply[at] = edge,
            3 => reply.truncate(at),
            4 => drop(reply.drain(at..until)),
            5 => reply.splice(at..at, std::iter::repeat_n(edge, until - at)).for_each(drop),
            6 => {
                let part = other[at.min(other.len() - 1)..until.min(other.len())].to_vec();
                reply.splice(at..at, part).for_each(drop);
            }
            _ => {
                let low = 7 + 2 * random.random_range(0..3_usize);
                reply.iter_mut().skip(low).take(1).for_each(|count| *count = random.random_range(0..6));
            }
        }
    }
}

#[test]
fn whatever_an_upstream_sends_clients_see_a_reply_to_their_question() {
    let setting = Setting::new();
    let replies = replies();
    for reply in &replies {
        setting.check(reply).unwrap_or_else(|why| panic!("{why}: {reply:02x?}"));
    }
    let mut random = StdRng::seed_from_u64(14);
    for _ in 0..TRIES {
        let [mut reply, other] = [(); 2].map(|()| replies[random.random_range(0..replies.len())].clone());
        mutate(&mut random, &mut reply, &other);
        setting.check(&reply).unwrap_or_else(|why| panic!("{why}: {reply:02x?}"));
    }
}
