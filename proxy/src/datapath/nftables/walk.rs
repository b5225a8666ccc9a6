//! What a packet gets from the rules of an image, read as the kernel reads them: for tests that need no kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use shunt_model::Family;

use super::Rendering;
use super::collection::Collection;
use super::difference::Image;
use super::image::Place;
use crate::datapath::PacketOptions;
use crate::datapath::packets::PacketOutcome;
use crate::plan::{Packet, Plan, Source};

/// All rules of a plan, in both families.
#[derive(Clone, Debug)]
pub(in crate::datapath) struct Walk {
    image: Image,
}

/// The end of a packet's way through the chains of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// One of these, by chance.
    To(BTreeSet<SocketAddr>),
    Accept,
    Drop,
    Reject,
    Masquerade,
}

/// What becomes of a packet at a rule.
enum Step {
    /// The next rule of the chain has it.
    Next,
    /// The chain that led here has it.
    Back,
    End(End),
}

/// A packet on its way.
#[derive(Clone, Debug)]
struct Walker {
    packet: Packet,
    family: Family,
    /// Its destination was translated.
    translated: bool,
    mark: u32,
    /// A set remembers the client.
    sticky: bool,
}

/// The endpoints that a packet reaches.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    pub(super) masqueraded: bool,
}

impl Walk {
    /// The rules of a plan.
    pub(in crate::datapath) fn of(plan: &Plan, options: PacketOptions) -> Self {
        let rendering = Rendering::of(plan, options, &Family::BOTH.into_iter().collect());
        Self { image: Image::of(plan, &rendering).0 }
    }

    /// What a packet of a new flow gets, over all that may happen by chance, from a client that no set knows.
    pub(in crate::datapath) fn outcome(&self, packet: &Packet) -> PacketOutcome {
        let mut walker = Walker::new(packet);
        match self.before(&mut walker) {
            Some(End::To(addresses)) => return PacketOutcome::Endpoints { addresses, sticky: walker.sticky },
            Some(End::Drop) => return PacketOutcome::Drop,
            Some(End::Accept | End::Reject | End::Masquerade) | None => {}
        }
        match self.filter(&mut walker) {
            Some(End::Reject) => PacketOutcome::Reject,
            Some(End::Drop) => PacketOutcome::Drop,
            Some(End::To(_) | End::Accept | End::Masquerade) | None => PacketOutcome::Pass,
        }
    }

    /// The endpoints that a packet may reach, and whether its source becomes the node's.
    #[cfg(test)]
    pub(super) fn reached(&self, packet: &Packet) -> Vec<Reached> {
        let mut walker = Walker::new(packet);
        let Some(End::To(addresses)) = self.before(&mut walker) else { return Vec::new() };
        let reached = addresses.into_iter().filter_map(|address| {
            let packet = Packet { destination: address.ip(), port: address.port(), ..walker.packet };
            let mut after = Walker { packet, translated: true, ..walker.clone() };
            if matches!(self.filter(&mut after), Some(End::Drop | End::Reject)) {
                return None;
            }
            let masqueraded = self.run(&mut after, "nat-postrouting") == Some(End::Masquerade);
            Some(Reached { address, masqueraded })
        });
        reached.collect()
    }

    /// Up to the translation of the destination.
    fn before(&self, walker: &mut Walker) -> Option<End> {
        let (filter, nat) = match walker.packet.source {
            Source::Node => ("filter-output-first", "nat-output"),
            Source::Pod | Source::Outside => ("filter-prerouting", "nat-prerouting"),
        };
        match self.run(walker, filter) {
            Some(End::Drop) => Some(End::Drop),
            _ => self.run(walker, nat),
        }
    }

    /// A packet from elsewhere goes to this node or on: it must not matter.
    fn filter(&self, walker: &mut Walker) -> Option<End> {
        let hooks: &[&str] = match walker.packet.source {
            Source::Node => &["filter-output", "filter-input"],
            Source::Pod | Source::Outside => &["filter-forward", "filter-input"],
        };
        hooks.iter().find_map(|hook| self.run(walker, hook))
    }

    fn run(&self, walker: &mut Walker, chain: &str) -> Option<End> {
        match self.chain(walker, chain) {
            Step::Next | Step::Back => None,
            Step::End(end) => Some(end),
        }
    }

