//! `shunt-dns`: the DNS of shunt alone, without privileges.
#![forbid(unsafe_code)]

fn main() {}
