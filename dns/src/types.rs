//! Types of records by name and number: the names of IANA's registry, and `TYPE123` for any other (RFC 3597 section 5).

use hickory_proto::rr::RecordType;

/// The registered types that hickory does not know.
const OTHERS: [(&str, u16); 56] = [
    ("MD", 3),
    ("MF", 4),
    ("MB", 7),
    ("MG", 8),
    ("MR", 9),
    ("WKS", 11),
    ("MINFO", 14),
    ("RP", 17),
    ("AFSDB", 18),
    ("X25", 19),
    ("ISDN", 20),
    ("RT", 21),
    ("NSAP", 22),
    ("NSAP-PTR", 23),
    ("PX", 26),
    ("GPOS", 27),
    ("LOC", 29),
    ("NXT", 30),
    ("EID", 31),
    ("NIMLOC", 32),
    ("ATMA", 34),
    ("KX", 36),
    ("A6", 38),
    ("SINK", 40),
    ("APL", 42),
    ("IPSECKEY", 45),
    ("DHCID", 49),
    ("HIP", 55),
    ("NINFO", 56),
    ("RKEY", 57),
    ("TALINK", 58),
    ("ZONEMD", 63),
    ("DSYNC", 66),
    ("HHIT", 67),
    ("BRID", 68),
    ("SPF", 99),
    ("UINFO", 100),
    ("UID", 101),
    ("GID", 102),
    ("UNSPEC", 103),
    ("NID", 104),
    ("L32", 105),
    ("L64", 106),
    ("LP", 107),
    ("EUI48", 108),
    ("EUI64", 109),
    ("NXNAME", 128),
    ("TKEY", 249),
    ("MAILB", 253),
    ("MAILA", 254),
    ("URI", 256),
    ("AVC", 258),
    ("DOA", 259),
    ("AMTRELAY", 260),
    ("RESINFO", 261),
    ("WALLET", 262),
];

/// The type of that name, in upper or lower case, or of that number as in `TYPE123`.
#[must_use]
pub fn record_type(text: &str) -> Option<RecordType> {
    let upper = text.to_ascii_uppercase();
    if let Some((_, number)) = OTHERS.iter().find(|(name, _)| *name == upper) {
        return Some(RecordType::from(*number));
    }
    if let Some(number) = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok()) {
        return Some(number.into());
    }
    match upper.as_str() {
        "IXFR" => Some(RecordType::IXFR),
        "OPT" => Some(RecordType::OPT),
        upper => upper.parse().ok(),
    }
}

/// The registered name, or `TYPE123`; [`record_type`] reads it back.
#[must_use]
pub fn type_name(rtype: RecordType) -> String {
    let number = u16::from(rtype);
    match (OTHERS.iter().find(|(_, other)| *other == number), rtype) {
        (Some((name, _)), _) => (*name).to_owned(),
        (None, RecordType::Unknown(_) | RecordType::ZERO) => format!("TYPE{number}"),
        (None, known) => known.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, number: u16, name: &str) {
        let rtype = record_type(text).unwrap();
        assert_eq!((u16::from(rtype), type_name(rtype).as_str()), (number, name), "{text}");
    }

    #[test]
    fn a_type_has_a_name_or_a_number() {
        check("aaaa", 28, "AAAA");
        check("TYPE65", 65, "HTTPS");
        check("type65282", 65282, "TYPE65282");
        check("TYPE0", 0, "TYPE0");
        check("afsdb", 18, "AFSDB");
        check("NSAP-PTR", 23, "NSAP-PTR");
        check("ANY", 255, "ANY");
        for text in ["", "TYPE", "TYPE65536", "TYPE-1", "ADRESS", "Unknown"] {
            assert_eq!(record_type(text), None, "{text}");
        }
        // Every name reads back.
        for number in 0..=u16::MAX {
            let name = type_name(number.into());
            assert_eq!(record_type(&name).map(u16::from), Some(number), "{name}");
        }
    }
}
