//! The kernel's settings for packets: conntrack's limits, bridges, forwarding and loopback (CT-30…37, TP-15).

mod conntrack;
mod programs;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use tracing::{debug, info, warn};

pub use self::conntrack::{Wanted, cores};
pub use self::programs::{faults_of_programs, prepare_for_programs};
use super::netlink::{Netlink, links};

/// A setting that must have a value and cannot get it.
#[derive(Debug, thiserror::Error)]
#[error("setting {name} to {value} in {}: do it on the host with sysctl -w {name}={value}", .path.display())]
pub struct SysctlError {
    name: String,
    value: u64,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What became of a setting that differed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is as wanted now, or need not be.
    Done(String),
    /// It stays as it was; somebody should look.
    Left(String),
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Done(line) | Self::Left(line)) = self;
        f.write_str(line)
    }
}

impl Told {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::Done(line) => info!("{line}"),
            Self::Left(line) => warn!("{line}"),
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    /// As sysctl(8) calls it.
    name: &'static str,
    value: u64,
    kind: Kind,
    /// What happens if it cannot be set.
    need: Need,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Below /proc/sys.
    Sysctl,
    /// A parameter of the module nf_conntrack, which is raised and never lowered (CT-31).
    HashSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// The operator chose the value: the start ends (CT-36).
    Chosen,
    /// It is a default: the log says so.
    Default,
}

impl Setting {
    fn path(&self, root: &Path) -> PathBuf {
        match self.kind {
            Kind::Sysctl => root.join("proc/sys").join(self.name.replace('.', "/")),
            Kind::HashSize => root.join("sys/module/nf_conntrack/parameters/hashsize"),
        }
    }

    fn is_met_by(&self, found: u64) -> bool {
        match self.kind {
            Kind::Sysctl => found == self.value,
            Kind::HashSize => found >= self.value,
        }
    }

    /// Writes the value if it differs. Gives what there is to log.
    fn apply(&self, root: &Path) -> Result<Option<Told>, SysctlError> {
        let Self { name, value, .. } = self;
        let path = self.path(root);
        let found = match read(&path) {
            Ok(found) if self.is_met_by(found) => return Ok(None),
            Ok(found) => found,
            Err(error) => return self.failed(path, error),
        };
        match write(&path, &self.path(&root.join("host")), &value.to_string()) {
            Ok(()) => Ok(Some(Told::Done(format!("{name} is {value} now; it was {found}")))),
            Err(error) if belongs_to_the_initial_namespace(&path, &error) => Ok(Some(Told::Done(format!(
                "{name} stays {found} where {value} is wanted: only the host's own network namespace can set it"
            )))),
            Err(error) => self.failed(path, error),
        }
    }

    fn failed(&self, path: PathBuf, source: io::Error) -> Result<Option<Told>, SysctlError> {
        let Self { name, value, kind: _, need } = *self;
        match need {
            Need::Chosen => Err(SysctlError { name: name.to_owned(), value, path, source }),
            Need::Default => Ok(Some(Told::Left(format!(
                "{name} should be {value} and cannot be set: {}: {source}; set it on the host",
                path.display()
            )))),
        }
    }
}

/// Sets conntrack's limits where they differ. Gives what there is to log.
pub fn apply(wanted: &Wanted) -> Result<Vec<Told>, SysctlError> {
    load_conntrack();
    apply_below(Path::new("/"), wanted)
}

