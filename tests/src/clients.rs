//! Servers and clients of `lab-peer`, started in a place and read as values.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::peer::{Answer, Attempt, Mode, Probe, Question, Resolution, SERVING};
use crate::place::{Place, parse};
use crate::process::Process;

/// How long one action of a client may take before the lab counts it as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that connects in the background.
#[derive(Debug)]
pub struct Client {
    process: Process,
    attempts: Vec<Attempt>,
}

/// A client that keeps running and connects to the addresses that it reads from its standard input.
#[derive(Debug)]
pub struct Dialler {
    process: Process,
}

impl Dialler {
    /// Asks all questions at once and waits for all answers, in the order of the questions.
    pub fn dial(&mut self, questions: &[Question]) -> anyhow::Result<Vec<Vec<Attempt>>> {
        for (id, question) in questions.iter().enumerate() {
            let line = serde_json::to_string(&(id, question)).context("writing a question")?;
            self.process.say(&line)?;
        }
        let mut answers = vec![Vec::new(); questions.len()];
        for _ in questions {
            let line = self.process.wait_for_line(PATIENCE, |_| true)?;
            let Answer { id, attempts } = parse(&line)?;
            *answers.get_mut(id).with_context(|| format!("an answer to no question: {line}"))? = attempts;
        }
        Ok(answers)
    }
}

impl Place {
    /// Starts a client that keeps running.
    pub fn dialler(&self) -> anyhow::Result<Dialler> {
        Ok(Dialler { process: self.listening_peer("dial", &[])? })
    }

    /// Starts a `lab-peer serve` with these arguments and waits until it listens.
    pub fn serve(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Process> {
        let process = self.peer(&[&["serve", "--name", name], arguments].concat())?;
        process.wait_for_line(PATIENCE, |line| line == SERVING)?;
        Ok(process)
    }

    /// Starts a DNS server that knows `answers` (`name=ip`) on port 53 of `address`.
    pub fn dns_upstream(&self, address: IpAddr, answers: &[&str]) -> anyhow::Result<Process> {
        let listen = SocketAddr::new(address, 53).to_string();
        let mut arguments = vec!["dns-upstream", "--listen", &listen];
        arguments.extend(answers.iter().flat_map(|answer| ["--answer", answer]));
        let process = self.peer(&arguments)?;
        process.wait_for_line(PATIENCE, |line| line == SERVING)?;
        Ok(process)
    }

    /// Connects `count` times, one after the other.
    pub fn connect(&self, to: SocketAddr, mode: Mode, count: u32) -> anyhow::Result<Vec<Attempt>> {
        self.connect_with(to, mode, &["--count", &count.to_string()])
    }

    /// Connects as the further arguments say.
    pub fn connect_with(&self, to: SocketAddr, mode: Mode, further: &[&str]) -> anyhow::Result<Vec<Attempt>> {
        let arguments = [connect_arguments(to, mode), further.iter().map(|&argument| argument.to_owned()).collect()];
        self.ask(&arguments.concat(), PATIENCE)
    }

    /// Connects every `interval` milliseconds in the background, for at most a minute.
    pub fn connect_loop(&self, to: SocketAddr, mode: Mode, interval: u32) -> anyhow::Result<Client> {
        let mut arguments = connect_arguments(to, mode);
        arguments.extend(["--interval".to_owned(), interval.to_string()]);
        Ok(Client { process: self.peer(&arguments)?, attempts: Vec::new() })
    }

    /// Makes one kind of call for each address, named as on the command line: `ping`, `bind-tcp`.
    pub fn probe(&self, call: &str, to: &[SocketAddr]) -> anyhow::Result<Vec<Probe>> {
        let to = to.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.ask(&["probe", "--call", call, "--to", &to], PATIENCE)
    }

    /// Uses one UDP socket as the steps say, and gives the answer to each question: `connect=ADDRESS`, `disconnect`,
    /// `ask`, `ask=ADDRESS`.
    pub fn turns(&self, steps: &[&str]) -> anyhow::Result<Vec<Probe>> {
        self.ask(&[&["turns"], steps].concat(), PATIENCE)
    }

    /// Connects as the further arguments say, in the background.
    pub fn connect_in_background(&self, to: SocketAddr, mode: Mode, further: &[&str]) -> anyhow::Result<Client> {
        let mut arguments = connect_arguments(to, mode);
        arguments.extend(further.iter().map(|&argument| argument.to_owned()));
        Ok(Client { process: self.peer(&arguments)?, attempts: Vec::new() })
    }

    /// Asks a DNS server over UDP.
    pub fn resolve(&self, name: &str, record_type: &str, server: IpAddr) -> anyhow::Result<Resolution> {
        self.resolve_with(name, record_type, server, &[])
    }

    /// Asks a DNS server over TCP.
    pub fn resolve_tcp(&self, name: &str, record_type: &str, server: IpAddr) -> anyhow::Result<Resolution> {
        self.resolve_with(name, record_type, server, &["--tcp"])
    }

    fn resolve_with(&self, name: &str, kind: &str, server: IpAddr, further: &[&str]) -> anyhow::Result<Resolution> {
        let server = server.to_string();
        let arguments = [&["resolve", name, kind, "--server", &server], further].concat();
        self.ask(&arguments, PATIENCE)?.pop().with_context(|| format!("no answer for {name} {kind}"))
    }
}

impl Client {
    /// All attempts so far.
    pub fn attempts(&mut self) -> anyhow::Result<&[Attempt]> {
        for line in self.process.pending_lines() {
            self.attempts.push(parse(&line)?);
        }
        Ok(&self.attempts)
    }

