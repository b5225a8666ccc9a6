//! The ports that the kernel gives to sockets of this node which ask for none in particular.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

/// `net.ipv4.ip_local_port_range`, which holds for IPv6 too, without `net.ipv4.ip_local_reserved_ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// As the kernel says for the network namespace of this process.
    pub fn read() -> io::Result<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
        let (range, reserved) = (read("ip_local_port_range")?, read("ip_local_reserved_ports")?);
        Self::parse(&range, &reserved).ok_or_else(|| io::Error::other(format!("{range:?} or {reserved:?} is no range")))
    }

    /// `32768 60999` and `8080,30000-32767`.
    pub(crate) fn parse(range: &str, reserved: &str) -> Option<Self> {
        let (first, last) = range.trim().split_once(char::is_whitespace)?;
        let range = first.parse().ok()?..=last.trim().parse().ok()?;
        let part = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        let parts = reserved.trim().split(',').filter(|part| !part.is_empty());
        Some(Self { range, reserved: parts.map(part).collect::<Option<_>>()? })
    }

    /// Whether the kernel may give this port to a socket.
    #[must_use]
    pub fn may_give(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// How many ports it may give.
    #[must_use]
    pub fn count(&self) -> usize {
        self.range.clone().filter(|port| self.may_give(*port)).count()
    }

    /// Whether it may give some port of `ports`.
    #[must_use]
    pub fn may_give_some_of(&self, mut ports: RangeInclusive<u16>) -> bool {
        ports.any(|port| self.may_give(port))
    }
}

#[cfg(test)]
mod tests {
    use super::LocalPorts;

    /// Which of these ports the kernel may give.
    #[track_caller]
    fn check(range: &str, reserved: &str, given: &[u16]) {
        let ports = LocalPorts::parse(range, reserved).unwrap();
        let found: Vec<u16> = [30000, 30001, 30080, 32767, 32768].into_iter().filter(|p| ports.may_give(*p)).collect();
        assert_eq!(found, given, "{range:?} without {reserved:?}");
    }

    #[test]
    fn the_kernel_gives_ports_of_its_range_that_are_not_reserved() {
        check("32768\t60999\n", "\n", &[32768]);
        check("1024\t65535\n", "\n", &[30000, 30001, 30080, 32767, 32768]);
        check("1024\t65535\n", "30000-32767\n", &[32768]);
        check("30001 32767", "8080,30080,40000-40010\n", &[30001, 32767]);
    }

    #[test]
    fn what_is_no_range_is_none() {
        for (range, reserved) in [("", ""), ("1024", ""), ("a b", ""), ("1 2", "x"), ("1 2", "1-70000")] {
            assert_eq!(LocalPorts::parse(range, reserved), None, "{range:?} {reserved:?}");
        }
    }

    #[test]
    fn a_range_is_given_if_one_of_its_ports_is() {
        let some = |reserved| LocalPorts::parse("32000 60999", reserved).unwrap().may_give_some_of(30000..=32767);
        assert_eq!([some(""), some("30000-32766"), some("30000-32767")], [true, true, false]);
    }

    #[test]
    fn this_kernel_is_understood() {
        LocalPorts::read().unwrap();
    }
}
