//! What a packet gets from the chains of an image, read as the kernel reads them: for tests that need no kernel.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use shunt_model::Family;

#[cfg(test)]
use super::POSTROUTING;
use super::image::Image;
use super::rule::{Match, Name, Rule, Side, State, Table, Target};
use super::{FORWARD, INPUT, OUTPUT, SERVICES};
use crate::datapath::PacketOptions;
use crate::datapath::packets::PacketOutcome;
use crate::plan::{Packet, Plan, Source};

/// The chains of both families.
#[derive(Clone, Debug)]
pub(in crate::datapath) struct Walk {
    chains: HashMap<(Family, Table, Name), Vec<Rule>>,
}

/// One of the ways that a packet may go.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// How likely it is.
    chance: f64,
    mark: u32,
    /// A list of clients was asked.
    sticky: bool,
    end: Option<End>,
}

/// Where a way ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    To(SocketAddr),
    Accept,
    Drop,
    Reject,
    Masquerade,
}

/// The packet, and what conntrack says of it.
#[derive(Clone, Copy, Debug)]
struct Walker {
    packet: Packet,
    translated: bool,
}

/// An endpoint that a packet reaches.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    pub(super) chance: f64,
    pub(super) masqueraded: bool,
}

impl Walk {
    /// All chains of a plan.
    pub(in crate::datapath) fn of(plan: &Plan, options: PacketOptions) -> Self {
        let images = Family::BOTH.map(|family| Image::of(plan, family, options));
        let chains = images
            .iter()
            .flat_map(|image| image.chains().map(|(table, name, rules)| ((image.family(), table, name), rules)));
        Self { chains: chains.collect() }
    }

    /// What a packet of a new flow gets, over all that may happen by chance, from a client that no list knows.
    pub(in crate::datapath) fn outcome(&self, packet: &Packet) -> PacketOutcome {
        let packet = Packet { destination: packet.destination.to_canonical(), ..*packet };
        let walker = Walker { packet, translated: false };
        let ways = self.nat(walker);
        let sticky = ways.iter().any(|way| way.sticky);
        let addresses: BTreeSet<SocketAddr> = ways.iter().filter_map(|way| way.translated()).collect();
        if !addresses.is_empty() {
            return PacketOutcome::Endpoints { addresses, sticky };
        }
        match self.filter(walker, ways.first().map_or(0, |way| way.mark)) {
            Some(End::Reject) => PacketOutcome::Reject,
            Some(End::Drop) => PacketOutcome::Drop,
            Some(End::Accept | End::To(_) | End::Masquerade) | None => PacketOutcome::Pass,
        }
    }

    /// The endpoints that a packet may reach, and what becomes of its source there.
    #[cfg(test)]
    pub(super) fn reached(&self, packet: &Packet) -> Vec<Reached> {
        let ways = self.nat(Walker { packet: *packet, translated: false });
        let reached = ways.iter().filter_map(|way| {
            let address = way.translated()?;
            let packet = Packet { destination: address.ip(), port: address.port(), ..*packet };
            let walker = Walker { packet, translated: true };
            let after = self.run(walker, Table::Nat, POSTROUTING, Way { end: None, ..*way });
            let masqueraded = after.iter().any(|way| way.end == Some(End::Masquerade));
            let passes = !matches!(self.filter(walker, way.mark), Some(End::Drop | End::Reject));
            passes.then_some(Reached { address, chance: way.chance, masqueraded })
        });
        reached.collect()
    }

    fn nat(&self, walker: Walker) -> Vec<Way> {
        let first = match walker.packet.source {
            Source::Node => OUTPUT,
            Source::Pod | Source::Outside => SERVICES,
        };
        self.run(walker, Table::Nat, first, Way { chance: 1.0, mark: 0, sticky: false, end: None })
    }

    /// A packet from elsewhere meets the same in INPUT and in FORWARD.
    fn filter(&self, walker: Walker, mark: u32) -> Option<End> {
        let firsts: &[&str] = match walker.packet.source {
            Source::Node => &[OUTPUT],
            Source::Pod | Source::Outside => &[FORWARD, INPUT],
        };
        let way = Way { chance: 1.0, mark, sticky: false, end: None };
        let ends =
            firsts.iter().map(|first| self.run(walker, Table::Filter, first, way).first().and_then(|way| way.end));
        ends.flatten().find(|end| *end != End::Accept)
    }

