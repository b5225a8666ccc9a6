//! A server or client placed inside a node or pod of the lab.
#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    lab::peer::Peer::parse().run()
}
