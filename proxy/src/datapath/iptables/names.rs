//! Names of chains: the same for the same thing in every run, so that the next daemon adopts what is there.
//!
//! Base 32 is our own: the crates for it give text that ends in padding, and it is four lines.

use std::net::SocketAddr;

use ring::digest::{SHA256, digest};

use super::rule::{LIST6, Name, OURS};
use crate::plan::PortKey;

/// 80 bits: no one can make two Services whose chains have one name.
const LETTERS: usize = 16;

/// What all chains of a service port have in their names, and what begins the text of which its endpoints are named.
pub(super) struct PortNames {
    text: String,
    hash: String,
}

impl PortNames {
    pub(super) fn of(key: &PortKey) -> Self {
        let text = key.to_string();
        let hash = hash(text.as_bytes());
        Self { text, hash }
    }

    /// The chain of this purpose, which is at most five letters.
    pub(super) fn chain(&self, purpose: &str) -> Name {
        format!("{OURS}{purpose}-{}", self.hash).into()
    }

    /// The chain that leads to one endpoint and records its clients.
    pub(super) fn endpoint(&self, address: SocketAddr) -> Name {
        format!("{OURS}EP-{}", self.hash_of(address)).into()
    }

    /// The list of clients of one endpoint.
    pub(super) fn clients(&self, address: SocketAddr) -> Name {
        let prefix = if address.is_ipv6() { LIST6 } else { "SHUNT-4" };
        format!("{prefix}-{}", self.hash_of(address)).into()
    }

    fn hash_of(&self, address: SocketAddr) -> String {
        hash(format!("{} {address}", self.text).as_bytes())
    }
}

/// In the alphabet of base 32.
pub(super) fn hash(text: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = digest(&SHA256, text);
    let bits = digest.as_ref().iter().flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    let bits: Vec<usize> = bits.collect();
    let letter = |bits: &[usize]| ALPHABET.get(bits.iter().fold(0, |number, bit| number << 1 | bit)).copied();
    bits.chunks_exact(5).take(LETTERS).filter_map(letter).map(char::from).collect()
}
