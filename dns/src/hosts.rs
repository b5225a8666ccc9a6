//! Fixed names, as in `/etc/hosts`: written into the configuration, or in a file that is followed (DNS-13.6).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use shunt_model::Stamp;

use crate::names;
use crate::plugin::Author;
use crate::records;
use crate::reply::Reply;

/// Which names, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostsConfig {
    /// A file of more names.
    pub(crate) file: Option<PathBuf>,
    /// Lines of such a file, as words.
    pub(crate) lines: Vec<Vec<String>>,
    /// Only names in these domains; the addresses' own names are answered anyway.
    pub(crate) zones: Vec<Name>,
    /// Seconds for which an answer may be kept.
    pub(crate) ttl: u32,
    /// How often the file is read again; zero for never.
    pub(crate) reload: Duration,
    /// No names of addresses.
    pub(crate) no_reverse: bool,
    /// Domains in which a name that is not here is looked for elsewhere; else it does not exist.
    pub(crate) fallthrough: Vec<Name>,
}

/// The names now.
pub(crate) struct Hosts {
    config: HostsConfig,
    table: RwLock<Arc<Table>>,
    /// The last read of the file failed, and that has been logged.
    unreadable: AtomicBool,
    /// The file in force.
    seen: RwLock<Option<Stamp>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    addresses: HashMap<Name, Vec<IpAddr>>,
    /// Of names that have one label in front of this one, in a file `*.` and this one.
    wildcards: HashMap<Name, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<Name>>,
}

impl Hosts {
    pub(crate) fn new(config: HostsConfig) -> Self {
        let hosts =
            Self { config, table: RwLock::default(), unreadable: AtomicBool::new(false), seen: RwLock::default() };
        hosts.read_again();
        hosts
    }

    /// How often the file is to be read again.
    pub(crate) fn reload(&self) -> Option<Duration> {
        self.config.file.as_ref().map(|_| self.config.reload).filter(|every| !every.is_zero())
    }

    /// How many pairs of a name and an address there are.
    pub(crate) fn entries(&self) -> usize {
        let table = self.table();
        table.addresses.values().chain(table.wildcards.values()).map(Vec::len).sum()
    }

    /// The file of more names.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.config.file.as_deref()
    }

    /// The modification time of the file in force, if there is one.
    pub(crate) fn written(&self) -> Option<SystemTime> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).and_then(|stamp| stamp.modified())
    }

    /// Reads the file if it changed. While it cannot be read, its last entries stay in force.
    pub(crate) fn read_again(&self) {
        let mut text = String::new();
        if let Some(path) = &self.config.file {
            let now = std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
            let unread = self.unreadable.load(Ordering::Relaxed);
            if !unread && now.is_some() && now == *self.seen.read().unwrap_or_else(PoisonError::into_inner) {
                return;
            }
            match std::fs::read(path) {
                Ok(octets) => {
                    text = escaped(&octets);
                    self.unreadable.store(false, Ordering::Relaxed);
                    // A change after the stamp was taken is found by the next read.
                    *self.seen.write().unwrap_or_else(PoisonError::into_inner) = now;
                }
                Err(error) => {
                    let stays = self.entries() > 0;
                    if !self.unreadable.swap(true, Ordering::Relaxed) {
                        let stay = if stays { "; its last entries stay in force" } else { "" };
                        tracing::warn!(path = %path.display(), %error, "the hosts file cannot be read{stay}");
                    }
                    if stays {
                        return;
                    }
                }
            }
        }
        let table = Arc::new(Table::read(&text, &self.config.lines));
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// `None` if these hosts have no answer and the next handler must be asked.
    pub(crate) fn answer(&self, query: &Query) -> Option<Reply> {
        let (name, ttl, table) = (&query.name, self.config.ttl, self.table());
        if query.query_type == RecordType::PTR {
            let address = crate::question::address_of(name).filter(|_| !self.config.no_reverse)?;
            let names = table.names.get(&address)?;
            return Some(found(names.iter().map(|target| records::ptr(name.clone(), ttl, target.clone()))));
        }
        if !self.config.zones.iter().any(|zone| zone.zone_of(name)) {
            return None;
        }
        // For any type: a name that is here exists.
        let Some(addresses) = table.addresses_of(name) else {
            let passes = self.config.fallthrough.iter().any(|zone| zone.zone_of(name));
            return (!passes).then(|| self.nothing(name, ResponseCode::NXDomain));
        };
        let family = |ip: &IpAddr| if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let wanted = |ip: &&IpAddr| family(ip) == query.query_type;
        let reply = found(addresses.iter().filter(wanted).map(|ip| records::address(name.clone(), ttl, *ip)));
        Some(if reply.answers.is_empty() { self.nothing(name, ResponseCode::NoError) } else { reply })
    }

    /// With an SOA, so that the absence is kept no longer than an answer.
    fn nothing(&self, name: &Name, rcode: ResponseCode) -> Reply {
        let zone = self.config.zones.iter().filter(|zone| zone.zone_of(name)).max_by_key(|zone| zone.num_labels());
        let soa = records::soa(zone.cloned().unwrap_or_default(), self.config.ttl, 1);
        Reply { rcode, authorities: vec![soa], ..Reply::cluster(Author::Hosts) }
    }
}

