//! Names as text (presentation format, RFC 1035 section 5.1) and as octets: a label may hold any octets
//! (RFC 2181 section 11).
//!
//! hickory's own reader and writer are not used: the reader refuses most octets, and the writer escapes in octal.

use std::fmt::Write as _;

use hickory_proto::rr::Name;

/// The longest label, and the longest name with the lengths of its labels and the root's (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 255;

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots follow each other, or a name of more than the root begins with one.
    #[error("a label is empty")]
    Empty,
    /// A label has too many octets.
    #[error("a label is longer than 63 octets")]
    Label,
    /// All labels together have too many.
    #[error("it is longer than 255 octets")]
    Name,
    /// A backslash stands before neither a character nor three digits from 000 to 255.
    #[error("a backslash needs a character after it, or three digits from 000 to 255")]
    Escape,
}

/// An octet of a text, or the dot between two labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Part of a label.
    Octet(u8),
    /// Between two labels, and at the end.
    Dot,
}

impl Unit {
    /// Upper and lower case are equal in names.
    pub(crate) fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Octet(a), Self::Octet(b)) => a.eq_ignore_ascii_case(&b),
            (Self::Dot, Self::Dot) => true,
            (Self::Octet(_), Self::Dot) | (Self::Dot, Self::Octet(_)) => false,
        }
    }
}

/// Reads escapes: `\.` is a dot in a label, `\032` a space. Characters that are not ASCII are their octets in UTF-8.
pub(crate) fn units(text: &str) -> Result<Vec<Unit>, NameError> {
    let mut units = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        units.push(match octet {
            b'.' => Unit::Dot,
            b'\\' => match octets.next() {
                Some(first) if first.is_ascii_digit() => {
                    let digits = [Some(first), octets.next(), octets.next()];
                    let number = digits.iter().try_fold(0_u16, |number, digit| {
                        let digit = digit.filter(u8::is_ascii_digit)?;
                        Some(number * 10 + u16::from(digit - b'0'))
                    });
                    Unit::Octet(number.and_then(|number| u8::try_from(number).ok()).ok_or(NameError::Escape)?)
                }
                Some(other) => Unit::Octet(other),
                None => return Err(NameError::Escape),
            },
            other => Unit::Octet(other),
        });
    }
    Ok(units)
}

/// The units of a name, with its final dot.
pub(crate) fn units_of(name: &Name) -> Vec<Unit> {
    if name.is_root() {
        return vec![Unit::Dot];
    }
    name.iter().flat_map(|label| label.iter().map(|octet| Unit::Octet(*octet)).chain([Unit::Dot])).collect()
}

/// The absolute name that they are, with their final dot or without.
pub(crate) fn from_units(units: &[Unit]) -> Result<Name, NameError> {
    let units = units.strip_suffix(&[Unit::Dot]).unwrap_or(units);
    if units.is_empty() {
        return Ok(Name::root());
    }
    let mut labels: Vec<Vec<u8>> = vec![Vec::new()];
    for unit in units {
        match (unit, labels.last_mut()) {
            (Unit::Octet(octet), Some(label)) => label.push(*octet),
            (Unit::Octet(_), None) | (Unit::Dot, _) => labels.push(Vec::new()),
        }
    }
    if labels.iter().any(Vec::is_empty) {
        return Err(NameError::Empty);
    }
    if labels.iter().any(|label| label.len() > LONGEST_LABEL) {
        return Err(NameError::Label);
    }
    if labels.iter().map(|label| label.len() + 1).sum::<usize>() + 1 > LONGEST_NAME {
        return Err(NameError::Name);
    }
    let mut name = Name::from_labels(labels.iter().map(Vec::as_slice)).or(Err(NameError::Name))?;
    name.set_fqdn(true);
    Ok(name)
}

/// The absolute name that a text means, with its final dot or without. Labels may hold any octets: `\DDD` is the octet
/// of that decimal number, `\X` is the character X, also if that is a dot. No text and `.` are the root.
pub fn absolute(text: &str) -> Result<Name, NameError> {
    from_units(&units(text)?)
}

