//! Fixed names, as in `/etc/hosts`: written into the configuration, or in a file that is followed (DNS-13.6).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
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
    /// Lines of such a file.
    pub(crate) lines: Vec<String>,
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
        self.table().addresses.values().map(Vec::len).sum()
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
            match std::fs::read_to_string(path) {
                Ok(read) => {
                    text = read;
                    self.unreadable.store(false, Ordering::Relaxed);
                    // A change after the stamp was taken is found by the next read.
                    *self.seen.write().unwrap_or_else(PoisonError::into_inner) = now;
                }
                Err(error) => {
                    if !self.unreadable.swap(true, Ordering::Relaxed) {
                        let path = path.display();
                        tracing::warn!(%path, %error, "the hosts file cannot be read; its last entries stay in force");
                    }
                    if self.entries() > 0 {
                        return;
                    }
                }
            }
        }
        let table = Arc::new(Table::read(text.lines().chain(self.config.lines.iter().map(String::as_str))));
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
        let Some(addresses) = table.addresses.get(name) else {
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
    fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut table = Self::default();
        for line in lines {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
            for word in words {
                let Ok(name) = names::absolute(word) else { continue };
                let addresses = table.addresses.entry(name.clone()).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                    table.names.entry(address).or_default().push(name);
                }
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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

    #[test]
    fn a_file_that_cannot_be_read_is_told_of_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hosts");
        let config = HostsConfig { lines: vec!["192.0.2.1 a".to_owned()], ..of(&path) };
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
        assert_eq!(written.matches("cannot be read").count(), 2, "{written}");
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
