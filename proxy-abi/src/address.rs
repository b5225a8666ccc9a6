//! `ADDRESSES`: a hash map from an address to what it means besides its frontends.

use crate::Address6;
use crate::frontend::digest;

/// Value of `ADDRESSES`, whose key is an [`Address6`]: fingerprint of the key in the upper 32 bits (see
/// [`FrontendValue`](crate::FrontendValue)); bit 0: accepts node ports, bit 1: cluster IP of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressValue(pub u64);

impl AddressValue {
    const NODE: u64 = 1;
    const CLUSTER: u64 = 2;

    /// What `address` means.
    #[must_use]
    pub const fn new(address: &Address6, node: bool, cluster: bool) -> Self {
        let node = if node { Self::NODE } else { 0 };
        let cluster = if cluster { Self::CLUSTER } else { 0 };
        Self(((digest(address) as u64) << 32) | node | cluster)
    }

    /// The value was written for `address`.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, address: &Address6) -> bool {
        (self.0 >> 32) as u32 == digest(address)
    }

    /// Connections to node ports are accepted here (spec 3.2).
    #[inline(always)]
    #[must_use]
    pub const fn node(self) -> bool {
        self.0 & Self::NODE != 0
    }

    /// A Service has it; ports that it does not define are refused (spec NE-11).
    #[inline(always)]
    #[must_use]
    pub const fn cluster(self) -> bool {
        self.0 & Self::CLUSTER != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_gives_back_its_parts() {
        let value = AddressValue::new(&[1, 2, 3, 4], true, false);
        assert!(value.is_of(&[1, 2, 3, 4]) && !value.is_of(&[1, 2, 3, 5]));
        assert!(value.node() && !value.cluster());
    }
}
