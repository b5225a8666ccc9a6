//! Every type of record in IANA's registry, with RDATA written by hand.

use super::raw;

/// What names in the RDATA of a type mean for who passes them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// There are none, or none that anybody has to look at: the RDATA is octets.
    Octets,
    /// They may come compressed (RFC 1035 section 3.3, RFC 3597 section 4), so they have to be read.
    Compressed,
    /// They are never compressed, and are read to see where the answer leads to.
    Read,
}

/// A type of record.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) number: u16,
    pub(super) mnemonic: &'static str,
    pub(super) names: Names,
    /// Digits: so many octets; `S`: a string after its length; `N`: a name; `*`: the rest.
    pub(super) layout: &'static str,
    /// RDATA as words: hexadecimal octets, `"a string"` without spaces, names with their final dot.
    pub(super) legal: &'static str,
    /// Other RDATA that its type does not allow.
    pub(super) odd: &'static [&'static str],
}

const fn octets(number: u16, mnemonic: &'static str, legal: &'static str) -> Kind {
    Kind { number, mnemonic, names: Names::Octets, layout: "*", legal, odd: &[] }
}

const fn with_names(number: u16, mnemonic: &'static str, layout: &'static str, legal: &'static str) -> Kind {
    Kind { number, mnemonic, names: Names::Octets, layout, legal, odd: &[] }
}

const fn compressed(number: u16, mnemonic: &'static str, layout: &'static str, legal: &'static str) -> Kind {
    Kind { number, mnemonic, names: Names::Compressed, layout, legal, odd: &[] }
}

const fn read(number: u16, mnemonic: &'static str, layout: &'static str, legal: &'static str) -> Kind {
    Kind { number, mnemonic, names: Names::Read, layout, legal, odd: &[] }
}

impl Kind {
    const fn or_odd(self, odd: &'static [&'static str]) -> Self {
        Self { odd, ..self }
    }

    /// Its RDATA is not taken as it is: a record that does not fit the layout may be lost with its RRset.
    pub(super) fn is_looked_at(&self) -> bool {
        self.names != Names::Octets || self.layout == "4" || self.layout == "16"
    }
}

const SVCB_ODD: &[&str] = &[
    "0001 . 0001 0006 02fafa026832",             // an ALPN id that is not UTF-8
    "0001 . 0003 0004 00001f90",                 // a port of four octets
    "0001 . 0001 0003 026832 0001 0003 026832",  // the same key twice
    "0001 . 0003 0002 1f90 0001 0003 026832",    // keys in the wrong order
    "0001 . 0001 0009 026832",                   // a value that is longer than the RDATA
    "0001 . 0004 0003 c00002",                   // three octets of an address
    "0001 . 0000 0002 0007",                     // a mandatory key that is absent
    "0000 Svc.Elsewhere.test. 0001 0003 026832", // an alias with parameters
];

const SIGNATURE: &str = "0001 0d 02 0000012c 68000000 67000000 3039 Signer.Elsewhere.test. 5a*64";

