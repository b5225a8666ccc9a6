//! `COUNTERS` and `SERVED`: what each processor has counted of the decisions of the packet programs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What is counted: the index into `COUNTERS`. A number keeps its meaning, since the counters outlive the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Count {
    /// A flow began.
    New = 0,
    /// A flow began where one of the same ends had closed.
    Reopened = 1,
    /// A flow of datagrams whose endpoint is gone got another one.
    Rebalanced = 2,
    /// The client of a TCP connection has sent a second packet.
    Established = 3,
    /// A flow got an address and a port of this node as its source.
    SourceNat = 4,
    /// A flow got another port in place of its client's, because it would else be one with another flow.
    PortChanged = 5,
    /// Refused: the service port has no endpoint (NE-1).
    NoEndpoint = 6,
    /// Refused: a cluster IP at a port that its Service does not define (NE-11).
    UndefinedPort = 7,
    /// Dropped: policy Local, and no endpoint on this node (NE-2, NE-3).
    NoLocalEndpoint = 8,
    /// Dropped: the source is outside of the Service's source ranges (TP-31).
    SourceRange = 9,
    /// Dropped: no port was found that could stand for the client's, so that two flows would have been one.
    NoClientPort = 10,
    /// Dropped: the device by which it leaves has no address that could stand for the client.
    NoSourceAddress = 11,
    /// Dropped: all ports of this node that were tried for a source were taken.
    NoSourcePort = 12,
    /// Dropped: an address in the ranges of Services that nothing has (NE-12).
    UnusedAddress = 13,
    /// Dropped: a table had no memory for the flow.
    TableFull = 14,
    /// Dropped: the kernel did not let the packet be changed.
    NotRewritten = 15,
    /// A client was told of a refusal by ICMP.
    MessageSent = 16,
    /// It was not, because too many were.
    MessageHeldBack = 17,
    /// It was not, because no single host of this link could get the message.
    MessageToNobody = 18,
    /// It was not, because the packet could not be made a message.
    MessageFailed = 19,
    /// An error of ICMP about a packet of a flow was translated.
    ErrorTranslated = 20,
    /// An event was left out, because too many came at once or nothing read them in time.
    EventLeftOut = 21,
    /// Dropped: no single host can have sent the packet, or it is for many.
    Martian = 22,
}

/// What a decision about a flow means for its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// It goes to an endpoint, and a flow begins.
    Begins,
    /// Its sender is refused.
    Refuses,
    /// It is dropped.
    Drops,
    /// Nothing: this counts something else.
    Nothing,
}

impl Count {
    /// All of them, by number.
    pub const ALL: [Self; 23] = [
        Self::New,
        Self::Reopened,
        Self::Rebalanced,
        Self::Established,
        Self::SourceNat,
        Self::PortChanged,
        Self::NoEndpoint,
        Self::UndefinedPort,
        Self::NoLocalEndpoint,
        Self::SourceRange,
        Self::NoClientPort,
        Self::NoSourceAddress,
        Self::NoSourcePort,
        Self::UnusedAddress,
        Self::TableFull,
        Self::NotRewritten,
        Self::MessageSent,
        Self::MessageHeldBack,
        Self::MessageToNobody,
        Self::MessageFailed,
        Self::ErrorTranslated,
        Self::EventLeftOut,
        Self::Martian,
    ];

    /// The one of this number.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|count| *count as u32 == number)
    }

    /// Whether it [means](Self::means) that a flow begins. Programs ask this way: of more they would make a table,
    /// which is no part of their code.
    #[inline(always)]
    #[must_use]
    pub const fn begins(self) -> bool {
        matches!(self, Self::New | Self::Reopened | Self::Rebalanced)
    }

    /// Whether it means that the sender is refused.
    #[inline(always)]
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::NoEndpoint | Self::UndefinedPort)
    }

    /// What it means for the packet.
    #[must_use]
    pub const fn means(self) -> Means {
        match self {
            Self::New | Self::Reopened | Self::Rebalanced => Means::Begins,
            Self::NoEndpoint | Self::UndefinedPort => Means::Refuses,
            Self::NoLocalEndpoint
            | Self::SourceRange
            | Self::NoClientPort
            | Self::NoSourceAddress
            | Self::NoSourcePort
            | Self::UnusedAddress
            | Self::Martian
            | Self::TableFull
            | Self::NotRewritten => Means::Drops,
            Self::Established
            | Self::SourceNat
            | Self::PortChanged
            | Self::MessageSent
            | Self::MessageHeldBack
            | Self::MessageToNobody
            | Self::MessageFailed
            | Self::ErrorTranslated
            | Self::EventLeftOut => Means::Nothing,
        }
    }
}

/// Value of `SERVED`, whose index is that of the directory: 16 bytes, so that none lies in two cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Served {
    /// Flows that began.
    pub begun: u64,
    /// Flows that did not: refused or dropped at their first packet.
    pub unserved: u64,
}

#[cfg(test)]
mod tests {
    use super::{Count, Means};
    use crate::capacity;

    #[test]
    fn each_number_is_that_of_its_place() {
        for (number, count) in (0..).zip(Count::ALL) {
            assert_eq!((count as u32, Count::of(number)), (number, Some(count)));
            let means = (count.means() == Means::Begins, count.means() == Means::Refuses);
            assert_eq!((count.begins(), count.refuses()), means, "{count:?}");
        }
        assert_eq!(Count::of(u32::MAX), None);
        assert!(Count::ALL.len() <= capacity::COUNTERS as usize);
    }
}
