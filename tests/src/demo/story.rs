//! What happens in the demo, chapter by chapter, and what is expected of each.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hickory_proto::rr::Name;

use super::DemoOptions;
use super::expectations::Expectations;
use super::screen::Screen;
use super::web::Web;
use super::world::{NODE_PORTS, World};
use crate::manifests::PodState;
use crate::peer::{CallError, Mode, now};
use crate::place::Place;

const DNS_V4: &str = "10.96.0.10";
const DNS_V6: &str = "fd00:10:96::a";
const WEB: &str = "web.shop.svc.cluster.local";
const SERVICES: &str = include_str!("../../../examples/web.yaml");
/// A change must be in force within this time; it usually takes a few milliseconds.
const SOON: Duration = Duration::from_secs(1);

/// The demo's cast, as its chapters use it.
struct Stage<'a> {
    world: &'a mut World,
    screen: &'a mut Screen,
    expectations: &'a mut Expectations,
}

/// Plays the story to its end, or to where `--keep` leaves it running.
pub(super) fn tell(
    world: &mut World,
    screen: &mut Screen,
    expectations: &mut Expectations,
    options: &DemoOptions,
) -> anyhow::Result<()> {
    let mut stage = Stage { world, screen, expectations };
    stage.appear()?;
    let (v4, v6) = stage.names()?;
    stage.balance(v4, v6)?;
    stage.replace()?;
    stage.unready()?;
    stage.no_failures()?;
    if options.keep {
        return stage.keep(options);
    }
    stage.vanish(v4, v6)
}

