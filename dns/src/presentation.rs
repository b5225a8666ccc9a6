//! Records as text, in the form of zone files (RFC 1035 section 5.1, RFC 3597 section 5).
//!
//! hickory's own reader and writer are not used where names or strings stand in the data: the reader refuses most
//! octets, and the writer escapes in octal and leaves quotes out.

use std::fmt::Write as _;

use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::names::{self, NameError, Unit};
use crate::rdata::{Part, data_of, name_of, octets_of, parts, pieces};
use crate::types::type_name;

/// What comes before data that are written as octets: `\# LENGTH HEX`.
const OCTETS: &str = r"\#";
/// The longest string.
const LONGEST_TEXT: usize = 255;

/// Why a text is no data of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DataError {
    /// The text ends too early.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The text goes on too long.
    #[error("{0:?} is too much")]
    TooMuch(String),
    #[error("{0:?} is no name: {1}")]
    Name(String, NameError),
    #[error("{0:?} is no number in range")]
    Number(String),
    #[error("{0:?} is no string of 255 octets at most")]
    Text(String),
    #[error("a quote has no end")]
    Quote,
    #[error(r"\# needs a length, and twice as many hexadecimal digits")]
    Octets,
    #[error("it does not fit type {0}")]
    Unfit(String),
}

/// A word of a text, or what stands between quotes; its escapes are still in it.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    text: String,
    quoted: bool,
}

/// Data of this type are written part by part.
fn is_text(rtype: RecordType) -> bool {
    let is_octets = |part: &Part| matches!(part, Part::Octets(_) | Part::Rest);
    !parts(rtype).is_empty() && !parts(rtype).iter().any(is_octets)
}

/// Reads data of a type. Parentheses are left out, and `;` begins a comment.
pub(crate) fn data(rtype: RecordType, text: &str) -> Result<RData, DataError> {
    let tokens = tokens(text)?;
    let octets = match tokens.split_first() {
        Some((first, rest)) if first.text == OCTETS && !first.quoted => octets(rest)?,
        _ if !is_text(rtype) => {
            return RData::try_from_str(rtype, text).map_err(|_refused| DataError::Unfit(type_name(rtype)));
        }
        _ => by_parts(parts(rtype), tokens)?,
    };
    data_of(rtype, octets).ok_or_else(|| DataError::Unfit(type_name(rtype)))
}

fn tokens(text: &str) -> Result<Vec<Token>, DataError> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        match first {
            ';' => while characters.next_if(|character| *character != '\n').is_some() {},
            '(' | ')' => {}
            space if space.is_ascii_whitespace() => {}
            '"' => {
                let mut token = Token { text: String::new(), quoted: true };
                loop {
                    match characters.next().ok_or(DataError::Quote)? {
                        '"' => break,
                        '\\' => {
                            token.text.push('\\');
                            token.text.extend(characters.next());
                        }
                        character => token.text.push(character),
                    }
                }
                tokens.push(token);
            }
            first => {
                let mut token = Token { text: first.to_string(), quoted: false };
                let mut escaped = first == '\\';
                let ends = |character: char| character.is_ascii_whitespace() || "\"();".contains(character);
                while let Some(character) = characters.next_if(|next| escaped || !ends(*next)) {
                    token.text.push(character);
                    escaped = !escaped && character == '\\';
                }
                tokens.push(token);
            }
        }
    }
    Ok(tokens)
}

fn by_parts(parts: &[Part], tokens: Vec<Token>) -> Result<Vec<u8>, DataError> {
    let mut octets = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    for part in parts {
        let mut next = |what| tokens.next().map(|token| token.text).ok_or(DataError::Missing(what));
        match part {
            Part::Target | Part::Name => {
                let text = next("a name")?;
                let name = names::absolute(&text).map_err(|error| DataError::Name(text, error))?;
                names::append(&mut octets, &name);
            }
            Part::Short => octets.extend(number::<u16>(next("a number")?)?.to_be_bytes()),
            Part::Long => octets.extend(number::<u32>(next("a number")?)?.to_be_bytes()),
            Part::Seconds => {
                let text = next("a time")?;
                octets.extend(seconds(&text).ok_or(DataError::Number(text))?.to_be_bytes());
            }
            Part::Text => {
                let text = next("a string")?;
                let string = string(&text).filter(|string| string.len() <= LONGEST_TEXT);
                push_string(&string.ok_or(DataError::Text(text))?, &mut octets);
            }
            Part::Texts => {
                let mut text = next("a string")?;
                loop {
                    let string = string(&text).ok_or(DataError::Text(text))?;
                    // One that is longer is several, as CoreDNS reads it.
                    let cut = string.chunks(LONGEST_TEXT).chain(string.is_empty().then_some(&[] as &[u8]));
                    cut.for_each(|string| push_string(string, &mut octets));
                    match tokens.next() {
                        Some(token) => text = token.text,
                        None => break,
                    }
                }
            }
            Part::Octets(_) | Part::Rest => {} // such types are read elsewhere
        }
    }
    match tokens.next() {
        Some(token) => Err(DataError::TooMuch(token.text)),
        None => Ok(octets),
    }
}

