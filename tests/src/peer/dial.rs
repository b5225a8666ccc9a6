//! A client that stays: every line of its input is a question, each is worked on at once, and answered in one line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::connect::{Attempt, timed};
use super::socket::DialTarget;
use super::{CallError, Mode, print};

/// The source ports of flows; none of a server and no node port is among them.
const FLOW_PORTS: Range<u16> = 40_000..61_000;

/// Connect so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The server.
    pub to: SocketAddr,
    /// How.
    pub mode: Mode,
    /// How often; it ends earlier at the first failure.
    pub count: u64,
    /// Milliseconds until an attempt counts as failed.
    pub timeout: u64,
    /// The source address, if the kernel is not to choose it.
    pub source: Option<IpAddr>,
}

/// What the attempts of a question came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the question.
    pub id: usize,
    /// Every attempt, in order.
    pub attempts: Vec<Attempt>,
}

/// Answers until its input ends.
pub(super) fn dial() -> anyhow::Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.context("reading a question")?;
        let (id, question): (usize, Question) =
            serde_json::from_str(&line).with_context(|| format!("reading the question {line}"))?;
        thread::spawn(move || print(&Answer { id, attempts: attempts(&question) }));
    }
    Ok(())
}

fn attempts(question: &Question) -> Vec<Attempt> {
    let Question { to, mode, count, timeout, source } = *question;
    let mut attempts = Vec::new();
    for number in 0..count {
        let mut one = DialTarget { to, mode, timeout: Duration::from_millis(timeout), bind: bind(to, mode, source) };
        let mut attempt = timed(&one, number, None);
        while attempt.error == Some(CallError::InUse) {
            one.bind = bind(to, mode, source);
            attempt = timed(&one, number, None);
        }
        let failed = attempt.error.is_some();
        attempts.push(attempt);
        if failed {
            break;
        }
    }
    attempts
}

/// What a socket is bound to. Each flow gets the next port: the kernel's choice could be that of a flow some seconds
/// ago, which conntrack remembers and would go on with. Of TCP, that is one that got no answer before there was a
/// Service.
fn bind(to: SocketAddr, mode: Mode, source: Option<IpAddr>) -> Option<SocketAddr> {
    static FLOWS: AtomicU32 = AtomicU32::new(0);
    let port = || {
        let turn = FLOWS.fetch_add(1, Ordering::Relaxed) % u32::from(FLOW_PORTS.end - FLOW_PORTS.start);
        FLOW_PORTS.start + u16::try_from(turn).unwrap_or_default()
    };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    match mode {
        Mode::Tcp | Mode::Udp | Mode::UdpUnconnected | Mode::SctpInit => {
            Some(SocketAddr::new(source.unwrap_or(any), port()))
        }
        Mode::Http | Mode::TcpFastopen | Mode::Mptcp | Mode::Sctp => source.map(|source| SocketAddr::new(source, 0)),
    }
}