/// Appends a name as it stands in a message, not compressed.
pub(crate) fn append(octets: &mut Vec<u8>, name: &Name) {
    for label in name.iter() {
        // No label has more than 63 octets.
        octets.push(u8::try_from(label.len()).unwrap_or_default());
        octets.extend_from_slice(label);
    }
    octets.push(0);
}

/// The name as text with its final dot; [`absolute`] reads it back. Escapes are those of CoreDNS, so that patterns
/// written for it match: a backslash before `. \ " ' ( ) ; @` and a space, `\DDD` for what is not printable ASCII.
#[must_use]
pub fn text(name: &Name) -> String {
    if name.is_root() {
        return ".".to_owned();
    }
    let mut text = String::with_capacity(name.len() + 1);
    for label in name.iter() {
        for octet in label {
            match octet {
                b'.' | b'\\' | b'"' | b'\'' | b'(' | b')' | b';' | b'@' | b' ' => {
                    text.extend(['\\', char::from(*octet)]);
                }
                b'!'..=b'~' => text.push(char::from(*octet)),
                other => drop(write!(text, "\\{other:03}")), // writing to a String cannot fail
            }
        }
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text_in: &str, labels: &[&[u8]], wanted: &str) {
        let name = absolute(text_in).unwrap();
        assert_eq!(name.iter().collect::<Vec<_>>(), labels, "{text_in}");
        assert_eq!(text(&name), wanted, "{text_in}");
        assert_eq!(absolute(wanted), Ok(name.clone()), "{text_in}");
        assert_eq!(from_units(&units_of(&name)), Ok(name), "{text_in}");
    }

    #[test]
    fn labels_hold_any_octets() {
        check("", &[], ".");
        check(".", &[], ".");
        check("Web.Example", &[b"Web", b"Example"], "Web.Example.");
        check("_http._tcp.a-.-b.", &[b"_http", b"_tcp", b"a-", b"-b"], "_http._tcp.a-.-b.");
        check("office printer._ipp", &[b"office printer", b"_ipp"], r"office\ printer._ipp.");
        check(r"office\ printer._ipp", &[b"office printer", b"_ipp"], r"office\ printer._ipp.");
        check(r"office\032printer", &[b"office printer"], r"office\ printer.");
        check(r"a\.b.c", &[b"a.b", b"c"], r"a\.b.c.");
        check(r"a\.", &[b"a."], r"a\..");
        check(r"a\\.b", &[b"a\\", b"b"], r"a\\.b.");
        check("bücher.x", &["bücher".as_bytes(), b"x"], r"b\195\188cher.x.");
        check(r"\000\255", &[b"\0\xff"], r"\000\255.");
        check(
            "0/25.2.0.192.in-addr.arpa",
            &[b"0/25", b"2", b"0", b"192", b"in-addr", b"arpa"],
            "0/25.2.0.192.in-addr.arpa.",
        );
        check("a@b%c+d~e,f*g", &[b"a@b%c+d~e,f*g"], r"a\@b%c+d~e,f*g.");
        check("xn--bcher-kva.x", &[b"xn--bcher-kva", b"x"], "xn--bcher-kva.x.");
    }

    #[track_caller]
    fn check_refused(text: &str, wanted: NameError) {
        assert_eq!(absolute(text), Err(wanted), "{text}");
    }

    #[test]
    fn what_is_no_name_says_why() {
        for text in ["..", "a..b", ".a", "a.."] {
            check_refused(text, NameError::Empty);
        }
        for text in ["\\", "a\\", r"\25", r"\256", r"\1a2", r"a.\99"] {
            check_refused(text, NameError::Escape);
        }
        let label = "x".repeat(63);
        check_refused(&format!("{label}x.test"), NameError::Label);
        let longest = [label.as_str(), &label, &label, &label[..61]].join(".");
        assert!(absolute(&longest).is_ok());
        check_refused(&format!("{longest}x"), NameError::Name);
    }
}
