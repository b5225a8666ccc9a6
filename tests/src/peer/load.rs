//! A client that sends many requests, on new connections and on ones that it keeps, and says what came of them.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::socket::Answered;
use super::{CallError, print};

/// Failures that are told one by one.
const TOLD: usize = 5;

/// What to send where.
#[derive(Clone, Debug, Args)]
pub struct LoadArguments {
    /// The servers; each gets so many requests.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// Requests to each server.
    #[arg(long)]
    requests: usize,
    /// Requests on one connection.
    #[arg(long, default_value_t = 1)]
    keep: usize,
    /// Connections at once to each server.
    #[arg(long, default_value_t = 2)]
    at_once: usize,
    /// Milliseconds that a connection, and an answer, may take.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// What came of the requests to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadLine {
    /// The server.
    pub to: SocketAddr,
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that failed.
    pub failed: usize,
    /// How the first of them failed.
    pub errors: Vec<CallError>,
    /// Connections by the name of their server.
    pub servers: BTreeMap<String, usize>,
    /// Connections by the client's address as their server saw it.
    pub sources: BTreeMap<IpAddr, usize>,
}

/// Sends all of them, to all servers at once, and prints one line for each server at the end.
pub(super) fn load(arguments: &LoadArguments) -> anyhow::Result<()> {
    let loads = |to: SocketAddr| {
        let left = AtomicUsize::new(arguments.requests);
        let part = || one_after_the_other(to, arguments, &left);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..arguments.at_once).map(|_| scope.spawn(part)).collect();
            let mut line = LoadLine::new(to);
            for thread in threads {
                line.add(thread.join().map_err(|panic| anyhow!("a thread panicked: {panic:?}"))?);
            }
            print(&line)
        })
    };
    thread::scope(|scope| {
        let servers: Vec<_> = arguments.to.iter().map(|to| scope.spawn(move || loads(*to))).collect();
        servers.into_iter().try_for_each(|server| server.join().map_err(|panic| anyhow!("{panic:?}"))?)
    })
}

/// Connection after connection until no request is left.
fn one_after_the_other(to: SocketAddr, arguments: &LoadArguments, left: &AtomicUsize) -> LoadLine {
    let mut line = LoadLine::new(to);
    let take = |wanted: usize| {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(wanted)))
    };
    while let Ok(before) = take(arguments.keep)
        && before > 0
    {
        let requests = before.min(arguments.keep);
        let before = line.answered;
        if let Err(error) = connection(to, requests, Duration::from_millis(arguments.timeout), &mut line) {
            line.failed += requests.saturating_sub(line.answered - before);
            line.errors.push(CallError::from(&error));
        }
    }
    line.errors.truncate(TOLD);
    line
}

/// The greeting answers the first request; the others are lines that come back.
fn connection(to: SocketAddr, requests: usize, timeout: Duration, line: &mut LoadLine) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(&stream).lines();
    let mut next = || answers.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let Answered { server, source, .. } = Answered::of(&next()?, to)?;
    line.answered += 1;
    *line.servers.entry(server).or_default() += 1;
    if let Some(source) = source {
        *line.sources.entry(source.ip()).or_default() += 1;
    }
    for number in 1..requests {
        (&stream).write_all(format!("request {number}\n").as_bytes())?;
        let answer = next()?;
        if answer != format!("request {number}") {
            return Err(io::Error::other(format!("answer to another request: {answer}")));
        }
        line.answered += 1;
    }
    Ok(())
}

impl LoadLine {
    fn new(to: SocketAddr) -> Self {
        let (servers, sources) = (BTreeMap::new(), BTreeMap::new());
        Self { to, answered: 0, failed: 0, errors: Vec::new(), servers, sources }
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.errors.extend(other.errors);
        for (server, count) in other.servers {
            *self.servers.entry(server).or_default() += count;
        }
        for (source, count) in other.sources {
            *self.sources.entry(source).or_default() += count;
        }
    }
}
