//! Many TCP connections that stay open: at each line of standard input all of them say something and hear it back.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::socket::Answered;
use super::{CallError, print};

/// Whom to connect to.
#[derive(Clone, Debug, Args)]
pub struct CrowdArguments {
    /// The servers, which get the connections in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// How many connections.
    #[arg(long)]
    count: usize,
    /// Milliseconds that a round may take.
    #[arg(long, default_value_t = 20_000)]
    timeout: u64,
}

/// Failures that are told one by one.
const TOLD: usize = 5;

/// What came of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdLine {
    /// Connections that were answered, by the name of their server.
    pub answered: BTreeMap<String, usize>,
    /// Connections that have failed so far.
    pub failed: usize,
    /// How the first of them failed.
    pub errors: Vec<CallError>,
}

struct Connection {
    server: String,
    stream: BufReader<TcpStream>,
}

/// Opens them to the servers in turn, prints a line, and then one for each line of its input.
pub(super) fn hold(arguments: &CrowdArguments) -> anyhow::Result<()> {
    let timeout = Duration::from_millis(arguments.timeout);
    let mut line = CrowdLine::default();
    let mut crowd = Vec::new();
    for address in arguments.to.iter().cycle().take(arguments.count) {
        let connection = Connection::open(*address, timeout).with_context(|| format!("connecting to {address}"))?;
        line.count(&connection);
        crowd.push(connection);
    }
    print(&line)?;
    for (round, input) in io::stdin().lines().enumerate() {
        input.context("reading standard input")?;
        line.answered.clear();
        let said = format!("round {round}");
        let mut failed = Vec::new();
        crowd.retain_mut(|connection| connection.say(&said).map_err(|error| failed.push(error)).is_ok());
        let deadline = Instant::now() + timeout;
        crowd.retain_mut(|connection| {
            let heard = connection.hear(&said, deadline).map_err(|error| failed.push(error)).is_ok();
            if heard {
                line.count(connection);
            }
            heard
        });
        line.failed += failed.len();
        line.errors.extend(failed.iter().map(CallError::from));
        line.errors.truncate(TOLD);
        print(&line)?;
    }
    Ok(())
}

impl CrowdLine {
    fn count(&mut self, connection: &Connection) {
        *self.answered.entry(connection.server.clone()).or_default() += 1;
    }

    /// How many connections were answered.
    #[must_use]
    pub fn all(&self) -> usize {
        self.answered.values().sum()
    }
}

impl Connection {
    fn open(to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::with_capacity(256, stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting)?;
        Ok(Self { server: Answered::of(&greeting, to)?.server, stream })
    }

    fn say(&mut self, said: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{said}\n").as_bytes())
    }

    fn hear(&mut self, said: &str, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout of zero would mean none.
        self.stream.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut heard = String::new();
        self.stream.read_line(&mut heard)?;
        if heard.trim_end() == said { Ok(()) } else { Err(io::Error::other(format!("heard {heard:?} for {said:?}"))) }
    }
}
