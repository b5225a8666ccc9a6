//! What a small upstream says: one record of each type, legal or not, in each place of a reply.

use super::raw::{self, AD, QR, Question, RA, RD, TC};
use super::types::{self, KINDS, Kind, Names};

pub(super) const TTL: u32 = 300;
const IN: u16 = 1;
const A: u16 = 1;
const AAAA: u16 = 28;
/// Addresses that every reply but the first kind has beside the record in question.
const GOOD: [(u16, &[u8]); 2] =
    [(A, &[192, 0, 2, 53]), (AAAA, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53])];

/// Where the record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the answer.
    Answer,
    /// Another one, before it in the answer section, is what was asked for.
    Beside,
    Authority,
    Additional,
}

/// What must become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is passed on, octet for octet.
    Kept,
    /// It may be lost, without anything else.
    MayBeLost,
}

/// One record in one place.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) kind: &'static Kind,
    pub(super) what: &'static str,
    /// The RDATA in the words of [`types`].
    pub(super) words: String,
    pub(super) place: Place,
    pub(super) fate: Fate,
}

impl Case {
    pub(super) fn asked_type(&self) -> u16 {
        if self.place == Place::Answer { self.kind.number } else { self.good().0 }
    }

    fn good(&self) -> (u16, &'static [u8]) {
        GOOD[usize::from(self.kind.number == A)]
    }

    /// The upstream's reply to a question for it, which it says it has validated, and its records with whole names.
    pub(super) fn reply(
        &self,
        id: u16,
        question: &Question,
        with_opt: bool,
        limit: usize,
    ) -> (Vec<u8>, [Vec<raw::Record>; 3]) {
        let section = match self.place {
            Place::Answer | Place::Beside => 0,
            Place::Authority => 1,
            Place::Additional => 2,
        };
        let mut counts = [0_u16; 3];
        counts[0] += u16::from(self.place != Place::Answer);
        counts[section] += 1;
        let header = [id, QR | RD | RA | AD, 1, counts[0], counts[1], counts[2] + u16::from(with_opt)];
        let mut wire: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
        raw::put_question(&mut wire, question);
        let owner = (0xc000 | raw::QUESTION).to_be_bytes();
        let record = |rtype, rdata: &[u8]| raw::Record {
            owner: question.name.clone(),
            rtype,
            class: IN,
            ttl: TTL,
            rdata: rdata.to_vec(),
        };
        let mut sections: [Vec<raw::Record>; 3] = Default::default();
        if self.place != Place::Answer {
            let (rtype, rdata) = self.good();
            raw::put_record(&mut wire, &owner, rtype, IN, TTL, rdata);
            sections[0].push(record(rtype, rdata));
        }
        let (sent, whole) = types::compose(&self.words, wire.len() + 12, &question.name);
        raw::put_record(&mut wire, &owner, self.kind.number, IN, TTL, &sent);
        sections[section].push(record(self.kind.number, &whole));
        if with_opt {
            raw::put_record(&mut wire, &[0], raw::OPT, 1232, 0, &[]);
        }
        if wire.len() > limit {
            let end = usize::from(raw::QUESTION) + question.name.len() + 4;
            wire.truncate(end);
            wire[2] |= u8::try_from(TC >> 8).unwrap();
            wire[6..12].fill(0);
        }
        (wire, sections)
    }
}

/// All types with all RDATA in all places.
pub(super) fn cases() -> Vec<Case> {
    KINDS.iter().flat_map(of_kind).collect()
}

fn of_kind(kind: &'static Kind) -> Vec<Case> {
    use Place::{Additional, Answer, Authority, Beside};
    let everywhere = [Answer, Beside, Authority, Additional].as_slice();
    let looked_at = if kind.is_looked_at() { Fate::MayBeLost } else { Fate::Kept };
    let mut cases = Vec::new();
    let mut add = |what: &'static str, words: String, places: &[Place], fate: Fate| {
        // An alias beside what was asked for is no answer that anybody gives.
        let places = places.iter().filter(|place| kind.mnemonic != "CNAME" || **place != Beside);
        cases.extend(places.map(|place| Case { kind, what, words: words.clone(), place: *place, fate }));
    };
    let has_names = kind.layout.contains('N');
    let names_as = |other: &dyn Fn(&str) -> String| -> String {
        let word = |word: &str| if types::is_name(word) { other(word) } else { word.to_owned() };
        kind.legal.split(' ').map(word).collect::<Vec<_>>().join(" ")
    };
    add("legal", kind.legal.to_owned(), everywhere, Fate::Kept);
    add("empty", String::new(), everywhere, looked_at);
    if kind.names == Names::Compressed {
        let compressed = |name: &str| format!("^{}", name.split('.').next().unwrap_or_default());
        add("compressed", names_as(&compressed), everywhere, Fate::Kept);
    }
    if has_names {
        add("longest names", names_as(&|_| types::longest_name()), &[Answer], Fate::Kept);
        for (what, other) in [
            ("a label of 64 octets", "40 5a*64 00"),
            ("a label of no known kind", "80 01 00"),
            ("a name without its end", "03 777777"),
            ("a name of 257 octets", "3f 5a*63 3f 5a*63 3f 5a*63 3f 5a*63 00"),
            ("a pointer out of the message", "ffff"),
            ("a pointer to itself", "@"),
        ] {
            add(what, names_as(&|_| other.to_owned()), everywhere, looked_at);
        }
    }
    if kind.layout.ends_with('*') {
        // Strings of 63 characters, if it is a type that has such.
        let filler = if has_names { "3f*57984" } else { "3f*64000" };
        add(
            "longest",
            if has_names { format!("{} {filler}", kind.legal) } else { filler.to_owned() },
            &[Answer],
            Fate::Kept,
        );
    }
    // What follows the names of such a type may be anything; cut in a name, it is odd.
    let open_end = kind.layout.ends_with('*');
    let cut = kind
        .legal
        .rsplit_once(' ')
        .map_or_else(|| kind.legal[2..].trim_start_matches('*').to_owned(), |(start, _)| start.to_owned());
    let cut = if cut.contains('"') && !kind.legal.contains(' ') { "ff 5a".to_owned() } else { cut };
    let cut = if kind.layout == "N" { "03 777777".to_owned() } else { cut };
    add("too short", cut, everywhere, if open_end { Fate::Kept } else { looked_at });
    add("too long", format!("{} 00", kind.legal), everywhere, if open_end { Fate::Kept } else { looked_at });
    for odd in kind.odd {
        add("odd", (*odd).to_owned(), everywhere, Fate::Kept);
    }
    cases
}