fn apply_below(root: &Path, wanted: &Wanted) -> Result<Vec<Told>, SysctlError> {
    let applied = wanted.settings().into_iter().map(|setting| setting.apply(root));
    Ok(applied.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Lets the node send packets from 127.0.0.0/8 to other hosts' endpoints, for node ports at loopback (TP-15, CT-37).
/// The rules must guard it. What others have set stays theirs.
pub fn route_localnet() -> Result<Option<Told>, SysctlError> {
    route_localnet_below(Path::new("/"))
}

fn route_localnet_below(root: &Path) -> Result<Option<Told>, SysctlError> {
    match loopback_routing(root) {
        Some(found) if found != 0 => Ok(None),
        Some(_) | None => ROUTE_LOCALNET.apply(root),
    }
}

/// Takes back [`route_localnet`], before the rules that guard it go. What others have set stays.
pub fn end_route_localnet() -> Result<Option<Told>, SysctlError> {
    end_route_localnet_below(Path::new("/"))
}

fn end_route_localnet_below(root: &Path) -> Result<Option<Told>, SysctlError> {
    match loopback_routing(root) {
        Some(found) if found == ROUTE_LOCALNET.value => Setting { value: 0, ..ROUTE_LOCALNET }.apply(root),
        Some(_) | None => Ok(None),
    }
}

/// For the kernel every number but 0 means yes. Others write 1; by this one a later process knows that shunt wrote it,
/// in each network namespace of its own and until the next boot, as the setting itself.
const ROUTE_LOCALNET: Setting =
    Setting { name: "net.ipv4.conf.all.route_localnet", value: 2, kind: Kind::Sysctl, need: Need::Chosen };

fn loopback_routing(root: &Path) -> Option<u64> {
    read(&ROUTE_LOCALNET.path(root)).ok()
}

/// Lets rules see packets between two ports of one bridge: an answer that they did not see would keep the endpoint's
/// address. Gives what there is to log.
#[must_use]
pub fn show_bridged_packets() -> Vec<Told> {
    let set = |name| {
        let setting = Setting { name, value: 1, kind: Kind::Sysctl, need: Need::Default };
        setting.path(Path::new("/")).exists().then(|| setting.apply(Path::new("/")).ok().flatten()).flatten()
    };
    BRIDGED.into_iter().filter_map(set).collect()
}

const BRIDGED: [&str; 2] = ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];
const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// What is amiss with how this host treats packets of others, each with what to do; changes nothing.
#[must_use]
pub fn faults() -> Vec<String> {
    let root = Path::new("/");
    let value = |name| read(&Setting { name, value: 1, kind: Kind::Sysctl, need: Need::Default }.path(root)).ok();
    let [v4, v6] = FORWARDING;
    let mut faults = Vec::new();
    for name in [(v4, true), (v6, has_ipv6(root))].into_iter().filter_map(|(name, used)| used.then_some(name)) {
        if value(name) == Some(0) {
            faults
                .push(format!("{name} is 0: packets to pods and to endpoints of other nodes are dropped; set it to 1"));
        }
    }
    if links::has_bridge().unwrap_or(false) {
        for name in BRIDGED.into_iter().filter(|name| value(name) == Some(0)) {
            faults.push(format!(
                "{name} is 0: answers between two pods of one bridge keep the endpoint's address; set it to 1"
            ));
        }
    }
    faults.extend(hidden_bridges());
    faults
}

/// Without this module no rule sees packets inside a bridge. Others load it: it takes CAP_SYS_MODULE.
fn hidden_bridges() -> Option<String> {
    let [v4, _] = BRIDGED;
    let module = Setting { name: v4, value: 1, kind: Kind::Sysctl, need: Need::Default }.path(Path::new("/"));
    (!module.exists() && links::has_bridge().unwrap_or(false)).then(|| {
        "this host has a bridge and the module br_netfilter is not loaded: a pod that reaches another pod of its \
         bridge through a Service gets no answer by packets; run modprobe br_netfilter"
            .to_owned()
    })
}

/// Whether an interface has a global IPv6 address.
fn has_ipv6(root: &Path) -> bool {
    let listed = fs::read_to_string(root.join("proc/self/net/if_inet6")).unwrap_or_default();
    // Address, index, prefix length, scope, flags, name.
    listed.lines().any(|line| line.split_whitespace().nth(3) == Some("00"))
}

/// The kernel loads the module with the first question about flows; without it the settings are missing. Whether there
/// is an answer does not matter.
fn load_conntrack() {
    /// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_GET_STATS`.
    const STATISTICS: u16 = 0x0105;
    let asked = Netlink::open(NETLINK_NETFILTER).and_then(|mut netlink| netlink.order(STATISTICS, &[0; 4]));
    if let Err(error) = asked {
        debug!(%error, "asking conntrack for its statistics failed");
    }
}

/// A container finds its own /proc/sys read-only; the node's may be mounted beside it.
fn write(path: &Path, beside: &Path, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(_) if beside.exists() => fs::write(beside, value),
        written => written,
    }
}

fn read(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// The kernel makes such a file read-only in all other network namespaces, or refuses the write there.
fn belongs_to_the_initial_namespace(path: &Path, error: &io::Error) -> bool {
    let read_only = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o222 == 0);
    read_only || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kube_proxy::Conntrack;

    /// A host with these settings.
    pub(super) fn host(settings: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in settings {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
    const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    const CLOSE_WAIT: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    const HASH_SIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";

    #[test]
    fn what_differs_is_written_and_told() {
        let root = host(&[(MAX, "262144"), (ESTABLISHED, "86400"), (CLOSE_WAIT, "60"), (HASH_SIZE, "65536")]);
        let wanted = Wanted::new(&Conntrack::default(), 2);
        let told = apply_below(root.path(), &wanted).unwrap();
        assert_eq!(
            told,
            [
                "net.netfilter.nf_conntrack_max is 131072 now; it was 262144",
                "net.netfilter.nf_conntrack_tcp_timeout_close_wait is 3600 now; it was 60",
            ]
            .map(|line| Told::Done(line.to_owned()))
        );
        let now = |path| fs::read_to_string(root.path().join(path)).unwrap().trim().to_owned();
        assert_eq!([MAX, ESTABLISHED, CLOSE_WAIT, HASH_SIZE].map(now), ["131072", "86400", "3600", "65536"]);
        // CT-36: what already has its value is not written.
        assert_eq!(apply_below(root.path(), &wanted).unwrap(), []);
    }

    #[test]
    fn loopback_is_routed_as_long_as_it_is_ours() {
        const PATH: &str = "proc/sys/net/ipv4/conf/all/route_localnet";
        // What is found, what is there once node ports at loopback are served, and what when they end.
        for (found, served, ended) in [("0", "2", "0"), ("1", "1", "1"), ("2", "2", "0")] {
            let root = host(&[(PATH, found)]);
            let now = || fs::read_to_string(root.path().join(PATH)).unwrap().trim().to_owned();
            route_localnet_below(root.path()).unwrap();
            assert_eq!(now(), served);
            end_route_localnet_below(root.path()).unwrap();
            assert_eq!(now(), ended);
        }
    }

    #[test]
    fn a_default_that_cannot_be_set_is_told_and_a_chosen_value_ends_the_start() {
        let root = host(&[(MAX, "131072"), (ESTABLISHED, "86400"), (HASH_SIZE, "32768")]);
        let told = apply_below(root.path(), &Wanted::new(&Conntrack::default(), 1)).unwrap();
        let [Told::Left(line)] = told.as_slice() else { panic!("{told:?}") };
        assert!(line.starts_with("net.netfilter.nf_conntrack_tcp_timeout_close_wait should be 3600"), "{line}");
        let chosen = Conntrack { tcp_close_wait_timeout: "30m".parse().unwrap(), ..Conntrack::default() };
        let error = apply_below(root.path(), &Wanted::new(&chosen, 1)).unwrap_err().to_string();
        for words in ["net.netfilter.nf_conntrack_tcp_timeout_close_wait", "1800", "sysctl -w"] {
            assert!(error.contains(words), "{error}");
        }
    }
}
