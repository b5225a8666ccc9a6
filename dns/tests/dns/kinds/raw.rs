//! Messages as octets, by a reader and a writer of the tests' own: what another program would see of ours.

use super::types;

/// A question as it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Labels with their lengths, and the root's.
    pub(super) name: Vec<u8>,
    pub(super) rtype: u16,
    pub(super) class: u16,
}

/// A record whose names are whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    pub(super) owner: Vec<u8>,
    pub(super) rtype: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) rdata: Vec<u8>,
}

/// A message, read to its last octet.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) questions: Vec<Question>,
    /// Answers, authorities, additionals without the OPT.
    pub(super) sections: [Vec<Record>; 3],
    pub(super) opt: Option<Record>,
}

pub(super) const QR: u16 = 0x8000;
pub(super) const AA: u16 = 0x0400;
pub(super) const TC: u16 = 0x0200;
pub(super) const RD: u16 = 0x0100;
pub(super) const RA: u16 = 0x0080;
pub(super) const AD: u16 = 0x0020;
pub(super) const DO: u32 = 0x8000;
pub(super) const OPT: u16 = 41;
/// Where the name of the question is in a message.
pub(super) const QUESTION: u16 = 12;

impl Message {
    pub(super) fn rcode(&self) -> u16 {
        self.flags & 15
    }

    /// Fails on whatever another reader could stumble over: pointers that do not lead back, and octets that are left.
    pub(super) fn read(wire: &[u8]) -> Result<Self, String> {
        let mut at = 0;
        let [id, flags, questions, answers, authorities, additionals] =
            [(); 6].map(|()| word(wire, &mut at)).map(|word| word.ok());
        let counts = [questions, answers, authorities, additionals];
        let [Some(questions), Some(answers), Some(authorities), Some(additionals)] = counts else {
            return Err("half a header".to_owned());
        };
        let question = |at: &mut usize| -> Result<Question, String> {
            Ok(Question { name: name(wire, at)?, rtype: word(wire, at)?, class: word(wire, at)? })
        };
        let questions = (0..questions).map(|_| question(&mut at)).collect::<Result<_, String>>()?;
        let mut section = |count: u16| (0..count).map(|_| record(wire, &mut at)).collect::<Result<Vec<_>, String>>();
        let mut sections = [section(answers)?, section(authorities)?, section(additionals)?];
        if at != wire.len() {
            return Err(format!("{} octets are left", wire.len() - at));
        }
        let (mut opts, rest): (Vec<Record>, Vec<Record>) =
            std::mem::take(&mut sections[2]).into_iter().partition(|record| record.rtype == OPT);
        sections[2] = rest;
        if opts.len() > 1 {
            return Err("two OPTs".to_owned());
        }
        Ok(Self { id: id.unwrap(), flags: flags.unwrap(), questions, sections, opt: opts.pop() })
    }
}

fn record(wire: &[u8], at: &mut usize) -> Result<Record, String> {
    let owner = name(wire, at)?;
    let (rtype, class) = (word(wire, at)?, word(wire, at)?);
    let ttl = u32::from(word(wire, at)?) << 16 | u32::from(word(wire, at)?);
    let length = usize::from(word(wire, at)?);
    let end = *at + length;
    if end > wire.len() {
        return Err(format!("RDATA of type {rtype} ends behind the message"));
    }
    let rdata = types::whole(rtype, wire, *at, end).unwrap_or_else(|| wire[*at..end].to_vec());
    *at = end;
    Ok(Record { owner, rtype, class, ttl, rdata })
}

fn word(wire: &[u8], at: &mut usize) -> Result<u16, String> {
    let octets = wire.get(*at..*at + 2).ok_or("cut in a number")?;
    *at += 2;
    Ok(u16::from_be_bytes([octets[0], octets[1]]))
}

/// A name with what its pointers lead to; `at` comes behind it.
pub(super) fn name(wire: &[u8], at: &mut usize) -> Result<Vec<u8>, String> {
    let mut name = Vec::new();
    // Each pointer leads in front of all that was read before it, so that there is an end.
    let (mut start, mut from, mut behind) = (*at, *at, None);
    loop {
        let length = usize::from(*wire.get(from).ok_or("cut in a name")?);
        match length {
            0 => {
                name.push(0);
                *at = behind.unwrap_or(from + 1);
                return if name.len() > 255 { Err("a name of more than 255 octets".to_owned()) } else { Ok(name) };
            }
            1..=63 => {
                name.extend(wire.get(from..=from + length).ok_or("cut in a label")?);
                from += 1 + length;
            }
            0xc0..=0xff => {
                let low = usize::from(*wire.get(from + 1).ok_or("cut in a pointer")?);
                let to = (length & 0x3f) << 8 | low;
                if to >= start {
                    return Err(format!("a pointer at {from} to {to}"));
                }
                behind.get_or_insert(from + 2);
                (start, from) = (to, to);
            }
            _ => return Err(format!("a label of no known kind, {length}")),
        }
    }
}

/// The octets of a name in presentation format, with its final dot or without; `\DDD` and `\X` are escapes.
pub(super) fn labels(text: &str) -> Vec<u8> {
    let mut name = Vec::new();
    let mut label = Vec::new();
    let mut octets = text.bytes().peekable();
    let mut end = |label: &mut Vec<u8>| {
        if !label.is_empty() {
            name.push(u8::try_from(label.len()).unwrap());
            name.append(label);
        }
    };
    while let Some(octet) = octets.next() {
        match octet {
            b'.' => end(&mut label),
            b'\\' if octets.peek().is_some_and(u8::is_ascii_digit) => {
                let digits = octets.by_ref().take(3).fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
                label.push(u8::try_from(digits).unwrap());
            }
            b'\\' => label.push(octets.next().unwrap()),
            other => label.push(other),
        }
    }
    end(&mut label);
    name.push(0);
    name
}

/// A query of one question; with EDNS, its payload, flags and options.
pub(super) fn query(id: u16, question: &Question, edns: Option<(u16, u32, &[u8])>) -> Vec<u8> {
    let counts = [id, RD, 1, 0, 0, u16::from(edns.is_some())];
    let mut wire: Vec<u8> = counts.iter().flat_map(|word| word.to_be_bytes()).collect();
    put_question(&mut wire, question);
    if let Some((payload, flags, options)) = edns {
        put_record(&mut wire, &[0], OPT, payload, flags, options);
    }
    wire
}

pub(super) fn put_question(wire: &mut Vec<u8>, question: &Question) {
    wire.extend(&question.name);
    wire.extend(question.rtype.to_be_bytes());
    wire.extend(question.class.to_be_bytes());
}

/// `owner` and `rdata` as they are to be sent.
pub(super) fn put_record(wire: &mut Vec<u8>, owner: &[u8], rtype: u16, class: u16, ttl: u32, rdata: &[u8]) {
    wire.extend(owner);
    wire.extend(rtype.to_be_bytes());
    wire.extend(class.to_be_bytes());
    wire.extend(ttl.to_be_bytes());
    wire.extend(u16::try_from(rdata.len()).unwrap().to_be_bytes());
    wire.extend(rdata);
}
