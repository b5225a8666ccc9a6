//! The figures as a table, each beside the budget it is held against.

use std::time::Duration;

use lab::peer::{BenchLine, ProgramLine};

use super::cluster::Counters;
use super::dns::{DnsFigures, Population};
use super::kube::Figures;
use super::packets::PathFigures;

/// What we are called among the DNS servers.
const OURS: &str = "shunt-dns";

/// Rows in the order of measurement.
#[derive(Debug, Default)]
pub(super) struct BenchTable(Vec<[String; 5]>);

impl BenchTable {
    /// Connect times; the ratio of medians is what counts.
    pub(super) fn connect(&mut self, what: &str, services: u32, direct: &BenchLine, service: &BenchLine) {
        let [ratio50, ratio99] = [(service.p50, direct.p50), (service.p99, direct.p99)]
            .map(|(service, direct)| format!("{:.3}", ratio(service, direct)));
        let what = format!("{what}, {services} services");
        let times = |line: &BenchLine| format!("{} / {}", micros(line.p50), micros(line.p99));
        let budget = if what.starts_with("TCP") { "p50 ratio <= 1.05, flat" } else { "p50 ratio <= 1.2, flat" };
        self.0.push([what, times(direct), times(service), format!("{ratio50} / {ratio99}"), budget.to_owned()]);
    }

    /// Whole exchanges; the ratio of medians is what counts.
    pub(super) fn exchange(&mut self, what: &str, direct: &BenchLine, service: &BenchLine) {
        let [ratio50, ratio99] = [(service.p50, direct.p50), (service.p99, direct.p99)]
            .map(|(service, direct)| format!("{:.3}", ratio(service, direct)));
        let times = |line: &BenchLine| format!("{} / {}", micros(line.p50), micros(line.p99));
        let budget = if what.starts_with("TCP") { "p50 ratio <= 1.11 (rate >= 0.9)" } else { "p50 ratio <= 1.15" };
        let row = [what.to_owned(), times(direct), times(service), format!("{ratio50} / {ratio99}"), budget.to_owned()];
        self.0.push(row);
    }

    /// One endpoint changed in a large service.
    pub(super) fn change_of_many(&mut self, spent: &Counters) {
        let each = spent.syncs.max(1.0);
        let [plan, sync] = [spent.plan_seconds, spent.sync_seconds].map(|seconds| seconds / each * 1e6);
        self.0.push([
            "one endpoint of 5,000 changed".to_owned(),
            String::new(),
            format!("plan {plan:.0} us, kernel {sync:.0} us"),
            format!("{:.1} writes", spent.writes / each),
            "<= 6 writes".to_owned(),
        ]);
    }

    /// One endpoint changed at the largest size; means over all changes, from the daemon's own clock.
    pub(super) fn change(&mut self, spent: &Counters, seen: Duration) {
        let each = spent.syncs.max(1.0);
        let [plan, sync] = [spent.plan_seconds, spent.sync_seconds].map(|seconds| seconds / each * 1e6);
        let writes = spent.writes / each;
        self.0.push([
            "one endpoint changed".to_owned(),
            String::new(),
            format!("plan {plan:.0} us, kernel {sync:.0} us"),
            format!("{writes:.1} writes"),
            "< 1 ms, <= 6 writes".to_owned(),
        ]);
        let row =
            ["  file to kernel, median", "", &format!("{:.1} ms", seen.as_secs_f64() * 1e3), "", "(not budgeted)"];
        self.0.push(row.map(str::to_owned));
    }

    /// Everything programmed from empty tables.
    pub(super) fn programming(&mut self, spent: &Counters, endpoints: u32, rss_kib: u64) {
        let (plan, sync) = (spent.plan_seconds * 1e3, spent.sync_seconds * 1e3);
        self.0.push([
            format!("{endpoints} endpoints from nothing"),
            String::new(),
            format!("plan {plan:.0} ms, kernel {sync:.0} ms"),
            format!("{:.0} writes", spent.writes),
            "< 500 ms, kernel < 150 ms".to_owned(),
        ]);
        let rss = format!("{:.0} MB", rss_kib as f64 / 1024.0);
        self.0.push(["daemon RSS", "", &rss, "", "< 120 MB"].map(str::to_owned));
    }

    /// Everything from an API server.
    pub(super) fn api(&mut self, services: u32, figures: &Figures) {
        let start = format!("{:.2} s", figures.start.as_secs_f64());
        let what = format!("{services} services from the API, process start to kernel");
        self.0.push([what, String::new(), start, String::new(), "< 3 s after the list".to_owned()]);
        let rss = format!("{:.0} MB", figures.rss_kib as f64 / 1024.0);
        self.0.push(["  daemon RSS", "", &rss, "", "< 120 MB"].map(str::to_owned));
        let at = |percent: usize| {
            let index = figures.changes.len().saturating_mul(percent) / 100;
            let seen = figures.changes.get(index).or_else(|| figures.changes.last()).copied().unwrap_or_default();
            format!("{:.1}", seen.as_secs_f64() * 1e3)
        };
        let times = format!("p50 {} ms, p99 {} ms", at(50), at(99));
        self.0.push(["  one slice event to kernel", "", &times, "", "p99 < 5 ms"].map(str::to_owned));
    }

