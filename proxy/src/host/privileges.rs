//! The capabilities the daemon needs, and which of them it lacks: docs/privileges.md has the calls behind each.

use std::fs;
use std::io;

/// A capability of capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, such as `CAP_NET_ADMIN`.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Its bit in the sets that `/proc/PID/status` shows.
    bit: u32,
}

/// Attaching programs, the address on `lo`, ending sockets.
const NET_ADMIN: Capability = Capability {
    name: "CAP_NET_ADMIN",
    purpose: "attaches programs to cgroups and puts the DNS address on lo",
    bit: 12,
};
/// Loading programs takes CAP_BPF and CAP_PERFMON, which this includes, but entering a namespace takes this itself.
const SYS_ADMIN: Capability =
    Capability { name: "CAP_SYS_ADMIN", purpose: "loads BPF programs and enters network namespaces of pods", bit: 21 };
/// Links in `/proc/PID/ns` of processes that have other users or more capabilities.
const SYS_PTRACE: Capability =
    Capability { name: "CAP_SYS_PTRACE", purpose: "finds the network namespaces of pods by their processes", bit: 19 };
/// The DNS port.
const NET_BIND_SERVICE: Capability =
    Capability { name: "CAP_NET_BIND_SERVICE", purpose: "listens at port 53; not needed with --dns=false", bit: 10 };

/// The sockets by which iptables asks for tables.
const NET_RAW: Capability = Capability {
    name: "CAP_NET_RAW",
    purpose: "opens the raw sockets of iptables; not needed where nftables rules serve packets",
    bit: 13,
};

/// Those that a daemon needs, with or without DNS.
pub fn needed(dns: bool) -> impl Iterator<Item = Capability> {
    [NET_ADMIN, SYS_ADMIN, SYS_PTRACE].into_iter().chain(dns.then_some(NET_BIND_SERVICE))
}

/// The needed capabilities that this process lacks.
pub fn missing(dns: bool) -> io::Result<Vec<Capability>> {
    let effective = own()?;
    Ok(needed(dns).filter(|capability| effective >> capability.bit & 1 == 0).collect())
}

/// What iptables needs beside them, if this process lacks it.
pub fn missing_for_iptables() -> io::Result<Option<Capability>> {
    Ok((own()? >> NET_RAW.bit & 1 == 0).then_some(NET_RAW))
}

/// The effective set of this process.
fn own() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    effective(&status).ok_or_else(|| io::Error::other("/proc/self/status has no line CapEff"))
}

fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = "CapPrm:\tffffffffffffffff\nCapEff:\t0000000000201400\nCapBnd:\t0000000000000000\n";
        let set = effective(status).unwrap();
        let has: Vec<&str> = needed(true).filter(|c| set >> c.bit & 1 == 1).map(|c| c.name).collect();
        assert_eq!(has, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_NET_BIND_SERVICE"]);
        assert_eq!(effective("Name: x\n"), None);
    }

    #[test]
    fn without_dns_no_low_port_is_needed() {
        assert_eq!(needed(true).count(), needed(false).count() + 1);
    }
}