pub(super) const KINDS: &[Kind] = &[
    Kind { layout: "4", ..octets(1, "A", "c0000207") },
    compressed(2, "NS", "N", "Ns.Elsewhere.test."),
    compressed(3, "MD", "N", "Md.Elsewhere.test."),
    compressed(4, "MF", "N", "Mf.Elsewhere.test."),
    compressed(5, "CNAME", "N", "Www.Elsewhere.test."),
    compressed(
        6,
        "SOA",
        "NN20",
        "Ns.Elsewhere.test. Admin.Elsewhere.test. 00000009 0000000a 0000000b 0000000c 0000012c",
    ),
    compressed(7, "MB", "N", "Mb.Elsewhere.test."),
    compressed(8, "MG", "N", "Mg.Elsewhere.test."),
    compressed(9, "MR", "N", "Mr.Elsewhere.test."),
    octets(10, "NULL", "00ff7f"),
    octets(11, "WKS", "c0000207 06 000040"),
    compressed(12, "PTR", "N", "Ptr.Elsewhere.test."),
    octets(13, "HINFO", "\"VAX\" \"UNIX\"").or_odd(&["\"VAX\"", "\"a\" \"b\" \"c\""]),
    compressed(14, "MINFO", "NN", "Owner.Elsewhere.test. Errors.Elsewhere.test."),
    compressed(15, "MX", "2N", "000a Mail.Elsewhere.test."),
    octets(16, "TXT", "\"one\" \"\" 03fffe00").or_odd(&["05 616263"]),
    compressed(17, "RP", "NN", "Mbox.Elsewhere.test. Txt.Elsewhere.test."),
    compressed(18, "AFSDB", "2N", "0001 Afs.Elsewhere.test."),
    octets(19, "X25", "\"311061700956\""),
    octets(20, "ISDN", "\"150862028003217\" \"004\""),
    compressed(21, "RT", "2N", "000a Relay.Elsewhere.test."),
    octets(22, "NSAP", "47000580005a0000000001e133ffffff00016100"),
    with_names(23, "NSAP-PTR", "N", "Nsap.Elsewhere.test."),
    compressed(24, "SIG", "18N*", SIGNATURE),
    octets(25, "KEY", "0100 03 0d 5a*32"),
    compressed(26, "PX", "2NN", "000a Map822.Elsewhere.test. Mapx400.Elsewhere.test."),
    octets(27, "GPOS", "\"-32.6882\" \"116.8652\" \"10.0\""),
    Kind { layout: "16", ..octets(28, "AAAA", "20010db8 00*11 07") },
    octets(29, "LOC", "00 12 16 13 89172dd0 70be15f0 00988d20").or_odd(&["01 12 16 13 89172dd0 70be15f0 00988d20"]),
    compressed(30, "NXT", "N*", "Next.Elsewhere.test. 40000002"),
    octets(31, "EID", "e32c6f78163a9348"),
    octets(32, "NIMLOC", "32251a030067"),
    compressed(33, "SRV", "6N", "0001 0002 1f90 Srv.Elsewhere.test."),
    octets(34, "ATMA", "00 39246f000e7c9c031200010001000012345678"),
    compressed(35, "NAPTR", "4SSSN", "0064 000a \"u\" \"E2U+sip\" \"!^.*$!sip:a@b!\" Naptr.Elsewhere.test."),
    with_names(36, "KX", "2N", "000a Kx.Elsewhere.test."),
    octets(37, "CERT", "0001 3039 0d 5a*64"),
    with_names(38, "A6", "9N", "40 0000000000000007 Prefix.Elsewhere.test."),
    read(39, "DNAME", "N", "Dname.Elsewhere.test."),
    octets(40, "SINK", "40 41 42 5a5a"),
    octets(42, "APL", "0001 18 03 c00002").or_odd(&["0001 ff 83 c00002", "0001 18 7f c00002"]),
    octets(43, "DS", "3039 0d 02 5a*32").or_odd(&["3039 0d 02"]),
    octets(44, "SSHFP", "04 02 5a*32"),
    with_names(45, "IPSECKEY", "3N*", "0a 03 02 Gateway.Elsewhere.test. 5a*16").or_odd(&["0a 07 02 5a*16"]),
    with_names(46, "RRSIG", "18N*", SIGNATURE),
    with_names(47, "NSEC", "N*", "Next.Elsewhere.test. 0006 400000000003").or_odd(&["Next.Elsewhere.test. 0000 ff"]),
    octets(48, "DNSKEY", "0101 03 0d 5a*64").or_odd(&["0101 02 0d"]),
    octets(49, "DHCID", "000201636fc0b8271c82825bb1ac5c41cf5351aa69b4febd94e8f17cdb95000da48c40"),
    octets(50, "NSEC3", "01 00 000a 04 aabbccdd 14 5a*20 0006 400000000003").or_odd(&["01 00 000a ff aabbccdd"]),
    octets(51, "NSEC3PARAM", "01 00 000a 04 aabbccdd"),
    octets(52, "TLSA", "03 01 01 5a*32").or_odd(&["03"]),
    octets(53, "SMIMEA", "03 00 00 5a*32"),
    with_names(55, "HIP", "32N", "10 02 000c 200100107b1a74df365639cc39f1d578 5a*12 Rvs.Elsewhere.test."),
    octets(56, "NINFO", "\"status\""),
    octets(57, "RKEY", "0000 01 0d 5a*32"),
    with_names(58, "TALINK", "NN", "Before.Elsewhere.test. After.Elsewhere.test."),
    octets(59, "CDS", "0000 00 00 00"),
    octets(60, "CDNSKEY", "0000 03 00 00"),
    octets(61, "OPENPGPKEY", "99 5a*64"),
    octets(62, "CSYNC", "00000042 0003 0004 60000008"),
    octets(63, "ZONEMD", "77a0b3c1 01 01 5a*48"),
    read(64, "SVCB", "2N*", "0001 Svc.Elsewhere.test. 0001 0003 026832 0003 0002 1f90").or_odd(SVCB_ODD),
    read(65, "HTTPS", "2N*", "0001 . 0001 0006 026832026833 0004 0004 c0000207 0005 0002 beef fde8 0003 414243")
        .or_odd(SVCB_ODD),
    with_names(66, "DSYNC", "5N", "003b 01 14eb Rr-endpoint.Elsewhere.test."),
    octets(67, "HHIT", "5a*40"),
    octets(68, "BRID", "5a*40"),
    octets(99, "SPF", "\"v=spf1\""),
    octets(100, "UINFO", "5a5a"),
    octets(101, "UID", "000003e8"),
    octets(102, "GID", "000003e8"),
    octets(103, "UNSPEC", "5a"),
    octets(104, "NID", "000a 0014 4fff ff20 ee64"),
    octets(105, "L32", "000a 0a010200"),
    octets(106, "L64", "000a 20010db8 11400010"),
    with_names(107, "LP", "2N", "000a L64-subnet1.Elsewhere.test."),
    octets(108, "EUI48", "00005e00532a"),
    octets(109, "EUI64", "00005eef1000002a"),
    octets(256, "URI", "000a 0001 6674703a2f2f782e746573742f").or_odd(&["000a 0001"]),
    octets(257, "CAA", "00 \"issue\" 63612e74657374").or_odd(&["00 \"\" 63", "80 ff 697373", "00 03 692d21 ff"]),
    octets(258, "AVC", "\"app-name:x\""),
    octets(259, "DOA", "ffffffff 00000001 02 \"text/plain\" 5a*8"),
    octets(260, "AMTRELAY", "0a 01 c0000207"),
    octets(261, "RESINFO", "\"qnamemin\""),
    octets(262, "WALLET", "\"ETH\" \"0x0\""),
    octets(263, "CLA", "\"x\""),
    octets(264, "IPN", "0000000000000005"),
    octets(32768, "TA", "3039 0d 02 5a*32"),
    octets(32769, "DLV", "3039 0d 02 5a*32"),
    // Types that nobody has assigned, for private use, and the last.
    octets(54, "TYPE54", "c00c"),
    octets(1000, "TYPE1000", "ffff"),
    octets(61439, "TYPE61439", "00"),
    octets(65280, "TYPE65280", "c0ff"),
    octets(65282, "TYPE65282", "0a000001"),
    octets(65534, "TYPE65534", "40"),
    octets(65535, "TYPE65535", "01"),
];

