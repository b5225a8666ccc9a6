//! Which limits conntrack gets, from kube-proxy's configuration and the size of this host (CT-30…35).

use std::fs;

use shunt_model::GoDuration;

use super::{Kind, Need, Setting};
use crate::config::kube_proxy::Conntrack;

/// On large machines the flows per core add up to more than anybody needs.
const MOST: u64 = 1 << 20;

/// The limits that an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    settings: Vec<Setting>,
}

impl Wanted {
    /// What the configuration says for a host with so many cores.
    #[must_use]
    pub fn new(conntrack: &Conntrack, cores: u32) -> Self {
        let default = Conntrack::default();
        let Conntrack {
            max_per_core,
            min,
            tcp_established_timeout,
            tcp_close_wait_timeout,
            tcp_be_liberal,
            udp_timeout,
            udp_stream_timeout,
        } = conntrack;
        let need = |is_default| if is_default { Need::Default } else { Need::Chosen };
        let sysctl = |name, value, is_default| Setting { name, value, kind: Kind::Sysctl, need: need(is_default) };
        let seconds = |name, wanted: &GoDuration, default: &GoDuration| {
            let value = wanted.0.as_secs();
            (value > 0).then(|| sysctl(name, value, wanted == default))
        };
        let max = most_flows(*max_per_core, *min, cores);
        let chosen_max = (*max_per_core, *min) != (default.max_per_core, default.min);
        // A table that cannot grow is slower, and no more: CT-31.
        let buckets = max.map(|max| Setting {
            name: "nf_conntrack.hashsize",
            value: max / 4,
            kind: Kind::HashSize,
            need: Need::Default,
        });
        let settings = [
            max.map(|max| sysctl("net.netfilter.nf_conntrack_max", max, !chosen_max)),
            buckets,
            seconds(
                "net.netfilter.nf_conntrack_tcp_timeout_established",
                tcp_established_timeout,
                &default.tcp_established_timeout,
            ),
            seconds(
                "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
                tcp_close_wait_timeout,
                &default.tcp_close_wait_timeout,
            ),
            tcp_be_liberal.then(|| sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", 1, false)),
            seconds("net.netfilter.nf_conntrack_udp_timeout", udp_timeout, &default.udp_timeout),
            seconds("net.netfilter.nf_conntrack_udp_timeout_stream", udp_stream_timeout, &default.udp_stream_timeout),
        ];
        Self { settings: settings.into_iter().flatten().collect() }
    }

    pub(super) fn settings(&self) -> Vec<Setting> {
        self.settings.clone()
    }
}

/// The cap comes before the floor, as in kube-proxy (CT-30).
fn most_flows(per_core: i32, min: i32, cores: u32) -> Option<u64> {
    let per_core = u64::try_from(per_core).ok().filter(|per_core| *per_core > 0)?;
    let scaled = per_core.saturating_mul(u64::from(cores));
    let min = u64::try_from(min).unwrap_or_default();
    Some(if scaled > MOST { MOST } else { scaled.max(min) })
}

/// The processors of this host that are on, whatever share of them this process has.
#[must_use]
pub fn cores() -> u32 {
    fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count(&list)).unwrap_or(1)
}

/// `0-3,8` is five.
fn count(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_flows_follows_the_number_of_cores() {
        // CT-30
        for (per_core, min, cores, most) in [
            (32_768, 131_072, 2, Some(131_072)),
            (32_768, 131_072, 8, Some(262_144)),
            (32_768, 131_072, 64, Some(1_048_576)),
            (32_768, 2_000_000, 64, Some(1_048_576)),
            (32_768, 2_000_000, 2, Some(2_000_000)),
            (0, 131_072, 8, None),
        ] {
            assert_eq!(most_flows(per_core, min, cores), most, "{per_core} {min} {cores}");
        }
    }

    #[test]
    fn only_what_is_configured_is_set() {
        let named = |conntrack: &Conntrack| -> Vec<String> {
            let settings = Wanted::new(conntrack, 4).settings();
            settings
                .iter()
                .map(|setting| format!("{}={}", setting.name.rsplit('.').next().unwrap(), setting.value))
                .collect()
        };
        let default = ["nf_conntrack_max=131072", "hashsize=32768"];
        let timeouts = ["nf_conntrack_tcp_timeout_established=86400", "nf_conntrack_tcp_timeout_close_wait=3600"];
        assert_eq!(named(&Conntrack::default()), [default, timeouts].concat());
        let zero = GoDuration::seconds(0);
        let nothing = Conntrack {
            max_per_core: 0,
            tcp_established_timeout: zero,
            tcp_close_wait_timeout: zero,
            ..Conntrack::default()
        };
        assert_eq!(named(&nothing), [""; 0]);
        let all = Conntrack {
            tcp_be_liberal: true,
            udp_timeout: GoDuration::seconds(40),
            udp_stream_timeout: GoDuration::seconds(200),
            ..nothing
        };
        let wanted = ["tcp_be_liberal=1", "udp_timeout=40", "udp_timeout_stream=200"];
        assert_eq!(named(&all), wanted.map(|name| format!("nf_conntrack_{name}")));
    }

    #[test]
    fn cores_are_counted_as_the_kernel_lists_them() {
        for (list, cores) in [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(list), cores, "{list:?}");
        }
    }
}