fn found(answers: impl Iterator<Item = Record>) -> Reply {
    Reply { answers: answers.collect(), ..Reply::cluster(Author::Hosts) }
}

impl Table {
    /// Lines that make no sense are left out, as libc does.
    fn read(text: &str, lines: &[Vec<String>]) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            table.add(line.split('#').next().unwrap_or_default().split_whitespace());
        }
        for line in lines {
            table.add(line.iter().map(String::as_str));
        }
        table
    }

    /// An address and its names.
    fn add<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) {
        let Some(address) = words.next().and_then(address) else { return };
        for name in words.filter_map(|word| names::absolute(word).ok()) {
            let is_wildcard = name.iter().next() == Some(b"*");
            let addresses = if is_wildcard {
                self.wildcards.entry(name.base_name()).or_default()
            } else {
                self.addresses.entry(name.clone()).or_default()
            };
            if !addresses.contains(&address) {
                addresses.push(address);
                if !is_wildcard {
                    self.names.entry(address).or_default().push(name);
                }
            }
        }
    }

    /// A name of its own comes before all wildcards, whatever the type.
    fn addresses_of(&self, name: &Name) -> Option<&Vec<IpAddr>> {
        let wildcard = || self.wildcards.get(&name.base_name()).filter(|_| !name.is_root());
        self.addresses.get(name).or_else(wildcard)
    }
}

/// In a name each octet counts, whatever the encoding of the file.
fn escaped(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len());
    for octet in octets {
        match octet {
            0..=127 => text.push(char::from(*octet)),
            128..=255 => text.push_str(&format!("\\{octet:03}")),
        }
    }
    text
}