/// Types that are asked for and never answered with: NXNAME, TKEY, TSIG, MAILB, MAILA, ANY, and 0.
pub(super) const ONLY_ASKED: [u16; 7] = [128, 249, 250, 253, 254, 255, 0];

pub(super) fn kind(number: u16) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.number == number)
}

/// A name of 255 octets.
pub(super) fn longest_name() -> String {
    let label = "L".repeat(63);
    format!("{label}.{label}.{label}.{}.", "l".repeat(61))
}

/// The octets that `words` mean at `at` in a message whose question has the name `owner`: as they are sent, and with
/// whole names. `^label` is a name of this label and a pointer to the question, `@` a pointer to itself.
pub(super) fn compose(words: &str, at: usize, owner: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut whole) = (Vec::new(), Vec::new());
    for word in words.split_whitespace() {
        let octets = if let Some(label) = word.strip_prefix('^') {
            let label = [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
            sent.extend([label.as_slice(), &(0xc000 | raw::QUESTION).to_be_bytes()].concat());
            whole.extend([&label, owner].concat());
            continue;
        } else if word == "@" {
            (0xc000 | u16::try_from(at + sent.len()).unwrap()).to_be_bytes().to_vec()
        } else if let Some(text) = word.strip_prefix('"') {
            let text = text.trim_end_matches('"').as_bytes();
            [&[u8::try_from(text.len()).unwrap()], text].concat()
        } else if word.ends_with('.') {
            raw::labels(word)
        } else {
            let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
            let octet = |place: usize| u8::from_str_radix(&digits[place..place + 2], 16).unwrap();
            (0..digits.len()).step_by(2).map(octet).collect::<Vec<u8>>().repeat(times.parse().unwrap())
        };
        sent.extend(&octets);
        whole.extend(octets);
    }
    (sent, whole)
}

/// Whether a word of RDATA is a name.
pub(super) fn is_name(word: &str) -> bool {
    word.ends_with('.') && !word.starts_with('"')
}

/// The RDATA with whole names, of a type whose names may be compressed; `None` of others, and of what is odd.
pub(super) fn whole(rtype: u16, wire: &[u8], at: usize, end: usize) -> Option<Vec<u8>> {
    let kind = kind(rtype).filter(|kind| kind.names == Names::Compressed)?;
    walk(kind.layout, wire, at, end, |name| name)
}

/// RDATA without compression whose names are replaced by what `other` makes of them.
pub(super) fn renamed(record: &raw::Record, other: impl FnMut(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let layout = kind(record.rtype).map_or("*", |kind| kind.layout);
    walk(layout, &record.rdata, 0, record.rdata.len(), other).unwrap_or_else(|| record.rdata.clone())
}

/// The names in the RDATA of a record, which has no compression.
pub(super) fn names(record: &raw::Record) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    renamed(record, |name| {
        names.push(name.clone());
        name
    });
    names
}

fn walk(
    layout: &str,
    wire: &[u8],
    mut at: usize,
    end: usize,
    mut other: impl FnMut(Vec<u8>) -> Vec<u8>,
) -> Option<Vec<u8>> {
    let mut rdata = Vec::new();
    let mut fields = layout.chars().peekable();
    while let Some(field) = fields.next() {
        let length = match field {
            'N' => {
                rdata.extend(other(raw::name(wire, &mut at).ok().filter(|_| at <= end)?));
                continue;
            }
            'S' => 1 + usize::from(*wire.get(at)?),
            '*' => end.checked_sub(at)?,
            digit => {
                let mut number = digit.to_digit(10)?;
                while let Some(next) = fields.peek().and_then(|next| next.to_digit(10)) {
                    number = number * 10 + next;
                    fields.next();
                }
                usize::try_from(number).ok()?
            }
        };
        rdata.extend(wire.get(at..at + length).filter(|_| at + length <= end)?);
        at += length;
    }
    (at == end).then_some(rdata)
}