    fn chain(&self, walker: &mut Walker, chain: &str) -> Step {
        let rules = self.image.chains.get(&(walker.family, chain.to_owned()));
        let Some((rules, _)) = rules else { return Step::Next };
        for rule in rules {
            match self.rule(walker, rule) {
                Step::Next => {}
                step @ (Step::Back | Step::End(_)) => return step,
            }
        }
        Step::Back
    }

    /// Matches from the left to the right, then a statement.
    fn rule(&self, walker: &mut Walker, rule: &str) -> Step {
        let mut rest = rule;
        loop {
            match self.matches(walker, rest) {
                Some((true, after)) => rest = after,
                Some((false, _)) => return Step::Next,
                None => return self.statement(walker, rest),
            }
        }
    }

    /// Whether the match at the beginning holds, and what comes after it; `None` if no match is there.
    fn matches<'a>(&self, walker: &Walker, rule: &'a str) -> Option<(bool, &'a str)> {
        let Packet { source, port, protocol, .. } = walker.packet;
        let fixed = [
            ("ct state new ", true),
            ("ct state invalid ", false),
            ("ct status dnat ", walker.translated),
            ("fib saddr type local ", source == Source::Node),
            ("iifname != \"lo\" ", source != Source::Node),
            ("meta l4proto { tcp, udp, sctp } ", true),
            ("th dport != 0 ", port != 0),
        ];
        if let Some((holds, after)) =
            fixed.into_iter().find_map(|(text, holds)| Some((holds, rule.strip_prefix(text)?)))
        {
            return Some((holds, after));
        }
        if let Some(after) = rule.strip_prefix("iifname ") {
            return Some((source == Source::Pod, after.split_once(' ')?.1));
        }
        if let Some(after) = rule.strip_prefix("meta mark and ") {
            let (bit, after) = after.split_once(" == ")?;
            return Some((walker.mark & number(bit) != 0, after.split_once(' ')?.1));
        }
        if let Some(after) = rule.strip_prefix("meta l4proto ")
            && let Some((name, after)) = after.split_once(' ')
            && ["tcp", "udp", "sctp"].contains(&name)
        {
            return Some((protocol.name() == name, after));
        }
        let (key, after) = walker.key(rule)?;
        let (negated, after) = match after.strip_prefix("!= ") {
            Some(after) => (true, after),
            None => (false, after),
        };
        if let Some(after) = after.strip_prefix('@') {
            let (set, after) = after.split_once(' ')?;
            return Some((self.holds(walker, set, &key) != negated, after));
        }
        let (network, after) = after.split_once(' ')?;
        let network = IpNet::from_str(network).ok()?;
        Some((key.first()?.parse().is_ok_and(|address: IpAddr| network.contains(&address)), after))
    }

    fn statement(&self, walker: &mut Walker, statement: &str) -> Step {
        if let Some(bit) = statement.strip_prefix("meta mark set meta mark or ") {
            walker.mark |= number(bit);
            return Step::Next;
        }
        if let Some(bits) = statement.strip_prefix("meta mark set meta mark and ") {
            walker.mark &= number(bits);
            return Step::Next;
        }
        if statement.starts_with("update @clients/") {
            walker.sticky = true;
            return Step::Next;
        }
        if let Some(to) = statement.strip_prefix("dnat to ") {
            return self.translate(walker, to);
        }
        if let Some(choice) = statement.strip_prefix("numgen random mod ") {
            return self.choose(walker, choice);
        }
        if let Some((key, map)) = walker.key(statement)
            && let Some(map) = map.strip_prefix("vmap @")
        {
            return match self.look_up(walker, map, &key) {
                Some(verdict) => self.verdict(walker, verdict),
                None => Step::Next,
            };
        }
        self.verdict(walker, statement)
    }

    fn verdict(&self, walker: &mut Walker, verdict: &str) -> Step {
        match verdict.split_once(' ') {
            Some(("goto", chain)) => match self.chain(walker, chain) {
                Step::Next | Step::Back => Step::Back,
                end @ Step::End(_) => end,
            },
            Some(("jump", chain)) => match self.chain(walker, chain) {
                Step::Next | Step::Back => Step::Next,
                end @ Step::End(_) => end,
            },
            Some(("reject", _)) => Step::End(End::Reject),
            Some(("masquerade", _)) => Step::End(End::Masquerade),
            _ => match verdict {
                "accept" => Step::End(End::Accept),
                "drop" => Step::End(End::Drop),
                "return" => Step::Back,
                // A test finds no such endpoint, and fails.
                _ => Step::End(End::To(BTreeSet::new())),
            },
        }
    }

    /// `ip daddr . tcp dport . numgen random mod 2 map @cluster-endpoints-tcp`, or an address.
    fn translate(&self, walker: &Walker, to: &str) -> Step {
        if let Ok(address) = to.parse() {
            return Step::End(End::To([address].into()));
        }
        let numbered = walker.key(to).and_then(|(key, rest)| {
            let rest = rest.strip_prefix(". numgen random mod ").or_else(|| rest.strip_prefix("numgen random mod "))?;
            let (count, map) = rest.split_once(" map @")?;
            Some((key, count.parse::<usize>().ok()?, map))
        });
        let Some((key, count, map)) = numbered else { return Step::End(End::To(BTreeSet::new())) };
        let found = (0..count).map(|index| {
            let key = [key.clone(), vec![index.to_string()]].concat();
            let (address, port) = self.look_up(walker, map, &key)?.split_once(" . ")?;
            Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
        });
        // An index without an endpoint leaves the packet to the next rule.
        found.collect::<Option<_>>().map_or(Step::Next, |to| Step::End(End::To(to)))
    }

    /// `2 vmap { 0 : goto one, 1 : goto other }`
    fn choose(&self, walker: &mut Walker, choice: &str) -> Step {
        let Some((_, choices)) = choice.split_once(" vmap { ") else { return Step::Next };
        let mut all = BTreeSet::new();
        for choice in choices.trim_end_matches(" }").split(", ") {
            let Some((_, verdict)) = choice.split_once(" : ") else { continue };
            if let Step::End(End::To(to)) = self.verdict(walker, verdict) {
                all.extend(to);
            }
        }
        Step::End(End::To(all))
    }

    /// Whether a set holds the key.
    fn holds(&self, walker: &Walker, set: &str, key: &[String]) -> bool {
        let Some(collection) = Collection::named(set) else { return false }; // No set knows the client.
        let Some((last, first)) = key.split_last() else { return false };
        if self.look_up(walker, set, key).is_some() {
            return true;
        }
        let Ok(address) = last.parse::<IpAddr>() else { return false };
        let elements = self.image.elements.keys();
        let networks = elements.filter(|place| place.family == walker.family && place.collection == collection);
        networks.filter_map(|place| place.key.rsplit_once(" . ").or(Some(("", &place.key)))).any(|(start, network)| {
            start == first.join(" . ") && network.parse().is_ok_and(|network: IpNet| network.contains(&address))
        })
    }

    fn look_up(&self, walker: &Walker, name: &str, key: &[String]) -> Option<&str> {
        let collection = Collection::named(name)?;
        let place = Place { family: walker.family, collection, key: key.join(" . ") };
        self.image.elements.get(&place).map(|(leads_to, _)| leads_to.as_str())
    }
}

