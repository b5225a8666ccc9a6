//! Timed loops: connect, datagram, request and response, over several targets in turn.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{bulk, print};

/// What to measure. The targets take turns sample by sample, so that other work of the machine affects all of them.
#[derive(Clone, Debug, Args)]
pub struct BenchArguments {
    /// The targets.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// Samples per target and round.
    #[arg(long, default_value_t = 500)]
    samples: u32,
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// For bench-connect: connect UDP sockets.
    #[arg(long)]
    udp: bool,
}

/// The result for one target, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchLine {
    /// The target.
    pub target: SocketAddr,
    /// How many samples.
    pub samples: usize,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The mean; its inverse is the rate.
    pub mean: u64,
    /// The median of each round, for judging the noise.
    pub rounds: Vec<u64>,
}

/// Times connect() and close().
pub(super) fn connect(arguments: &BenchArguments) -> anyhow::Result<()> {
    let kind = if arguments.udp { Type::DGRAM } else { Type::STREAM };
    interleave(arguments, |target| {
        let socket = Socket::new(Domain::for_address(target), kind, None).context("making a socket")?;
        if kind == Type::STREAM {
            // Closing with a reset leaves no TIME_WAIT, so the search for a free port costs the same in every sample.
            socket.set_linger(Some(Duration::ZERO)).context("setting linger")?;
        }
        let address = SockAddr::from(target);
        let start = Instant::now();
        socket.connect(&address).with_context(|| format!("connecting to {target}"))?;
        drop(socket);
        Ok(start.elapsed())
    })
}

/// Times a datagram there and back on one unconnected socket per target.
pub(super) fn udp(arguments: &BenchArguments) -> anyhow::Result<()> {
    let mut sockets = BTreeMap::new();
    for target in &arguments.to {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).context("making a socket")?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).context("setting the timeout")?;
        sockets.insert(*target, socket);
    }
    let mut buffer = [0; 256];
    interleave(arguments, |target| {
        let socket = sockets.get(&target).context("a socket for each target")?;
        let start = Instant::now();
        socket.send_to(b"ping", target).with_context(|| format!("sending to {target}"))?;
        socket.recv_from(&mut buffer).with_context(|| format!("waiting for {target}"))?;
        Ok(start.elapsed())
    })
}

/// Times connect, the greeting, one echoed line, and close.
pub(super) fn request_response(arguments: &BenchArguments) -> anyhow::Result<()> {
    interleave(arguments, |target| {
        let start = Instant::now();
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).context("making a socket")?;
        socket.set_linger(Some(Duration::ZERO)).context("setting linger")?;
        socket.connect(&SockAddr::from(target)).with_context(|| format!("connecting to {target}"))?;
        socket.set_tcp_nodelay(true).context("setting nodelay")?;
        let mut reader = BufReader::new(&socket);
        let mut line = String::new();
        reader.read_line(&mut line).context("reading the greeting")?;
        (&socket).write_all(b"ping\n").context("writing")?;
        reader.read_line(&mut line).context("reading the echo")?;
        drop(reader);
        drop(socket);
        Ok(start.elapsed())
    })
}

/// Times one echoed line, on one connection for each target.
pub(super) fn exchange(arguments: &BenchArguments) -> anyhow::Result<()> {
    let mut connections = BTreeMap::new();
    for target in &arguments.to {
        let stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
        stream.set_nodelay(true).context("setting nodelay")?;
        let mut reader = BufReader::new(stream.try_clone().context("sharing the socket")?);
        reader.read_line(&mut String::new()).context("reading the greeting")?;
        connections.insert(*target, (stream, reader));
    }
    let mut line = String::new();
    interleave(arguments, |target| {
        let (stream, reader) = connections.get_mut(&target).context("a connection for each target")?;
        line.clear();
        let start = Instant::now();
        stream.write_all(b"ping\n").context("writing")?;
        reader.read_line(&mut line).context("reading the echo")?;
        Ok(start.elapsed())
    })
}

/// So many bytes are a sample of [`stream`].
const POURED: u64 = 16 << 20;

/// Times a connection by which many bytes come.
pub(super) fn stream(arguments: &BenchArguments) -> anyhow::Result<()> {
    interleave(arguments, |target| {
        let start = Instant::now();
        bulk::be_poured(target, POURED)?;
        Ok(start.elapsed())
    })
}

fn interleave(
    arguments: &BenchArguments,
    mut sample: impl FnMut(SocketAddr) -> anyhow::Result<Duration>,
) -> anyhow::Result<()> {
    let mut times: Vec<(SocketAddr, Vec<u64>, Vec<u64>)> =
        arguments.to.iter().map(|target| (*target, Vec::new(), Vec::new())).collect();
    for _ in 0..arguments.rounds {
        let mut round = vec![Vec::new(); times.len()];
        for number in 0..arguments.samples {
            // Every other turn backwards: none always follows the same one.
            let mut turn: Vec<_> = times.iter().map(|(target, ..)| *target).zip(&mut round).collect();
            if number % 2 == 1 {
                turn.reverse();
            }
            for (target, samples) in turn {
                samples.push(u64::try_from(sample(target)?.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        for ((_, all, medians), mut samples) in times.iter_mut().zip(round) {
            samples.sort_unstable();
            medians.push(quantile(&samples, 50));
            all.extend(samples);
        }
    }
    for (target, mut all, rounds) in times {
        all.sort_unstable();
        let count = u64::try_from(all.len()).context("counting samples")?.max(1);
        let mean = all.iter().sum::<u64>() / count;
        let (p50, p99) = (quantile(&all, 50), quantile(&all, 99));
        print(&BenchLine { target, samples: all.len(), p50, p99, mean, rounds })?;
    }
    Ok(())
}

fn quantile(sorted: &[u64], percent: usize) -> u64 {
    let index = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(index).copied().unwrap_or_default()
}
