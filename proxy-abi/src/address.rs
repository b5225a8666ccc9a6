//! `ADDRESSES`: a hash map from an address to what it means besides its frontends; and `ADDRESS_BITS`, which tells most
//! addresses that are not in it.

use crate::frontend::digest;
use crate::{Address6, capacity};

/// Value of `ADDRESSES`, whose key is an [`Address6`]: fingerprint of the key in the upper 32 bits (see
/// [`FrontendValue`](crate::FrontendValue)); bit 0: takes node ports, bit 1: refuses ports that it does not define, bit
/// 2: takes node ports from the node itself only; bit 3: always set; bit 4: former. The unspecified address of a
/// family, which nobody dials, takes node ports if any address of the family does: for it a process asks that binds all
/// of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct AddressValue(pub u64);

/// The clients from which an address takes connections to node ports (TP-10…14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// From every client.
    FromAnywhere,
    /// From clients in the node's own network namespace: each namespace has a loopback of its own.
    FromNodeOnly,
}

impl AddressValue {
    const NODE: u64 = 1;
    const REFUSES: u64 = 2;
    const FROM_NODE: u64 = 4;
    const KNOWN: u64 = 8;
    const FORMER: u64 = 16;

    /// The value of `address`. `refuses`: it is a cluster IP, and ports that no Service defines there are refused
    /// (NE-11).
    #[must_use]
    pub const fn new(address: &Address6, node_ports: Option<NodePorts>, refuses: bool) -> Self {
        let node = match node_ports {
            Some(NodePorts::FromAnywhere) => Self::NODE,
            Some(NodePorts::FromNodeOnly) => Self::NODE | Self::FROM_NODE,
            None => 0,
        };
        let refuses = if refuses { Self::REFUSES } else { 0 };
        Self(((digest(address) as u64) << 32) | Self::KNOWN | node | refuses)
    }

    /// The value of an address that no Service has any more: flows that began before go on.
    #[must_use]
    pub const fn former(address: &Address6) -> Self {
        Self(((digest(address) as u64) << 32) | Self::KNOWN | Self::FORMER)
    }

    /// The value was written for `address`.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, address: &Address6) -> bool {
        (self.0 >> 32) as u32 == digest(address)
    }

    /// The map has the address. It is then of this node or of a Service, or was of one.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.0 & Self::KNOWN != 0
    }

    /// No Service has it any more.
    #[inline(always)]
    #[must_use]
    pub const fn is_former(self) -> bool {
        self.0 & Self::FORMER != 0
    }

    /// The address takes connections to node ports.
    #[inline(always)]
    #[must_use]
    pub const fn takes_node_ports(self) -> bool {
        self.0 & Self::NODE != 0
    }

    /// It takes them from the node itself only.
    #[inline(always)]
    #[must_use]
    pub const fn for_node_only(self) -> bool {
        self.0 & Self::FROM_NODE != 0
    }

    /// The clients from which the address takes connections to node ports, if it does.
    #[must_use]
    pub const fn node_ports(self) -> Option<NodePorts> {
        match (self.takes_node_ports(), self.for_node_only()) {
            (true, false) => Some(NodePorts::FromAnywhere),
            (true, true) => Some(NodePorts::FromNodeOnly),
            (false, _) => None,
        }
    }

    /// A Service has it as its cluster IP; ports that no Service defines there are refused (NE-11).
    #[inline(always)]
    #[must_use]
    pub const fn refuses_other_ports(self) -> bool {
        self.0 & Self::REFUSES != 0
    }
}

/// The bit of an address in `ADDRESS_BITS`, an array of words: it is set if the address, or another one with the same
/// bit, is in `ADDRESSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressBit {
    /// The index of the word.
    pub index: u32,
    /// The word that has this bit alone.
    pub mask: u64,
}

impl AddressBit {
    /// Bits of the number of an address's bit.
    const BITS: u32 = 6 + capacity::ADDRESS_BITS.ilog2();

    /// That of an address.
    #[inline(always)]
    #[must_use]
    pub const fn of(address: &Address6) -> Self {
        let number = digest(address) >> (u32::BITS - Self::BITS);
        Self { index: number >> 6, mask: 1 << (number & 63) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_gives_back_its_parts() {
        for node_ports in [None, Some(NodePorts::FromAnywhere), Some(NodePorts::FromNodeOnly)] {
            for refuses in [false, true] {
                let value = AddressValue::new(&[1, 2, 3, 4], node_ports, refuses);
                assert!(value.is_of(&[1, 2, 3, 4]) && !value.is_of(&[1, 2, 3, 5]));
                assert_eq!((value.node_ports(), value.refuses_other_ports()), (node_ports, refuses));
                assert!(value.is_known() && !value.is_former());
            }
        }
        let former = AddressValue::former(&[1, 2, 3, 4]);
        assert!(former.is_of(&[1, 2, 3, 4]) && former.is_known() && former.is_former());
        assert_eq!((former.node_ports(), former.refuses_other_ports()), (None, false));
    }

    #[test]
    fn few_addresses_share_a_bit() {
        let mut words = [0_u64; capacity::ADDRESS_BITS as usize];
        for number in 0..10_000_u32 {
            let AddressBit { index, mask } = AddressBit::of(&crate::mapped((0x0a60_0000 + number).to_be()));
            words[index as usize] |= mask;
        }
        let set: u32 = words.iter().map(|word| word.count_ones()).sum();
        assert!((9500..=10_000).contains(&set), "{set}");
    }
}
