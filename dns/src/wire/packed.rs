//! Records as the octets that follow the question in a reply, so that a reply from the cache is a copy of them.
//!
//! Pointers count from the beginning of a message whose question has a name of the same length. None leads into that
//! name but those that stand for all of it, so that each client gets its own spelling there (DNS-9.3) and the
//! upstream's everywhere else.

use hickory_proto::op::Query;
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use rand::Rng as _;

use super::frame::{Frame, HEADER, past_name};
use super::received::{Received, Sections};
use super::written::Written;
use crate::names;

/// Records of a reply to a question of one name and type.
#[derive(Debug)]
pub(crate) struct Packed {
    octets: Box<[u8]>,
    counts: [u16; 3],
    /// Where TTLs are, in `octets`.
    ttls: Box<[u16]>,
    /// Where the addresses of RRsets with several are.
    shuffled: Box<[Addresses]>,
    /// It has RRsets that are shuffled (DNS-10.1) and are no addresses.
    has_mail: bool,
}

/// The addresses of an RRset.
#[derive(Debug)]
struct Addresses {
    size: usize,
    at: Box<[u16]>,
}

/// How old records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// So many seconds.
    Seconds(u32),
    /// They have expired; this is their TTL (RFC 8767 section 4).
    Expired(u32),
}

impl Age {
    pub(crate) fn ttl(self, ttl: u32) -> u32 {
        match self {
            Self::Seconds(seconds) => ttl.saturating_sub(seconds),
            Self::Expired(ttl) => ttl,
        }
    }
}

impl Packed {
    /// `None` if they do not fit a message.
    pub(crate) fn new(sections: &Sections, query: &Query) -> Option<Self> {
        let mut asked = vec![0; HEADER];
        append_question(&mut asked, query);
        let start = asked.len();
        let mut wire = Vec::new();
        let mut encoder = BinEncoder::new(&mut wire);
        // As octets, so that no name is compressed against the question's.
        encoder.emit_vec(&asked).ok()?;
        let Sections { answers, authorities, additionals } = sections;
        for record in answers.iter().chain(authorities).chain(additionals) {
            Written::new(record, &query.name).emit(&mut encoder).ok()?;
        }
        let counts = [answers.len(), authorities.len(), additionals.len()].map(u16::try_from);
        let [Ok(answers), Ok(authorities), Ok(additionals)] = counts else { return None };
        let counts = [answers, authorities, additionals];
        let (ttls, shuffled, has_mail) = places(&wire, start, counts)?;
        Some(Self { octets: wire.split_off(start).into(), counts, ttls, shuffled, has_mail })
    }

    /// Octets of memory.
    pub(crate) fn size(&self) -> usize {
        self.octets.len() + 2 * self.ttls.len() + self.shuffled.iter().map(|set| 24 + 2 * set.at.len()).sum::<usize>()
    }

    /// Octets of a reply with them, without OPT.
    pub(crate) fn reply_size(&self, query: &Query) -> usize {
        let name: usize = query.name.iter().map(|label| label.len() + 1).sum();
        HEADER + name + 1 + 4 + self.octets.len()
    }

    pub(crate) fn has_answers(&self) -> bool {
        let [answers, ..] = self.counts;
        answers > 0
    }

    /// Of the answer, authority and additional section.
    pub(crate) fn counts(&self) -> [u16; 3] {
        self.counts
    }

    /// A reply may be a copy; else the records must be taken out and shuffled.
    pub(crate) fn may_be_copied(&self) -> bool {
        !self.has_mail
    }

    /// Appends them to a message that ends with its question.
    pub(crate) fn append_to(&self, wire: &mut Vec<u8>, age: Age) {
        let start = wire.len();
        wire.extend_from_slice(&self.octets);
        let Some(copy) = wire.get_mut(start..) else { return };
        for at in &self.ttls {
            let at = usize::from(*at);
            if let Some(field) = copy.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                *field = age.ttl(u32::from_be_bytes(*field)).to_be_bytes();
            }
        }
        for set in &self.shuffled {
            set.shuffle(copy);
        }
    }

    /// The records themselves, for the question of `query`.
    pub(crate) fn sections(&self, query: &Query, age: Age) -> Sections {
        let mut wire = Vec::with_capacity(self.reply_size(query));
        // A response to one question.
        wire.extend_from_slice(&[0, 0, 0x80, 0, 0, 1]);
        wire.extend(self.counts.iter().flat_map(|count| count.to_be_bytes()));
        append_question(&mut wire, query);
        wire.extend_from_slice(&self.octets);
        let mut sections = Received::read(&wire, query).unwrap_or_default().sections;
        for record in sections.all_mut() {
            record.ttl = age.ttl(record.ttl);
        }
        sections
    }
}

impl Addresses {
    /// Puts them in a random order.
    fn shuffle(&self, copy: &mut [u8]) {
        let mut random = rand::rng();
        for last in (1..self.at.len()).rev() {
            let other = random.random_range(0..=last);
            let (Some(a), Some(b)) = (self.at.get(last), self.at.get(other)) else { continue };
            let (a, b) = (usize::from(*a), usize::from(*b));
            for offset in 0..self.size {
                if a.max(b) + offset < copy.len() {
                    copy.swap(a + offset, b + offset);
                }
            }
        }
    }
}

/// Appends a question to a header.
pub(crate) fn append_question(wire: &mut Vec<u8>, query: &Query) {
    names::append(wire, &query.name);
    wire.extend(u16::from(query.query_type).to_be_bytes());
    wire.extend(u16::from(query.query_class).to_be_bytes());
}

type Places = (Box<[u16]>, Box<[Addresses]>, bool);

/// What changes in the records from `start` on, counted from there.
fn places(wire: &[u8], start: usize, counts: [u16; 3]) -> Option<Places> {
    let (mut at, mut ttls, mut sets, mut mail) = (start, Vec::new(), Vec::<(Frame, Vec<u16>)>::new(), 0);
    let place = |at: usize| u16::try_from(at - start).ok();
    for count in counts {
        // RRsets of two sections stay apart.
        let first_set = sets.len();
        for _ in 0..count {
            let frame = Frame::read(wire, at)?;
            at = frame.end();
            ttls.push(place(frame.ttl_at)?);
            mail += usize::from(frame.rtype == u16::from(RecordType::MX));
            if ![RecordType::A, RecordType::AAAA].map(u16::from).contains(&frame.rtype) {
                continue;
            }
            let data = place(frame.data.start)?;
            let same = |(set, _): &&mut (Frame, Vec<u16>)| {
                (set.rtype, set.ttl, set.data.len()) == (frame.rtype, frame.ttl, frame.data.len())
                    && owner(wire, set) == owner(wire, &frame)
            };
            match sets.iter_mut().skip(first_set).find(same) {
                Some((_, places)) => places.push(data),
                None => sets.push((frame, vec![data])),
            }
        }
    }
    let several = sets.into_iter().filter(|(_, at)| at.len() > 1);
    let shuffled = several.map(|(frame, at)| Addresses { size: frame.data.len(), at: at.into() }).collect();
    Some((ttls.into(), shuffled, mail > 1))
}

/// The owner as octets. One name may be written in two ways, of which each then is an RRset of its own.
fn owner<'a>(wire: &'a [u8], frame: &Frame) -> Option<&'a [u8]> {
    wire.get(frame.owner..past_name(wire, frame.owner)?)
}