fn number<N: std::str::FromStr>(text: String) -> Result<N, DataError> {
    text.parse().or(Err(DataError::Number(text)))
}

/// Seconds, or with units as in `1h30m`.
pub(crate) fn seconds(text: &str) -> Option<u32> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (mut sum, mut digits) = (0_u32, String::new());
    for character in text.chars() {
        let unit = match character.to_ascii_lowercase() {
            digit @ '0'..='9' => {
                digits.push(digit);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            'w' => 604_800,
            _ => return None,
        };
        sum = digits.parse::<u32>().ok()?.checked_mul(unit)?.checked_add(sum)?;
        digits.clear();
    }
    (digits.is_empty() && !text.is_empty()).then_some(sum)
}

/// The octets that a text with escapes means.
fn string(text: &str) -> Option<Vec<u8>> {
    let octet = |unit| match unit {
        Unit::Octet(octet) => octet,
        Unit::Dot => b'.',
    };
    Some(names::units(text).ok()?.into_iter().map(octet).collect())
}

fn push_string(string: &[u8], octets: &mut Vec<u8>) {
    octets.extend(u8::try_from(string.len()));
    octets.extend_from_slice(string);
}

/// The octets of `LENGTH HEX`; the digits may be several words.
fn octets(tokens: &[Token]) -> Result<Vec<u8>, DataError> {
    let (length, digits) = tokens.split_first().ok_or(DataError::Octets)?;
    let length: usize = length.text.parse::<u16>().or(Err(DataError::Octets))?.into();
    let digit = |character: char| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = digits.iter().flat_map(|token| token.text.chars().map(digit)).collect();
    let digits = digits.filter(|digits| digits.len() == length * 2).ok_or(DataError::Octets)?;
    Ok(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | digit)).collect())
}

/// `OWNER TTL CLASS TYPE DATA`.
#[must_use]
pub fn record_text(record: &Record) -> String {
    let (owner, rtype) = (names::text(&record.name), type_name(record.record_type()));
    format!("{owner} {} {} {rtype} {}", record.ttl, record.dns_class, data_text(&record.data))
}

/// The data as text; those that are not as their type has them, and of types without a form of text here, as octets.
pub(crate) fn data_text(data: &RData) -> String {
    let rtype = data.record_type();
    let octets = octets_of(data).unwrap_or_default();
    if is_text(rtype)
        && let Some(pieces) = pieces(rtype, &octets).filter(|pieces| !pieces.is_empty())
    {
        return pieces.into_iter().map(|(part, piece)| piece_text(part, piece)).collect::<Vec<_>>().join(" ");
    }
    let is_octets = matches!(data, RData::Unknown { .. } | RData::NULL(_) | RData::OPT(_));
    if !is_octets && !parts(rtype).contains(&Part::Rest) {
        return data.to_string();
    }
    let mut text = format!("{OCTETS} {}", octets.len());
    for (at, octet) in octets.iter().enumerate() {
        let space = if at == 0 { " " } else { "" };
        write!(text, "{space}{octet:02x}").unwrap_or_default(); // writing to a String cannot fail
    }
    text
}