impl Stage<'_> {
    fn expect(&mut self, held: bool, what: &str, seen: &str) -> anyhow::Result<()> {
        self.expectations.expect(self.screen, held, what, seen)
    }

    /// Response code and data; a question without an answer is an outcome too, and is shown as such.
    fn lookup(&self, client: usize, name: &str, kind: &str, server: &str) -> anyhow::Result<(String, Vec<String>)> {
        let pod = self.world.clients.get(client).context("no such client")?;
        match pod.resolve(name, kind, server.parse().context("reading the server's address")?) {
            Ok(answer) => Ok((answer.rcode.clone(), answer.data().into_iter().map(str::to_owned).collect())),
            Err(error) => Ok((format!("{error:#}").replace('\n', " "), Vec::new())),
        }
    }

    /// A Service and three pods are written; its name is known at once.
    fn appear(&mut self) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say("A Service `web` with three pods appears in the folder of manifests")?;
        for (name, node) in [("web-1", 0), ("web-2", 1), ("web-3", 0)] {
            self.world.start_web(name, node)?;
        }
        for line in self.world.webs.iter().map(describe).collect::<Vec<_>>() {
            self.screen.say(&line)?;
        }
        let start = Instant::now();
        self.world.write_pods()?;
        self.world.publish()?;
        self.world.manifests.put_text("web.yaml", SERVICES)?;
        for client in [0, 1] {
            let mut rcode = String::new();
            while rcode != "NoError" && start.elapsed() < SOON * 5 {
                crate::signals::check()?;
                rcode = self.lookup(client, WEB, "A", DNS_V4)?.0;
            }
            let seen = format!("{rcode} after {} ms", start.elapsed().as_millis());
            self.expect(rcode == "NoError", &format!("client-{} resolves {WEB}", client + 1), &seen)?;
        }
        Ok(())
    }

    /// All kinds of names, asked through the cluster DNS address as pods do.
    fn names(&mut self) -> anyhow::Result<(IpAddr, IpAddr)> {
        self.screen.say("")?;
        self.screen.say(&format!("Names, asked at {DNS_V4} and {DNS_V6}"))?;
        let v4 = self.address("A")?;
        let v6 = self.address("AAAA")?;
        let headless = "web-headless.shop.svc.cluster.local";
        let first = self.world.webs.first().context("no web pod")?.pod.clone();
        let mut pods: Vec<String> = self.world.webs.iter().map(|web| web.pod.ipv4.to_string()).collect();
        pods.sort();
        let reverse = |ip: IpAddr| Name::from(ip).to_string();
        let found = |answers: &[&str]| ("NoError", answers.iter().map(|&answer| answer.to_owned()).collect::<Vec<_>>());
        let questions = [
            // The weight is a hundred shared by the Service's two addresses (DNS-2.5.4).
            (format!("_http._tcp.{WEB}"), "SRV", found(&[&format!("0 50 80 {WEB}.")])),
            (reverse(v4), "PTR", found(&[&format!("{WEB}.")])),
            (reverse(v6), "PTR", found(&[&format!("{WEB}.")])),
            (headless.to_owned(), "A", ("NoError", pods)),
            (format!("{}.{headless}", first.name()), "A", found(&[&first.ipv4.to_string()])),
            (format!("{}.{headless}", first.name()), "AAAA", found(&[&first.ipv6.to_string()])),
            ("no-such.shop.svc.cluster.local".to_owned(), "A", ("NXDomain", Vec::new())),
        ];
        for (number, (name, kind, (rcode, data))) in questions.into_iter().enumerate() {
            // Both clients ask, at both addresses.
            let server = if number % 2 == 0 { DNS_V4 } else { DNS_V6 };
            let answer = self.lookup(number % 2, &name, kind, server)?;
            let held = answer == (rcode.to_owned(), data);
            self.expect(held, &format!("{name} {kind}"), &format!("{} {}", answer.0, answer.1.join(", ")))?;
        }
        Ok((v4, v6))
    }

    fn address(&mut self, kind: &str) -> anyhow::Result<IpAddr> {
        let (rcode, data) = self.lookup(0, WEB, kind, DNS_V4)?;
        self.expect(data.len() == 1, &format!("{WEB} {kind}"), &format!("{rcode} {}", data.join(", ")))?;
        let address = data.first().with_context(|| format!("{WEB} has no {kind} address"))?;
        address.parse().with_context(|| format!("reading the address {address}"))
    }

    /// Connections reach all pods, about equally.
    fn balance(&mut self, v4: IpAddr, v6: IpAddr) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say(
            "Four clients in pods connect again and again to the addresses the name resolved to; four outside, beyond \
             the router, to node ports of n2 and to a load balancer's addresses, which lead to n1",
        )?;
        let start = now();
        self.world.start_traffic(v4, v6)?;
        self.world.watch(self.screen, Duration::from_secs(4))?;
        self.world.keep_table(self.screen)?;
        for (label, counts) in self.world.answers_since(start)? {
            let all: usize = counts.values().sum();
            // A fair choice among three gives each a third; below a fifth is no accident at these numbers.
            let fair = |pod: &str| counts.get(pod).is_some_and(|count| count * 5 > all);
            let held = ["web-1", "web-2", "web-3"].iter().all(|pod| fair(pod)) && all > 100;
            self.expect(held, &format!("{label}: every pod gets its share"), &shares(&counts))?;
        }
        Ok(())
    }

    /// One pod is deleted and another takes its place, under load.
    fn replace(&mut self) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say(
            "web-2 is deleted and web-4 takes its place; web-2 goes on serving until it is out of the endpoints",
        )?;
        self.world.start_web("web-4", 1)?;
        self.world.set_state("web-2", PodState::Terminating)?;
        let change = now();
        self.world.write_pods()?;
        let taken = self.world.watch_until(self.screen, SOON * 5, |world| {
            Ok(world.answers_since(change)?.iter().all(|(_, counts)| counts.contains_key("web-4")))
        })?;
        self.world.watch(self.screen, Duration::from_secs(2))?;
        let attempts = self.world.attempts_since(change)?;
        let by =
            |pod: &str| attempts.iter().filter(|attempt| attempt.server.as_deref() == Some(pod)).collect::<Vec<_>>();
        let first = by("web-4").iter().map(|attempt| attempt.t.saturating_sub(change)).min();
        let last = by("web-2").iter().map(|attempt| attempt.began.saturating_sub(change)).max().unwrap_or_default();
        let first_text =
            first.map_or_else(|| "never".to_owned(), |first| format!("{} after the file change", ms(first)));
        let in_time = |time: u64| Duration::from_nanos(time) < SOON;
        self.expect(taken && first.is_some_and(in_time), "web-4 took its first connection", &first_text)?;
        let last_text = format!("{} after the file change", ms(last));
        self.expect(in_time(last), "web-2's last connection began", &last_text)?;
        self.world.kill_web("web-2")?;
        self.screen.say("  web-2's servers are killed and its Pod object is removed")?;
        self.world.watch(self.screen, Duration::from_secs(1))?;
        let failures = self.world.failures()?;
        self.expect(failures.is_empty(), "no connection failed meanwhile", &summary(&failures))
    }

    /// A pod that is not ready gets nothing.
    fn unready(&mut self) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say("web-3 turns unready")?;
        self.world.set_state("web-3", PodState::Unready)?;
        let change = now();
        self.world.write_pods()?;
        self.world.watch(self.screen, SOON)?;
        let settled = now();
        self.world.watch(self.screen, Duration::from_secs(2))?;
        let late = self.world.attempts_since(change)?;
        let of_three =
            |since: u64| late.iter().filter(move |a| a.began >= since && a.server.as_deref() == Some("web-3"));
        let last = of_three(change).map(|attempt| attempt.began.saturating_sub(change)).max().unwrap_or_default();
        let held = of_three(settled).count() == 0 && late.iter().any(|attempt| attempt.began >= settled);
        self.expect(
            held,
            "web-3 gets nothing more",
            &format!("its last connection began {} after the change", ms(last)),
        )
    }

    fn no_failures(&mut self) -> anyhow::Result<()> {
        self.world.keep_table(self.screen)?;
        let failures = self.world.failures()?;
        let all = self.world.attempts_since(0)?.len();
        self.expect(failures.is_empty(), &format!("none of {all} connections failed"), &summary(&failures))
    }

    /// The Service goes; so do its addresses and its name.
    fn vanish(&mut self, v4: IpAddr, v6: IpAddr) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say("The Service is removed")?;
        self.world.traffic.clear();
        let start = Instant::now();
        self.world.unpublish()?;
        self.world.manifests.remove_file("web.yaml")?;
        for client in [0, 1] {
            let mut rcode = String::new();
            while rcode != "NXDomain" && start.elapsed() < SOON * 5 {
                crate::signals::check()?;
                rcode = self.lookup(client, WEB, "A", DNS_V4)?.0;
            }
            let seen = format!("{rcode} after {} ms", start.elapsed().as_millis());
            self.expect(rcode == "NXDomain", &format!("client-{}: {WEB} is gone", client + 1), &seen)?;
        }
        for (client, address, port, mode) in
            [(0, v4, 80, Mode::Tcp), (1, v6, 80, Mode::Tcp), (0, v4, 7000, Mode::Udp), (1, v6, 7000, Mode::Udp)]
        {
            let pod = self.world.clients.get(client).context("no such client")?;
            let pod = (**pod).clone();
            self.unreachable(&pod, SocketAddr::new(address, port), mode)?;
        }
        let outside = self.world.lab.outside.clone();
        let [port_v4, _, balanced_v4, balanced_v6] = self.world.addresses_outside()?;
        for (address, port) in [(port_v4, NODE_PORTS.0), (balanced_v4, 80), (balanced_v6, 80)] {
            self.unreachable(&outside, SocketAddr::new(address, port), Mode::Tcp)?;
        }
        Ok(())
    }

    /// A client gets no answer any more. Packets to an address that is in the range of Services and unused are dropped
    /// without one (NE-12), and a UDP socket gets no error if there is no route.
    fn unreachable(&mut self, client: &Place, to: SocketAddr, mode: Mode) -> anyhow::Result<()> {
        let start = Instant::now();
        let attempt = loop {
            let attempts = client.connect_with(to, mode, &["--count", "1", "--timeout", "1000"])?;
            let attempt = attempts.into_iter().next().context("no attempt")?;
            if attempt.error.is_some() || start.elapsed() > SOON * 5 {
                break attempt;
            }
        };
        let held = matches!(
            attempt.error,
            Some(CallError::Refused | CallError::NoNetwork | CallError::NoHost | CallError::TimedOut)
        );
        let seen = attempt.error.map_or_else(|| "answered".to_owned(), String::from);
        self.expect(held, &format!("{} cannot reach {to} any more ({mode:?})", client.name()), &seen)
    }

    /// Leaves everything running until Ctrl-C.
    fn keep(&mut self, options: &DemoOptions) -> anyhow::Result<()> {
        self.screen.say("")?;
        self.screen.say("Left running until Ctrl-C. To look inside:")?;
        let pod = self.world.clients.first().context("no client")?;
        let daemon = self.world.daemons.first().context("no daemon")?;
        let lines = [
            format!("  {} services --control-socket {}", options.shunt.display(), daemon.control_socket().display()),
            format!(
                "  nsenter --net=/run/netns/{} sh -c 'echo $$ > {}/cgroup.procs; exec bash'",
                pod.netns(),
                pod.cgroup().display()
            ),
            format!("  ls {}", self.world.manifests.directory().display()),
        ];
        lines.iter().try_for_each(|line| self.screen.say(line))?;
        loop {
            self.world.watch(self.screen, SOON)?;
        }
    }
}

fn describe(web: &Web) -> String {
    let pod = &web.pod;
    format!("  {} on {}: {} {} ({})", pod.name(), pod.node(), pod.ipv4, pod.ipv6, web.server_name())
}

fn ms(nanoseconds: u64) -> String {
    format!("{:.1} ms", Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0)
}

fn shares(counts: &std::collections::BTreeMap<String, usize>) -> String {
    let name = |pod: &String| if pod.is_empty() { "failed".to_owned() } else { pod.clone() };
    counts.iter().map(|(pod, count)| format!("{} {count}", name(pod))).collect::<Vec<_>>().join(", ")
}

fn summary(failures: &[String]) -> String {
    match failures {
        [] => "0 failures".to_owned(),
        [first, ..] => format!("{} failures, the first: {first}", failures.len()),
    }
}
