//! What a packet costs in the packet programs: run in rows by the kernel's test-run, on the tables of a daemon. Must
//! run in the network namespace of its node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions};
use clap::Args;
use etherparse::{PacketBuilder, PacketBuilderStep, PacketHeaders, TcpHeader, TransportHeader};
use proxy_abi::Replayed;
use serde::{Deserialize, Serialize};

use super::print;

/// `TC_ACT_UNSPEC`: the packet goes on.
const NEXT: u32 = u32::MAX;
/// Size of the kernel's `struct __sk_buff`, and where the index of the device is in it.
const CONTEXT: usize = 192;
const DEVICE: usize = 40;
/// Ports of clients: each new flow has one of its own.
const FIRST_PORT: u16 = 1024;
/// So many packets run in a row, and so many rows of each kind.
const ROW: u16 = 2000;
const ROWS: u16 = 25;
/// Rows of new flows: as many flows as the table of those that open has room for.
const NEW_ROWS: u16 = 5;

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
    /// The BPF object that gives a program the same packet again and again.
    #[arg(long)]
    replay: PathBuf,
}

/// What one kind of packet costs at one hook, in nanoseconds, the kernel's own of a run included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramLine {
    /// The kind of packet.
    pub what: String,
    /// That of the median row.
    pub p50: u64,
    /// That of the slowest row.
    pub max: u64,
}

/// Gives a program the same packet again and again.
struct Replay {
    object: Ebpf,
    context: [u8; CONTEXT],
}

struct Hook {
    program: SchedClassifier,
    context: [u8; CONTEXT],
}

/// Runs, and prints a line for each kind of packet.
pub(super) fn run(arguments: &ProgramArguments) -> anyhow::Result<()> {
    let ProgramArguments { pins, device, node_port, client, other, replay } = arguments;
    let index = nix::net::if_::if_nametoindex(device.as_str()).with_context(|| format!("looking for {device}"))?;
    let [ingress, egress] = ["shunt_ingress", "shunt_egress"].map(|name| Hook::open(&pins.join(name), index));
    let (mut ingress, mut egress) = (ingress?, egress?);
    let mut replay = Replay::open(replay, index)?;
    let client = |port| SocketAddr::new(*client, port);

    let of_others = segment(client(FIRST_PORT), SocketAddr::new(*other, 80), |header| header.ack = true)?;
    let nothing = program(&mut replay.object, "nothing")?.fd()?.try_clone()?;
    let [at_ingress, at_egress] = [ingress.program.fd()?.try_clone()?, egress.program.fd()?.try_clone()?];
    replay.report("nothing", &nothing, &of_others)?;
    replay.report("of others, at ingress", &at_ingress, &of_others)?;
    replay.report("of others, at egress", &at_egress, &of_others)?;

    let first = segment(client(FIRST_PORT), *node_port, |header| header.syn = true)?;
    let inside = ingress.run(&first)?;
    let outside = egress.run(&inside)?;
    let (node, endpoint) = ends(&outside)?;
    ensure!(endpoint != *node_port, "{node_port} is not served: the packet left as it came");
    replay.report_new("new flow, at ingress", &at_ingress, &first)?;
    replay.report_new("new flow and its source NAT, at egress", &at_egress, &inside)?;

    let known = segment(client(FIRST_PORT), *node_port, |header| header.ack = true)?;
    let inside = ingress.run(&known)?;
    replay.report("known flow, at ingress", &at_ingress, &known)?;
    replay.report("known flow and its source NAT, at egress", &at_egress, &inside)?;
    let answer = segment(endpoint, node, |header| header.ack = true)?;
    let inside = ingress.run(&answer)?;
    replay.report("answer, at ingress", &at_ingress, &answer)?;
    replay.report("answer, at egress", &at_egress, &inside)
}

impl Replay {
    fn open(path: &Path, index: u32) -> anyhow::Result<Self> {
        let mut object = Ebpf::load_file(path).with_context(|| format!("loading {}", path.display()))?;
        for name in ["nothing", "replay"] {
            program(&mut object, name)?.load().with_context(|| format!("loading {name}"))?;
        }
        Ok(Self { object, context: context(index) })
    }

    fn report(&mut self, what: &str, program: &ProgramFd, frame: &[u8]) -> anyhow::Result<()> {
        let rows = (0..ROWS).map(|_| self.time(program, frame, 0, 0));
        print(&line(what, rows.collect::<anyhow::Result<_>>().with_context(|| what.to_owned())?))
    }

    /// The same with a source port of its own for each packet.
    fn report_new(&mut self, what: &str, program: &ProgramFd, frame: &[u8]) -> anyhow::Result<()> {
        let first = |row: u16| FIRST_PORT.saturating_add(1).saturating_add(row.saturating_mul(ROW));
        let rows = (0..NEW_ROWS).map(|row| self.time(program, frame, first(row), ROW));
        print(&line(what, rows.collect::<anyhow::Result<_>>().with_context(|| what.to_owned())?))
    }

    /// What one packet of a row costs.
    fn time(&mut self, measured: &ProgramFd, frame: &[u8], first: u16, ports: u16) -> anyhow::Result<u64> {
        let frame: [u8; 64] = frame.try_into().context("a frame of 64 bytes")?;
        let replayed: [u8; size_of::<Replayed>()] = zerocopy::transmute!(Replayed { frame, first, ports, turns: 0 });
        let map = self.object.map_mut("REPLAYED").context("the packet")?;
        Array::<_, [u8; size_of::<Replayed>()]>::try_from(map)?.set(0, replayed, 0)?;
        let map = self.object.map_mut("MEASURED").context("the program that is measured")?;
        ProgramArray::try_from(map)?.set(0, measured, 0)?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&self.context),
            repeat: ROW.into(),
            ..TestRunOptions::default()
        };
        let result = program(&mut self.object, "replay")?.test_run(options).context("running the program")?;
        ensure!(result.return_value == NEXT, "the program's verdict was {}", result.return_value);
        Ok(u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn line(what: &str, mut rows: Vec<u64>) -> ProgramLine {
    rows.sort_unstable();
    let at = |place: usize| rows.get(place).copied().unwrap_or_default();
    ProgramLine { what: what.to_owned(), p50: at(rows.len() / 2), max: at(rows.len().saturating_sub(1)) }
}

/// What a program sees of a packet beside itself: the device.
fn context(index: u32) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    if let Some(place) = context.get_mut(DEVICE..DEVICE + 4) {
        place.copy_from_slice(&index.to_ne_bytes());
    }
    context
}

impl Hook {
    fn open(pin: &Path, index: u32) -> anyhow::Result<Self> {
        let program = SchedClassifier::from_pin(pin).with_context(|| format!("opening {}", pin.display()))?;
        Ok(Self { program, context: context(index) })
    }

    /// The packet after one run.
    fn run(&mut self, frame: &[u8]) -> anyhow::Result<Vec<u8>> {
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
        Ok(after)
    }
}

fn segment(from: SocketAddr, to: SocketAddr, change: impl FnOnce(&mut TcpHeader)) -> anyhow::Result<Vec<u8>> {
    let mut header = TcpHeader::new(from.port(), to.port(), 1, 1024);
    change(&mut header);
    let mut frame = Vec::new();
    between(from.ip(), to.ip())?.tcp_header(header).write(&mut frame, b"a request.")?;
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
