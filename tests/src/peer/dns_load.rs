//! As many DNS queries as a server answers: a fixed number of them is always on its way, for a fixed time.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::print;

/// A query without an answer for so long counts as lost, and its place is free again.
const LOST: Duration = Duration::from_secs(1);

/// What to ask of whom.
#[derive(Clone, Debug, Args)]
pub struct DnsLoadArguments {
    /// The servers, one after the other in each round.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// A file with a question per line: name, number of the type, number of the rcode that is right.
    #[arg(long)]
    questions: PathBuf,
    /// Sockets, each with a port of its own.
    #[arg(long, default_value_t = 8)]
    sockets: u16,
    /// Queries on their way, per socket.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    window: u16,
    /// How long a server is asked in a round, in milliseconds.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    millis: u64,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// What one server did in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DnsLoadLine {
    /// The server.
    pub target: SocketAddr,
    /// Answers.
    pub answered: u64,
    /// Of these, with another rcode than the right one.
    pub wrong: u64,
    /// Queries without an answer.
    pub lost: u64,
    /// How long it was asked, in seconds.
    pub seconds: f64,
    /// The median time to an answer, in nanoseconds.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
}

struct DnsQuestion {
    /// With id 0.
    wire: Vec<u8>,
    rcode: u8,
}

/// Asks; prints a line per server and round.
pub(super) fn load(arguments: &DnsLoadArguments) -> anyhow::Result<()> {
    let text = fs::read_to_string(&arguments.questions)
        .with_context(|| format!("reading {}", arguments.questions.display()))?;
    let questions: Vec<DnsQuestion> = text.lines().map(question).collect::<anyhow::Result<_>>()?;
    ensure!(!questions.is_empty(), "{} asks nothing", arguments.questions.display());
    let mut next = questions.iter().cycle();
    for _ in 0..arguments.rounds {
        for target in &arguments.to {
            let mut round = Round::new(*target, arguments)?;
            print(&round.run(Duration::from_millis(arguments.millis), &mut next)?)?;
        }
    }
    Ok(())
}

/// Places of a socket for queries; the place is the query's id.
struct Line<'a> {
    socket: UdpSocket,
    places: Vec<Option<(Instant, &'a DnsQuestion)>>,
}

struct Round<'a> {
    target: SocketAddr,
    lines: Vec<Line<'a>>,
    times: Vec<u64>,
    wrong: u64,
    lost: u64,
}

impl<'a> Round<'a> {
    fn new(target: SocketAddr, arguments: &DnsLoadArguments) -> anyhow::Result<Self> {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let line = |_| {
            let socket = UdpSocket::bind((any, 0)).context("making a socket")?;
            socket.connect(target).with_context(|| format!("connecting to {target}"))?;
            socket.set_nonblocking(true).context("making a socket non-blocking")?;
            Ok(Line { socket, places: vec![None; arguments.window.into()] })
        };
        let lines = (0..arguments.sockets).map(line).collect::<anyhow::Result<_>>()?;
        Ok(Self { target, lines, times: Vec::new(), wrong: 0, lost: 0 })
    }

    fn run(
        &mut self,
        length: Duration,
        questions: &mut impl Iterator<Item = &'a DnsQuestion>,
    ) -> anyhow::Result<DnsLoadLine> {
        let start = Instant::now();
        while start.elapsed() < length {
            self.send(questions)?;
            if self.receive()? == 0 {
                self.wait()?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        self.times.sort_unstable();
        let at = |percent: usize| self.times.get(self.times.len() * percent / 100).copied().unwrap_or_default();
        let answered = u64::try_from(self.times.len()).context("counting answers")?;
        let (wrong, lost) = (self.wrong, self.lost);
        Ok(DnsLoadLine { target: self.target, answered, wrong, lost, seconds, p50: at(50), p99: at(99) })
    }

    /// Fills all free places.
    fn send(&mut self, questions: &mut impl Iterator<Item = &'a DnsQuestion>) -> anyhow::Result<()> {
        let mut wire = [0; 300];
        for line in &mut self.lines {
            for (id, place) in (0_u16..).zip(&mut line.places) {
                if place.is_some_and(|(sent, _)| sent.elapsed() > LOST) {
                    self.lost += 1;
                    *place = None;
                }
                if place.is_some() {
                    continue;
                }
                let question = questions.next().context("questions without end")?;
                let wire = wire.get_mut(..question.wire.len()).context("a question of usual length")?;
                wire.copy_from_slice(&question.wire);
                if let [high, low, ..] = wire {
                    [*high, *low] = id.to_be_bytes();
                }
                let sent = Instant::now();
                match line.socket.send(wire) {
                    Ok(_) => *place = Some((sent, question)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).with_context(|| format!("asking {}", self.target)),
                }
            }
        }
        Ok(())
    }

    /// Takes all answers that are there; says how many.
    fn receive(&mut self) -> anyhow::Result<usize> {
        let before = self.times.len();
        let mut buffer = [0; 1500];
        for line in &mut self.lines {
            loop {
                let length = match line.socket.recv(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).with_context(|| format!("waiting for {}", self.target)),
                };
                let Some([high, low, _, flags, ..]) = buffer.get(..length) else { continue };
                let place = line.places.get_mut(usize::from(u16::from_be_bytes([*high, *low])));
                if let Some((sent, question)) = place.and_then(Option::take) {
                    self.times.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
                    self.wrong += u64::from(flags & 15 != question.rcode);
                }
            }
        }
        Ok(self.times.len() - before)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut sockets: Vec<PollFd<'_>> =
            self.lines.iter().map(|line| PollFd::new(line.socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut sockets, PollTimeout::from(50_u16)).context("waiting for an answer").map(drop)
    }
}

fn question(line: &str) -> anyhow::Result<DnsQuestion> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[name, rtype, rcode] = words.as_slice() else { anyhow::bail!("{line:?} is no name, type and rcode") };
    let mut wire = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]; // RD, one question
    for label in name.trim_end_matches('.').split('.') {
        wire.push(u8::try_from(label.len()).with_context(|| format!("{name} has a long label"))?);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire.extend_from_slice(&rtype.parse::<u16>().with_context(|| format!("the type in {line:?}"))?.to_be_bytes());
    wire.extend_from_slice(&[0, 1]);
    ensure!(wire.len() < 300, "{name} is too long");
    Ok(DnsQuestion { wire, rcode: rcode.parse().with_context(|| format!("the rcode in {line:?}"))? })
}