/// The address that begins a line. Its zone means nothing to those who ask, so that it is left out; an IPv4 address may
/// be written as an IPv6 one.
pub(crate) fn address(word: &str) -> Option<IpAddr> {
    let ip = word.split_once('%').map_or(word, |(ip, _)| ip);
    ip.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RData;

    use super::*;

    fn of(path: &Path) -> HostsConfig {
        HostsConfig {
            file: Some(path.to_owned()),
            lines: Vec::new(),
            zones: vec![Name::root()],
            ttl: 60,
            reload: Duration::from_secs(5),
            no_reverse: false,
            fallthrough: Vec::new(),
        }
    }

    /// What a file with these lines says of a question: answers, `none` for no data, `NXDOMAIN`.
    #[track_caller]
    fn check(lines: &[u8], question: &str, rtype: RecordType, wanted: &str) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hosts");
        std::fs::write(&path, lines).unwrap();
        let reply = Hosts::new(of(&path)).answer(&Query::query(names::absolute(question).unwrap(), rtype));
        let answers = |reply: Reply| {
            assert!(reply.answers.iter().all(|record| record.name == names::absolute(question).unwrap()));
            let data = |record: &Record| {
                if let RData::PTR(name) = &record.data { names::text(name) } else { record.data.to_string() }
            };
            let answers = reply.answers.iter().map(data).collect::<Vec<_>>().join(" ");
            if reply.rcode == ResponseCode::NXDomain {
                "NXDOMAIN".to_owned()
            } else if answers.is_empty() {
                "none".to_owned()
            } else {
                answers
            }
        };
        assert_eq!(reply.map_or_else(|| "passed on".to_owned(), answers), wanted, "{question} {rtype}");
    }

    #[test]
    fn addresses_are_taken_in_all_their_spellings() {
        use RecordType::{A, AAAA, PTR};
        let lines = b"::ffff:192.0.2.30 mapped\nfe80::1%lo0 localhost\nfd00::1%7 zoned\n192.0.2.31%x odd\n\
                      192.0.2.300 bad\nfe80::%\n%lo nothing\n";
        check(lines, "mapped", A, "192.0.2.30");
        check(lines, "mapped", AAAA, "none");
        check(lines, "30.2.0.192.in-addr.arpa", PTR, "mapped.");
        check(lines, "localhost", AAAA, "fe80::1");
        check(lines, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa", PTR, "localhost.");
        check(lines, "zoned", AAAA, "fd00::1");
        check(lines, "odd", A, "192.0.2.31");
        check(lines, "bad", A, "NXDOMAIN");
        check(lines, "nothing", A, "NXDOMAIN");
    }

    #[test]
    fn a_wildcard_is_one_label_that_has_no_line_of_its_own() {
        use RecordType::{A, AAAA, PTR, TXT};
        let lines = b"192.0.2.1 *.apps.lab.test\n192.0.2.2 shop.apps.lab.test\nfd00::1 *.Apps.lab.test\n\
                      192.0.2.3 a*.lab.test *.*.star.test b.*.test *\n192.0.2.1 *.apps.lab.test\n";
        check(lines, "one.apps.lab.test", A, "192.0.2.1");
        check(lines, "ONE.Apps.lab.test", AAAA, "fd00::1");
        check(lines, "one.apps.lab.test", TXT, "none");
        check(lines, "*.apps.lab.test", A, "192.0.2.1");
        check(lines, r"a\.b.apps.lab.test", A, "192.0.2.1");
        check(lines, "shop.apps.lab.test", A, "192.0.2.2");
        check(lines, "shop.apps.lab.test", AAAA, "none");
        check(lines, "apps.lab.test", A, "NXDOMAIN");
        check(lines, "deep.one.apps.lab.test", A, "NXDOMAIN");
        check(lines, "x.shop.apps.lab.test", A, "NXDOMAIN");
        // An asterisk elsewhere is a character.
        check(lines, "ab.lab.test", A, "NXDOMAIN");
        check(lines, "a*.lab.test", A, "192.0.2.3");
        check(lines, "x.*.star.test", A, "192.0.2.3");
        check(lines, "x.y.star.test", A, "NXDOMAIN");
        check(lines, "b.x.test", A, "NXDOMAIN");
        check(lines, "b.*.test", A, "192.0.2.3");
        // `*` alone.
        check(lines, "printer", A, "192.0.2.3");
        check(lines, ".", A, "NXDOMAIN");
        check(lines, "1.2.0.192.in-addr.arpa", PTR, "passed on");
        check(lines, "3.2.0.192.in-addr.arpa", PTR, r"a*.lab.test. b.*.test.");
        check(b"192.0.2.1 *\n", "1.2.0.192.in-addr.arpa", PTR, "passed on");
    }

    #[test]
    fn names_are_any_octets() {
        use RecordType::{A, PTR};
        let lines = "192.0.2.1 office\\032printer.test b\u{fc}cher.test a\u{a0}b.test 0/25.2.0.192.in-addr.arpa a@b%c+d~e,f -x-.test\n";
        let lines = [lines.as_bytes(), b"192.0.2.2 caf\xe9.test # \xe9\n"].concat();
        for name in [
            r"Office\ Printer.test",
            "b\u{fc}cher.test",
            "a\u{a0}b.test",
            "0/25.2.0.192.in-addr.arpa",
            "a@b%c+d~e,f",
            "-x-.test",
        ] {
            check(&lines, name, A, "192.0.2.1");
        }
        check(&lines, r"caf\233.test", A, "192.0.2.2");
        check(&lines, "2.2.0.192.in-addr.arpa", PTR, r"caf\233.test.");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_of_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hosts");
        let config = HostsConfig { lines: vec![vec!["192.0.2.1".to_owned(), "a".to_owned()]], ..of(&path) };
        let written = crate::log::written(|| {
            let hosts = Hosts::new(config);
            hosts.read_again();
            std::fs::write(&path, "192.0.2.2 b").unwrap();
            hosts.read_again();
            assert_eq!(hosts.entries(), 2);
            std::fs::remove_file(&path).unwrap();
            hosts.read_again();
            hosts.read_again();
            assert_eq!(hosts.entries(), 2);
        });
        let told = written.lines().filter(|line| line.contains("the hosts file cannot be read"));
        let stay: Vec<bool> = told.map(|line| line.contains("its last entries stay in force")).collect();
        assert_eq!(stay, [false, true], "{written}");
    }

    #[test]
    fn another_file_is_read_however_much_it_is_like_the_last_one() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hosts");
        let write = |to: &str, text: &str| {
            let to = place.path().join(to);
            std::fs::write(&to, text).unwrap();
            std::fs::File::options().write(true).open(&to).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        write("hosts", "192.0.2.1 a");
        let hosts = Hosts::new(of(&path));
        write("next", "192.0.2.2 a");
        std::fs::rename(place.path().join("next"), &path).unwrap();
        hosts.read_again();
        let addresses = hosts.table().addresses.values().flatten().copied().collect::<Vec<_>>();
        assert_eq!(addresses, ["192.0.2.2".parse::<IpAddr>().unwrap()]);
    }
}