    /// Waits until an attempt that began at `since` or later is one that `wanted` accepts.
    pub fn wait_for(&mut self, since: u64, what: &str, wanted: impl Fn(&Attempt) -> bool) -> anyhow::Result<Attempt> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            crate::signals::check()?;
            if let Some(line) = self.process.next_line(Duration::from_millis(50))? {
                self.attempts.push(parse(&line)?);
            }
            for attempt in self.attempts.get(seen..).unwrap_or_default() {
                if attempt.began >= since && wanted(attempt) {
                    return Ok(attempt.clone());
                }
            }
            seen = self.attempts.len();
            if Instant::now() > deadline {
                return Err(self.process.failure(&format!("did not see {what} within {PATIENCE:?}")));
            }
        }
    }

    /// Waits until at least `count` further attempts began at `since` or later.
    pub fn wait_for_attempts(&mut self, since: u64, count: usize) -> anyhow::Result<Vec<Attempt>> {
        let later = |attempts: &[Attempt]| -> Vec<Attempt> {
            attempts.iter().filter(|attempt| attempt.began >= since).cloned().collect()
        };
        while later(&self.attempts).len() < count {
            let last = self.attempts.last().map_or(0, |attempt| attempt.began.saturating_add(1));
            self.wait_for(since.max(last), "another attempt", |_| true)?;
        }
        Ok(later(&self.attempts))
    }

    /// The attempts that failed.
    pub fn failures(&mut self) -> anyhow::Result<Vec<Attempt>> {
        Ok(self.attempts()?.iter().filter(|attempt| attempt.error.is_some()).cloned().collect())
    }
}

fn connect_arguments(to: SocketAddr, mode: Mode) -> Vec<String> {
    let mode = match mode {
        Mode::Tcp => "tcp",
        Mode::Http => "http",
        Mode::TcpFastopen => "tcp-fastopen",
        Mode::Mptcp => "mptcp",
        Mode::Sctp => "sctp",
        Mode::Udp => "udp",
        Mode::UdpUnconnected => "udp-unconnected",
        Mode::SctpInit => "sctp-init",
    };
    ["connect", "--to", &to.to_string(), "--mode", mode].map(str::to_owned).to_vec()
}