fn piece_text(part: Part, piece: &[u8]) -> String {
    let number = || piece.iter().fold(0_u32, |number, octet| number << 8 | u32::from(*octet)).to_string();
    match part {
        Part::Target | Part::Name => names::text(&name_of(piece).unwrap_or_else(Name::root)),
        Part::Short | Part::Long | Part::Seconds => number(),
        Part::Text | Part::Texts => {
            let mut text = "\"".to_owned();
            for octet in piece.get(1..).unwrap_or_default() {
                match octet {
                    b'"' | b'\\' => text.extend(['\\', char::from(*octet)]),
                    b' '..=b'~' => text.push(char::from(*octet)),
                    other => write!(text, "\\{other:03}").unwrap_or_default(),
                }
            }
            text + "\""
        }
        Part::Octets(_) | Part::Rest => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::record_type;

    #[track_caller]
    fn check(rtype: &str, text: &str, wanted: &str) {
        let rtype = record_type(rtype).unwrap();
        let data = data(rtype, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(data.record_type(), rtype, "{text}");
        assert_eq!(data_text(&data), wanted, "{text}");
    }

    #[test]
    fn data_are_read_and_written_as_in_zone_files() {
        check("A", "192.0.2.1", "192.0.2.1");
        check("A", r"\# 4 c0000201", "192.0.2.1");
        check("CNAME", r"office\ printer.b\195\188ro.test", r"office\ printer.b\195\188ro.test.");
        check("PTR", r"Office\032Printer._ipp._tcp.lab.test.", r"Office\ Printer._ipp._tcp.lab.test.");
        check("NS", "büro.0/25.test", r"b\195\188ro.0/25.test.");
        check("PTR", r"a\;b\(c\).test ; a comment", r"a\;b\(c\).test.");
        check("DNAME", "-a-.test", "-a-.test.");
        check("MX", r"10 ma\.il.test", r"10 ma\.il.test.");
        check("SRV", "0 1 65535 a@b.test", r"0 1 65535 a\@b.test.");
        check("AFSDB", "1 afs.test", "1 afs.test.");
        check("RP", "mail.test .", "mail.test. .");
        check("SOA", "ns.test a\\.b.test (1 1h 1h30m 1w\n5)", r"ns.test. a\.b.test. 1 3600 5400 604800 5");
        check("NAPTR", r#"100 10 "u" "E2U+sip" "!^.*$!sip:\\1@x!" ."#, r#"100 10 "u" "E2U+sip" "!^.*$!sip:\\1@x!" ."#);
        check("NAPTR", "1 2 - * ! x", r#"1 2 "-" "*" "!" x."#);
        check("TXT", r#"one "two  words" """#, r#""one" "two  words" """#);
        check("TXT", r#""say \"no\" \\ \255;""#, r#""say \"no\" \\ \255;""#);
        check("SPF", "v=spf1", r#""v=spf1""#);
        check("TXT", &"x".repeat(300), &format!(r#""{}" "{}""#, "x".repeat(255), "x".repeat(45)));
        check("CAA", r#"0 issue "ca.test""#, r#"0 issue "ca.test""#);
        check("TYPE65282", r"\# 3 fF 00 01", r"\# 3 ff0001");
        check("TYPE65282", r"\# 0", r"\# 0");
        check(
            "TYPE65282",
            r"(\# 1
            0a)",
            r"\# 1 0a",
        );
        check("NULL", r"\# 1 0a", r"\# 1 0a");
    }

    #[track_caller]
    fn check_refused(rtype: &str, text: &str, wanted: &str) {
        let error = data(record_type(rtype).unwrap(), text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{rtype} {text}: {error}");
    }

    #[test]
    fn what_is_no_data_says_why() {
        check_refused("CNAME", "", "a name is missing");
        check_refused("CNAME", "a b", "\"b\" is too much");
        check_refused("CNAME", "a..b", "\"a..b\" is no name: a label is empty");
        check_refused("CNAME", &"x".repeat(64), "longer than 63");
        check_refused("MX", "65536 a", "no number");
        check_refused("SOA", "a b 1 2 3 4 5x", "no number");
        check_refused("SOA", "a b 1 2 3 4", "a time is missing");
        check_refused("TXT", "\"a", "no end");
        check_refused("NAPTR", &format!("1 2 {} a b c", "x".repeat(256)), "no string");
        check_refused("A", "10.0.0", "type A");
        check_refused("A", r"\# 3 0a0000", "type A");
        check_refused("CNAME", r"\# 2 c00c", "type CNAME");
        check_refused("TYPE65282", "10.0.0.1", "type TYPE65282");
        check_refused("TYPE65282", r"\# 2 0a", "hexadecimal");
        check_refused("TYPE65282", r"\# 1 0x", "hexadecimal");
        check_refused("TYPE65282", r"\# x", "hexadecimal");
        check_refused("ANY", "10.0.0.1", "type ANY");
    }

    #[test]
    fn a_record_is_a_line_of_a_zone_file() {
        let data = data(RecordType::from(65282), r"\# 1 0a").unwrap();
        let record = Record::from_rdata(names::absolute("office printer.test").unwrap(), 60, data);
        assert_eq!(record_text(&record), r"office\ printer.test. 60 IN TYPE65282 \# 1 0a");
    }
}