    fn run(&self, walker: Walker, table: Table, chain: &str, way: Way) -> Vec<Way> {
        let family = Family::of(&walker.packet.destination);
        let (mut here, mut done) = (vec![way], Vec::new());
        for rule in self.chains.get(&(family, table, chain.into())).into_iter().flatten() {
            for way in std::mem::take(&mut here) {
                let (chance, sticky) = walker.chance(rule, way.mark);
                let way = Way { sticky: way.sticky || sticky, ..way };
                if chance < 1.0 {
                    here.push(Way { chance: way.chance * (1.0 - chance), ..way });
                }
                if chance > 0.0 {
                    let way = Way { chance: way.chance * chance, ..way };
                    self.apply(walker, table, &rule.target, way, &mut here, &mut done);
                }
            }
        }
        here.into_iter().chain(done).collect()
    }

    fn apply(&self, walker: Walker, table: Table, target: &Target, way: Way, here: &mut Vec<Way>, done: &mut Vec<Way>) {
        let ends = |end| Way { end: Some(end), ..way };
        match target {
            Target::Goto(chain) => done.extend(self.run(walker, table, chain, way)),
            Target::Jump(chain) => {
                let (ended, back): (Vec<Way>, Vec<Way>) =
                    self.run(walker, table, chain, way).into_iter().partition(|way| way.end.is_some());
                done.extend(ended);
                here.extend(back);
            }
            Target::Return => done.push(way),
            Target::Accept => done.push(ends(End::Accept)),
            Target::Drop => done.push(ends(End::Drop)),
            Target::Reject(_) => done.push(ends(End::Reject)),
            Target::Masquerade => done.push(ends(End::Masquerade)),
            Target::To(address) => done.push(ends(End::To(*address))),
            Target::Mark(bit) => here.push(Way { mark: way.mark | bit, ..way }),
            Target::Unmark(bit) => here.push(Way { mark: way.mark & !bit, ..way }),
            Target::Toggle(bit) => here.push(Way { mark: way.mark ^ bit, ..way }),
        }
    }
}

impl Way {
    fn translated(&self) -> Option<SocketAddr> {
        match self.end {
            Some(End::To(address)) => Some(address),
            Some(End::Accept | End::Drop | End::Reject | End::Masquerade) | None => None,
        }
    }
}

impl Walker {
    /// How likely the rule applies, and whether it asks a list of clients.
    fn chance(&self, rule: &Rule, mark: u32) -> (f64, bool) {
        let Packet { source, source_address, destination, port, protocol } = self.packet;
        let inside = |side: Option<Side>, address: Option<IpAddr>| {
            side.is_none_or(|Side { network, outside }| {
                address.is_some_and(|address| network.contains(&address.to_canonical())) != outside
            })
        };
        let by_interface = rule.interface.is_none() || source == Source::Pod;
        let by_protocol = rule.protocol.is_none_or(|of| of == protocol);
        if !(inside(rule.source, source_address)
            && inside(rule.destination, Some(destination))
            && by_interface
            && by_protocol)
        {
            return (0.0, false);
        }
        let (mut chance, mut sticky) = (1.0, false);
        for condition in &rule.matches {
            chance *= match condition {
                Match::Ports(first, last) => f64::from((*first..=*last).contains(&port)),
                Match::SourceIsLocal => f64::from(source == Source::Node),
                Match::State(State::New) => 1.0,
                Match::State(State::Invalid | State::Known) => 0.0,
                Match::State(State::Unknown) => f64::from(!self.translated),
                Match::State(State::Translated) => f64::from(self.translated),
                Match::Marked(bit) => f64::from(mark & bit != 0),
                Match::Unmarked(bit) => f64::from(mark & bit == 0),
                Match::OnceIn(n) => 1.0 / f64::from(*n),
                Match::Known(_, _) => {
                    sticky = true;
                    0.0
                }
                Match::Remember(_) => 1.0,
            };
        }
        (chance, sticky)
    }
}