    /// The data paths for packets beside each other, and beside kube-proxy's rules.
    pub(super) fn packets(&mut self, figures: &[PathFigures]) {
        for figures in figures {
            let PathFigures { name, services, from_pod: [direct, service], .. } = figures;
            let PathFigures { from_outside, programming, change, rss_kib, .. } = figures;
            self.0.push([
                format!("{name}, {services} services, connect from a pod"),
                micros(*direct),
                micros(*service),
                format!("{:.3}", ratio(*service, *direct)),
                "flat".to_owned(),
            ]);
            let [connect, crr, rr, stream] = from_outside.map(micros);
            let told = [
                ("connect", connect),
                ("connect, request, close", crr),
                ("request on a connection", rr),
                ("16 MiB by one connection", stream),
            ];
            for (what, time) in told {
                let what = format!("  from outside, node port: {what}");
                self.0.push([what, String::new(), time, String::new(), "programs: >= nftables".to_owned()]);
            }
            let [programming, change] = [programming, change].map(|time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
            self.0.push(["  from nothing to the kernel", "", &programming, "", "nftables < 3 s"].map(str::to_owned));
            let budget = "nftables < 20 ms";
            self.0.push(["  one endpoint moved, to a client", "", &change, "", budget].map(str::to_owned));
            if let Some(rss) = rss_kib {
                let rss = format!("{:.0} MB", *rss as f64 / 1024.0);
                self.0.push(["  daemon RSS", "", &rss, "", "< 100 MB"].map(str::to_owned));
            }
        }
    }

    /// What packets cost in the programs, above one that does nothing.
    pub(super) fn programs(&mut self, services: u32, lines: &[ProgramLine]) {
        let Some((empty, lines)) = lines.split_first() else { return };
        let above = |time: u64| time.saturating_sub(empty.p50);
        for ProgramLine { what, p50, max } in lines {
            let budget = match what.as_str() {
                what if what.starts_with("of others") => "<= 60 ns",
                what if what.starts_with("known flow,") => "<= 150 ns",
                what if what.starts_with("new flow,") => "<= 600 ns",
                _ => "(not budgeted)",
            };
            let time = format!("{} ns above, {} at most", above(*p50), above(*max));
            let what = format!("programs, {services} services, packet: {what}");
            self.0.push([what, format!("{} ns", empty.p50), time, String::new(), budget.to_owned()]);
        }
    }

    /// Questions a second on one processor, ours first of each kind; the ratio is ours to theirs.
    pub(super) fn dns(&mut self, figures: &[DnsFigures]) {
        for theirs in figures.iter().filter(|figures| figures.server != OURS) {
            let same = |ours: &&DnsFigures| ours.server == OURS && ours.questions == theirs.questions;
            let Some(ours) = figures.iter().find(same) else { continue };
            let told = |figures: &DnsFigures| {
                let (p50, p99) = (figures.p50 / 1000, figures.p99 / 1000);
                format!("{:.0}/s, {p50} / {p99} us, {} MB", figures.rate, figures.rss_kib / 1024)
            };
            self.0.push([
                format!("DNS, {}, beside {}", theirs.questions, theirs.server),
                told(theirs),
                told(ours),
                format!("{:.2} times as many", ours.rate / theirs.rate.max(1.0)),
                "> 55,200/s existing, > 60,300/s absent, p99 < 526 us".to_owned(),
            ]);
        }
    }

    /// What a server of all these names needs. The budget is a third of CoreDNS's memory with as many (BG-1,
    /// DNS-20.6).
    pub(super) fn dns_memory(&mut self, population: Population, rss_kib: u64) {
        let Population { services, endpoints, pods } = population;
        let budget = match (endpoints, pods) {
            (4, 0) => "< 48 MB",
            (10, 0) => "< 61 MB",
            _ => "< 219 MB",
        };
        let what = format!("DNS, memory, {services} services x {endpoints} endpoints, {pods} pods");
        let rss = format!("{} MB", rss_kib / 1024);
        self.0.push([what, String::new(), rss, String::new(), budget.to_owned()]);
    }

    /// Prints all rows.
    #[expect(clippy::print_stdout, reason = "the table is what the command is for")]
    pub(super) fn print(&self) {
        let head = ["what", "without shunt, p50/p99 us", "with shunt", "ratio / writes", "budget"].map(str::to_owned);
        let rows: Vec<&[String; 5]> = std::iter::once(&head).chain(&self.0).collect();
        let widths = [0, 1, 2, 3].map(|column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max());
        for [what, direct, service, ratio, budget] in rows {
            let [w0, w1, w2, w3] = widths.map(Option::unwrap_or_default);
            println!("{what:w0$}  {direct:w1$}  {service:w2$}  {ratio:w3$}  {budget}");
        }
    }
}

fn ratio(service: u64, direct: u64) -> f64 {
    service as f64 / (direct.max(1)) as f64
}

fn micros(nanos: u64) -> String {
    format!("{:.1}", nanos as f64 / 1e3)
}
