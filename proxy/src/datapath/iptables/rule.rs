//! Rules as data, written exactly as `iptables-save` writes them, so that what is installed can be compared as text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use shunt_model::{Family, Protocol};

/// Every chain of ours begins so; a chain that does not is another program's.
pub(super) const OURS: &str = "SHUNT-";

/// The name of a chain; at most 28 characters, which is all that the kernel takes.
pub(super) type Name = Arc<str>;

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// What a packet's destination and source become.
    Nat,
    /// What is refused, dropped and accepted.
    Filter,
}

impl Table {
    pub(super) const BOTH: [Self; 2] = [Self::Nat, Self::Filter];

    /// As `iptables -t` takes it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// One rule: it applies to packets that match all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) source: Option<Side>,
    pub(super) destination: Option<Side>,
    /// The name of the interface by which packets come in, with `+` at its end for a prefix.
    pub(super) interface: Option<Arc<str>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) matches: Vec<Match>,
    pub(super) target: Target,
}

/// A network of source or destination addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) network: IpNet,
    /// Packets outside of it match.
    pub(super) outside: bool,
}

impl Side {
    /// None for a network that holds all addresses, which `iptables-save` does not write.
    pub(super) fn within(network: IpNet) -> Option<Self> {
        (network.prefix_len() > 0).then(|| Self { network: network.trunc(), outside: false })
    }
}

/// A match besides addresses, interface and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The destination port is one of these; the rule names the protocol.
    Ports(u16, u16),
    /// The source address is one of this host.
    SourceIsLocal,
    /// Connection tracking says so.
    State(State),
    /// The mark has this bit.
    Marked(u32),
    /// The mark does not have this bit.
    Unmarked(u32),
    /// By chance, once in this many times.
    OnceIn(u32),
    /// The source is in the list of this name since at most this many seconds.
    Known(Name, u32),
    /// Always, and the source is in the list of this name from now on.
    Remember(Name),
}

/// A state of connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    New,
    Invalid,
    /// Part of a flow that is known.
    Known,
    /// Neither part of a flow that is known nor translated.
    Unknown,
    /// Its destination was translated.
    Translated,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Goes on in the chain, and does not come back.
    Goto(Name),
    /// Goes on in the chain, and comes back from its end.
    Jump(Name),
    Return,
    Accept,
    Drop,
    /// Refused with ICMP port unreachable.
    Reject(Family),
    /// Sets this bit of the mark.
    Mark(u32),
    /// Clears this bit of the mark.
    Unmark(u32),
    /// Clears this bit of a mark that has it.
    Toggle(u32),
    /// The source becomes an address of this host, with a random port.
    Masquerade,
    /// The destination becomes this.
    To(SocketAddr),
}

impl Rule {
    /// For all packets.
    pub(super) fn all(target: Target) -> Self {
        Self { source: None, destination: None, interface: None, protocol: None, matches: Vec::new(), target }
    }

    pub(super) fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    pub(super) fn from(self, network: IpNet) -> Self {
        Self { source: Side::within(network), ..self }
    }

    pub(super) fn to(self, network: IpNet) -> Self {
        Self { destination: Side::within(network), ..self }
    }

    pub(super) fn of(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..self }
    }
}

impl Target {
    /// Where a packet goes on.
    pub(super) fn chain(&self) -> Option<&Name> {
        match self {
            Self::Goto(chain) | Self::Jump(chain) => Some(chain),
            Self::Return
            | Self::Accept
            | Self::Drop
            | Self::Reject(_)
            | Self::Mark(_)
            | Self::Unmark(_)
            | Self::Toggle(_)
            | Self::Masquerade
            | Self::To(_) => None,
        }
    }
}

/// One in `n` as the kernel counts: in units of 2^-31, printed as `iptables-save` prints it.
fn probability(n: u32) -> f64 {
    const ONE: f64 = 2_147_483_648.0;
    (ONE / f64::from(n.max(1))).round() / ONE
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, interface, protocol, matches, target } = self;
        for (option, side) in [("-s", source), ("-d", destination)] {
            if let Some(Side { network, outside }) = side {
                write!(f, "{}{option} {network} ", if *outside { "! " } else { "" })?;
            }
        }
        if let Some(interface) = interface {
            write!(f, "-i {interface} ")?;
        }
        if let Some(protocol) = protocol {
            write!(f, "-p {protocol} ")?;
        }
        for condition in matches {
            if let Match::Ports(_, _) = condition {
                write!(f, "-m {} ", protocol.unwrap_or(Protocol::Tcp))?;
            }
            write!(f, "{condition} ")?;
        }
        write!(f, "{target}")
    }
}

impl fmt::Display for Match {
    /// Ports without their match, which has the name of the rule's protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(first, last) if first == last => write!(f, "--dport {first}"),
            Self::Ports(first, last) => write!(f, "--dport {first}:{last}"),
            Self::SourceIsLocal => f.write_str("-m addrtype --src-type LOCAL"),
            Self::State(State::New) => f.write_str("-m conntrack --ctstate NEW"),
            Self::State(State::Invalid) => f.write_str("-m conntrack --ctstate INVALID"),
            Self::State(State::Known) => f.write_str("-m conntrack --ctstate RELATED,ESTABLISHED"),
            Self::State(State::Unknown) => f.write_str("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"),
            Self::State(State::Translated) => f.write_str("-m conntrack --ctstate DNAT"),
            Self::Marked(bit) => write!(f, "-m mark --mark {bit:#x}/{bit:#x}"),
            Self::Unmarked(bit) => write!(f, "-m mark ! --mark {bit:#x}/{bit:#x}"),
            Self::OnceIn(n) => write!(f, "-m statistic --mode random --probability {:.11}", probability(*n)),
            Self::Known(list, seconds) => {
                write!(f, "-m recent --rcheck --seconds {seconds} --reap --name {list} {}", whole_address(list))
            }
            Self::Remember(list) => write!(f, "-m recent --set --name {list} {}", whole_address(list)),
        }
    }
}

/// A list knows clients by their whole address. The lists of IPv6 say so in their names.
fn whole_address(list: &str) -> &'static str {
    match list.starts_with(LIST6) {
        true => "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource",
        false => "--mask 255.255.255.255 --rsource",
    }
}

/// How the names of lists of IPv6 clients begin: the kernel has one set of lists for both families.
pub(super) const LIST6: &str = "SHUNT-6";

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goto(chain) => write!(f, "-g {chain}"),
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Return => f.write_str("-j RETURN"),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Reject(Family::V4) => f.write_str("-j REJECT --reject-with icmp-port-unreachable"),
            Self::Reject(Family::V6) => f.write_str("-j REJECT --reject-with icmp6-port-unreachable"),
            Self::Mark(bit) => write!(f, "-j MARK --set-xmark {bit:#x}/{bit:#x}"),
            Self::Unmark(bit) => write!(f, "-j MARK --set-xmark 0x0/{bit:#x}"),
            Self::Toggle(bit) => write!(f, "-j MARK --set-xmark {bit:#x}/0x0"),
            Self::Masquerade => f.write_str("-j MASQUERADE --random-fully"),
            Self::To(to) => write!(f, "-j DNAT --to-destination {to}"),
        }
    }
}

/// The network that holds this address alone.
pub(super) fn only(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
