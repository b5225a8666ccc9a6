//! What every exporter of Prometheus metrics needs: `process_*`, and the older text format.

use std::collections::HashSet;
use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads `/proc/self` at each scrape. A registry has it once, however many servers register there.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without `/proc` the metrics are absent rather than wrong.
        let Some(Facts { cpu, resident, virtual_memory, started }) = facts() else { return Ok(()) };
        let cpu_help = "User and system CPU time spent";
        let descriptor = encoder.encode_descriptor("process_cpu_seconds", cpu_help, None, MetricType::Counter)?;
        ConstCounter::new(cpu).encode(descriptor)?;
        let mut gauge = |name, help, value: f64| {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        gauge("process_resident_memory_bytes", "Resident memory", resident)?;
        gauge("process_virtual_memory_bytes", "Virtual memory", virtual_memory)?;
        gauge("process_start_time_seconds", "When the process started, since 1970", started)?;
        let files = fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
        gauge("process_open_fds", "Open file descriptors", f64::from(u32::try_from(files).unwrap_or(u32::MAX)))
    }
}

/// The text in the older format that every scraper reads: there the type of a counter goes by the name of its sample.
#[must_use]
pub fn classic(text: &str) -> String {
    let counters: HashSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let rename = |line: &str| {
        for word in ["# TYPE ", "# HELP "] {
            if let Some((name, rest)) = line.strip_prefix(word).and_then(|rest| rest.split_once(' '))
                && counters.contains(name)
            {
                return format!("{word}{name}_total {rest}\n");
            }
        }
        format!("{line}\n")
    };
    text.lines().filter(|line| *line != "# EOF").map(rename).collect()
}

struct Facts {
    cpu: f64,
    resident: f64,
    virtual_memory: f64,
    started: f64,
}

fn facts() -> Option<Facts> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold spaces; it ends with the last parenthesis, and fields count from 3 behind it.
    let fields: Vec<f64> =
        stat.rsplit_once(") ")?.1.split(' ').map(|field| field.parse().unwrap_or_default()).collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let ticks = f64::from(u32::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??).ok()?);
    let page = f64::from(u32::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??).ok()?);
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(Facts {
        cpu: (field(14)? + field(15)?) / ticks,
        virtual_memory: field(23)?,
        resident: field(24)? * page,
        started: boot + field(22)? / ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_counter_goes_by_the_name_of_its_sample() {
        let text = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total 3\n# HELP c Now.\n# TYPE c gauge\nc 1\n# EOF\n";
        let wanted =
            "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total 3\n# HELP c Now.\n# TYPE c gauge\nc 1\n";
        assert_eq!(classic(text), wanted);
    }
}
