//! What a packet costs in the packet programs: run one by one by the kernel's test-run, on the tables of a daemon. Must
//! run in the network namespace of its node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use clap::Args;
use etherparse::{PacketBuilder, PacketBuilderStep, PacketHeaders, TcpHeader, TransportHeader};
use serde::{Deserialize, Serialize};

use super::print;

/// `TC_ACT_UNSPEC`: the packet goes on.
const NEXT: u32 = u32::MAX;
/// Size of the kernel's `struct __sk_buff`, and where the index of the device is in it.
const CONTEXT: usize = 192;
const DEVICE: usize = 40;
/// Ports of clients: each new flow has one of its own.
const FIRST_PORT: u16 = 1024;

/// Which programs, and which packets.
#[derive(Clone, Debug, Args)]
pub struct ProgramArguments {
    /// The directory of pinned programs.
    #[arg(long)]
    pins: PathBuf,
    /// The device by which packets come in and leave.
    #[arg(long)]
    device: String,
    /// A node port with an endpoint elsewhere, for whose clients the node stands.
    #[arg(long)]
    node_port: SocketAddr,
    /// The client.
    #[arg(long)]
    client: IpAddr,
    /// An address that is neither of the node nor of a Service.
    #[arg(long)]
    other: IpAddr,
    /// Runs of each kind.
    #[arg(long, default_value_t = 5000)]
    samples: u16,
}

/// What one kind of packet costs at one hook, in nanoseconds, the kernel's own of a run included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramLine {
    /// The kind of packet.
    pub what: String,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
}

struct Hook {
    program: SchedClassifier,
    context: [u8; CONTEXT],
}

/// Runs, and prints a line for each kind of packet.
pub(super) fn run(arguments: &ProgramArguments) -> anyhow::Result<()> {
    let ProgramArguments { pins, device, node_port, client, other, samples } = arguments;
    let index = nix::net::if_::if_nametoindex(device.as_str()).with_context(|| format!("looking for {device}"))?;
    let [ingress, egress] = ["shunt_ingress", "shunt_egress"].map(|name| Hook::open(&pins.join(name), index));
    let (mut ingress, mut egress) = (ingress?, egress?);
    let samples = *samples;
    let client = |port| SocketAddr::new(*client, port);
    let to_other = SocketAddr::new(*other, 80);

    // What every run costs: the programs leave such a frame at their first look.
    let foreign = PacketBuilder::ethernet2([2; 6], [2; 6]).arp(etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        etherparse::EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &[2; 6],
        &[10, 0, 0, 1],
        &[2; 6],
        &[10, 0, 0, 2],
    )?);
    let mut frame = Vec::new();
    foreign.write(&mut frame)?;
    report("nothing of IP", samples, || ingress.time(&frame))?;

    let passing = segment(client(FIRST_PORT), to_other, |header| header.ack = true)?;
    report("of others, at ingress", samples, || ingress.time(&passing))?;
    report("of others, at egress", samples, || egress.time(&passing))?;

    let mut opened = Vec::new();
    let mut port = FIRST_PORT;
    report("new flow, at ingress", samples, || {
        port = port.saturating_add(1);
        let (inside, time) = ingress.run(&segment(client(port), *node_port, |header| header.syn = true)?)?;
        opened.push(inside);
        Ok(time)
    })?;
    let mut waiting = opened.into_iter();
    let mut first = None;
    report("new flow and its source NAT, at egress", samples, || {
        let (outside, time) = egress.run(&waiting.next().context("a packet of each flow")?)?;
        first.get_or_insert(outside);
        Ok(time)
    })?;
    let (node, endpoint) = ends(&first.context("a first packet")?)?;
    ensure!(endpoint != *node_port, "{node_port} is not served: the packet left as it came");

    let known = segment(client(FIRST_PORT + 1), *node_port, |header| header.ack = true)?;
    let (inside, _) = ingress.run(&known)?;
    report("known flow, at ingress", samples, || ingress.time(&known))?;
    report("known flow and its source NAT, at egress", samples, || egress.time(&inside))?;
    let answer = segment(endpoint, node, |header| header.ack = true)?;
    let (inside, _) = ingress.run(&answer)?;
    report("answer, at ingress", samples, || ingress.time(&answer))?;
    report("answer, at egress", samples, || egress.time(&inside))
}

/// Times it so often, and prints the line.
fn report(what: &str, samples: u16, mut sample: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<()> {
    let mut times = (0..samples).map(|_| sample()).collect::<anyhow::Result<Vec<u64>>>().context(what.to_owned())?;
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default();
    print(&ProgramLine { what: what.to_owned(), p50: at(50), p99: at(99) })
}

impl Hook {
    fn open(pin: &Path, index: u32) -> anyhow::Result<Self> {
        let program = SchedClassifier::from_pin(pin).with_context(|| format!("opening {}", pin.display()))?;
        let mut context = [0; CONTEXT];
        if let Some(place) = context.get_mut(DEVICE..DEVICE + 4) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        Ok(Self { program, context })
    }

    fn time(&mut self, frame: &[u8]) -> anyhow::Result<u64> {
        self.run(frame).map(|(_, time)| time)
    }

    /// The packet after one run, and how long that took.
    fn run(&mut self, frame: &[u8]) -> anyhow::Result<(Vec<u8>, u64)> {
        let mut after = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut after),
            ctx_in: Some(&self.context),
            ..TestRunOptions::default()
        };
        let result = self.program.test_run(options).context("running the program")?;
        ensure!(result.return_value == NEXT, "the program's verdict was {}", result.return_value);
        after.truncate(usize::try_from(result.data_size_out).unwrap_or_default());
        Ok((after, u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

fn segment(from: SocketAddr, to: SocketAddr, change: impl FnOnce(&mut TcpHeader)) -> anyhow::Result<Vec<u8>> {
    let mut header = TcpHeader::new(from.port(), to.port(), 1, 1024);
    change(&mut header);
    let mut frame = Vec::new();
    between(from.ip(), to.ip())?.tcp_header(header).write(&mut frame, b"a request")?;
    Ok(frame)
}

fn between(from: IpAddr, to: IpAddr) -> anyhow::Result<PacketBuilderStep<etherparse::IpHeaders>> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [2; 6]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(ethernet.ipv4(from.octets(), to.octets(), 64)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(ethernet.ipv6(from.octets(), to.octets(), 64)),
        (from, to) => anyhow::bail!("{from} and {to} are of two families"),
    }
}

/// Source and destination of a segment.
fn ends(frame: &[u8]) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let PacketHeaders { net, transport, .. } = PacketHeaders::from_ethernet_slice(frame)?;
    let (from, to): (IpAddr, IpAddr) = match net.context("no IP header")? {
        etherparse::NetHeaders::Ipv4(header, _) => (header.source.into(), header.destination.into()),
        etherparse::NetHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
        etherparse::NetHeaders::Arp(_) => anyhow::bail!("no IP header"),
    };
    let Some(TransportHeader::Tcp(header)) = transport else { anyhow::bail!("no segment") };
    Ok((SocketAddr::new(from, header.source_port), SocketAddr::new(to, header.destination_port)))
}