impl Walker {
    fn new(packet: &Packet) -> Self {
        let packet = Packet {
            destination: packet.destination.to_canonical(),
            source_address: packet.source_address.map(|address| address.to_canonical()),
            ..*packet
        };
        let family = Family::of(&packet.destination);
        Self { packet, family, translated: false, mark: 0, sticky: false }
    }

    /// The values of the fields at the beginning of a rule, and what comes after them.
    fn key<'a>(&self, rule: &'a str) -> Option<(Vec<String>, &'a str)> {
        const FIELDS: [&str; 9] = [
            "ip daddr ",
            "ip6 daddr ",
            "ip saddr ",
            "ip6 saddr ",
            "meta l4proto ",
            "th dport ",
            "tcp dport ",
            "udp dport ",
            "sctp dport ",
        ];
        let Packet { source_address, destination, port, protocol, .. } = self.packet;
        let (mut key, mut rest) = (Vec::new(), rule);
        while let Some((field, after)) = FIELDS.iter().find_map(|field| Some((*field, rest.strip_prefix(field)?))) {
            key.push(match field {
                "ip daddr " | "ip6 daddr " => destination.to_string(),
                "ip saddr " | "ip6 saddr " => source_address.map(|address| address.to_string()).unwrap_or_default(),
                "meta l4proto " => protocol.to_string(),
                _ => port.to_string(),
            });
            rest = after;
            match rest.strip_prefix(". ") {
                Some(after) if FIELDS.iter().any(|field| after.starts_with(field)) => rest = after,
                _ => break,
            }
        }
        (!key.is_empty()).then_some((key, rest))
    }
}

fn number(hexadecimal: &str) -> u32 {
    u32::from_str_radix(hexadecimal.trim_start_matches("0x"), 16).unwrap_or_default()
}
