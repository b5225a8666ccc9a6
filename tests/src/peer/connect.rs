//! A client that connects again and again and prints which server answered.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::socket::{Answered, DialTarget, attempt, udp_socket};
use super::{CallError, Mode, now, print};

/// Where to connect and how often.
#[derive(Clone, Debug, Args)]
pub struct ConnectArguments {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// How.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Stop after so many attempts.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
    /// Milliseconds from one attempt to the next.
    #[arg(long, default_value_t = 0)]
    interval: u64,
    /// Stop after so many seconds.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// Milliseconds until an attempt counts as failed.
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
    /// The source address; port 0 for any.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Keep one UDP socket for all attempts; a new one only when the kernel has destroyed it.
    #[arg(long)]
    same_socket: bool,
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it was answered or failed, in nanoseconds since 1970.
    pub t: u64,
    /// When it began.
    pub began: u64,
    /// The name the server gave.
    pub server: Option<String>,
    /// The address of the peer as the client sees it: `getpeername`, or the source of the datagram.
    pub peername: Option<SocketAddr>,
    /// The address of the client as the server sees it, if it says so.
    #[serde(default)]
    pub source: Option<SocketAddr>,
    /// Why it failed.
    pub error: Option<CallError>,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// Connects as asked, one line per attempt.
pub(super) fn connect(arguments: &ConnectArguments) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(arguments.duration);
    let interval = Duration::from_millis(arguments.interval);
    let mut next = Instant::now();
    let timeout = Duration::from_millis(arguments.timeout);
    let target = DialTarget { to: arguments.to, mode: arguments.mode, timeout, bind: arguments.bind };
    let mut kept = arguments.same_socket.then(|| udp_socket(&target)).transpose().context("making a UDP socket")?;
    for number in 0..arguments.count {
        let attempt = timed(&target, number, kept.as_ref());
        print(&attempt)?;
        // The errors that a receiver and a sender get from a socket that was destroyed.
        if kept.is_some() && matches!(attempt.error, Some(CallError::Aborted | CallError::NoDestination)) {
            kept = Some(udp_socket(&target).context("making a UDP socket anew")?);
        }
        next += interval;
        if Instant::now().max(next) >= end {
            break;
        }
        sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// One attempt and its outcome.
pub(super) fn timed(target: &DialTarget, number: u64, kept: Option<&UdpSocket>) -> Attempt {
    let (start, began) = (Instant::now(), now());
    let result = attempt(target, number, kept);
    let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let failed = Attempt { t: now(), began, server: None, peername: None, source: None, error: None, us };
    match result {
        Ok(Answered { server, peername, source }) => {
            Attempt { server: Some(server), peername: Some(peername), source, ..failed }
        }
        Err(error) => Attempt { error: Some(CallError::from(&error)), ..failed },
    }
}
